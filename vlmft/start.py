"""Starting the worker of a run, as one process or several, passing signals on to it, and telling how it ended."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vlmft import nodes, status, torchrun
from vlmft.errors import AGAIN, INTERRUPTED, RunFailed, how_it_died
from vlmft.evaluation import results
from vlmft.files import read_json
from vlmft.hardware import child_environment, processes
from vlmft.lock import RunLock
from vlmft.nodes import Meeting
from vlmft.schema import Config, SplitModel, Strategy, Task

_LOOK_EVERY = 0.2  # seconds, at what the other machines say
_meeting: Meeting | None = None  # of the machines that this command runs on
_orders = itertools.count()


@contextmanager
def on(meeting: Meeting | None) -> Iterator[None]:
    """What is started inside is started on all machines of the meeting."""
    global _meeting, _orders
    _meeting, _orders = meeting, itertools.count()
    with nodes.leading(meeting):
        yield


def work(folders: Sequence[Path], command: Sequence[str], config: Config, *locks: RunLock) -> None:
    """Start the worker (again, as long as it asks for new processes), and raise RunFailed unless it ended well.

    KeyboardInterrupt where it was told to end; where Slurm has told this process to, what submitit does then is done.
    """
    began, code, failure = time.time(), AGAIN, None
    while code == AGAIN:
        code, failure = _once(command, config, _evaluates(folders, config), [lock.fileno() for lock in locks])
    if code == 0:
        return
    if code in (INTERRUPTED, -signal.SIGINT, -signal.SIGTERM):
        raise KeyboardInterrupt
    failed = []
    for folder in folders:
        found = status.read(folder)
        if found.get("started", 0) < began - 1:
            continue  # this worker never came to it
        if found["state"] == "running" or (failure and found["state"] != "done"):
            found["error"], found["state"] = failure or how_it_died(code), "failed"
            with suppress(OSError):  # the disk may be full
                status.correct(folder, "failed", found["error"])
                results.update(folder, state="failed")
        if found["state"] == "failed":
            failed.append(f"failed    {folder}: {found['error']}\n          log: {folder / 'train.log'}")
    raise RunFailed("\n".join(failed) or failure or f"the worker ended with exit code {code} before it began")


def follow(config: Config, meeting: Meeting) -> None:
    """Start this machine's ranks for each order of the first machine, which tells how it all ended."""
    for order, said in nodes.orders(meeting):
        environment = child_environment(config.hardware)
        words = torchrun.words(processes(config.hardware), order, said["command"], order.failure(order.number))
        process = subprocess.Popen([sys.executable, *words], env=environment)
        with _stopping(process) as wait:
            wait()


def _evaluates(folders: Sequence[Path], config: Config) -> bool:
    """Whether there is nothing left to train."""
    return config.task is Task.eval or bool(folders and all((folder / "final").is_dir() for folder in folders))


def _once(command: Sequence[str], config: Config, evaluates: bool, inherited: list[int]) -> tuple[int, str | None]:
    """The exit code of one start, and where ranks failed, which one did and why."""
    hardware = config.hardware
    split = evaluates and hardware.split_model is SplitModel.auto  # by one process, over all GPUs
    count, meeting = (1, None) if split else (processes(hardware), _meeting)
    together = count > 1 or meeting is not None or (hardware.strategy is not Strategy.ddp and not evaluates)
    with tempfile.TemporaryDirectory(prefix="vlmft-start-") as scratch:
        failure, words = Path(scratch) / "failure.json", list(command)
        if meeting:
            meeting = nodes.call(meeting, next(_orders), command)
        if together:
            words = torchrun.words(count, meeting, command, failure)
        process = subprocess.Popen([sys.executable, *words], env=child_environment(hardware, split), pass_fds=inherited)
        with _stopping(process, meeting) as wait:
            code = wait()
        said = (meeting and meeting.failed()) or read_json(failure)
    if code == AGAIN or said is None:
        return code, None
    return 1, f"rank {said['rank']} of {count * (meeting.nodes if meeting else 1)}: {said['error']}"


@contextmanager
def _stopping(process: subprocess.Popen[bytes], meeting: Meeting | None = None) -> Iterator[Any]:
    """A function that waits for the process and returns its exit code.

    Meanwhile SIGTERM here, and SIGUSR2 by which Slurm tells that a job's time is up, end the process as well: it saves
    first. Ctrl-C, which it receives too, waits for it. If submitit waits for SIGUSR2, it has it afterwards, and queues
    the job again.
    """
    told: list[int] = []

    def end(signum: int, frame: object) -> None:
        told.append(signum)
        process.terminate()

    before: dict[int, Any] = {}
    with suppress(ValueError):  # not the main thread: whoever started the thread handles signals
        before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGUSR2)}

    def wait() -> int:
        while meeting is not None and process.poll() is None:
            if meeting.failed():
                process.terminate()
                break
            with suppress(subprocess.TimeoutExpired):
                process.wait(_LOOK_EVERY)
        code = process.wait()
        again = before.get(signal.SIGUSR2)
        if signal.SIGUSR2 in told and callable(again) and code not in (0, 1):
            again(signal.SIGUSR2, None)
        return INTERRUPTED if told and code == AGAIN else code

    try:
        yield wait
    except KeyboardInterrupt:
        try:
            process.wait(timeout=1)  # Ctrl-C has reached it as well
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
