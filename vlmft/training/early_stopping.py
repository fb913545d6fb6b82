"""Training that ends before its last step, as the validation loss has stopped falling (`method.early_stopping`)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from transformers import TrainerCallback

from vlmft.schema import EarlyStopping


class StopEarly(TrainerCallback):
    """Ends training with the evaluation at which patience runs out.

    It goes by the log in the trainer's state, which every checkpoint holds, so a resumed run ends where an undisturbed
    one does. transformers' own callback counts in memory, and takes the smallest fall for a new best to compare with.
    """

    def __init__(self, settings: EarlyStopping) -> None:
        self.settings = settings

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        patience = self.settings.patience
        step, since = last_improvement(state.log_history, self.settings.threshold)
        if patience is None:
            return
        if (state.global_step - step >= patience * state.max_steps) if patience < 1 else since >= patience:
            control.should_training_stop = True


def last_improvement(log: Iterable[Mapping[str, Any]], threshold: float) -> tuple[int, int]:
    """The step of the last evaluation that improved on the improvement before by `threshold`; evaluations since.

    A loss that is no number improves on nothing.
    """
    best, step, since = math.inf, 0, 0
    for entry in log:
        loss = entry.get("eval_loss")
        if loss is None:
            continue
        if loss < best and best - loss >= threshold:
            best, step, since = loss, int(entry["step"]), 0
        else:
            since += 1
    return step, since


def told(settings: EarlyStopping, state: Any) -> str | None:
    """When and why training stopped early, in words; None where it did not."""
    if settings.patience is None or state.global_step >= state.max_steps:
        return None
    step, _ = last_improvement(state.log_history, settings.threshold)
    by = f" of {settings.threshold:g}" if settings.threshold else ""
    return f"stopped early at step {state.global_step} of {state.max_steps} (no improvement{by} since step {step})"
