"""Learning rates of parts: the vision tower and its projector at their own, on the schedule of the rest."""

from __future__ import annotations

import logging
from typing import Any

from vlmft.errors import DataError
from vlmft.models.load import part_of
from vlmft.schema import LearningRates

logger = logging.getLogger(__name__)


def set_learning_rates(optimizer: Any, model: Any, rates: LearningRates) -> None:
    """Give the parts that `rates` names parameter groups of their own; without rates nothing is touched.

    Each takes over its weights' settings, weight decay too, from the groups they were in. To be called before the
    first step and before the scheduler is made. Raises DataError where no weight of a part is trained.
    """
    wanted = {part: rate for part, rate in vars(rates).items() if rate is not None}
    parts = {weight: part_of(name) for name, weight in model.named_parameters() if weight.requires_grad}
    for part, rate in wanted.items():
        chosen = {weight for weight, of in parts.items() if of == part}
        if not chosen:
            raise DataError(
                f"method.learning_rates.{part}={rate:g}: no weight of this part is trained. LoRA trains those that "
                "model.lora_targets (or method.peft.target_modules) names; method=full trains all"
            )
        for group in list(optimizer.param_groups):
            moved = [weight for weight in group["params"] if weight in chosen]
            if moved:
                group["params"] = [weight for weight in group["params"] if weight not in chosen]
                settings = {key: value for key, value in group.items() if key not in ("params", "initial_lr")}
                optimizer.add_param_group(settings | {"params": moved, "lr": rate})
        logger.info("rates     %s: %g, for %s weights", part, rate, f"{sum(w.numel() for w in chosen):,}")
