"""Supervised fine-tuning: TRL's SFTTrainer, for rows that share their pictures."""

from __future__ import annotations

from typing import Any

from trl import SFTTrainer

from vlmft.training.trainer import Planned


class VqaTrainer(Planned, SFTTrainer):
    """SFTTrainer on planned micro-batches; its loss is a mean over answer tokens."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """TRL's loss, of packed rows too."""
        layout = inputs.pop("layout", None)
        before: int = self._total_train_tokens  # type: ignore[has-type]
        tokens = inputs["attention_mask"].sum()
        loss = super().compute_loss(model, self._laid_out(model, inputs, layout), *args, **kwargs)
        # TRL counted the cells of the mask. Every process gathers, also one whose rows are not packed just now.
        if self.model.training and (layout is not None or self.accelerator.num_processes > 1):
            self._total_train_tokens = before + self.accelerator.gather_for_metrics(tokens).sum().item()
            self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        return loss
