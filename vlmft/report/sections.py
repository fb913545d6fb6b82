"""The page's sections below the matrix, each as HTML; one that has nothing to say is empty."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlmft.evaluation.ablations import PASSES
from vlmft.history import ranked
from vlmft.report import matrix as facts
from vlmft.report.markup import (
    NOTHING,
    Markup,
    html,
    is_share,
    metric_name,
    p_value,
    paragraph,
    per_protocol,
    points,
    table,
)
from vlmft.report.matrix import Cell, Matrix
from vlmft.report.scan import Run, Sweep
from vlmft.report.tables import constant_floor, number, significant, without_pictures

_LEAKS = {  # count of `leakage.audit` → heading
    "images": "images",
    "same_image": "same image",
    "alike": "looks alike",
    "questions": "questions",
    "on_same_image": "on a same image",
    "same_question": "same question",
    "same_pair": "same pair",
    "same_id": "same id",
}

_ENDS = ("difference", "low", "high")

Rows = Sequence[tuple[str, Run]]


def transfer(matrices: Sequence[Matrix]) -> Markup:
    """The mean over the sets a run was trained on beside that over the others."""

    def rows(matrix: Matrix) -> Iterator[Sequence[object]]:
        for row in facts.transfer(matrix):
            if not row["run"].base or row["transfer"] is not None:
                own, other = (number(row[name], row["metric"]) for name in ("in_domain", "transfer"))
                sets = (len(row["in_domain_sets"]), len(row["transfer_sets"]))
                yield row["label"], metric_name(row["metric"]), own, sets[0], other, sets[1]

    headings = ("run", "metric", "trained on", "sets", "not trained on", "sets")
    found = {matrix.protocol: table(headings, rows(matrix), words=2, once=("metric",)) for matrix in matrices}
    note = "Unweighted means over the sets. A base model was trained on none of them."
    return Markup(paragraph(note, "note") + per_protocol(found)) if any(found.values()) else Markup("")


def comparisons(matrices: Sequence[Matrix]) -> Markup:
    """Every trained run against its base model."""

    def block(matrix: Matrix) -> str:
        compared = [(label, cell, cell.to_base) for label, _, cells in matrix.rows for cell in cells if cell.to_base]
        ends = [found[end] for _, _, found in compared if is_share(found["metric"]) for end in _ENDS if found[end]]
        reach = (min([0.0, *ends]), max([0.0, *ends]))
        rows = [
            (
                label, cell.set, metric_name(found["metric"]), found["test"], _drawn(found, reach),
                points(found["difference"], found["metric"]) + "*" * significant(cell), _between(found),
                f"{found['n']:,}", p_value(found["p"]), p_value(found["p_holm"]),
            )
            for label, cell, found in compared
        ]  # fmt: skip
        headings = ("run", "set", "metric", "test", "", "points", "95 % interval", "n", "p", "p (Holm)")
        return table(headings, rows, words=5, caption="Trained minus base", once=("metric", "test"))

    found = {matrix.protocol: block(matrix) for matrix in matrices}
    if not any(found.values()):
        return Markup("")
    note = (
        "Both answered the same questions. Intervals are a paired bootstrap over images, 95 %. p-values are adjusted "
        "by Holm over all comparisons of the table; * marks those below 0.05."
    )
    return Markup(paragraph(note, "note") + per_protocol(found))


def _drawn(found: Mapping[str, Any], reach: tuple[float, float]) -> Markup:
    """The difference and its interval, on the scale of all rows, with a line at zero."""
    if found["difference"] is None or not is_share(found["metric"]):
        return Markup("")

    def x(value: float) -> str:
        low, high = reach
        return f"{5 + 190 * (value - low) / (high - low or 1):.1f}"

    span = "" if found["low"] is None else f'<line x1="{x(found["low"])}" x2="{x(found["high"])}" y1="9" y2="9"/>'
    return Markup(
        '<svg class="interval" viewBox="0 0 200 18" aria-hidden="true">'
        f'<line class="zero-line" x1="{x(0)}" x2="{x(0)}" y1="0" y2="18"/>{span}'
        f'<circle cx="{x(found["difference"])}" cy="9" r="3.2"/></svg>'
    )


def _between(found: Mapping[str, Any]) -> str:
    if found["low"] is None:
        return NOTHING
    return f"{points(found['low'], found['metric'])} to {points(found['high'], found['metric'])}"


def seeds(matrices: Sequence[Matrix]) -> Markup:
    """The spread over runs that differ in the seed alone."""

    def rows(matrix: Matrix) -> Iterator[Sequence[object]]:
        for group in facts.seeds(matrix):
            for name, spread in group["spread"].items():
                metric = spread["metric"]
                told = (number(spread[key], metric) for key in ("mean", "sd", "low", "high"))
                yield group["label"], name, metric_name(metric), spread["n"], *told

    headings = ("runs", "set", "metric", "seeds", "mean", "sd", "lowest", "highest")
    found = {matrix.protocol: table(headings, rows(matrix), words=3, once=("metric",)) for matrix in matrices}
    note = "Training again with another seed alone: a noise that no interval over test questions holds."
    return Markup(paragraph(note, "note") + per_protocol(found)) if any(found.values()) else Markup("")


def smallest_differences(matrices: Sequence[Matrix]) -> Markup:
    """A sentence for each set."""
    sizes: dict[str, dict[int, float]] = {name: {} for name in matrices[0].sets}
    for cell in (cell for matrix in matrices for _, _, cells in matrix.rows for cell in cells):
        if cell.smallest_difference is not None:
            sizes[cell.set][cell.run.evaluations[cell.set]["n"]] = cell.smallest_difference
    sentences = [
        paragraph(
            f"{name}: with {n:,} questions, two models have to differ by {100 * least:.1f} points to be told apart."
        )
        for name, found in sizes.items()
        for n, least in sorted(found.items())
    ]
    note = paragraph("At 80 % power, if they disagree on 15 % of the questions (McNemar's test, p below 0.05).", "note")
    return Markup("".join([*sentences, note]) if sentences else "")


def floors(matrices: Sequence[Matrix]) -> Markup:
    """What can be answered without the picture, beside the model."""

    def row(label: str, cell: Cell, protocol: str) -> Sequence[object]:
        passes = (without_pictures(cell, protocol, kind) for kind in PASSES)
        values = (cell.value, *passes, cell.floor, constant_floor(cell, protocol))
        return label, cell.set, *(number(value, cell.metric) for value in values)

    headings = ("run", "set", "model", "grey picture", "another's picture", "question alone", "most common answer")
    found = {
        matrix.protocol: table(
            headings,
            [row(label, c, matrix.protocol) for label, _, cells in matrix.rows for c in cells if c.metric],
            words=2,
        )
        for matrix in matrices
    }
    note = (
        "The model with its pictures, with a grey one, and with another question's; and what the training answers give "
        "away without any model: the usual answer to the question, and the most common answer."
    )
    return Markup(paragraph(note, "note") + per_protocol(found)) if any(found.values()) else Markup("")


def leakage(sweep: Sweep) -> Markup:
    """What the test sets share with what was trained on, once for all runs it is the same for."""
    found: dict[tuple[object, ...], None] = {}
    for run in sweep.runs:
        for name, entry in run.evaluations.items():
            for trained, counts in entry.get("leakage", {}).items():
                found[trained, name, *(counts.get(key) for key in _LEAKS)] = None
    if not found:
        return Markup("")
    column = 2 + list(_LEAKS).index("same_image")
    leaking = [f"{row[1]} (trained on {row[0]})" for row in found if row[column]]
    said = (
        f"Images that are also trained on: {', '.join(dict.fromkeys(leaking))}."
        if leaking
        else "No test image is among the images trained on."
    )
    rows = [[NOTHING if value is None else _count(value) for value in row] for row in sorted(found, key=str)]
    return Markup(paragraph(said) + table(("trained on", "tested on", *_LEAKS.values()), rows, words=2))


def _count(value: object) -> object:
    if not isinstance(value, int):
        return value
    return f"{value:,}" if value else Markup('<span class="zero">0</span>')


def runs(rows: Rows) -> Markup:
    """Which folder each row is, and what its training took."""

    def told(run: Run) -> Sequence[object]:
        train = run.result.get("train") or {}
        loss, seconds = train.get("loss"), train.get("seconds")
        minutes = NOTHING if seconds is None else f"{seconds / 60:,.1f}"
        steps = (f"{train[key]:,}" if train.get(key) is not None else NOTHING for key in ("steps", "questions"))
        return *steps, minutes, NOTHING if loss is None else f"{loss:.4f}{ranked(train)}"

    headings = ("run", "folder", "state", "steps", "questions", "minutes", "last loss")
    lines = [(label, Markup(f"<code>{html(run.name)}</code>"), run.state, *told(run)) for label, run in rows]
    return table(headings, lines, words=3)


def settings(sweep: Sweep, rows: Rows) -> Markup:
    """The settings in which the runs differ; the longer way down."""
    found = facts.differences(sweep)
    names = {name for row in found for name in row["values"]}
    columns = [(label, run.name) for label, run in rows if run.name in names]
    if not found:
        return Markup("")
    if len(found) >= len(columns):
        lines = [[row["setting"], *(_said(row["values"], name) for _, name in columns)] for row in found]
        return table(("setting", *(label for label, _ in columns)), lines, words=1 + len(columns))
    lines = [[label, *(_said(row["values"], name) for row in found)] for label, name in columns]
    return table(("run", *(row["setting"] for row in found)), lines, words=1 + len(found))


def _said(values: Mapping[str, Any], name: str) -> str:
    if name not in values:
        return NOTHING
    value = values[name]
    return (value or "''") if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def failures(sweep: Sweep) -> Markup:
    """What did not come to its end, with the last lines of its error."""
    parts = []
    for row in facts.failures(sweep):
        error = f"<pre>{html(row['error'])}</pre>" if row["error"] else ""
        parts.append(f"<p>{html(row['run'])}: {html(row['state'])}</p>{error}")
    return Markup("".join(parts))
