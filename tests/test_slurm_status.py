"""`vlmft status` on runs that Slurm started: what Slurm knows of their jobs; with stand-ins for its commands."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlmft import slurm_queue, watch


def show(*paths: Path) -> None:
    watch.status_command(paths, watch=False, refresh=10, tail=0)


@pytest.fixture
def of_slurm(tmp_path: Path) -> Callable[..., Path]:
    """of_slurm("name", {"SLURM_JOB_ID": "41"}, state=…): a run that a job started, on another machine."""

    def run(name: str, slurm: dict[str, str], **values: Any) -> Path:
        folder = tmp_path / "outputs" / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").touch()
        known = {"state": "running", "phase": "training", "pid": 1, "host": "n7", "updated": time.time()}
        (folder / "status.json").write_text(json.dumps(known | values))
        attempts = [{"slurm": {"SLURM_JOB_ID": "1"}}, {"slurm": slurm}]
        (folder / "provenance.json").write_text(json.dumps({"attempts": attempts}))
        return folder

    return run


ELEMENT = {"SLURM_JOB_ID": "43", "SLURM_ARRAY_JOB_ID": "42", "SLURM_ARRAY_TASK_ID": "1"}


def test_slurm_jobs(
    programs: Callable[[str, str], None], of_slurm: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    slurm = [{"SLURM_JOB_ID": "41"}, ELEMENT, {"SLURM_JOB_ID": "99"}, {}]
    runs = [of_slurm(f"run{number}", variables) for number, variables in enumerate(slurm)]
    show(*runs)
    out = capsys.readouterr().out
    assert "4 runs: 4 running" in out and "squeue does not answer; of its jobs: 41, 42_1, 99" in out
    right = '[ "$*" = "-h -r -t all -j 41,42,99 -o %i|%T|%R" ]'
    programs("squeue", f"{right} && echo '41|RUNNING|n1' && echo '42_1|PENDING|(BeginTime)'")
    show(*runs)
    out = capsys.readouterr().out
    assert "4 runs: 3 running, 1 requeued" in out
    for line in (
        f"slurm     41 RUNNING, log: {runs[0] / 'train.log'}",
        f"slurm     42_1 PENDING (BeginTime), log: {runs[1] / 'train.log'}",
        f"slurm     99 not in the queue, log: {runs[2] / 'train.log'}",
    ):
        assert line in "".join(out.splitlines()) or line in out
    programs("squeue", "exit 1")
    show(*runs)
    assert "squeue does not answer" in capsys.readouterr().out
    programs("squeue", "echo '41|RUNNING|n1'")
    (runs[0] / "status.json").write_text('{"state": "done"}')
    show(*runs)
    assert "slurm     41" not in capsys.readouterr().out, "one that is done is not asked for"


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("TIMEOUT|0:0", "TIMEOUT (it ran out of time"), ("NODE_FAIL|1:0", "NODE_FAIL (its machine failed"),
        ("OUT_OF_MEMORY|0:125", "OUT_OF_MEMORY (it took more memory"),
        ("CANCELLED by 0|0:15", "CANCELLED (somebody cancelled it"), ("FAILED|0:9", "FAILED (it ended with an error"),
    ],
)  # fmt: skip
def test_a_run_whose_job_is_over_has_died(
    said: str, why: str, programs: Callable[[str, str], None], of_slurm: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = of_slurm("run", ELEMENT, updated=time.time())
    programs("squeue", "echo slurm_load_jobs error: Invalid job id specified >&2; exit 1")
    programs("sacct", f"echo '42_1|{said}'")
    show(run)
    out = capsys.readouterr().out
    assert "1 run: 1 died" in out and f"run: its job of Slurm is over: {why}" in out
    (run / "status.json").write_text('{"state": "interrupted", "error": "stopped by SIGTERM"}')
    show(run)
    assert "1 run: 1 interrupted" in capsys.readouterr().out, "it has told more"


def test_without_accounting_a_run_is_not_called_dead_while_it_writes(
    programs: Callable[[str, str], None], of_slurm: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    programs("squeue", "exit 0")
    programs("sacct", "echo Slurm accounting storage is disabled >&2; exit 1")
    show(of_slurm("fresh", {"SLURM_JOB_ID": "41"}, updated=time.time()))
    assert "1 run: 1 running" in capsys.readouterr().out
    show(of_slurm("stale", {"SLURM_JOB_ID": "41"}, updated=time.time() - 100))
    assert "1 run: 1 died" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("queue", "state"), [("42_0|PENDING|(Priority)", "waiting"), ("42_0|CANCELLED|(None)", "died")]
)
def test_jobs_of_a_sweep_that_have_not_begun(
    queue: str, state: str, programs: Callable[[str, str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planned = {"number": 0, "folder": str(tmp_path / "outputs" / "planned"), "base": None}
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "plan.json").write_text(json.dumps({"jobs": [planned]}))
    slurm_queue.note_submitted(tmp_path / "sweep", {0: "42_0"})
    programs("squeue", f"echo '{queue}'")
    show(tmp_path / "sweep")
    out = capsys.readouterr().out
    assert f"1 run: 1 {state}" in out and f"slurm     42_0 {queue.split('|')[1]}" in out
