"""What is read of a sweep: every planned run once, also those that never came to a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vlmft.errors import DataError
from vlmft.report.scan import DONE, FAILED, MISSING, runs_below, sweep


def plan(folder: Path, *jobs: dict[str, object]) -> Path:
    settings = {"model": {"name": "m"}, "dataset": {"name": "d"}, "method": {"name": "lora"}, "seed": 0}
    usual = {
        "number": 0,
        "overrides": [],
        "folder": None,
        "base": None,
        "sets": ["s"],
        "config": settings,
        "error": None,
    }
    (folder / "plan.json").write_text(json.dumps({"jobs": [usual | job for job in jobs]}))
    return folder


def run(folder: Path, *sets: str, task: str = "train") -> str:
    folder.mkdir()
    (folder / "config.yaml").write_text(f"task: {task}\nmodel: {{name: m}}\n")
    (folder / "status.json").write_text(json.dumps({"state": "done"}))
    (folder / "result.json").write_text(
        json.dumps({"evaluations": {name: {"scores": {"strict": {}}} for name in sets}})
    )
    return str(folder)


def test_a_base_that_several_jobs_share_is_one_run(tmp_path: Path) -> None:
    base, one = run(tmp_path / "base", "s", "t", task="eval"), run(tmp_path / "one", "s")
    found = sweep(
        plan(
            tmp_path, {"folder": one, "base": base}, {"folder": str(tmp_path / "two"), "base": base, "sets": ["s", "t"]}
        )
    )
    assert [(r.name, r.base, r.state) for r in found.runs] == [
        ("one", False, DONE), ("base", True, DONE), ("two", False, MISSING)
    ]  # fmt: skip
    assert found.sets == ["s", "t"] and found.protocols == ["strict"]
    assert found.base_of(found.runs[0]) is found.runs[1]
    assert found.describe().endswith("3 runs, 5 cells: 3 done, 2 missing")


def test_a_job_whose_data_is_not_here_has_failed_with_the_reason(tmp_path: Path) -> None:
    (job,) = sweep(plan(tmp_path, {"number": 4, "error": "slake is not there"})).runs
    assert (job.name, job.state, job.error(), job.cell("s")) == ("job 4", FAILED, "slake is not there", FAILED)


def test_folders_of_runs_and_what_is_none(tmp_path: Path) -> None:
    run(tmp_path / "one", "s")
    run(tmp_path / "one.old-20260101-000000", "s")
    (tmp_path / "other").mkdir()
    assert [r.name for r in runs_below([tmp_path]).runs] == ["one"]
    assert [r.name for r in runs_below([tmp_path / "one"]).runs] == ["one"]
    with pytest.raises(DataError, match="no run directories"):
        runs_below([tmp_path / "other"])
    with pytest.raises(DataError, match=r"plan\.json"):
        sweep(tmp_path)
