"""Out of memory on a GPU: the run goes on in micro-batches of half the size, with the same questions in every step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vlmft.errors import DataError
from vlmft.evaluation import results
from vlmft.hardware import Decisions, divisors
from vlmft.provenance import write_decided

NOTED = "out_of_memory"  # in result.json: the micro-batches that were too large, in order


class TryAgain(Exception):
    """The run can go on, in a new process: this one's memory is in pieces."""


def smaller(run: Path, decisions: Decisions, batch_size: int) -> TryAgain:
    """Note that the micro-batch was too large, and decide for at most half of it. DataError where it is 1."""
    if decisions.micro_batch == 1:
        raise DataError(too_large(decisions))
    noted = [*results.read(run).get(NOTED, []), decisions.micro_batch]
    results.update(run, **{NOTED: noted})
    after = within(run, decisions, batch_size)
    write_decided(run, after.as_dict())
    return TryAgain(
        f"out of GPU memory with micro-batch {decisions.micro_batch}: going on with {after.micro_batch}, "
        f"{batch_size // (after.micro_batch * after.ranks)} of them a step"
    )


def within(run: Path, decisions: Decisions, batch_size: int) -> Decisions:
    """The decisions with a micro-batch of at most half of what has been too large for this run."""
    noted = results.read(run).get(NOTED)
    if not noted:
        return decisions
    most = max(1, min(noted) // 2)
    possible = [n for n in divisors(batch_size // decisions.ranks) if n <= most]
    return replace(decisions, micro_batch=min(decisions.micro_batch, max(possible)))


def too_large(decisions: Decisions) -> str:
    """What is wrong, and what would help."""
    said = f"out of GPU memory on the largest rows: lower hardware.micro_batch (it is {decisions.micro_batch})"
    if not decisions.gradient_checkpointing:
        said += ", set method.trainer.gradient_checkpointing=true"
    return f"{said}, or lower model.max_pixels"
