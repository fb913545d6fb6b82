"""cells.csv, matrix.tex and report.md: every figure there, and nothing of the data taken for markup."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from vlmft.report import scan
from vlmft.report.markdown import plain, report_md, table
from vlmft.report.matrix import Cell, Matrix, matrix
from vlmft.report.scan import Run, Sweep
from vlmft.report.tables import COLUMNS, cells_csv, interval, latex, matrix_tex, number, points

ARun = Callable[..., Run]


@pytest.fixture(scope="module")
def demo(make_sweep: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return scan.sweep(make_sweep(tmp_path_factory.mktemp("demo"), runs=6))


@pytest.fixture(scope="module")
def found(demo: Sweep) -> list[Matrix]:
    return [matrix(demo, protocol) for protocol in demo.protocols]


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_has_a_row_for_each_run_set_and_protocol(demo: Sweep, found: list[Matrix]) -> None:
    rows = read(cells_csv(demo, found))
    assert len({(row["run"], row["set"], row["protocol"]) for row in rows}) == len(rows) == 10 * 3 * 2
    assert tuple(rows[0]) == COLUMNS


def test_csv_is_not_rounded_and_holds_what_result_json_says(demo: Sweep, found: list[Matrix]) -> None:
    rows = {(row["run"], row["set"], row["protocol"]): row for row in read(cells_csv(demo, found))}
    run = next(run for run in demo.runs if run.dataset == "demo_ct" and run.seed == 1)
    row, entries = rows[run.name, "demo_xray", "strict"], run.result["evaluations"]
    scores = entries["demo_xray"]["scores"]["strict"]
    assert (row["model"], row["dataset"], row["method"], row["seed"]) == ("tiny", "demo_ct", "lora", "1")
    for column, value in {
        "value": scores["metrics"]["accuracy"]["value"],
        "low": scores["metrics"]["accuracy"]["low"],
        "closed_accuracy": scores["metrics"]["closed_accuracy"]["value"],
        "open_f1": scores["metrics"]["open_f1"]["value"],
        "unparsed_rate": scores["unparsed_rate"],
        "floor_question_only": entries["demo_xray"]["floor"]["question_only"]["strict"]["accuracy"],
        "floor_constant": entries["demo_xray"]["floor"]["constant"]["strict"]["accuracy"],
        "blank": entries["demo_xray.blank"]["scores"]["strict"]["metrics"]["accuracy"]["value"],
        "shuffled": entries["demo_xray.shuffled"]["scores"]["strict"]["metrics"]["accuracy"]["value"],
    }.items():
        assert float(row[column]) == value
    cell = next(cells[1] for _, of, cells in found[1].rows if of is run)
    assert cell.to_base is not None
    assert [float(row[key]) for key in ("difference_to_base", "p", "p_holm")] == [
        cell.to_base[key] for key in ("difference", "p", "p_holm")
    ]


def test_csv_leaves_empty_what_there_is_not(demo: Sweep, found: list[Matrix]) -> None:
    rows = read(cells_csv(demo, found))
    assert {row["state"] for row in rows if not row["value"]} == {"failed", "running", "missing"}
    base = next(row for row in rows if not row["dataset"])
    assert [base[key] for key in ("method", "seed", "blank", "difference_to_base", "p")] == [""] * 5


def test_csv_quotes_names(a_run: ARun) -> None:
    sweep = Sweep('a "sweep",\nof two', [a_run("run", {'set, "one"': 0.5})])
    (row,) = read(cells_csv(sweep, [matrix(sweep, "normalized")]))
    assert (row["sweep"], row["set"]) == ('a "sweep",\nof two', 'set, "one"')


def hand_made(a_run: ARun, **changes: Any) -> Matrix:
    """Two models on one set: 91.26 and 91.34 percent, the second of which differs from its base."""
    one, two = a_run("one", {}), a_run("two", {})
    cell = Cell(one, "vqa_rad", "done", 0.9126, 0.9, 0.95, 100, 0.0, "accuracy")
    sure = {"difference": 0.1, "low": 0.05, "high": 0.15, "p": 0.001, "p_holm": 0.049, "metric": "accuracy"}
    other = replace(cell, run=two, value=0.9134, to_base=sure)
    return Matrix("normalized", ["vqa_rad"], [("one", one, [replace(cell, **changes)]), ("two", two, [other])])


def test_latex_has_percent_small_intervals_stars_and_the_best_in_bold(a_run: ARun) -> None:
    text = matrix_tex(hand_made(a_run))
    # Both are 91.3 as they are shown, so both are bold; the first is not compared.
    assert r"one & \textbf{91.3}\,{\scriptsize [90.0, 95.0]} \\" in text
    assert r"two & \textbf{91.3}$^{*}$\,{\scriptsize [90.0, 95.0]} \\" in text
    assert r"two & \textbf{91.3}$^{*}$" in matrix_tex(hand_made(a_run, value=0.5))
    assert r"one & 50.0\," in matrix_tex(hand_made(a_run, value=0.5))
    assert r"one & \textit{failed} \\" in matrix_tex(hand_made(a_run, value=None, state="failed"))
    assert text.startswith("% protocol normalized, scorer version ")


def test_no_star_at_five_percent(a_run: ARun) -> None:
    unsure = {"difference": 0.1, "low": 0.05, "high": 0.15, "p": 0.001, "p_holm": 0.05, "metric": "accuracy"}
    assert r"one & \textbf{91.3}\,{" in matrix_tex(hand_made(a_run, to_base=unsure))


def test_the_best_error_is_the_smallest(a_run: ARun) -> None:
    runs = [a_run(name, {"a": value}, metric="mae", seed=n) for n, (name, value) in enumerate({"x": 3, "y": 2}.items())]
    text = matrix_tex(matrix(Sweep("", runs), "normalized"))
    assert r"\textbf{2.00}" in text
    assert r"\textbf{3.00}" not in text


def test_latex_has_as_many_columns_in_every_row(found: list[Matrix]) -> None:
    text = matrix_tex(found[0])
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 12
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {3}
    assert text.count(r"\midrule") == 3  # below the head, the base, the individual models
    assert r"\begin{tabular}{lrrr}" in text


def test_latex_prints_special_characters() -> None:
    assert latex(r"50% & $x_1$ #{a}~^\n") == (
        r"50\% \& \$x\_1\$ \#\{a\}\textasciitilde{}\textasciicircum{}\textbackslash{}n"
    )
    assert latex("a\nb · <c>|d") == r"a b $\cdot$ \textless{}c\textgreater{}\textbar{}d"
    assert latex("[1] *") == "{[}1] {*}"  # after a line break both would be its arguments


def rendered(text: str) -> str:
    return MarkdownIt("commonmark").enable("table").render(text)


def test_the_report_says_what_is_done_and_what_is_not(demo: Sweep, found: list[Matrix]) -> None:
    text = report_md(demo, found)
    assert "7 of 10 runs done, 1 running, 1 failed, 1 missing." in text
    assert "    OutOfMemoryError: 80 GiB | tried to allocate <2 GiB> & failed" in text
    assert "tiny-demo_path-lora-s2-00000008 (demo_path · seed 2): missing" in text
    assert "train.py -m model=tiny dataset=demo_ct,demo_xray,demo_path,demo eval=demo" in text
    assert "Scorer version " in text


@pytest.mark.parametrize(
    "heading",
    [
        "Protocol normalized", "Protocol strict", "On the sets trained on, and on the others",
        "Against the base model", "What is reached without looking", "Seeds", "Not done",
        "What of a test set was trained on", "How far two models have to differ", "Settings that differ",
        "How it was made",
    ],
)  # fmt: skip
def test_the_report_has_its_sections(demo: Sweep, found: list[Matrix], heading: str) -> None:
    assert re.search(rf"^##+ {heading}\n\n *\S", report_md(demo, found), re.MULTILINE)


def test_the_report_holds_the_matrix(demo: Sweep, found: list[Matrix]) -> None:
    lines = {line.split(" | ")[0][2:]: line for line in reversed(report_md(demo, found[:1]).splitlines())}
    for label, _, cells in found[0].rows:
        shown = lines[label].replace("**", "")[:-2].split(" | ")[1:]
        assert shown == [
            cell.state
            if cell.value is None
            else f"{number(cell.value, cell.metric)}{'†' * cell.in_domain}{star(cell)} "
            f"{interval(cell.low, cell.high, cell.metric)}"
            for cell in cells
        ]
    assert sum(line.count("**") for line in lines.values()) == 2 * 3  # the best of each set


def star(cell: Cell) -> str:
    return r"\*" if cell.to_base and cell.to_base["p_holm"] < 0.05 else ""


def test_leakage_and_the_smallest_difference(demo: Sweep, found: list[Matrix]) -> None:
    text = report_md(demo, found)
    assert text.count("| demo_ct | demo_path | 2 of 10 | 3 | 8 of 40 | 2 | 2 |") == 1  # however many runs say it
    assert "- demo_ct, 40 questions: 19.6 points" in text


def test_nothing_of_the_data_is_taken_for_markup(a_run: ARun) -> None:
    name = "a|b <b>x</b>\n## c `d` *e* [f](g) $h$ _i_"
    run = a_run("run", {name: 0.5}, dataset={"name": name})
    failed = Run(Path(name), run.config, {}, {"state": "failed", "error": "```\n</code>| <i>"})
    sweep = Sweep(name, [run, failed])
    text = report_md(sweep, [matrix(sweep, "normalized")])
    assert not any("a|b" in line for line in text.splitlines() if line.startswith("|"))
    page = rendered(text)
    assert not re.findall(r"<(?:b|i|em|a)\b", page)
    assert "<strong>" not in page  # one score alone is no best
    assert "<code>c" not in page
    assert page.count("<h2>") == 4  # protocol, not done, smallest difference, how it was made
    for body in re.findall(r"<table>.*?</table>", page, re.DOTALL):
        rows = re.findall(r"<tr>.*?</tr>", body, re.DOTALL)
        assert len({len(re.findall("<t[hd]", row)) for row in rows}) == 1
    assert "a|b &lt;b&gt;x&lt;/b&gt; ## c `d` *e* [f](g) $h$ _i_" in page
    assert "```\n&lt;/code&gt;| &lt;i&gt;" in page


def test_a_report_before_the_first_score(a_run: ARun) -> None:
    waiting = Run(Path("run"), a_run("", {}).config, {}, {}, ("a",))
    sweep = Sweep("s", [waiting])
    text = report_md(sweep, [matrix(sweep, "normalized")])
    assert "0 of 1 runs done, 1 missing." in text
    assert "| a | missing |" in text
    assert "Against the base model" not in text


def test_table_and_plain() -> None:
    assert table(["a", "b", "c"], [["1", "2", "3"]], names=2) == "| a | b | c |\n| --- | --- | ---: |\n| 1 | 2 | 3 |"
    assert plain("vqa_rad") == "vqa_rad"  # inside a word an underscore is one


def test_numbers_are_in_the_unit_of_their_metric() -> None:
    assert [number(0.1234, "accuracy"), number(1.5, "mae"), number(1.5, "open_answer_words"), number(None, "mae")] == [
        "12.3", "1.50", "1.50", "–",
    ]  # fmt: skip
    change = {"metric": "accuracy", "difference": 0.1, "low": None, "high": 0.2}
    assert points(change) == "+10.0 [–, +20.0]"
    assert points(change | {"metric": "mae"}) == "+0.1 [–, +0.2]"
