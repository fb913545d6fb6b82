"""The report's pictures: the matrix as a heat map, training curves, and differences to the base model."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from io import BytesIO
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmft.evaluation.task_metrics import LOWER_IS_BETTER
from vlmft.report.curves import moving_average
from vlmft.report.matrix import Cell, Matrix
from vlmft.report.scan import Run, Sweep
from vlmft.report.tables import SIGNIFICANT, interval, metric_of, number, significant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 130
MOST_ROWS, MOST_SETS, MOST_CURVES = 30, 12, 12
MOST_CELLS = 180  # keeps matrix.png below 150 kB
LONGEST_LABEL = 44
PANELS = 6  # of the forest, side by side
NARROWEST = 0.3  # span of the colours, so that a difference of little looks like little
INK, SOFT, FAINT = "#222222", "#767676", "#d9d9d9"
# Okabe and Ito's, which the colour-blind can tell apart; without yellow, which is too faint for a line.
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
DASHES = ("-", "-.", ":")


def draw(sweep: Sweep, matrices: Sequence[Matrix], folder: Path) -> list[Path]:
    """Write matrix.png, curves.png and forest.png into `folder`, and return those that have something to show.

    The matrix and the forest are of the first protocol. A picture without content is removed.
    """
    rows = matrices[0].rows if matrices else []
    labels = {run.folder: label for label, run, _ in rows}
    made = {
        "matrix.png": _heat_map(matrices[0]) if any(cells for *_, cells in rows) else None,
        "curves.png": _curves([(labels.get(run.folder, run.name), run) for run in sweep.runs]),
        "forest.png": _forest(matrices[0]) if rows else None,
    }
    for name, figure in made.items():
        if figure is None:
            (folder / name).unlink(missing_ok=True)
        else:
            _save(figure, folder / name)
    return [folder / name for name, figure in made.items() if figure is not None]


def _heat_map(matrix: Matrix) -> Figure:
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    sets = matrix.sets[:MOST_SETS]
    rows = matrix.rows[: min(MOST_ROWS, MOST_CELLS // len(sets))]
    figure, axes = _figure(1.25 * len(sets), 0.5 * len(rows))
    scales = _scales(matrix)
    for y, (_, _, cells) in enumerate(rows):
        for x, cell in enumerate(cells[:MOST_SETS]):
            box: dict[str, Any] = {"facecolor": "#f6f6f6", "edgecolor": FAINT, "hatch": "////"}
            ink = SOFT
            if cell.value is not None:
                low, high = scales[x]
                shade = 0.06 + 0.74 * (cell.value - low) / (high - low) if high > low else 0.4
                shade = 0.86 - shade if cell.metric in LOWER_IS_BETTER else shade
                box = {"facecolor": colormaps["Blues"](shade), "edgecolor": "white"}
                ink = "white" if shade > 0.66 else INK
            axes.add_patch(Rectangle((x, y), 1, 1, linewidth=1, **box))
            if cell.in_domain:
                axes.add_patch(Rectangle((x + 0.03, y + 0.06), 0.94, 0.88, fill=False, edgecolor="#d55e00", lw=1.6))
            _write(axes, cell, x + 0.5, y, ink)
    axes.set(xlim=(0, len(sets)), ylim=(len(rows), 0))
    axes.set_xticks([x + 0.5 for x in range(len(sets))])
    axes.set_yticks([y + 0.5 for y in range(len(rows))])
    metrics = [metric_of(matrix, name) for name in sets]
    one = len({*metrics} - {""}) < 2
    named = [name if one else f"{name}\n{of}" for name, of in zip(sets, metrics, strict=True)]
    slanted = max(map(len, sets), default=0) > 12
    lie: dict[str, Any] = {"rotation": 30, "ha": "left"} if slanted else {}
    axes.set_xticklabels([_short(name) for name in named], parse_math=False, **lie)
    axes.set_yticklabels([_short(label) for label, *_ in rows], parse_math=False)
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False, labelsize=9, labelcolor=INK)
    for side in axes.spines.values():
        side.set_visible(False)
    metric = f"{max(metrics)}, " if one and any(metrics) else ""
    said = [
        f"{metric}protocol {matrix.protocol}, shares in percent, 95 % intervals",
        f"outlined: trained on this set; *: differs from its base model, p < {SIGNIFICANT} (Holm)",
    ]
    if len(rows) < len(matrix.rows) or len(sets) < len(matrix.sets):
        said.append(f"shown: {len(rows)} of {len(matrix.rows)} models, {len(sets)} of {len(matrix.sets)} sets")
    axes.set_xlabel("\n".join(said), fontsize=8, color=SOFT, loc="left", labelpad=8, parse_math=False)
    return figure


def _write(axes: Axes, cell: Cell, x: float, y: float, ink: Any) -> None:
    """The value with its star and, below it, the interval; or the word for why there is none."""
    centred: dict[str, Any] = {"ha": "center", "va": "center", "color": ink}
    if cell.value is None:
        axes.text(x, y + 0.5, cell.state, fontsize=8, style="italic", **centred, bbox={"fc": "#f6f6f6", "ec": "none"})
        return
    span = interval(cell.low, cell.high, cell.metric)
    star = "*" if significant(cell) else ""
    axes.text(x, y + (0.36 if span else 0.5), number(cell.value, cell.metric) + star, fontsize=10, **centred)
    axes.text(x, y + 0.72, span, fontsize=7, **centred)


def _scales(matrix: Matrix) -> list[tuple[float, float]]:
    """The lowest and the highest value that the colours of each column span: all columns' where the metric is one."""
    columns = [[cells[place] for _, _, cells in matrix.rows] for place in range(len(matrix.sets))]
    every = [cell for column in columns for cell in column]
    one = len({cell.metric for cell in every if cell.value is not None}) == 1
    values = [[cell.value for cell in (every if one else column) if cell.value is not None] for column in columns]
    ends = [(min(of, default=0.0), max(of, default=0.0)) for of in values]
    return [(min(low, max(0.0, high - NARROWEST)), high) for low, high in ends]


