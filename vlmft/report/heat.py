"""The matrix of the page: a table whose cells are shaded by their value and lead to the questions behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vlmft.evaluation.table import MANY_UNPARSED
from vlmft.report.markup import Markup, fold, html, is_share, paragraph, per_protocol, points, wide
from vlmft.report.matrix import Cell, Matrix
from vlmft.report.scan import RUNNING, Run
from vlmft.report.tables import best_of, interval, kind_of, metric_of, number, significant

NARROWEST = 0.2  # span of the shades: two scores that hardly differ should look it
_KINDS = {"base": "Without training", "individual": "Trained on one set", "combined": "Trained on several sets"}

Shown = Mapping[tuple[str, str], tuple[int, int]]  # (run, set) → their places in the gallery


def heat(matrices: Sequence[Matrix], shown: Shown) -> Markup:
    """The matrix under each protocol, with its legend."""
    return per_protocol({matrix.protocol: _block(matrix, shown) for matrix in matrices})


def _block(matrix: Matrix, shown: Shown) -> str:
    shares = [
        cell.value for _, _, cells in matrix.rows for cell in cells if cell.value is not None and is_share(cell.metric)
    ]
    high = max(shares, default=1.0)
    low = min([*shares, max(0.0, high - NARROWEST)])
    best = [best_of([cells[place] for _, _, cells in matrix.rows]) for place in range(len(matrix.sets))]
    head = "".join(
        f'<th scope="col">{html(name)}<span>{html(metric_of(matrix, name))}</span></th>' for name in matrix.sets
    )
    lines, before = [], ""
    for label, run, cells in matrix.rows:
        if kind_of(run) != before:
            before = kind_of(run)
            over = f'<th scope="rowgroup" colspan="{len(cells) + 1}">{_KINDS[before]}</th>'
            lines.append(f'</tbody><tbody><tr class="group">{over}</tr>')
        tiles = "".join(_tile(cell, label, best[place], (low, high), shown) for place, cell in enumerate(cells))
        lines.append(f'<tr><th scope="row">{html(label)}{_error(run)}</th>{tiles}</tr>')
    whole = (
        f'<table class="matrix"><thead><tr><th scope="col">run</th>{head}</tr></thead><tbody>'
        + "\n".join(lines)
        + "</tbody></table>"
    )
    name = Markup(f"Protocol <strong>{html(matrix.protocol)}</strong>.")
    return paragraph(name, "note") + _legend(low, high) + wide(whole, f"Matrix, {matrix.protocol}")


def _tile(cell: Cell, label: str, best: float | None, scale: tuple[float, float], shown: Shown) -> str:
    kinds = ["own"] if cell.in_domain else []
    if cell.value is None:
        return f'<td class="{" ".join([*kinds, "none"])}">{html(_why(cell))}</td>'
    if best is not None and number(cell.value, cell.metric) == number(best, cell.metric):
        kinds.append("best")
    low, high = scale
    shade = (cell.value - low) / (high - low) if high > low else 0.5
    style = f' style="--v:{shade:.2f}"' if is_share(cell.metric) else ""
    lines = [f"<b>{number(cell.value, cell.metric)}</b>"]
    if cell.low is not None:
        lines.append(f"<span>{interval(cell.low, cell.high, cell.metric)}</span>")
    if cell.to_base:
        change = points(cell.to_base["difference"], cell.to_base["metric"])
        lines.append(f"<span>{change}{'*' * significant(cell)} to base</span>")
    if cell.unparsed is not None and cell.unparsed > MANY_UNPARSED:
        lines.append(f'<span class="unparsed">{100 * cell.unparsed:.1f} % unparsed</span>')
    place = shown.get((cell.run.name, cell.set))
    inner = "".join(lines)
    if place is None:
        inner = f'<div class="in">{inner}</div>'
    else:
        inner = (
            f'<a href="#gallery" data-run="{place[0]}" data-set="{place[1]}" '
            f'title="{html(f"Questions of {cell.set}, answered by {label}")}">{inner}</a>'
        )
    return f'<td class="{" ".join(kinds)}"{style}>{inner}</td>'


def _why(cell: Cell) -> str:
    """The word for a cell without a value, and how far a run is."""
    if cell.set in cell.run.evaluations:
        return "not scored by this protocol"
    step, total = (cell.run.status.get(key) for key in ("step", "total"))
    return f"{cell.state}, {step:,} of {total:,}" if cell.state == RUNNING and step and total else cell.state


def _error(run: Run) -> str:
    error = run.error()
    return fold("error", f"<pre>{html(error)}</pre>") if error else ""


def _legend(low: float, high: float) -> str:
    return (
        f'<p class="legend"><span><i class="scale"></i>{100 * low:.1f} to {100 * high:.1f} %</span>'
        '<span><i class="own"></i>trained on this set</span><span><i class="none"></i>no score</span>'
        "<span>underlined: best of its column</span><span>* differs from base, p &lt; 0.05 (Holm)</span></p>"
    )
