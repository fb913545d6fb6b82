"""The page's breakdowns: the headline metric of groups of questions, a table for each set and fact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlmft.report.markup import NOTHING, Markup, fold, html, metric_name, paragraph, per_protocol, table
from vlmft.report.matrix import Matrix
from vlmft.report.tables import interval, number

MANY = 20_000  # scores of groups; beyond, their intervals would make the page too heavy

_Labelled = tuple[tuple[str, str], Mapping[str, Any]]  # (label, run's name), value → score


def breakdowns(matrices: Sequence[Matrix]) -> Markup:
    """The headline metric of the groups of each set, a table for each fact."""
    told = {matrix.protocol: _groups(matrix) for matrix in matrices}
    scored = sum(len(values) for sets in told.values() for f in sets.values() for r in f.values() for _, values in r)
    light = scored > MANY

    def cell(found: Mapping[str, Any] | None, metric: str) -> object:
        if found is None:
            return NOTHING
        value = html(number(found["value"], metric))
        return (
            value if light else Markup(f"{value} <small>{html(interval(found['low'], found['high'], metric))}</small>")
        )

    def block(matrix: Matrix) -> str:
        folded = []
        for name, by_fact in told[matrix.protocol].items():
            metrics = {run.name: c.metric for _, run, cells in matrix.rows for c in cells if c.set == name}
            tables = []
            for fact, rows in by_fact.items():
                sizes = {value: found["n"] for _, values in rows for value, found in values.items()}
                headings = ["run", *(Markup(f"{html(v)}<br><small>n = {n:,}</small>") for v, n in sizes.items())]
                lines = [
                    (label, *(cell(values.get(value), metrics[run]) for value in sizes))
                    for (label, run), values in rows
                ]
                tables.append(table(headings, lines, caption=metric_name(fact)))
            folded.append(fold(name, "".join(tables)))
        return "".join(folded)

    if not scored:
        return Markup("")
    note = "The metric of the matrix, by what is known of the questions. Groups of fewer than 20 are not shown."
    note += " Intervals are in each run's result.json." if light else ""
    return Markup(paragraph(note, "note") + per_protocol({matrix.protocol: block(matrix) for matrix in matrices}))


def _groups(matrix: Matrix) -> dict[str, dict[str, list[_Labelled]]]:
    """Set → fact → what each run has of it."""
    found: dict[str, dict[str, list[_Labelled]]] = {}
    for label, run, cells in matrix.rows:
        for cell in cells:
            scores = run.evaluations.get(cell.set, {}).get("scores", {}).get(matrix.protocol, {})
            for fact, values in scores.get("groups", {}).items():
                found.setdefault(cell.set, {}).setdefault(fact, []).append(((label, run.name), values))
    return {name: found[name] for name in matrix.sets if name in found}
