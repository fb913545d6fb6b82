"""Several machines that work on one run: the command runs on each, one of them leads, and the others follow.

The first machine does what a command does everywhere: find the run, lock it, start the worker, tell how it ended. What
it starts it writes down as an order in the runs' folder, which all machines share for the checkpoints anyway; the
others carry out the orders, one after the other, until it says that it is done. Slurm (one task on each machine) and
torchrun (one agent on each) say which machine this is.
"""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlmft.errors import ConfigError
from vlmft.files import read_json, write_json
from vlmft.schema import Config, Hardware

_LOOK_EVERY = 0.2  # seconds
_calls = itertools.count()  # of `here`, which every machine makes alike


@dataclass(frozen=True)
class Meeting:
    """One order's meeting of the machines: how many there are, which one this is, and where they find each other."""

    nodes: int
    number: int
    name: str
    folder: Path
    endpoint: str = ""  # HOST:PORT, of the first machine
    order: int = 0

    @property
    def leads(self) -> bool:
        return self.number == 0

    def failure(self, number: int) -> Path:
        """Where a machine says which of its ranks failed."""
        return self.folder / f"{self.order}.failed-{number}.json"

    def failed(self) -> dict[str, Any] | None:
        """What any of the others says of a failure."""
        return next(filter(None, (read_json(self.failure(number)) for number in range(1, self.nodes))), None)


def started_by_torchrun() -> bool:
    """Whether torchrun or accelerate launch started this process, as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ or ("LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ)


def as_torchrun_says(hardware: Hardware) -> Hardware:
    """The hardware with as many processes and machines as torchrun has started. ConfigError where it says others, or
    where accelerate launch was given an engine that `hardware` is to name."""
    for name in ("DEEPSPEED", "FSDP"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true":
            right = {"DEEPSPEED": "zero2, zero3 or zero3_offload", "FSDP": "fsdp"}[name]
            raise ConfigError(
                f"accelerate launch asks for {name}: leave that out and say it to vlmft, hardware={right}; "
                "its settings stand in conf/hardware"
            )
    given: dict[str, Any] = {
        "processes": int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1"))),
        "nodes": int(os.environ.get("GROUP_WORLD_SIZE", "1")),
    }
    for key, count in given.items():
        said = getattr(hardware, key)
        if said not in (count, getattr(Hardware(), key), "auto"):
            raise ConfigError(f"hardware.{key}={said}, and torchrun has started {count}: say one of the two only")
    return replace(hardware, **given)


def here(config: Config) -> Meeting | None:
    """Where the machines of the run meet, and which one this is; None where it runs on this one alone.

    Raises ConfigError where nothing says which of the machines this is.
    """
    if config.hardware.nodes == 1:
        return None
    call, env = next(_calls), os.environ
    if started_by_torchrun():
        number, name = env.get("GROUP_RANK", "0"), f"{env.get('TORCHELASTIC_RUN_ID')}-{env.get('MASTER_PORT')}"
    elif env.get("SLURM_JOB_NUM_NODES") == str(config.hardware.nodes) and "SLURM_NODEID" in env:
        number, name = env["SLURM_NODEID"], f"slurm-{env['SLURM_JOB_ID']}-{env.get('SLURM_RESTART_COUNT', 0)}"
    else:
        raise ConfigError(
            f"hardware.nodes={config.hardware.nodes}: nothing says which of the machines this one is; submit it with "
            f"hardware=slurm_multinode, or start it on each with torchrun --nnodes={config.hardware.nodes} train.py …"
        )
    folder = Path(config.paths["outputs"]) / ".nodes" / f"{name}-{call}"
    return Meeting(config.hardware.nodes, int(number), f"{name}-{call}", folder)


def call(meeting: Meeting, order: int, command: Sequence[str]) -> Meeting:
    """Write an order down for the other machines, and return its meeting."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    host = os.environ.get("SLURMD_NODENAME") or os.environ.get("MASTER_ADDR") or socket.gethostname()
    given = replace(meeting, endpoint=f"{host}:{port}", name=f"{meeting.name}-{order}", order=order)
    meeting.folder.mkdir(parents=True, exist_ok=True)
    said = {"command": list(command), "endpoint": given.endpoint, "name": given.name}
    write_json(meeting.folder / f"{order}.json", said)
    return given


@contextmanager
def leading(meeting: Meeting | None) -> Iterator[None]:
    """Whatever happens inside, the others are told in the end that nothing more will come."""
    try:
        yield
    finally:
        if meeting is not None:
            meeting.folder.mkdir(parents=True, exist_ok=True)
            write_json(meeting.folder / "end.json", {})
            _forget(meeting.folder.parent)


def orders(meeting: Meeting) -> Iterator[tuple[Meeting, dict[str, Any]]]:
    """The orders for a machine that follows, as they come, until the first one is done."""
    for order in itertools.count():
        while (said := read_json(meeting.folder / f"{order}.json")) is None:
            if (meeting.folder / "end.json").is_file():
                return
            time.sleep(_LOOK_EVERY)
        yield replace(meeting, endpoint=said["endpoint"], name=said["name"], order=order), said


def _forget(folder: Path) -> None:
    """Remove what meetings of more than a week ago have left."""
    for old in folder.iterdir():
        with suppress(OSError):
            if time.time() - old.stat().st_mtime > 7 * 24 * 3600:
                shutil.rmtree(old)
