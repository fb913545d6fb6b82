"""Greedy answers to packs of prompts: the pictures go through the model once, the questions about them together.

One forward pass over the packed lines fills the cache; each question takes its own part of it (the prefix and its
branch), and all of them decode as one batch. The text is that of plain generation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vlmft.chat.collate import collate_lines, for_model
from vlmft.chat.encode import Encoder
from vlmft.chat.packing import PROVEN, Pack, attention_mask, into_lines, places, position_ids

# Of a checkpoint's generation settings, those that would change greedy text, with the values that do not.
_NEUTRAL = {
    "num_beams": (None, 1), "repetition_penalty": (None, 1.0), "no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1.0), "bad_words_ids": (None,), "suppress_tokens": (None,),
    "begin_suppress_tokens": (None,), "forced_bos_token_id": (None,), "forced_eos_token_id": (None,),
    "min_length": (None, 0), "min_new_tokens": (None, 0), "sequence_bias": (None,), "guidance_scale": (None, 1.0),
}  # fmt: skip


def usable(model: Any) -> bool:
    """Whether the model's family is proven, and its own generation settings leave greedy decoding as it is."""
    settings = model.generation_config
    return may_share(model) and all(getattr(settings, name, None) in neutral for name, neutral in _NEUTRAL.items())


def may_share(model: Any) -> bool:
    """Whether branches of one sequence give what ordinary rows give: a proven family, with an attention that takes the
    mask of which keys each query sees. Eager attention would add such a mask up as numbers."""
    return model.config.model_type in PROVEN and model.config._attn_implementation == "sdpa"


def named_with_attention(model: Any) -> str:
    """What `may_share` decides on, in words."""
    return f"{model.config.model_type} with attention={model.config._attn_implementation}"


@torch.inference_mode()
def greedy(model: Any, encoder: Encoder, packs: Sequence[Pack], limit: int) -> list[list[int]]:
    """The new tokens of each prompt, pack by pack, with the stop token where one came; at most `limit` of them."""
    from transformers import DynamicCache

    lines = into_lines(packs)
    batch = for_model(encoder, collate_lines(encoder, lines), model.device, model.dtype)
    layout, width = batch.pop("layout"), batch["input_ids"].shape[1]
    positions = position_ids(model, batch, layout)
    batch |= {"position_ids": positions, "attention_mask": attention_mask(layout)}

    line, keys, last = _branches(lines)
    ends = last.unique()  # only there are logits wanted
    cache = DynamicCache()
    # In a list, since a tensor would have to be where the last layer of a split model is.
    logits = model(**batch, past_key_values=cache, use_cache=True, logits_to_keep=ends.tolist()).logits
    token = logits[line, torch.searchsorted(ends, last)].argmax(-1)
    # Of each question's keys the last stand in the last column, so that what is generated follows for all at once.
    seen = (keys >= 0).to(model.device)
    keys = keys.clamp(min=0)
    own = DynamicCache()
    for number, layer in enumerate(cache.layers):
        assert layer.keys.shape[2] == width, "a layer that forgets cannot be shared"
        line, keys = line.to(layer.keys.device), keys.to(layer.keys.device)  # of a split model, not always the same
        own.update(layer.keys[line[:, None], :, keys].transpose(1, 2),
                   layer.values[line[:, None], :, keys].transpose(1, 2), number)  # fmt: skip
    del cache, logits
    after = positions[..., line.cpu(), last] + 1
    return _decode(model, own, token, seen, after, limit, set(encoder.stop_ids), _in_order(lines, packs))


def _decode(
    model: Any, cache: Any, token: torch.Tensor, seen: torch.Tensor, position: torch.Tensor, limit: int,
    stops: set[int], order: list[int],
) -> list[list[int]]:  # fmt: skip
    """Go on from `token` (n,), each at its `position` (…, n), until every sequence has stopped or reached the limit."""
    said: list[list[int]] = [[] for _ in order]
    going = list(range(len(order)))
    while True:
        for index, value in zip(going, token.tolist(), strict=True):
            said[index].append(value)
        keep = [n for n, index in enumerate(going) if said[index][-1] not in stops and len(said[index]) < limit]
        if not keep:
            return [said[n] for n in order]
        if len(keep) < len(going):
            kept = torch.tensor(keep)  # on the CPU it is an index to every layer, wherever that is
            cache.batch_select_indices(kept)
            token, seen, position, going = token[kept], seen[kept], position[..., kept], [going[n] for n in keep]
        seen = torch.cat([seen, seen.new_ones(len(going), 1)], dim=1)
        logits = model(
            input_ids=token[:, None], attention_mask=seen.long(), position_ids=position[..., None],
            past_key_values=cache, use_cache=True,
        ).logits  # fmt: skip
        token, position = logits[:, -1].argmax(-1), position + 1


def _branches(lines: Sequence[Sequence[Pack]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For each prompt of the lines: its line (n,), the places of its keys (n, K), -1 on the left, and its last one."""
    found = [(line, own) for line, _, own in places(lines)]
    longest = max(len(own) for _, own in found)
    padded = [[-1] * (longest - len(own)) + own for _, own in found]
    return torch.tensor([line for line, _ in found]), torch.tensor(padded), torch.tensor([own[-1] for own in padded])


def _in_order(lines: Sequence[Sequence[Pack]], packs: Sequence[Pack]) -> list[int]:
    """Where each prompt of `packs`, in their order, comes among the prompts of the lines."""
    starts: dict[int, int] = {}
    count = 0
    for line in lines:
        for pack in line:
            starts[id(pack)] = count
            count += len(pack.rows)
    return [starts[id(pack)] + n for pack in packs for n in range(len(pack.rows))]
