"""The matrix for other programs and for papers: every score as CSV, and a LaTeX table."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vlmft.evaluation.ablations import BLANK, SHUFFLED
from vlmft.evaluation.floors import CONSTANT
from vlmft.evaluation.results import scoring_hash
from vlmft.evaluation.table import number
from vlmft.evaluation.task_metrics import LOWER_IS_BETTER
from vlmft.report.matrix import Cell, Matrix, kind_of
from vlmft.report.scan import DONE, Run, Sweep

SIGNIFICANT = 0.05  # after Holm
_METRICS = ("closed_accuracy", "open_exact_match", "open_f1", "accuracy_terms")
COLUMNS = (
    "sweep", "run", "model", "dataset", "method", "seed", "set", "protocol", "state", "metric", "value", "low", "high",
    "n", *_METRICS, "unparsed_rate", "floor_question_only", "floor_constant", BLANK, SHUFFLED, "difference_to_base",
    "p", "p_holm",
)  # fmt: skip
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # at the start of a row it would be an argument of the line break above
    "*": "{*}",
    "·": r"$\cdot$",
    "–": "--",
} | {character: f"\\{character}" for character in "&%$#_{}"}


def cells_csv(sweep: Sweep, matrices: Sequence[Matrix]) -> str:
    """One row per run, set and protocol, with COLUMNS; not rounded, and empty where there is no such value."""
    text = io.StringIO()
    rows = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    rows.writeheader()
    for matrix in matrices:
        for _, run, cells in matrix.rows:
            for cell in cells:
                rows.writerow(_csv_row(cell, matrix.protocol) | {"sweep": sweep.name, **_of_run(run)})
    return text.getvalue()


def _of_run(run: Run) -> dict[str, Any]:
    return {
        "run": run.name,
        "model": run.model,
        "dataset": run.dataset,
        "method": run.method,
        "seed": "" if run.base else run.seed,
    }


def _csv_row(cell: Cell, protocol: str) -> dict[str, Any]:
    metrics = cell.run.evaluations.get(cell.set, {}).get("scores", {}).get(protocol, {}).get("metrics", {})
    to_base = cell.to_base or {}
    return {
        "set": cell.set,
        "protocol": protocol,
        "state": cell.state,
        "metric": cell.metric,
        "value": cell.value,
        "low": cell.low,
        "high": cell.high,
        "n": cell.n,
        **{name: metrics.get(name, {}).get("value") for name in _METRICS},
        "unparsed_rate": cell.unparsed,
        "floor_question_only": cell.floor,
        "floor_constant": constant_floor(cell, protocol),
        BLANK: without_pictures(cell, protocol, BLANK),
        SHUFFLED: without_pictures(cell, protocol, SHUFFLED),
        "difference_to_base": to_base.get("difference"),
        "p": to_base.get("p"),
        "p_holm": to_base.get("p_holm"),
    }


def constant_floor(cell: Cell, protocol: str) -> float | None:
    """The cell's metric of the most common training answer."""
    floor = cell.run.evaluations.get(cell.set, {}).get("floor", {})
    value: float | None = floor.get(CONSTANT, {}).get(protocol, {}).get(cell.metric)
    return value


def without_pictures(cell: Cell, protocol: str, kind: str) -> float | None:
    """The cell's metric in a pass that does not show the pictures; None where there was none."""
    entry = (cell.run.result.get("evaluations") or {}).get(f"{cell.set}.{kind}", {})
    value: float | None = entry.get("scores", {}).get(protocol, {}).get("metrics", {}).get(cell.metric, {}).get("value")
    return value


def matrix_tex(matrix: Matrix) -> str:
    """A booktabs table of the matrix, without its float: values in percent, intervals small, the best in bold."""
    best = [_best([cells[place] for _, _, cells in matrix.rows]) for place in range(len(matrix.sets))]
    lines = [
        f"% protocol {' '.join(matrix.protocol.split())}, scorer version {scoring_hash()}",
        "% headline metric with its 95 % interval; bold: the best of a column;",
        f"% star: differs from its base model, p < {SIGNIFICANT} (Holm)",
        rf"\begin{{tabular}}{{l{'r' * len(matrix.sets)}}}",
        r"\toprule",
        " & ".join(["Model", *map(latex, matrix.sets)]) + r" \\",
        " & ".join(["", *(latex(metric_of(matrix, name)) for name in matrix.sets)]) + r" \\",
        r"\midrule",
    ]
    before: Run | None = None
    for label, run, cells in matrix.rows:
        if before is not None and kind_of(before) != kind_of(run):
            lines.append(r"\midrule")
        before = run
        lines.append(" & ".join([latex(label), *(_tex_cell(cell, best[n]) for n, cell in enumerate(cells))]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _tex_cell(cell: Cell, best: str) -> str:
    if cell.value is None:
        return rf"\textit{{{latex(cell.state if cell.state != DONE else '–')}}}"
    value = number(cell.value, cell.metric)
    bold = rf"\textbf{{{value}}}" if value == best else value
    small = rf"\,{{\scriptsize {interval(cell.low, cell.high, cell.metric)}}}" if cell.low is not None else ""
    return bold + ("$^{*}$" if significant(cell) else "") + small


def metric_of(matrix: Matrix, name: str) -> str:
    """The metrics a column shows, in words: one, unless the runs were scored by different rules."""
    cells = [cells[matrix.sets.index(name)] for _, _, cells in matrix.rows]
    return ", ".join(dict.fromkeys(cell.metric.replace("_", " ") for cell in cells if cell.metric))


def significant(cell: Cell) -> bool:
    return cell.to_base is not None and bool(cell.to_base["p_holm"] < SIGNIFICANT)


def best_of(cells: Sequence[Cell]) -> float | None:
    """The best value of a column; None where there is one alone, or the values are not of one metric."""
    values = [cell.value for cell in cells if cell.value is not None]
    metrics = {cell.metric for cell in cells if cell.value is not None}
    if len(metrics) != 1 or len(values) < 2:
        return None
    return min(values) if metrics <= LOWER_IS_BETTER else max(values)


def _best(cells: Sequence[Cell]) -> str:
    metric = next((cell.metric for cell in cells if cell.metric), "")
    return number(best_of(cells), metric)  # as it is shown: what looks equal is equally bold


def interval(low: float | None, high: float | None, metric: str) -> str:
    return "" if low is None else f"[{number(low, metric)}, {number(high, metric)}]"


def points(change: Mapping[str, Any]) -> str:
    """A difference of `comparison.compare` with its interval: in points, or in the unit of an error."""
    scale = 1 if change["metric"] in LOWER_IS_BETTER else 100
    shown = ("–" if change[key] is None else f"{scale * change[key]:+.1f}" for key in ("difference", "low", "high"))
    difference, low, high = shown
    return f"{difference} [{low}, {high}]"


def latex(text: str) -> str:
    """The text as LaTeX would print it."""
    return re.sub(r"[\\~^<>|\[*·–&%$#_{}]", lambda found: _LATEX[found[0]], " ".join(text.split()))
