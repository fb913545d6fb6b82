"""Starts the processes that work on a run together, with torch's elastic agent: `python -m vlmft.torchrun …`.

It is a process of its own, between the parent, which imports no torch, and the ranks. Signals go on to the ranks, which
agree among themselves where to stop; whatever ends one rank ends all of them; and what is told is the error of the rank
that failed, not of those that lost their connection to it. The kernel ends the ranks when this process is gone.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from vlmft.errors import AGAIN, INTERRUPTED, how_it_died
from vlmft.files import write_json
from vlmft.lifetime import end_with_parent
from vlmft.nodes import Meeting

# What a rank says that has lost the one that failed.
_LOST = (
    "connection closed by peer", "connection reset", "connection refused", "broken pipe", "timed out waiting",
    "socket timeout", "nccl communicator was aborted", "remote process exited", "store->get", "recv value",
)  # fmt: skip
_ENDED = {INTERRUPTED, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP}
_PATIENCE = 30  # seconds for the others to end after one rank failed


def words(count: int, meeting: Meeting | None, worker: Sequence[str], failure: Path) -> list[str]:
    """The command, after the interpreter, that starts `worker` as `count` ranks here, and with a `meeting` on all its
    machines; where it fails, `failure` will say which rank did, and why."""
    options = ["--processes", str(count), "--failure", str(failure)]
    if meeting:
        options += ["--nodes", str(meeting.nodes), "--endpoint", meeting.endpoint, "--run-id", meeting.name]
        options += ["--host"] if meeting.leads else []
    return ["-m", "vlmft.torchrun", *options, "--", *worker]


def main(arguments: Sequence[str]) -> int:
    """The exit code that the run has: 0, AGAIN or INTERRUPTED where a rank ended so, 1 for anything else."""
    parser = argparse.ArgumentParser(prog="vlmft.torchrun", description=__doc__)
    parser.add_argument("--processes", type=int, required=True, help="ranks on this machine")
    parser.add_argument("--failure", type=Path, required=True)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--endpoint", default="localhost:0", help="where the machines meet, HOST:PORT")
    parser.add_argument("--host", action="store_true", help="whether this machine keeps what the others meet by")
    parser.add_argument("--run-id", default=uuid.uuid4().hex)
    parser.add_argument("worker", nargs="+", help="what Python is to run")
    options = parser.parse_args(arguments)
    end_with_parent(signal.SIGHUP)
    pass_on = _passing_on()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, pass_on)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # Slurm tells every process of a job; the parent decides

    import logging

    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch").setLevel(logging.CRITICAL)  # of signals and exit codes the parent tells itself
    with tempfile.TemporaryDirectory(prefix="vlmft-ranks-") as scratch:
        config = LaunchConfig(
            min_nodes=options.nodes, max_nodes=options.nodes, nproc_per_node=options.processes,
            run_id=options.run_id, rdzv_backend="c10d", rdzv_endpoint=options.endpoint, max_restarts=0,
            monitor_interval=0.1, logs_specs=DefaultLogsSpecs(log_dir=scratch), signals_to_handle="SIGQUIT",
            shutdown_timeout=_PATIENCE, rdzv_configs={"is_host": options.host} if options.nodes > 1 else {},
        )  # fmt: skip
        try:
            elastic_launch(config, sys.executable)("-u", *options.worker)
        except ChildFailedError as failed:
            return _told(options.failure, failed.failures)
        except RendezvousError:
            if not _stopping:  # else another machine's agent has ended first
                raise
            return INTERRUPTED
    return 0


def _told(file: Path, failures: dict[int, Any]) -> int:
    codes = {failure.exitcode for failure in failures.values()}
    if AGAIN in codes:
        return AGAIN
    if codes <= _ENDED:
        return INTERRUPTED
    rank, error = to_blame(failures)
    write_json(file, {"rank": rank, "error": error})
    return 1


def to_blame(failures: dict[int, Any]) -> tuple[int, str]:
    """Which rank failed first of itself, neither ended by a signal nor for having lost another one, and why."""
    in_time = sorted(failures, key=lambda rank: failures[rank].timestamp)
    said = {rank: _said(failures[rank]) for rank in in_time}
    itself = [rank for rank in in_time if failures[rank].exitcode not in _ENDED]
    alone = [rank for rank in itself if not any(lost in said[rank].casefold() for lost in _LOST)]
    rank = next(iter([*alone, *itself, *in_time]))
    return rank, said[rank]


def _said(failure: Any) -> str:
    """What the rank has written down, or how it died."""
    told = str(failure.error_file_data.get("message", ""))
    return how_it_died(failure.exitcode) if told in ("", "<NONE>") else told


_stopping: list[int] = []  # the signals that have come


def _passing_on() -> Callable[[int, Any], None]:
    """A handler that sends a signal on to this process's children."""
    import psutil

    this = psutil.Process()

    def pass_on(signum: int, frame: Any) -> None:
        _stopping.append(signum)
        for child in this.children():
            with suppress(psutil.NoSuchProcess):
                child.send_signal(signum)

    return pass_on


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
