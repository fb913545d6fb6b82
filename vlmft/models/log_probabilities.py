"""How probable a model finds the answers of rows."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from vlmft.chat.collate import collate_packs, for_model
from vlmft.chat.encode import IGNORED, Encoder
from vlmft.chat.packing import Pack, attention_mask, in_order, lines_of, places, position_ids


@torch.inference_mode()
def log_probabilities(model: Any, encoder: Encoder, packs: Sequence[Pack]) -> list[float]:
    """The natural logarithm of the probability of each branch's labelled tokens, summed, pack by pack."""
    lines = lines_of(packs)
    placed = list(places(lines))
    batch = for_model(encoder, collate_packs(encoder, packs), model.device, model.dtype)
    if "layout" in batch:
        layout = batch.pop("layout")
        batch |= {"position_ids": position_ids(model, batch, layout), "attention_mask": attention_mask(layout)}
    del batch["labels"]

    # Each labelled token is predicted at the place before it: for the first of a branch too, as that is in the branch.
    wanted = [
        (line, own[n - 1], label) for line, row, own in placed for n, label in enumerate(row.labels) if label != IGNORED
    ]
    line, column, token = torch.tensor(wanted).unbind(1)
    if _keeps_logits(model):
        kept, column = column.unique(return_inverse=True)
        batch["logits_to_keep"] = kept.tolist()  # a tensor would have to be where the last layer of a split model is
    logits = model(**batch, use_cache=False).logits[line, column]
    token = token.to(logits.device)
    each = torch.log_softmax(logits.float(), dim=-1).gather(-1, token[:, None])[:, 0].double().cpu()
    sums = iter(part.sum().item() for part in each.split([row.answer_tokens for _, row, _ in placed]))
    of_pack = {id(pack): [next(sums) for _ in pack.branches] for pack in in_order(packs, lines)}
    return [value for pack in packs for value in of_pack[id(pack)]]


def _keeps_logits(model: Any) -> bool:
    """Whether the model computes logits at chosen places only; below an adapter too."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(base.forward).parameters
