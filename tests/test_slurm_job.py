"""What surrounds a run inside its Slurm job: its outcome, its signals, and those of its children."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.utils import JobStatus

from tests.conftest import ROOT

JOB = """
import os, signal, sys, time
from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.vlmft_slurm._job import in_job
from vlmft.errors import RunFailed

def outcome(status, value):
    returned = JobReturn(overrides=["seed=1"], status=status)
    returned.return_value = value
    return returned

def fine():
    return outcome(JobStatus.COMPLETED, 3)

def told():
    return outcome(JobStatus.FAILED, RunFailed("failed    outputs/a: no such row"))

def unforeseen():
    try:
        {}["row"]
    except KeyError as error:
        return outcome(JobStatus.FAILED, error)

def ended():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(9)

def forks():
    os.kill(os.getpid(), signal.SIGUSR2)
    if os.fork() == 0:
        os.kill(os.getpid(), signal.SIGUSR2)
        os._exit(5)
    print("child", os.waitstatus_to_exitcode(os.wait()[1]))
    return fine()

signal.signal(signal.SIGTERM, lambda *_: print("passed over"))  # as submitit does
signal.signal(signal.SIGUSR2, lambda *_: print("queued again by", os.getpid() == parent))
parent = os.getpid()
print(in_job(globals()[sys.argv[1]]).return_value)
"""


@pytest.fixture
def job(tmp_path: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """job("fine"): one of the jobs above, as submitit starts it."""
    (tmp_path / "7").mkdir()
    given = {"SUBMITIT_EXECUTOR": "slurm", "SUBMITIT_FOLDER": str(tmp_path / "%j"), "SLURM_JOB_ID": "7"}
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}

    def run(name: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", JOB, name], cwd=ROOT, env=clean | given, capture_output=True, text=True, timeout=60
        )

    return run


def test_one_that_is_done(job: Callable[[str], subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    left = [tmp_path / "7" / name for name in ("7_0_result.pkl", "7_0_result.pkl.save_tmp", "7_submitted.pkl.save_tmp")]
    for file in left:
        file.touch()
    done = job("fine")
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")
    assert not any(file.exists() for file in left), "what an attempt before has left is gone"


@pytest.mark.parametrize(("name", "log"), [("told", ""), ("unforeseen", "KeyError: 'row'")])
def test_one_that_failed_tells_slurm_and_the_launcher(
    name: str, log: str, job: Callable[[str], subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = job(name)
    assert done.returncode == 1 and done.stderr.strip().endswith(log) and bool(log) == ("Traceback" in done.stderr)
    kind, returned = pickle.loads((tmp_path / "7" / "7_0_result.pkl").read_bytes())
    assert kind == "success" and returned.status is JobStatus.FAILED
    assert str(returned._return_value) == ("'row'" if log else "failed    outputs/a: no such row")


def test_one_that_is_told_to_end(job: Callable[[str], subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    done = job("ended")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped by SIGTERM\n")
    assert not (tmp_path / "7" / "7_0_result.pkl").exists()


def test_children_do_not_queue_the_job_again(job: Callable[[str], subprocess.CompletedProcess[str]]) -> None:
    assert job("forks").stdout == "queued again by True\nchild 5\n3\n"
