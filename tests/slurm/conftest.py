"""A Slurm for these tests: the one that start.sh has started, and what several of them need of it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from vlmft.data.mixture import load_mixture
from vlmft.models.tiny import write_tiny
from vlmft.schema import Config
from vlmft.slurm_queue import submitted

PLACE = Path(os.environ.get("VLMFT_SLURM", "/tmp/vlmft-slurm"))
STEPS = 24
RUN = ("model=tiny_glm41v", "dataset=demo_ct", "dataset.max_rows=40", "method=full", "method.batch_size=4",
       f"method.trainer.max_steps={STEPS}", "method.trainer.learning_rate=1e-3", "method.trainer.save_steps=1000",
       "hardware.micro_batch=2", "hardware.device=cpu", "eval=none", "check=false")  # fmt: skip
SLURM = ("hardware=slurm", "hardware.memory=1", "hardware.time=30")

# Found by Python at start through PYTHONPATH: steps of a job's first attempt take PAUSE seconds, on any machine.
SLOW = """
import json, os, time
replace = os.replace
def slow(source, target, **kwargs):
    replace(source, target, **kwargs)
    if str(target).endswith("status.json"):
        with open(target) as file:
            if json.load(file)["phase"] == "training":
                time.sleep(float(os.environ["PAUSE"]))
if "SLURM_JOB_ID" in os.environ and not int(os.environ.get("SLURM_RESTART_COUNT", "0")):
    os.replace = slow
"""


@pytest.fixture(scope="session", autouse=True)
def cluster(cache: Path, composed: Callable[..., Config]) -> None:
    """Skips where no Slurm answers, or not one as these tests need; else jobs find their model and pictures cached."""
    if (conf := PLACE / "slurm.conf").is_file():
        os.environ["SLURM_CONF"] = str(conf)
    try:
        said = asked("sinfo", "--noheader", "--format=%R")
    except (OSError, subprocess.SubprocessError):
        pytest.skip("no Slurm answers here (as root, on Debian: tests/slurm/start.sh)")
    if not {"main", "low", "high"} <= set(said.split()):
        pytest.skip("this Slurm has no partitions main, low and high; tests/slurm/start.sh starts one that has")
    write_tiny("glm41v", cache / "models" / "tiny_glm41v")
    load_mixture(composed("dataset=demo").dataset, "train", seed=0)  # else all commands would draw it at the same time


def asked(*command: str) -> str:
    """What a command of Slurm prints."""
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout


@dataclass
class Command:
    """train.py, started in a folder of its own; what it printed and how it ended, and where its sweep and run are."""

    folder: Path
    process: subprocess.Popen[str]
    out: str = ""
    notes: dict[str, str] = field(default_factory=dict)  # what a scenario saw on its way

    @property
    def code(self) -> int | None:
        return self.process.returncode

    @property
    def sweep(self) -> Path:
        (place,) = self.folder.glob("multirun_reports/*/plan.json")
        return place.parent

    @property
    def job(self) -> str:
        """The number of the one job, once it is submitted."""
        until(lambda: bool(list(self.folder.glob("multirun_reports/*/slurm/jobs.json"))), self)
        (number,) = submitted(self.sweep).values()
        return number

    @property
    def run(self) -> Path:
        (place,) = self.folder.glob("outputs/tiny*/config.yaml")
        return place.parent

    def status(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self.run / "status.json").read_text()))
        except (ValueError, OSError):
            return {}

    def end(self, within: float = 900) -> Command:
        self.out, _ = self.process.communicate(timeout=within)
        return self

    def weights(self) -> dict[str, str]:
        """SHA-256 of each file of the final weights."""
        return {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in self.run.glob("final/*.safetensors")
        }

    def log(self) -> str:
        """What the jobs wrote, with what Slurm and submitit said."""
        return "\n".join(file.read_text() for file in sorted(self.folder.glob("multirun_reports/*/slurm/*/*_log.*")))


def start(folder: Path, *arguments: str, pause: float | None = None) -> Command:
    """train.py with its outputs in a new folder; with `pause`, a step of the first attempt takes so many seconds."""
    folder.mkdir(parents=True)
    given = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if pause is not None:
        (folder / "slow").mkdir()
        (folder / "slow" / "sitecustomize.py").write_text(SLOW)
        given |= {"PYTHONPATH": str(folder / "slow"), "PAUSE": str(pause)}
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments], cwd=folder, env=given, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return Command(folder, process)


def until(true: Callable[[], bool], command: Command | None = None, within: float = 600) -> None:
    """Wait until something holds. Fails after a while, or with the command's output when that has ended before."""
    deadline = time.monotonic() + within
    while not true():
        over = command is not None and command.process.poll() not in (None, 0)
        assert not over, command and command.end().out
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.2)


def in_training(command: Command, step: int = 3) -> None:
    """Wait until the run of the command is at a step."""

    def at_it() -> bool:
        if not list(command.folder.glob("outputs/tiny*/status.json")):
            return False
        found = command.status()
        return found.get("phase") == "training" and found.get("step", 0) >= step

    until(at_it, command)


def states_of(job: str) -> list[str]:
    """How Slurm says that each attempt of a job ended, as soon as accounting has heard of the last."""

    def told() -> list[str]:
        rows = asked("sacct", "-n", "-P", "-X", "-D", "-j", job, "-o", "JobID,State").splitlines()
        return [row.split("|")[1].split()[0] for row in rows if row.split("|")[0] == job]

    until(lambda: bool(told()) and told()[-1] not in ("RUNNING", "PENDING", "COMPLETING"), within=60)
    return told()


def vlmft(folder: Path, *arguments: str) -> str:
    """What a command of vlmft prints."""
    words: Sequence[str] = [sys.executable, "-c", "from vlmft.cli import main; main()", *arguments]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=120, check=True).stdout
