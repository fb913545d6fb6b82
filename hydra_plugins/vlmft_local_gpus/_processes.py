"""The processes of a sweep's jobs: started as slots become free, watched, and ended with the command.

One thread does it all, as each process is ended by the kernel when the thread that started it is gone.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn

from vlmft.config_check import explain
from vlmft.errors import RunFailed, how_it_died
from vlmft.files import read_json
from vlmft.sweep import PLAN

CHILD = Path(__file__).with_name("_child.py")
PATIENCE = 20.0  # seconds between SIGTERM and SIGKILL
_LOOK_EVERY = 0.1
_SHOW_EVERY = 1.0


@dataclass
class Job:
    """One job of the sweep: what its process is given, and what came of it."""

    number: int
    label: str
    log: Path
    call: Path  # what its process is to do; what that returns lies beside it
    outcome: JobReturn  # a failure, until its process says otherwise
    failure: str | None = None  # why it failed, in a line

    def start(self, environment: Mapping[str, str]) -> None:
        self.started = time.monotonic()
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                # -P: its own folder is no place to import from. -u: the log has what was printed, however it ends.
                [sys.executable, "-P", "-u", str(CHILD), str(self.call), str(os.getpid())],
                env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,  # so that Ctrl-C reaches it once, by `_stop`
            )  # fmt: skip

    def ended(self) -> bool:
        """Whether its process is gone; then `outcome` and `failure` say what came of it."""
        code = self.process.poll()
        if code is None:
            return False
        self.call.unlink()
        try:
            self.outcome = pickle.loads(self.call.with_suffix(".return").read_bytes())
        except Exception as problem:  # no answer, or one that cannot be read here
            self.failure = how_it_died(code) if isinstance(problem, FileNotFoundError) else f"its answer: {problem}"
            if code > 0 and code != 130 and (line := _last_line(self.log)):
                self.failure += f": {line}"
            self.outcome.return_value = RunFailed(
                f"failed    #{self.number} {self.label}: {self.failure}\n          log: {self.log}"
            )
            return True
        if isinstance(error := self.outcome._return_value, Exception):
            self.failure = _last_line(self.log) or explain(error)
        return True


def run_jobs(jobs: Sequence[Job], slots: Sequence[Mapping[str, str]], sweep_dir: Path) -> list[JobReturn]:
    """Run the jobs, as many at a time as there are slots, each of which adds to the environment of its jobs.

    Ctrl-C and SIGTERM end all of them, then raise KeyboardInterrupt.
    """
    waiting = deque(jobs)
    running: dict[int, Job] = {}
    with _sigterm_raises(), display([job.number for job in jobs], sweep_dir) as show:
        try:
            while waiting or running:
                for slot, environment in enumerate(slots):
                    if slot in running and running[slot].ended():
                        _tell_end(running.pop(slot), show)
                    while slot not in running and waiting:
                        job = waiting.popleft()
                        if not job.call.is_file():
                            _tell_end(job, show)
                            continue
                        job.start(environment)
                        running[slot] = job
                        show(f"start     #{job.number} {job.label}   (slot {slot + 1})")
                show(None)
                time.sleep(_LOOK_EVERY)
        finally:
            if running:
                show(f"stopping  {len(running)} running, {len(waiting)} not begun")
                _stop([job.process for job in running.values()])
    return [job.outcome for job in jobs]


def _tell_end(job: Job, show: Callable[[str | None], None]) -> None:
    if job.failure is None:
        show(f"done      #{job.number} {job.label} {time.monotonic() - job.started:.0f} s")
    else:
        show(f"failed    #{job.number} {job.label}: {job.failure}")


def _last_line(log: Path) -> str:
    """The last line of a log that is no continuation of another, as continuations are indented here."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    last = next((line for line in reversed(lines) if line.strip() and not line[0].isspace()), "")
    return last.removeprefix("failed ").strip()


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """SIGTERM to all of them, which lets a run write that it was interrupted; SIGKILL after a while, or at Ctrl-C."""
    for process in processes:
        process.terminate()
    try:
        deadline = time.monotonic() + PATIENCE
        while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
            time.sleep(_LOOK_EVERY)
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    def interrupted(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt(signal.Signals(signum).name)

    before = signal.signal(signal.SIGTERM, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def display(numbers: Collection[int], sweep_dir: Path) -> Iterator[Callable[[str | None], None]]:
    """A function that shows a line, or with None what has changed: on a terminal, in a live table of the runs that are
    planned under these numbers."""
    plan = sweep_dir / PLAN
    if not (sys.stdout.isatty() and plan.is_file()):
        yield lambda line: print(line, flush=True) if line is not None else None
        return
    from rich.live import Live

    from vlmft.watch import live_table

    def table() -> Any:
        # Read each time: where the data had to be fetched first, a job itself tells the plan its folder.
        planned = {job["number"]: Path(job["folder"]) for job in read_json(plan)["jobs"] if job["folder"]}
        mine = {number: planned[number] for number in sorted(planned.keys() & set(numbers))}
        return live_table(list(mine.values()), [f"#{number} {folder.name}" for number, folder in mine.items()])

    shown = time.monotonic()
    with Live(table(), auto_refresh=False) as live:

        def show(line: str | None) -> None:
            nonlocal shown
            if line is not None and not line.startswith(("start ", "done ")):  # the table has those
                live.console.print(line, markup=False, highlight=False, soft_wrap=True)
            if time.monotonic() - shown > _SHOW_EVERY:
                shown = time.monotonic()
                live.update(table(), refresh=True)

        try:
            yield show
        finally:
            live.update(table(), refresh=True)
