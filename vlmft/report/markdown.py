"""report.md: the whole of a sweep's outcome as one page of GitHub's Markdown."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from vlmft.evaluation.ablations import BLANK, SHUFFLED
from vlmft.evaluation.results import scoring_hash
from vlmft.evaluation.table import MANY_UNPARSED, number
from vlmft.report.markup import p_value
from vlmft.report.matrix import Cell, Matrix, counts, differences, failures, seeds, spelt, transfer
from vlmft.report.scan import DONE, STATES, Sweep
from vlmft.report.tables import (
    SIGNIFICANT,
    best_of,
    constant_floor,
    interval,
    metric_of,
    points,
    significant,
    without_pictures,
)

MOST_NAMED = 4  # runs of one value of a setting


def report_md(sweep: Sweep, matrices: Sequence[Matrix]) -> str:
    """The report: matrices, what is not done, transfer, comparisons, floors, leakage, seeds, settings."""
    names = {run.name: label for matrix in matrices[:1] for label, run, _ in matrix.rows}
    parts = [f"# {plain(sweep.name)}", _standing(sweep)]
    for matrix in matrices:
        parts += [f"## Protocol {plain(matrix.protocol)}", *_of_protocol(matrix)]
    parts += [
        *_failed(sweep, names),
        *_judged(sweep, names),
        *_leakage(sweep),
        *_smallest(matrices),
        *_settings(sweep, names),
        *_made(sweep),
    ]
    return "\n\n".join(parts) + "\n"


def _standing(sweep: Sweep) -> str:
    states = counts(sweep)
    others = [f"{states[state]} {state}" for state in STATES if state != DONE and states.get(state)]
    return ", ".join([f"{states.get(DONE, 0)} of {sum(states.values())} runs {DONE}", *others]) + "."


def _of_protocol(matrix: Matrix) -> Iterator[str]:
    best = [best_of([cells[place] for _, _, cells in matrix.rows]) for place in range(len(matrix.sets))]
    rows = [[plain(label), *map(_shown, cells, best)] for label, _, cells in matrix.rows]
    metrics = [f"{plain(name)}<br>{plain(metric_of(matrix, name))}" for name in matrix.sets]
    yield table(["model", *metrics], rows)
    yield (
        "Shares in percent, with 95 % intervals over the test images. Bold: the best of a column. "
        "†: trained on this set. "
        rf"\*: differs from its base model, p < {SIGNIFICANT} (Holm over this matrix)."
    )
    cells = [(label, cell) for label, _, of_run in matrix.rows for cell in of_run if cell.value is not None]
    if unread := [
        [plain(label), plain(cell.set), f"{100 * cell.unparsed:.1f} %"]
        for label, cell in cells
        if cell.unparsed and cell.unparsed > MANY_UNPARSED
    ]:
        yield "Answers that could not be read count as wrong:"
        yield table(["model", "set", "unread"], unread, names=2)
    yield from _means(matrix)
    yield from _compared(cells)
    if cells:
        yield "### What is reached without looking"
        yield table(
            ["model", "set", "score", "question alone", "one constant answer", "blank pictures", "shuffled pictures"],
            [[plain(label), plain(cell.set), *_without_looking(cell, matrix.protocol)] for label, cell in cells],
            names=2,
        )
    yield from _seeds(matrix)


def _means(matrix: Matrix) -> Iterator[str]:
    found = transfer(matrix)
    if found:
        yield "### On the sets trained on, and on the others"
        yield "Unweighted means over sets."
        yield table(
            ["model", "metric", "trained on", "sets", "others", "sets"],
            [
                [
                    plain(row["label"]), plain(row["metric"]),
                    number(row["in_domain"], row["metric"]), str(len(row["in_domain_sets"])),
                    number(row["transfer"], row["metric"]), str(len(row["transfer_sets"])),
                ]
                for row in found
            ],
            names=2,
        )  # fmt: skip


def _compared(cells: Iterable[tuple[str, Cell]]) -> Iterator[str]:
    compared = [(label, cell.set, cell.to_base) for label, cell in cells if cell.to_base]
    if compared:
        yield "### Against the base model"
        yield table(
            ["model", "set", "metric", "n", "difference", "p", "p (Holm)", "test"],
            [
                [
                    plain(label), plain(name), plain(found["metric"]), f"{found['n']:,}", points(found),
                    p_value(found["p"]), p_value(found["p_holm"]), found["test"],
                ]
                for label, name, found in compared
            ],
            names=3,
        )  # fmt: skip


def _seeds(matrix: Matrix) -> Iterator[str]:
    found = [(group["label"], name, of) for group in seeds(matrix) for name, of in group["spread"].items()]
    if found:
        yield "### Seeds"
        yield "Runs that differ in nothing else: the noise of training, which no interval above holds."
        yield table(
            ["runs", "set", "metric", "n", "mean", "sd", "lowest", "highest"],
            [
                [
                    plain(label), plain(name), plain(of["metric"]), str(of["n"]),
                    *(number(of[key], of["metric"]) for key in ("mean", "sd", "low", "high")),
                ]
                for label, name, of in found
            ],
            names=3,
        )  # fmt: skip


def _shown(cell: Cell, best: float | None) -> str:
    if cell.value is None:
        return cell.state
    value = number(cell.value, cell.metric)
    bold = best is not None and value == number(best, cell.metric)
    value = (f"**{value}**" if bold else value) + "†" * cell.in_domain + r"\*" * significant(cell)
    return f"{value} {interval(cell.low, cell.high, cell.metric)}".strip()


def _without_looking(cell: Cell, protocol: str) -> list[str]:
    passes = (without_pictures(cell, protocol, kind) for kind in (BLANK, SHUFFLED))
    values = (cell.value, cell.floor, constant_floor(cell, protocol), *passes)
    return [number(value, cell.metric) for value in values]


def _failed(sweep: Sweep, names: dict[str, str]) -> Iterator[str]:
    found = failures(sweep)
    if not found:
        return
    yield "## Not done"
    for row in found:
        label = f" ({plain(names[row['run']])})" if row["run"] in names else ""
        error = "\n\n" + "\n".join(f"    {line}" for line in row["error"].splitlines()) if row["error"] else ""
        yield f"{plain(row['run'])}{label}: {row['state']}{error}"


def _judged(sweep: Sweep, names: Mapping[str, str]) -> Iterator[str]:
    found = [
        (names.get(run.name, run.name), name, judge, of)
        for run in sweep.runs
        for name, entry in run.evaluations.items()
        for judge, of in entry.get("judge", {}).items()
    ]
    if found:
        yield "## What a judge says of open answers"
        yield table(
            ["model", "set", "judge", "same as the gold", "open answers", "unreadable", "rule", "agreement", "kappa"],
            [
                [
                    plain(label), plain(name), plain(judge), f"{number(of['value'], '')} "
                    f"{interval(of['low'], of['high'], '')}", f"{of['judged']:,} of {of['n']:,}",
                    str(of["unreadable"]), plain(protocol), number(rule["agreement"], ""),
                    "–" if rule["kappa"] is None else f"{rule['kappa']:.2f}",
                ]
                for label, name, judge, of in found
                for protocol, rule in of["rule"].items()
            ],
            names=3,
        )  # fmt: skip
        yield "Another model's opinion, beside the scores above and no part of them."


def _leakage(sweep: Sweep) -> Iterator[str]:
    """Runs that were trained on the same rows of a set say the same of it, which is told once."""
    found = {
        (trained, name, *counted.values()): (trained, name, counted)
        for run in sweep.runs
        for name, entry in run.evaluations.items()
        for trained, counted in entry.get("leakage", {}).items()
    }
    if found:
        yield "## What of a test set was trained on"
        yield table(
            ["trained on", "test set", "same pictures", "alike", "questions on them", "same question", "and answer"],
            [
                [
                    plain(trained), plain(name), f"{of['same_image']} of {of['images']}", str(of["alike"]),
                    f"{of['on_same_image']} of {of['questions']}", str(of["same_question"]), str(of["same_pair"]),
                ]
                for trained, name, of in found.values()
            ],
            names=2,
        )  # fmt: skip
        yield "Alike: other files that look the same. A question is the same where its picture is the same."


def _smallest(matrices: Sequence[Matrix]) -> Iterator[str]:
    cells = [cell for matrix in matrices[:1] for _, _, of_run in matrix.rows for cell in of_run if cell.n]
    found = {cell.set: (cell.n, cell.smallest_difference) for cell in cells if cell.smallest_difference is not None}
    if found:
        yield "## How far two models have to differ"
        yield "\n".join(
            f"- {plain(name)}, {n:,} questions: {100 * smallest:.1f} points (80 % power, 15 % discordant answers)"
            for name, (n, smallest) in found.items()
            if n and smallest
        )


def _settings(sweep: Sweep, names: dict[str, str]) -> Iterator[str]:
    rows = []
    for row in differences(sweep):
        values: dict[str, list[str]] = {}
        for run, value in row["values"].items():
            values.setdefault(spelt(value), []).append(names.get(run, run))
        for value, labels in values.items():
            of = ", ".join(labels) if len(labels) <= MOST_NAMED else f"{len(labels)} runs"
            rows.append([plain(row["setting"]), plain(value), plain(of)])
    if rows:
        yield "## Settings that differ"
        yield table(["setting", "value", "of"], rows, names=3)


def _made(sweep: Sweep) -> Iterator[str]:
    yield "## How it was made"
    if command := sweep.plan.get("command"):
        yield "    " + " ".join(shlex.join(command).split("\n"))
    if created := sweep.plan.get("created"):
        yield f"Planned {plain(created)}."
    versions = {entry.get("scoring", "") for run in sweep.runs for entry in run.evaluations.values()} - {"", None}
    others = sorted(versions - {scoring_hash()})
    yield f"Scorer version {scoring_hash()}" + (
        f"; some scores are of {', '.join(map(plain, others))}." * bool(others) or "."
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]], names: int = 1) -> str:
    """A table of Markdown, whose first columns are names, and those that follow are figures to the right."""
    ruled = [head, [*["---"] * names, *["---:"] * (len(head) - names)], *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in ruled)


def plain(text: Any) -> str:
    """The text as Markdown would print it, on one line."""
    line = re.sub(r"([\\`*|<>\[\]$~&#])", r"\\\1", " ".join(str(text).split()))
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", line)
