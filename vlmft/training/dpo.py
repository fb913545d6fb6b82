"""Direct preference optimisation: TRL's DPOTrainer, for pairs whose two answers share prompt and pictures.

TRL reads each pair as two rows, and each row with the policy and with the reference, pictures included. Here the two
answers are branches of one sequence, and what the reference says of them comes with the pair (training/reference.py):
a quarter of the pictures to look at, and no second model in memory. Losses and metrics are TRL's own code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from trl import DPOTrainer

from vlmft.chat.encode import IGNORED
from vlmft.chat.packing import Pack, in_order, lines_of, places
from vlmft.training.trainer import Collator, Planned

_TOKENS = "num_tokens"  # of TRL's metrics the one that is no mean
_FIELDS = ("log_probs", "entropy", "mean_logits", "is_top1", "log_sum_sq_probs")  # of TRL's head, by token


class PairCollator(Collator):
    """Batches of pairs: beside the tensors of their sequences, `answers` and `reference`."""

    def batch(self, packs: Sequence[Pack]) -> dict[str, Any]:
        """Of P pairs, `answers`: int64 (2P, A), the chosen ones and then the rejected ones, of each token the place in
        the flattened (B, T - 1) of what predicts it, -1 behind an answer; and `reference`: float32 (2P,), as many
        log-probabilities.

        A pair without labels is not among them; where there is no other, one stands for it that has no tokens.
        """
        batch = super().batch(packs)
        lines = lines_of(packs)
        width = batch["input_ids"].shape[1] - 1
        places_of = [
            torch.tensor([line * width + own[n] - 1 for n, label in enumerate(row.labels) if label != IGNORED])
            for line, row, own in places(lines)
        ]
        pairs: Any = [pair for pack in in_order(packs, lines) for pair in pack.rows]
        kept = [(side, number) for side in (0, 1) for number, pair in enumerate(pairs) if pair.answer_tokens]
        answers = [places_of[2 * number + side] for side, number in kept] or [torch.tensor([-1])] * 2
        batch["answers"] = pad_sequence(answers, batch_first=True, padding_value=-1)
        batch["reference"] = torch.tensor([pairs[number].reference[side] for side, number in kept] or [0.0, 0.0])
        return batch


class PairTrainer(Planned, DPOTrainer):
    """DPOTrainer on planned micro-batches of pairs; its loss and metrics are means over the pairs of a step."""

    collator = PairCollator

    def __init__(self, **kwargs: Any) -> None:
        # Without LoRA TRL would load the reference a second time.
        stored = None if kwargs["peft_config"] else _Stored(kwargs["model"].config)
        super().__init__(ref_model=stored, **kwargs)
        self.ref_model = None
        self.precompute_ref_logps = True  # they come with the batch
        self.loss_is_scaled_for_ga = True  # by the pairs of the step
        self._pairs: dict[str, list[int]] = {"train": [], "eval": []}  # of each batch since the metrics were logged

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's loss of the batch's pairs, as a share of the step's (`num_items_in_batch` pairs on all ranks)."""
        answers, reference = inputs.pop("answers"), inputs.pop("reference")
        spoken = F.pad((answers >= 0).long(), (1, 0))  # TRL leaves out the first place, which nothing predicts
        chosen, rejected = reference.chunk(2)
        seen = {
            "input_ids": torch.zeros_like(spoken),
            "completion_mask": spoken,
            "attention_mask": inputs["attention_mask"],  # TRL counts its tokens
            "ref_chosen_logps": chosen,
            "ref_rejected_logps": rejected,
        }
        with self._apart():
            loss = self._compute_loss(partial(self._said, model, inputs, answers), seen, return_outputs=False)
        pairs = _pairs(answers)
        self._pairs["train" if self.model.training else "eval"].append(int(pairs))
        return loss * pairs / num_items_in_batch * self.accelerator.num_processes

    def _said(self, model: Any, inputs: dict[str, Any], answers: torch.Tensor, **_: Any) -> Any:
        """What TRL's head gives of the answers' tokens, each field of shape (2P, A), zero behind an answer."""
        layout = inputs.pop("layout", None)
        outputs = model(**self._laid_out(model, inputs, layout), use_cache=False, fused_lm_head=True)
        found = {name: getattr(outputs, name) for name in _FIELDS if getattr(outputs, name) is not None}
        there = answers.clamp(min=0)
        return SimpleNamespace(
            **{name: value.flatten()[there].masked_fill(answers < 0, 0) for name, value in found.items()}
        )

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """TRL's metrics, which it takes for means over equal batches, as means over the pairs of all processes."""
        mode = "train" if self.model.training else "eval"
        pairs, self._pairs[mode] = self._pairs[mode], []
        metrics = self._metrics[mode]
        found = {name: values for name, values in metrics.items() if name != _TOKENS and len(values) == len(pairs)}
        sums = [math.fsum(value * count for value, count in zip(of, pairs, strict=True)) for of in found.values()]
        counted = torch.tensor([sum(pairs), *metrics.get(_TOKENS, [0])[:1], *sums], dtype=torch.float64)
        count, tokens, *totals = self.accelerator.reduce(counted.to(self.args.device), reduction="sum").tolist()
        if count:
            metrics.update({name: [total / count] for name, total in zip(found, totals, strict=True)})
        if _TOKENS in metrics:
            metrics[_TOKENS] = [tokens]
        super().log(logs, *args, **kwargs)

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """Inside, TRL's metrics are those of this process alone: it gathers as if all had as many pairs."""
        gather, for_metrics = self.accelerator.gather, self.accelerator.gather_for_metrics
        self.accelerator.gather = self.accelerator.gather_for_metrics = lambda values: values
        try:
            yield
        finally:
            self.accelerator.gather, self.accelerator.gather_for_metrics = gather, for_metrics

    def _count(self, inputs: dict[str, Any]) -> torch.Tensor:
        return _pairs(inputs["answers"])

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        pairs = sum((_pairs(batch["answers"]) for batch in batch_samples), start=torch.zeros((), dtype=torch.int64))
        return self.accelerator.gather(pairs.to(device)).sum()

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset  # row numbers, which the collator looks up


class _Stored(torch.nn.Module):
    """Stands where TRL wants a reference model, and is never asked."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config


def _pairs(answers: torch.Tensor) -> torch.Tensor:
    """How many pairs have a chosen answer."""
    return (answers[: len(answers) // 2, :1] >= 0).sum()
