"""The processes that work on a run together, seen from one of them. Importing this file imports no torch."""

from __future__ import annotations

import os
from datetime import timedelta

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
