"""The matrix and what is read off it, against what stands in the run directories."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlmft.evaluation import results, statistics
from vlmft.evaluation.comparison import compare
from vlmft.report import scan, to_base
from vlmft.report.matrix import Matrix, counts, differences, failures, labels, matrix, seeds, transfer
from vlmft.report.scan import Run, Sweep

MakeSweep = Callable[..., Path]
ARun = Callable[..., Run]


@pytest.fixture(scope="module")
def demo(make_sweep: MakeSweep, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return scan.sweep(make_sweep(tmp_path_factory.mktemp("demo")))


@pytest.fixture(scope="module")
def found(demo: Sweep) -> Matrix:
    return matrix(demo, "normalized")


def test_rows_are_base_then_individual_then_combined_and_say_what_differs(found: Matrix) -> None:
    assert [label for label, *_ in found.rows] == [
        "base",
        "demo_ct · seed 0",
        "demo_xray · seed 0",
        "demo_path · seed 0",
        "demo_ct · seed 1",
        "demo_xray · seed 1",
        "demo_path · seed 1",
        "demo (3 sets) · seed 0",
    ]
    assert found.sets == ["demo_ct", "demo_xray", "demo_path"]
    assert [cells[0].state for _, _, cells in found.rows] == [
        *["done"] * 4, "failed", "running", "missing", "done",
    ]  # fmt: skip


def test_a_cell_is_what_result_json_says(found: Matrix) -> None:
    _, run, cells = found.rows[1]
    entry = run.result["evaluations"]["demo_xray"]
    scores = entry["scores"]["normalized"]
    cell = cells[1]
    assert {key: getattr(cell, key) for key in ("value", "low", "high", "n")} == {
        key: scores["metrics"]["accuracy"][key] for key in ("value", "low", "high", "n")
    }
    assert cell.metric == "accuracy"
    assert cell.unparsed == scores["unparsed_rate"]
    assert cell.floor == entry["floor"]["question_only"]["normalized"]["accuracy"]
    assert cell.smallest_difference == entry["smallest_difference"]


def test_in_domain_cells_are_those_of_the_sets_trained_on(found: Matrix) -> None:
    trained = {label: [cell.in_domain for cell in cells] for label, _, cells in found.rows}
    assert trained["base"] == [False, False, False]
    assert trained["demo_xray · seed 0"] == [False, True, False]
    assert trained["demo_xray · seed 1"] == [False, True, False]  # it runs still
    assert trained["demo (3 sets) · seed 0"] == [True, True, True]


def test_comparisons_are_those_of_the_predictions_adjusted_over_the_matrix(demo: Sweep, found: Matrix) -> None:
    base = demo.base_of(demo.runs[0])
    assert base is not None
    compared = [cell for _, _, cells in found.rows for cell in cells if cell.to_base]
    assert len(compared) == 12  # four runs on three sets: not the base, and not those without predictions
    plain = [compare(base.predictions(c.set), c.run.predictions(c.set), "normalized") for c in compared]
    adjusted = statistics.holm([one["p"] for one in plain])
    assert [cell.to_base for cell in compared] == [{**one, "p_holm": p} for one, p in zip(plain, adjusted, strict=True)]


def test_a_run_that_shares_no_question_with_its_base_is_not_compared(make_sweep: MakeSweep, tmp_path: Path) -> None:
    folder = make_sweep(tmp_path, runs=1, sets=1, questions=8, failed=False)
    (file,) = tmp_path.glob("outputs/tiny-base-*/predictions_demo_ct.jsonl")
    file.write_text(file.read_text().replace('"id": "demo_ct', '"id": "other'))
    assert not any(cell.to_base for _, _, cells in matrix(scan.sweep(folder), "normalized").rows for cell in cells)
    file.unlink()
    assert not any(cell.to_base for _, _, cells in matrix(scan.sweep(folder), "normalized").rows for cell in cells)


def test_a_comparison_is_made_once_for_the_same_predictions(
    make_sweep: MakeSweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cache = make_sweep(tmp_path, runs=2, sets=2, questions=8, failed=False), tmp_path / "cache.json"
    made: list[str] = []

    def counted(first: Any, second: Any, protocol: str) -> dict[str, Any]:
        made.append(f"{second[0]['generation']} {protocol}")
        return compare(first, second, protocol)

    monkeypatch.setattr(to_base, "compare", counted)
    sweep = scan.sweep(folder)
    one_run = Sweep(sweep.name, [run for run in sweep.runs if run.dataset != "demo_xray"], sweep.plan)
    matrix(one_run, "normalized", cache)
    assert len(made) == 2
    first = matrix(sweep, "normalized", cache)
    assert len(made) == 4  # the other run's two, which are kept beside those before
    assert matrix(sweep, "normalized", cache) == first
    matrix(sweep, "strict", cache)
    matrix(sweep, "normalized", cache)
    assert len(made) == 8

    (file,) = tmp_path.glob("outputs/tiny-demo_ct-*/predictions_demo_ct.jsonl")
    generation = json.loads(file.read_text().splitlines()[0])["generation"]
    file.write_text(file.read_text().replace(generation, "0badcafe"))
    matrix(sweep, "normalized", cache)
    assert made[8:] == ["0badcafe normalized"]
    monkeypatch.setattr(results, "scoring_hash", lambda: "another scorer")
    matrix(sweep, "normalized", cache)
    assert len(made) == 13


def test_a_set_that_was_not_scored_under_the_protocol_is_missing(a_run: ARun) -> None:
    sweep = Sweep("", [a_run("one", {"a": 0.5})])
    cell = matrix(sweep, "strict").rows[0][2][0]
    assert (cell.state, cell.value, cell.in_domain) == ("missing", None, True)


@pytest.mark.parametrize(
    ("configs", "expected"),
    [
        ([{}, {"dataset": {"name": "b"}}], ["a", "b"]),
        ([{}, {"method": {"name": "full"}}], ["a · lora", "a · full"]),
        ([{}, {"seed": 1}], ["a · seed 0", "a · seed 1"]),
        ([{}, {"task": "eval"}, {"task": "eval", "model": {"name": "big"}}], ["tiny · a", "tiny · base", "big · base"]),
        (
            [{"method": {"name": "lora", "trainer": {"lr": rate}}} for rate in (0.1, 0.2)],
            ["a · lr=0.1", "a · lr=0.2"],
        ),
        ([{"label": "first"}, {"label": "again"}], ["run 0", "run 1"]),  # nothing that decides anything differs
        ([{"method": {"name": "lora", **dict.fromkeys("abcd", n)}} for n in range(2)], ["run 0", "run 1"]),
    ],
)
def test_labels_say_what_differs(configs: list[dict[str, Any]], expected: list[str], a_run: ARun) -> None:
    assert labels([a_run(f"run {n}", {}, **config) for n, config in enumerate(configs)]) == expected


def test_a_missing_run_is_told_by_its_name(a_run: ARun) -> None:
    runs = [a_run(f"run {rate}", {}, method={"name": "lora", "lr": rate}) for rate in (0.1, 0.2)]
    missing = Run(Path("waiting"), {**runs[0].config, "method": {"name": "lora"}}, {}, {})
    assert labels([*runs, missing]) == ["a · lr=0.1", "a · lr=0.2", "waiting"]


def test_seeds_are_runs_that_differ_in_nothing_else(a_run: ARun) -> None:
    same: dict[str, Any] = {"method": {"name": "lora", "lr": 0.1}}
    runs = [
        a_run("one", {"a": 0.5, "b": 0.2}, seed=0, **same, label="x", hardware={"name": "cpu"}, paths={"root": "/x"}),
        a_run("two", {"a": 0.7, "b": 0.4}, seed=1, **same, label="y", hardware={"name": "gpu"}, paths={"root": "/y"}),
        a_run("other rate", {"a": 0.9, "b": 0.9}, seed=2, method={"name": "lora", "lr": 0.3}),
        a_run("not done", {}, seed=3, **same),
        a_run("other rows", {"a": 0.1}, seed=4, n=7, **same),  # its score on "a" is of other questions
    ]
    (group,) = seeds(matrix(Sweep("", runs), "normalized"))
    assert [run.name for run in group["runs"]] == ["one", "two", "other rows"]
    assert group["seeds"] == [0, 1, 4]
    assert group["spread"]["a"] == statistics.seed_spread([0.5, 0.7]) | {"metric": "accuracy"}
    assert group["spread"]["b"]["mean"] == pytest.approx(0.3)


def test_seeds_of_a_sweep(make_sweep: MakeSweep, tmp_path: Path) -> None:
    found = seeds(matrix(scan.sweep(make_sweep(tmp_path, runs=4, sets=1, questions=8, failed=False)), "strict"))
    assert [(group["label"], group["seeds"]) for group in found] == [
        ("tiny · demo_ct · lora", [0, 1]),
        ("tiny · demo · lora", [0, 1]),
    ]


def test_means_are_over_the_sets_trained_on_and_over_the_others(a_run: ARun) -> None:
    both = {"name": "ab", "sets": {"a": {}, "b": {}}}
    runs = [
        a_run("one", {"a": 0.9, "b": 0.4, "c": 0.2}),
        a_run("both", {"a": 0.8, "b": 0.6, "c": 0.1}, dataset=both),
        a_run("error", {"a": 3.0}, metric="mae"),
        a_run("none", {}),
    ]
    found = {
        row["run"].name: (row["metric"], row["in_domain"], row["transfer"])
        for row in transfer(matrix(Sweep("", runs), "normalized"))
    }
    assert found == {
        "one": ("accuracy", 0.9, pytest.approx(0.3)),
        "both": ("accuracy", pytest.approx(0.7), pytest.approx(0.1)),
        "error": ("mae", 3.0, None),
    }


def test_means_never_mix_metrics(a_run: ARun) -> None:
    mixed = a_run("one", {"b": 0.4})
    evaluations = {**mixed.result["evaluations"], **a_run("", {"c": 7.0}, metric="mae").result["evaluations"]}
    found = transfer(
        matrix(Sweep("", [Run(mixed.folder, mixed.config, {"evaluations": evaluations}, mixed.status)]), "normalized")
    )
    assert [(row["metric"], row["transfer"], row["transfer_sets"]) for row in found] == [
        ("accuracy", 0.4, ["b"]),
        ("mae", 7.0, ["c"]),
    ]


def test_settings_that_differ(demo: Sweep) -> None:
    found = {row["setting"]: row["values"] for row in differences(demo)}
    # Not the paths, the hardware or the label; of a mixture, which sets it has.
    assert list(found) == ["dataset.name", "method.trainer.learning_rate", "seed", "dataset.sets"]
    assert set(found["method.trainer.learning_rate"].values()) == {0.001, 0.002}
    assert found["dataset.sets"] == {"tiny-demo-lora-s0-00000003": "demo_ct, demo_xray, demo_path"}
    assert not any("base" in run or "00000006" in run for run in found["seed"])  # the model as it is, the missing run


def test_settings_that_say_where_things_lie_are_left_out(a_run: ARun) -> None:
    runs = [
        a_run("one", {}, dataset={"name": "a", "path": "/data/a", "max_rows": None}),
        a_run("two", {}, dataset={"name": "a", "path": None, "max_rows": 5}),
    ]
    assert differences(Sweep("", runs)) == [{"setting": "dataset.max_rows", "values": {"one": None, "two": 5}}]


def test_failures_name_what_is_not_done_with_its_error(demo: Sweep) -> None:
    found = failures(demo)
    assert [(row["run"], row["state"]) for row in found] == [
        ("tiny-demo_ct-lora-s1-00000004", "failed"),
        ("tiny-demo_path-lora-s1-00000006", "missing"),
    ]
    assert found[0]["error"].splitlines()[-1].startswith("OutOfMemoryError")


def test_counts_hold_every_run(demo: Sweep) -> None:
    assert counts(demo) == {"done": 5, "failed": 1, "running": 1, "missing": 1}
