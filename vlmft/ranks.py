"""The processes that work on a run together, seen from one of them. Importing this file imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

_PATIENCE = timedelta(days=7)  # one may wait for another that generates for hours


def number() -> int:
    """Which of the processes this one is, from 0."""
    return int(os.environ.get("RANK", "0"))


def count() -> int:
    """How many processes there are, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def first() -> bool:
    """Whether this is the one process that writes what there is one of: status, results, final weights."""
    return number() == 0


def meet() -> None:
    """Wait until every process has come here; nothing where this is the only one.

    Where training has made no group of the processes, they make one that talks over the network alone.
    """
    if count() == 1:
        return
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=_PATIENCE)
    dist.barrier()


@contextmanager
def first_goes_first() -> Iterator[None]:
    """The first process does what is inside alone, and then the others do."""
    if not first():
        meet()
    yield
    if first():
        meet()


def same(value: Any) -> Any:
    """What the first process has, on every one of them, which have made a group; it is pickled on its way."""
    if count() == 1:
        return value
    import torch.distributed as dist

    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def any_of_them(here: bool) -> bool:
    """Whether it is so on any of the processes, which have made a group and all ask together."""
    if count() == 1:
        return here
    import torch.distributed as dist

    found: list[bool] = [False] * count()
    dist.all_gather_object(found, here)
    return any(found)
