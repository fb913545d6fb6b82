"""The memory that training really takes on a GPU, beside what was estimated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback


class MeasuredPeak(TrainerCallback):
    """Tells estimate and peak once, as `compared` has them, after the second step (or at the end, if there is one).

    The optimiser makes its states at the end of the first step, so only the second has them beside activations.
    `measure` is to give the bytes of the peak so far; the default is what CUDA's allocator handed out.
    """

    def __init__(
        self, estimated_bytes: int, tell: Callable[[dict[str, Any]], None], measure: Callable[[], int] | None = None
    ) -> None:
        self.estimated, self.tell = estimated_bytes, tell
        self.measure = measure or cuda_peak
        self.steps = 0
        self.told = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()  # loading may have taken more than a step does

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps += 1
        if self.steps == 2:
            self._tell()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.steps:
            self._tell()

    def _tell(self) -> None:
        if not self.told:
            self.told = True
            self.tell(compared(self.estimated, self.measure()))


def compared(estimated: int, measured: int) -> dict[str, Any]:
    """Both, and by which share of the measured bytes the estimate is above (or below, negative) them."""
    error = (estimated - measured) / measured if measured else None
    return {"estimated_bytes": estimated, "measured_bytes": measured, "error": error}


def cuda_peak() -> int:
    """Bytes of tensors at the peak on the current GPU, since the statistics were last reset."""
    return int(torch.cuda.max_memory_allocated())
