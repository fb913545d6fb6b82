"""Waiting for submitted jobs: each is over when its result is there, or when Slurm has it no more."""

from __future__ import annotations

import pickle
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus

from hydra_plugins.vlmft_local_gpus._processes import display
from hydra_plugins.vlmft_slurm._submission import Job
from vlmft.config_check import explain
from vlmft.slurm_queue import JobState, states

_LOOK_EVERY = 1.0  # seconds between two looks for results
_ASK_EVERY, _ASK_SOON = 10.0, 3.0  # seconds between two questions to Slurm; where a job has failed it matters now
_ANSWERS = 2  # in a row that have to say that a job is over, as files of another machine may be seen late
_SILENT = 6  # questions that may stay without an answer before that is told
_ASIDE = re.compile("srun: (?!error)|slurmstepd.*: Terminating")


def wait_for(jobs: Sequence[Job], sweep_dir: Path) -> None:
    """Wait until every job has an outcome, and tell how each ends in a line.

    Ctrl-C says that the jobs go on and how to end them, then raises KeyboardInterrupt.
    """
    waiting = {job.id: job for job in jobs if job.id}
    try:
        with display([job.number for job in waiting.values()], sweep_dir) as show:
            _Watch(waiting, show).until_over()
    except KeyboardInterrupt:
        numbers = " ".join(dict.fromkeys(name.partition("_")[0] for name in waiting))
        if numbers:
            print(
                f"\nleft      the jobs go on without this command; to end them: scancel {numbers}\n"
                f"          to see them: vlmft status --watch {sweep_dir}",
                flush=True,
            )
        raise


class _Watch:
    """Looks for results often and asks Slurm seldom, until nothing is left of `waiting`."""

    def __init__(self, waiting: dict[str, Job], show: Callable[[str | None], None]) -> None:
        self.waiting, self.show = waiting, show
        self.began = time.monotonic()
        self.asked = self.began  # Slurm needs a moment to know what it was given
        self.over: dict[str, int] = {}  # how many answers in a row said so of a job
        self.seen: dict[str, str] = {}  # what was last told of a job
        self.unanswered = 0
        self.failures = False  # whether a job has left one that is not told yet

    def until_over(self) -> None:
        while self.waiting:
            self.failures = False
            for name, job in list(self.waiting.items()):
                if (found := result(job, 0)) and found[0].status is not JobStatus.FAILED:
                    self._ended(name, *found)
                elif found:
                    # It may be that of an attempt that Slurm has cut off and queued again; the queue knows.
                    self.failures = True
            if self.waiting and time.monotonic() - self.asked >= (_ASK_SOON if self.failures else _ASK_EVERY):
                self._ask()
            self.show(None)
            if self.waiting:
                time.sleep(_LOOK_EVERY)

    def _ask(self) -> None:
        answer = states(self.waiting)
        self.asked = time.monotonic()
        if answer is None:
            self.unanswered += 1
            if self.unanswered == _SILENT:
                self.show("silent    squeue does not answer; waiting for what the jobs themselves leave")
            if self.unanswered >= _SILENT:
                for name, job in list(self.waiting.items()):
                    if found := result(job, 0):
                        self._ended(name, *found)
            return
        self.unanswered = 0
        for name, job in list(self.waiting.items()):
            state = answer[name]
            self.over[name] = self.over.get(name, 0) + 1 if state.over else 0
            left = [found for task in range(len(job.tasks)) if (found := result(job, task))]
            failed = next((found for found in left if found[0].status is JobStatus.FAILED), None)
            if state.over and failed:
                self._ended(name, *failed)
            elif self.over[name] >= _ANSWERS:
                why = _why(job, state)
                self._ended(name, job.failed(why), why)
            elif not state.over:
                self._tell(name, job, state)

    def _tell(self, name: str, job: Job, state: JobState) -> None:
        """Say where a job is, once for each change."""
        before, self.seen[name] = self.seen.get(name), "waits" if state.waits else "runs"
        if before == self.seen[name]:
            return
        if state.waits and before:
            self.show(f"requeued  #{job.number} {job.label}   (job {name}: {state.note})")
        elif not state.waits:
            self.show(f"start     #{job.number} {job.label}   (job {name} on {state.note})")

    def _ended(self, name: str, outcome: JobReturn, why: str) -> None:
        job = self.waiting.pop(name)
        job.outcome = outcome
        if outcome.status is JobStatus.FAILED:
            self.show(f"failed    #{job.number} {job.label}: {why}")
        else:
            self.show(f"done      #{job.number} {job.label} {time.monotonic() - self.began:.0f} s")


def result(job: Job, task: int) -> tuple[JobReturn, str] | None:
    """What a task of the job has left, and in a line why it failed, where it did; None while it has left nothing."""
    place, log = job.tasks[task].result_pickle, f"(job {job.id}, log: {job.tasks[task].stdout})"
    try:
        _, value = pickle.loads(place.read_bytes())
    except FileNotFoundError:
        return None
    except Exception as problem:
        value = f"its result cannot be read: {problem}"
    if isinstance(value, JobReturn):
        error = value._return_value
        if value.status is not JobStatus.FAILED or not isinstance(error, Exception):
            return value, ""
        first = (explain(error).splitlines() or [type(error).__name__])[0]
        return value, f"{first.removeprefix('failed ').strip()}   {log}"
    why = f"{_last_line(str(value))}   {log}"  # of a traceback, where the job could not begin
    return job.failed(why), why


def _why(job: Job, state: JobState) -> str:
    """Why a job is over that has left no result."""
    log = job.tasks[0].stderr
    said = _last_line(_end_of(log)) if state.state == "FAILED" else ""
    details = ", ".join(filter(None, [state.note if state.state == "FAILED" else "", said]))
    return f"job {job.id} is over: {state.meaning()}{f': {details}' if details else ''}; log: {log}"


def _end_of(log: Any) -> str:
    try:
        return str(log.read_text(encoding="utf-8", errors="replace"))[-4000:]
    except OSError:
        return ""


def _last_line(text: str) -> str:
    """The last line that says something; srun also tells what it does about an end."""
    lines = (line.strip() for line in reversed(text.splitlines()))
    return next((line for line in lines if line and not _ASIDE.match(line)), "")
