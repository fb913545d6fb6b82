"""The report as files in a folder: whole, one writer at a time, and quick for many runs."""

from __future__ import annotations

import fcntl
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vlmft.errors import DataError
from vlmft.report import build as building
from vlmft.report import scan
from vlmft.report.build import build
from vlmft.report.scan import Run, Sweep

MakeSweep = Callable[..., Path]
FILES = {"report.md", "cells.csv", "matrix.tex", "index.html", "matrix.png", "curves.png", "forest.png"}


def test_all_files_are_written_and_named(make_sweep: MakeSweep, tmp_path: Path) -> None:
    folder = make_sweep(tmp_path, runs=2, sets=2, questions=8)
    made = build(scan.sweep(folder), folder)
    assert {file.name for file in made} == FILES
    assert {file.name for file in folder.iterdir()} == FILES | {"plan.json", ".comparisons.json", ".lock"}
    assert (folder / "matrix.tex").read_text().count(r"\begin{tabular}") == 2  # one per protocol
    before = (folder / "report.md").read_text()
    build(scan.sweep(folder), folder)
    assert (folder / "report.md").read_text() == before


def test_the_usual_protocols_come_first(a_run: Callable[..., Run], tmp_path: Path) -> None:
    run = a_run("run", {"a": 0.5})
    scores = run.result["evaluations"]["a"]["scores"]
    scores |= dict.fromkeys(("llavamed", "strict"), scores["normalized"])
    scores["normalized"] = scores.pop("normalized")  # the last of them
    folder = tmp_path / "a" / "new one"
    build(Sweep("s", [run]), folder)
    text = (folder / "report.md").read_text()
    places = [text.index(f"## Protocol {name}") for name in ("normalized", "strict", "llavamed")]
    assert places == sorted(places)


def test_before_the_first_score_the_plan_is_shown(a_run: Callable[..., Run], tmp_path: Path) -> None:
    build(Sweep("s", [Run(Path("run"), a_run("", {}).config, {}, {}, ("a",))]), tmp_path)
    assert "| a | missing |" in (tmp_path / "report.md").read_text()


def test_a_second_process_waits_for_the_first(
    a_run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = Sweep("s", [a_run("run", {"a": 0.5})])
    with open(tmp_path / ".lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        monkeypatch.setattr(building, "PATIENCE", 0.2)
        with pytest.raises(DataError, match="another process has been writing this report"):
            build(sweep, tmp_path)
        assert not (tmp_path / "report.md").exists()
        monkeypatch.setattr(building, "PATIENCE", 30.0)
        threading.Timer(0.3, fcntl.flock, (held, fcntl.LOCK_UN)).start()
        build(sweep, tmp_path)
    assert (tmp_path / "report.md").is_file()


def test_two_hundred_runs_take_seconds(make_sweep: MakeSweep, tmp_path: Path) -> None:
    folder = make_sweep(tmp_path, runs=200, questions=8, predictions=False)
    began = time.process_time()  # of this process alone: other work on the machine does not count
    build(scan.sweep(folder), folder)
    assert time.process_time() - began < 5
