"""The pictures hold what the matrix says, stay small, and are left out where there is nothing to show."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from vlmft.report import charts, scan
from vlmft.report.charts import draw
from vlmft.report.matrix import Matrix, matrix
from vlmft.report.scan import Run, Sweep
from vlmft.report.tables import interval, number

ARun = Callable[..., Run]


@pytest.fixture(scope="module")
def demo(make_sweep: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return scan.sweep(make_sweep(tmp_path_factory.mktemp("demo")))


@pytest.fixture(scope="module")
def found(demo: Sweep) -> Matrix:
    return matrix(demo, "normalized")


@pytest.fixture(scope="module")
def heat_map(found: Matrix) -> Figure:
    return charts._heat_map(found)


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def test_three_small_pictures_and_nothing_else(demo: Sweep, found: Matrix, tmp_path: Path) -> None:
    made = draw(demo, [found], tmp_path)
    assert [file.name for file in made] == ["matrix.png", "curves.png", "forest.png"]
    assert sorted(tmp_path.iterdir()) == sorted(made)
    for file in made:
        assert file.stat().st_size < 150_000
        with Image.open(file) as image:
            assert image.format == "PNG"
            assert min(image.size) > 200


def test_the_largest_pictures_stay_small(a_run: ARun, tmp_path: Path) -> None:
    sets = [f"a_set_with_a_long_name_{n}" for n in range(20)]
    values = [{name: (7 * n + 3 * place) % 97 / 97 for place, name in enumerate(sets)} for n in range(60)]
    sweep = Sweep("", [a_run(f"run {n}", of_run, seed=n) for n, of_run in enumerate(values)])
    (file,) = draw(sweep, [matrix(sweep, "normalized")], tmp_path)
    assert file.stat().st_size < 150_000
    shown = charts._heat_map(matrix(sweep, "normalized")).axes[0].get_xlabel()
    assert "15 of 60 models, 12 of 20 sets" in shown


def test_nothing_to_show_is_no_picture_and_an_old_one_goes(a_run: ARun, tmp_path: Path) -> None:
    for name in ("curves.png", "forest.png"):
        (tmp_path / name).write_bytes(b"of another day")
    sweep = Sweep("", [a_run("run", {"a": 0.5})])
    assert [file.name for file in draw(sweep, [matrix(sweep, "normalized")], tmp_path)] == ["matrix.png"]
    assert [file.name for file in tmp_path.iterdir()] == ["matrix.png"]
    assert draw(Sweep("", []), [], tmp_path) == []


def test_the_heat_map_writes_every_value_and_interval(found: Matrix, heat_map: Figure) -> None:
    shown = words(heat_map)
    for _, _, cells in found.rows:
        for cell in cells:
            if cell.value is None:
                assert cell.state in shown
            else:
                star = "*" if cell.to_base and cell.to_base["p_holm"] < 0.05 else ""
                assert number(cell.value, cell.metric) + star in shown
                assert interval(cell.low, cell.high, cell.metric) in shown
    assert [label.get_text() for label in heat_map.axes[0].get_yticklabels()] == [label for label, *_ in found.rows]
    assert [label.get_text() for label in heat_map.axes[0].get_xticklabels()] == found.sets


def test_the_heat_map_outlines_what_was_trained_on_and_hatches_what_is_not_there(
    found: Matrix, heat_map: Figure
) -> None:
    boxes = [patch for patch in heat_map.axes[0].patches if isinstance(patch, Rectangle)]
    outlined = {(int(box.get_x()), int(box.get_y())) for box in boxes if not box.get_fill()}
    hatched = {(int(box.get_x()), int(box.get_y())) for box in boxes if box.get_hatch()}
    at = [(x, y, cell) for y, (_, _, cells) in enumerate(found.rows) for x, cell in enumerate(cells)]
    assert outlined == {(x, y) for x, y, cell in at if cell.in_domain}
    assert hatched == {(x, y) for x, y, cell in at if cell.value is None}


@pytest.mark.parametrize(("metric", "darker"), [("accuracy", 0.9), ("mae", 0.2)])
def test_the_better_value_is_darker(a_run: ARun, metric: str, darker: float) -> None:
    sweep = Sweep("", [a_run(f"{value}", {"a": value}, metric=metric, seed=n) for n, value in enumerate((0.2, 0.9))])
    found = matrix(sweep, "normalized")
    faces = [patch.get_facecolor() for patch in charts._heat_map(found).axes[0].patches if patch.get_fill()]
    brightness = {run.name: sum(face[:3]) for (_, run, _), face in zip(found.rows, faces, strict=True)}
    assert min(brightness, key=lambda name: brightness[name]) == str(darker)


def test_a_small_difference_is_a_small_difference_of_colour(a_run: ARun) -> None:
    sweep = Sweep("", [a_run(f"{value}", {"a": value}, seed=n) for n, value in enumerate((0.96, 0.98))])
    patches = charts._heat_map(matrix(sweep, "normalized")).axes[0].patches
    first, second = (patch.get_facecolor() for patch in patches if patch.get_fill())
    assert max(abs(a - b) for a, b in zip(first, second, strict=True)) < 0.1


def test_curves_have_raw_average_and_validation_loss(demo: Sweep, tmp_path: Path) -> None:
    run = demo.runs[0]
    figure = charts._curves([(r"_a $\frac$", run)])
    assert figure is not None
    axes = figure.axes[0]
    raw, average, held_out = axes.lines
    assert list(raw.get_ydata()) == [line["loss"] for line in run.history]
    assert list(held_out.get_ydata()) == [line["eval_loss"] for line in run.history if "eval_loss" in line]
    assert list(average.get_xdata()) == list(raw.get_xdata())
    roughness = [sum(abs(after - before) for before, after in pairwise(line.get_ydata())) for line in (raw, average)]
    assert roughness[1] < roughness[0]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [r"_a $\frac$"]
    charts._save(figure, tmp_path / "a.png")  # raises where a name is taken for a formula


def test_curves_of_a_run_that_was_resumed_or_lost_its_way(a_run: ARun, tmp_path: Path) -> None:
    run = a_run(str(tmp_path), {})
    lines = [(1, 3.0), (2, 2.0), (3, 9.0), (3, 1.0), (4, float("nan")), (5, 0.5)]  # step 3 was repeated
    text = "".join(json.dumps({"step": step, "loss": loss}) + "\n" for step, loss in lines)
    (tmp_path / "history.jsonl").write_text(text)
    figure = charts._curves([("a", run)])
    assert figure is not None
    assert list(figure.axes[0].lines[0].get_xdata()) == [1, 2, 3, 5]
    assert list(figure.axes[0].lines[0].get_ydata()) == [3.0, 2.0, 1.0, 0.5]
    assert charts._curves([("a", a_run("nothing", {}))]) is None


def test_the_forest_has_every_difference_with_its_interval(found: Matrix) -> None:
    figure = charts._forest(found)
    assert figure is not None
    compared = [(label, cells) for label, _, cells in found.rows if any(cell.to_base for cell in cells)]
    assert [axes.get_title() for axes in figure.axes] == found.sets
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [label for label, _ in compared]
    for place, axes in enumerate(figure.axes):
        changes = [cells[place].to_base for _, cells in compared]
        spans = [list(line.get_xdata()) for line in axes.lines[1::2]]  # the first line is the zero
        points = [line.get_xdata()[0] for line in axes.lines[2::2]]
        assert spans == [[100 * change["low"], 100 * change["high"]] for change in changes if change]
        assert points == [100 * change["difference"] for change in changes if change]
        assert len(axes.texts) == sum(change["p_holm"] < 0.05 for change in changes if change)
        assert axes.get_xlim() == figure.axes[0].get_xlim()


def test_names_are_never_taken_for_formulas(a_run: ARun, tmp_path: Path) -> None:
    sweep = Sweep("", [a_run("run", {r"$\frac$": 0.5, "a_b$": 0.4, "肺部": 0.3}, dataset={"name": r"$\bad$"})])
    assert draw(sweep, [matrix(sweep, "normalized")], tmp_path)  # raises where the text is parsed
