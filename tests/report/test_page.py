"""index.html: everything on it stands where it should, is escaped, and needs nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from vlmft.report import groups, heat, sections
from vlmft.report.matrix import Matrix, matrix
from vlmft.report.page import as_script, page
from vlmft.report.scan import Sweep, sweep

HOSTILE = "</script><img src=x onerror=alert(1)>"
VOID = {"meta", "input", "br", "img", "line", "circle", "path", "polyline"}
_made: list[Path] = []


class Read(HTMLParser):
    """The page as its elements; every one is closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.inside: dict[str, list[str]] = {}  # tag → texts directly in it
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.open:
            self.inside.setdefault(self.open[-1], []).append(data)


@pytest.fixture
def demo(make_sweep: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one made-up sweep, written once."""
    if not _made:
        _made.append(make_sweep(tmp_path_factory.mktemp("demo"), runs=4, sets=2))
    return _made[0]


@pytest.fixture
def read(demo: Path) -> tuple[Sweep, list[Matrix]]:
    found = sweep(demo)
    return found, [matrix(found, protocol, demo / ".comparisons.json") for protocol in found.protocols]


@pytest.fixture
def hostile(demo: Path, tmp_path: Path) -> Sweep:
    """The sweep with a set named <b>, a question that ends a script, and half a surrogate pair in an answer."""
    root = demo.parents[1]
    shutil.copytree(root, tmp_path / "at")
    for file in sorted((tmp_path / "at").rglob("*"), reverse=True):
        if file.suffix in (".json", ".jsonl", ".yaml"):
            text = file.read_text(encoding="utf-8").replace(str(root), str(tmp_path / "at"))
            text = text.replace("Is there a lesion?", HOSTILE).replace("left kidney", "\\ud800 kidney")
            file.write_text(text.replace("demo_ct", "<b>"), encoding="utf-8")
        if "demo_ct" in file.name:
            file.rename(file.with_name(file.name.replace("demo_ct", "<b>")))
    return sweep(tmp_path / "at" / "multirun_reports" / "demo_grid")


def data_of(text: str) -> Any:
    found = re.search(r'<script type="application/json" id="gallery-data">(.*?)</script>', text, re.S)
    assert found
    return json.loads(found[1])


def test_page_asks_for_nothing_from_elsewhere(read: tuple[Sweep, list[Matrix]]) -> None:
    text = page(*read, [Path("/somewhere/matrix.png")])
    links = {value for _, attrs in Read(text).elements for name, value in attrs.items() if name in ("href", "src")}
    assert "matrix.png" in links
    assert all(str(link).startswith("#") for link in links - {"matrix.png"})
    assert "http" not in text.split('id="gallery-data"')[0].replace("http-equiv", "")
    assert "/somewhere" not in text


def test_only_its_own_script_may_run(read: tuple[Sweep, list[Matrix]]) -> None:
    text = page(*read)
    script = text.rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text


def test_contents_name_every_section(read: tuple[Sweep, list[Matrix]]) -> None:
    elements = Read(page(*read)).elements
    named = [attrs["id"] for tag, attrs in elements if tag == "section"]
    links = [attrs["href"] for tag, attrs in elements if tag == "a" and "data-run" not in attrs]
    assert links[1:] == [f"#{name}" for name in named]
    assert named == [
        "results", "unfinished", "transfer", "comparisons", "seeds", "smallest", "floors", "breakdowns", "leakage",
        "curves", "settings", "runs", "gallery",
    ]  # fmt: skip


def test_header_says_what_this_is(read: tuple[Sweep, list[Matrix]]) -> None:
    said = " ".join(Read(page(*read)).texts)
    assert "train.py -m model=tiny" in said
    assert "5 done, 1 running, 1 failed, 1 missing" in said


def test_only_the_first_protocol_shows_without_the_switch(read: tuple[Sweep, list[Matrix]]) -> None:
    blocks = [attrs for _, attrs in Read(page(*read)).elements if "data-protocol" in attrs]
    assert {attrs["data-protocol"] for attrs in blocks} == {"normalized", "strict"}
    assert all(("hidden" in attrs) == (attrs["data-protocol"] == "strict") for attrs in blocks)


def test_cells_say_their_scores(read: tuple[Sweep, list[Matrix]]) -> None:
    _, matrices = read
    drawn = Read(heat.heat(matrices[:1], {}))
    cell = next(cell for _, _, cells in matrices[0].rows for cell in cells if cell.in_domain and cell.to_base)
    assert cell.value is not None and cell.to_base is not None
    assert f"{100 * cell.value:.1f}" in drawn.inside["b"]
    star = "*" if cell.to_base["p_holm"] < 0.05 else ""
    assert f"{100 * cell.to_base['difference']:+.1f}{star} to base" in drawn.inside["span"]
    outlined = [attrs for tag, attrs in drawn.elements if tag == "td" and "own" in str(attrs["class"]).split()]
    assert len(outlined) == sum(cell.in_domain for _, _, cells in matrices[0].rows for cell in cells)


def test_what_has_no_score_says_why(read: tuple[Sweep, list[Matrix]]) -> None:
    drawn = Read(heat.heat(read[1][:1], {}))
    assert {"failed", "running, 120 of 200", "missing"} <= set(drawn.inside["td"])
    assert any("OutOfMemoryError" in text for text in drawn.inside["pre"])
    assert "details" in {tag for tag, _ in drawn.elements}


def test_scored_under_another_protocol_is_not_missing(read: tuple[Sweep, list[Matrix]]) -> None:
    other = matrix(read[0], "squad")
    assert "not scored by this protocol" in heat.heat([other], {})


def test_unreadable_answers_are_marked_above_two_percent(read: tuple[Sweep, list[Matrix]]) -> None:
    label, run, cells = read[1][0].rows[0]

    def drawn(rate: float) -> str:
        row = (label, run, [replace(cell, unparsed=rate) for cell in cells])
        return heat.heat([replace(read[1][0], rows=[row])], {})

    assert "unparsed" not in drawn(0.02)
    assert "2.1 % unparsed" in drawn(0.021)


def test_scores_that_hardly_differ_are_shaded_alike(read: tuple[Sweep, list[Matrix]]) -> None:
    label, run, cells = read[1][0].rows[0]
    row = (label, run, [replace(cell, value=value) for cell, value in zip(cells, (0.90, 0.91), strict=True)])
    shades = re.findall(r"--v:([\d.]+)", heat.heat([replace(read[1][0], rows=[row])], {}))
    assert [float(shade) for shade in shades] == [0.95, 1.0]


def test_cells_lead_to_their_questions(read: tuple[Sweep, list[Matrix]]) -> None:
    text = page(*read)
    data = data_of(text)
    links = [attrs for tag, attrs in Read(text).elements if tag == "a" and "data-run" in attrs]
    assert len(links) == 2 * sum(cell.value is not None for _, _, cells in read[1][0].rows for cell in cells)
    for link in links:
        run, name = str(link["data-run"]), int(str(link["data-set"]))
        assert any(question["set"] == name and run in question["answers"] for question in data["questions"])


def test_text_from_data_never_becomes_markup(hostile: Sweep) -> None:
    text = page(hostile, [matrix(hostile, protocol) for protocol in hostile.protocols])
    drawn = Read(text)
    assert not [tag for tag, _ in drawn.elements if tag == "img"]
    assert not [name for _, attrs in drawn.elements for name in attrs if name.startswith("on")]
    assert [tag for tag, _ in drawn.elements].count("script") == 2
    assert "<b>" in drawn.inside["th"] and "<b>" in drawn.inside["option"]
    assert any("<2 GiB> & failed" in said for said in drawn.inside["pre"])
    assert HOSTILE in {question["question"] for question in data_of(text)["questions"]}
    text.encode("utf-8")


def test_nothing_in_json_ends_a_script() -> None:
    written = as_script([HOSTILE, "<!--", "\u2028\u2029", "\ud800"])
    assert "<" not in written and written.isascii()
    assert json.loads(written)[0] == HOSTILE


def test_breakdowns_lose_their_intervals_before_the_page_grows_too_heavy(
    read: tuple[Sweep, list[Matrix]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "<small>[" in groups.breakdowns(read[1])
    monkeypatch.setattr(groups, "MANY", 3)
    assert "<small>[" not in groups.breakdowns(read[1])


def test_two_hundred_runs_make_a_page(read: tuple[Sweep, list[Matrix]]) -> None:
    runs = [
        replace(run, folder=run.folder.with_name(f"{run.name}-{n}"), config=dict(run.config) | {"seed": n})
        for n in range(25)
        for run in read[0].runs
    ]
    many = Sweep("many", runs, read[0].plan)
    matrices = [matrix(many, protocol) for protocol in many.protocols]
    began = time.perf_counter()
    text = page(many, matrices)
    assert time.perf_counter() - began < 5  # about half a second
    assert len(many.runs) == 200 and len(text.encode()) < 8_000_000


def test_a_demo_grid_is_a_light_page(read: tuple[Sweep, list[Matrix]]) -> None:
    assert len(page(*read).encode()) < 1_500_000


def test_leaks_are_named(read: tuple[Sweep, list[Matrix]]) -> None:
    assert "No test image is among" in sections.leakage(read[0])
    run = next(run for run in read[0].runs if run.trained_sets and run.evaluations)
    counts = {"images": 10, "same_image": 2, "questions": 40}
    leaking = replace(run, result={"evaluations": {"ct": {"leakage": {"xray": counts}, "scores": {}}}})
    assert "Images that are also trained on: ct (trained on xray)" in sections.leakage(Sweep("one", [leaking]))