def _curves(runs: Sequence[tuple[str, Run]]) -> Figure | None:
    drawn = [(label, _logged(run, "loss"), _logged(run, "eval_loss")) for label, run in runs]
    drawn = [(label, loss, held_out) for label, loss, held_out in drawn if len(loss) > 1]
    if not drawn:
        return None
    from matplotlib.ticker import LogLocator, NullLocator

    figure, axes = _figure(6.5, 3.6)
    averages = []
    for place, (label, loss, held_out) in enumerate(drawn[:MOST_CURVES]):
        colour, dash = LINES[place % len(LINES)], DASHES[place // len(LINES) % len(DASHES)]
        average = moving_average(loss)
        averages += [value for _, value in average]
        axes.plot(*zip(*loss, strict=True), color=FAINT, lw=0.7, zorder=1)
        # A label that begins with "_" would be left out of the legend.
        axes.plot(*zip(*average, strict=True), color=colour, ls=dash, lw=1.6, zorder=3, label=f" {label}")
        if held_out:
            axes.plot(*zip(*held_out, strict=True), color=colour, ls="--", lw=1, marker="o", ms=2.5, zorder=2)
    if 0 < 4 * min(averages) < max(averages):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("step", color=INK, fontsize=9)
    axes.set_ylabel("training loss", color=INK, fontsize=9)
    _quiet(axes)
    said = "line: moving average; grey: as logged"
    said += "; dashed with points: on the validation rows" * any(held_out for *_, held_out in drawn[:MOST_CURVES])
    said += f"; {MOST_CURVES} of {len(drawn)} runs" * (len(drawn) > MOST_CURVES)
    axes.set_title(said, fontsize=8, color=SOFT, loc="left")
    legend = axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
    for text in legend.get_texts():
        text.set_parse_math(False)
        text.set_text(_short(text.get_text().strip()))
    return figure


def _logged(run: Run, name: str) -> list[tuple[float, float]]:
    """The finite values by step; a step that was repeated counts as it was last."""
    lines = {line["step"]: line.get(name) for line in run.history}
    return [(step, value) for step, value in sorted(lines.items()) if value is not None and isfinite(value)]


def _forest(matrix: Matrix) -> Figure | None:
    every = [(label, cells) for label, _, cells in matrix.rows if any(cell.to_base for cell in cells)]
    rows = every[:MOST_ROWS]
    places = [n for n in range(len(matrix.sets)) if any(cells[n].to_base for _, cells in rows)][:MOST_SETS]
    if not places:
        return None
    from matplotlib.figure import Figure

    columns = min(PANELS, len(places))
    lines = -(-len(places) // columns)
    size = (1.6 * columns + 1.6, lines * (0.25 * len(rows) + 0.9))
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    panels = figure.subplots(lines, columns, sharey=True, squeeze=False).flatten()
    shares = []
    for axes, place in zip(panels, places, strict=False):
        changes = [cells[place].to_base for _, cells in rows]
        metric = next(change["metric"] for change in changes if change)
        error = metric in LOWER_IS_BETTER
        _differences(axes, changes, 1 if error else 100)
        axes.set_title(_short(matrix.sets[place]), fontsize=9, color=INK, parse_math=False)
        axes.set_xlabel(metric if error else "points", fontsize=8, color=SOFT, parse_math=False)
        axes.set_yticks(range(len(rows)))
        axes.set_yticklabels([_short(label) for label, _ in rows], parse_math=False)
        axes.locator_params(axis="x", nbins=5)
        _quiet(axes)
        shares += [] if error else [axes]
    for axes in shares:
        axes.set_xlim(min(one.get_xlim()[0] for one in shares), max(one.get_xlim()[1] for one in shares))
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    for axes in panels[len(places) :]:
        axes.set_visible(False)
    said = (
        f"difference to the base model, protocol {matrix.protocol}, 95 % intervals; filled, *: p < {SIGNIFICANT} (Holm)"
    )
    said += f"; {len(rows)} of {len(every)} models" * (len(rows) < len(every))
    figure.suptitle(said, fontsize=8, color=SOFT, parse_math=False)
    return figure


def _differences(axes: Axes, changes: Sequence[Mapping[str, Any] | None], scale: int) -> None:
    axes.axvline(0, color=SOFT, lw=0.8, zorder=1)
    axes.margins(x=0.15)
    for y, change in enumerate(changes):
        if not change or change["difference"] is None:
            continue
        sure = change["p_holm"] < SIGNIFICANT
        at = scale * change["difference"]
        low, high = (at if change[end] is None else scale * change[end] for end in ("low", "high"))
        axes.plot([low, high], [y, y], color=LINES[0], lw=1.4, zorder=2)
        axes.plot(at, y, "o", ms=5.5, mfc=LINES[0] if sure else "white", mec=LINES[0], zorder=3)
        if sure:
            axes.annotate("*", (high, y), (3, -3), textcoords="offset points", va="center", fontsize=10, color=INK)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure whose axes have this size in inches; labels are added to it when it is saved."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI)
    return figure, figure.add_axes((0, 0, 1, 1))


def _quiet(axes: Axes) -> None:
    axes.grid(axis="x", color="#eeeeee", lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=8, labelcolor=INK)
    for name, side in axes.spines.items():
        side.set_visible(name == "bottom")
        side.set_color(FAINT)


def _short(label: str) -> str:
    return label if len(label) <= LONGEST_LABEL else f"{label[: LONGEST_LABEL // 2]}…{label[-LONGEST_LABEL // 2 :]}"


def _save(figure: Figure, file: Path) -> None:
    """As a PNG with few colours, which is a third of the size; under a temporary name first."""
    from PIL import Image

    drawn = BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in a script without a font is drawn as boxes
        figure.savefig(drawn, format="png", bbox_inches="tight", pad_inches=0.15, facecolor="white")
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with Image.open(drawn) as image:
            image.convert("RGB").quantize(128).save(temporary, format="PNG", optimize=True)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
