"""What Slurm says of jobs that were submitted, and what their states mean; also where it does not answer."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from vlmft.files import read_json, write_json

_PATIENCE = 10  # seconds for squeue or sacct to answer
FOLDER = "slurm"  # in that of a sweep: the files of its jobs, and their output
SUBMITTED = f"{FOLDER}/jobs.json"
GONE = "GONE"  # in no queue, and sacct does not say how it ended
_FINAL = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "PREEMPTED", "REVOKED", "TIMEOUT",
}  # fmt: skip
_MEANING = {
    GONE: "it is in the queue no more, and Slurm does not say how it ended",
    "TIMEOUT": "it ran out of time: hardware.time gives it more",
    "OUT_OF_MEMORY": "it took more memory than it had asked for: hardware.memory gives it more",
    "NODE_FAIL": "its machine failed",
    "BOOT_FAIL": "its machine did not start",
    "CANCELLED": "somebody cancelled it",
    "DEADLINE": "it could not end before its deadline",
    "PREEMPTED": "a job of higher priority took its place",
    "REVOKED": "another cluster took it",
    "COMPLETED": "it ended without leaving a result",
    "FAILED": "it ended with an error",
}


@dataclass(frozen=True)
class JobState:
    """A job's state in Slurm's word, and what Slurm adds to it."""

    state: str  # RUNNING, PENDING, TIMEOUT, …, or GONE
    note: str = ""  # why it waits, or where it runs

    @property
    def over(self) -> bool:
        """Whether the job will not go on by itself."""
        return self.state in _FINAL or self.state == GONE

    @property
    def waits(self) -> bool:
        return self.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "CONFIGURING")

    @property
    def short(self) -> str:
        """The state in a word or few."""
        return "not in the queue" if self.state == GONE else self.state

    def meaning(self) -> str:
        """In words, such as TIMEOUT (it ran out of time: …)."""
        meaning = _MEANING.get(self.state, "")
        if self.state == GONE or not meaning:
            return meaning or self.state
        return f"{self.state} ({meaning})"


def submitted(sweep_dir: Path) -> dict[int, str]:
    """The jobs that a sweep has submitted last, by their number in its plan; empty where it has none."""
    try:
        return {int(number): str(job) for number, job in (read_json(sweep_dir / SUBMITTED) or {}).items()}
    except (OSError, ValueError, AttributeError):
        return {}


def note_submitted(sweep_dir: Path, jobs: Mapping[int, str]) -> None:
    """Write down which jobs a sweep has submitted, beside those that it had before."""
    (sweep_dir / FOLDER).mkdir(parents=True, exist_ok=True)
    known = submitted(sweep_dir) | dict(jobs)
    write_json(sweep_dir / SUBMITTED, {str(number): job for number, job in sorted(known.items())})


def states(jobs: Collection[str]) -> dict[str, JobState] | None:
    """The state of each job, by its number: 12, or 12_0 for an element of an array. None where Slurm does not answer.

    squeue says it of those that wait or run, and sacct, where accounting is on, of those that are over.
    """
    if not jobs:
        return {}
    numbers = sorted({job.partition("_")[0] for job in jobs})
    queued = _answer("squeue", "-h", "-r", "-t", "all", "-j", ",".join(numbers), "-o", "%i|%T|%R")
    if queued is None:
        return None
    found = {}
    for line in queued.splitlines():
        job, _, rest = line.strip().partition("|")
        state, _, note = rest.partition("|")
        found[job] = JobState(_word(state), note.strip("()"))
    alive = {job: found[job] for job in jobs if job in found and not found[job].over}
    over = [job for job in jobs if job not in alive]
    accounted = _accounted(over) if over else {}
    return alive | {job: accounted.get(job) or found.get(job) or JobState(GONE) for job in over}


def _accounted(jobs: Collection[str]) -> dict[str, JobState]:
    """What sacct says of jobs that are over; nothing where there is no accounting."""
    numbers = sorted({job.partition("_")[0] for job in jobs})
    answer = _answer("sacct", "-n", "-X", "-P", "-o", "JobID,State,ExitCode", "-j", ",".join(numbers)) or ""
    rows = [line.split("|") for line in answer.splitlines()]
    told = {row[0]: JobState(_word(row[1]), _exit(row[2])) for row in rows if len(row) == 3}
    return {job: told[job] for job in jobs if job in told and told[job].over}


def _exit(code: str) -> str:
    """sacct's exit code in words: 1:0 is a code, 0:9 a signal."""
    number, _, signal = code.partition(":")
    if signal not in ("", "0"):
        return f"signal {signal}"
    return f"exit code {number}" if number not in ("", "0") else ""


def _word(state: str) -> str:
    """CANCELLED of "CANCELLED by 0"."""
    return (re.match(r"[A-Z_]+", state.strip()) or [state.strip()])[0]


def _answer(*command: str) -> str | None:
    """What a command of Slurm prints; None where it is not there, fails or does not answer.

    That it knows none of the jobs, as it soon forgets those that are over, is an answer.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_PATIENCE,
            env=os.environ | {"SLURM_TIME_FORMAT": "standard"},
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    if done.returncode and "Invalid job id" not in done.stderr:
        return None
    return done.stdout
