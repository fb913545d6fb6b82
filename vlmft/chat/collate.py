"""Rows → padded batches of tensors, with the pictures turned into what the vision tower takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vlmft.chat.encode import IGNORED, Encoder, Row
from vlmft.chat.image_cache import normalized
from vlmft.chat.packing import Pack, layout, lines_of
from vlmft.data import images


def collate(encoder: Encoder, rows: Sequence[Row], padding_side: str) -> dict[str, Any]:
    """A batch of B rows padded to the longest, T tokens.

    Returns `input_ids`, `attention_mask` and (for training rows) `labels`, int64 of shape (B, T); for all pictures of
    the batch in order, `pixel_values` (uint8 patches, which `for_model` normalises, or the processor's own float32) and
    e.g. `image_grid_thw`; and `mm_token_type_ids` (B, T), 1 at image tokens, where the model takes them. For a model
    that looks at pictures by cross-attention, what `_tiles` gives. Pad on the right to train, on the left to generate.
    """
    longest = max(len(row.input_ids) for row in rows)
    pad = encoder.tokenizer.pad_token_id
    if pad is None:
        pad = encoder.tokenizer.eos_token_id

    def padded(values: Sequence[int], fill: int) -> list[int]:
        padding = [fill] * (longest - len(values))
        return [*padding, *values] if padding_side == "left" else [*values, *padding]

    batch: dict[str, Any] = {
        "input_ids": torch.tensor([padded(row.input_ids, pad) for row in rows]),
        "attention_mask": torch.tensor([padded([1] * len(row.input_ids), 0) for row in rows]),
    }
    if rows[0].labels:
        batch["labels"] = torch.tensor([padded(row.labels, IGNORED) for row in rows])
    pictures = [picture for row in rows for picture in row.images]
    if encoder.image_token_id is not None:
        if "mm_token_type_ids" in encoder.processor.model_input_names:
            is_image = batch["input_ids"] == encoder.image_token_id
            batch["mm_token_type_ids"] = is_image.long() * batch["attention_mask"]
        if pictures and encoder.cross_attends:
            batch.update(_tiles(encoder, rows, batch["input_ids"]))
        elif pictures and encoder.image_cache.cacheable:
            batch.update(encoder.image_cache.batch(pictures))
        elif pictures:
            decoded = [images.load(picture) for picture in pictures]
            batch.update(encoder.processor.image_processor(images=decoded, return_tensors="pt"))
    return batch


def _tiles(encoder: Encoder, rows: Sequence[Row], input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """The pictures of a batch, by row, and which of them its tokens see; empty places where a row has fewer than I.

    `pixel_values` (B, I, tiles, channels, height, width), `aspect_ratio_ids` (B, I), `aspect_ratio_mask` (B, I, tiles)
    and `cross_attention_mask` (B, T, I, tiles): of the padded rows, answers included.
    """
    from transformers.models.mllama.processing_mllama import (
        convert_sparse_cross_attention_mask_to_dense,
        get_cross_attention_token_mask,
    )

    image_processor, token = encoder.processor.image_processor, encoder.image_token_id
    decoded = [[images.load(picture)] for row in rows for picture in row.images]
    made = image_processor(images=decoded, return_tensors="pt")
    counts = iter(made.pop("num_tiles"))
    line = torch.tensor([number for number, row in enumerate(rows) for _ in row.images])
    place = torch.tensor([number for row in rows for number in range(len(row.images))])
    found = {}
    for name, values in made.items():
        found[name] = values.new_zeros(len(rows), int(place.max()) + 1, *values.shape[2:])
        found[name][line, place] = values[:, 0]
    found["aspect_ratio_mask"][..., 0] = 1  # of an empty place, too: as the processor writes it
    seen = convert_sparse_cross_attention_mask_to_dense(
        [get_cross_attention_token_mask(ids, token) for ids in input_ids.tolist()],
        num_tiles=[[next(counts)[0] for _ in row.images] for row in rows],
        max_num_tiles=image_processor.max_image_tiles,
        length=input_ids.shape[1],
    )
    return found | {"cross_attention_mask": torch.from_numpy(seen)}


def collate_packs(encoder: Encoder, packs: Sequence[Pack]) -> dict[str, Any]:
    """A batch of packs to train on, padded on the right: `collate`'s, with `layout` where rows share their pictures."""
    lines = lines_of(packs)
    if any(pack.prefix for pack in packs):
        return collate_lines(encoder, lines)
    return collate(encoder, [branch for line in lines for pack in line for branch in pack.rows], padding_side="right")


def collate_lines(encoder: Encoder, lines: Sequence[Sequence[Pack]]) -> dict[str, Any]:
    """A batch of lines of packs, padded on the right: `collate`'s, and their `layout` (see `packing.layout`)."""
    batch = collate(encoder, [_joined(line) for line in lines], padding_side="right")
    batch["layout"] = layout(lines, batch["input_ids"].shape[1])
    return batch


def for_model(encoder: Encoder, batch: dict[str, Any], device: Any, dtype: torch.dtype) -> dict[str, Any]:
    """The batch on `device`, with `pixel_values` in `dtype` as the image processor would have given them."""
    batch = {key: value.to(device) if torch.is_tensor(value) else value for key, value in batch.items()}
    pixels = batch.get("pixel_values")
    if pixels is not None and pixels.dtype == torch.uint8:
        pixels = normalized(pixels, encoder.processor.image_processor)
    return batch | ({} if pixels is None else {"pixel_values": pixels.to(dtype)})


def _joined(packs: Sequence[Pack]) -> Row:
    """Packs of one line as one row: each prefix once, then what follows it in every row of the pack."""
    ids: list[int] = []
    labels: list[int] = []
    for pack in packs:
        ids += pack.rows[0].input_ids[: pack.prefix]
        labels += [IGNORED] * pack.prefix
        for row in pack.branches:
            ids += row.input_ids[pack.prefix :]
            labels += row.labels[pack.prefix :]
    pictures = tuple(picture for pack in packs for picture in pack.rows[0].images)
    return Row("", ids, labels if packs[0].rows[0].labels else [], pictures)
