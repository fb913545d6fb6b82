"""What is done with rows of too many tokens: refused, dropped, or their pictures shrunk (`dataset.over_long`)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from vlmft.chat.encode import Encoder, Pair, Row
from vlmft.data import images
from vlmft.errors import DataError
from vlmft.schema import OverLong


@dataclass(frozen=True, slots=True)
class Encoded:
    """Rows ready for batches, and what the over-long policy did to how many."""

    rows: list[Row]
    dropped: int = 0
    shrunk: int = 0


def fit(encoder: Encoder, rows: Iterable[Row], limit: int, policy: OverLong) -> Encoded:
    """Apply `dataset.over_long` to rows of more than `limit` tokens. Image tokens are never cut.

    Raises DataError naming the longest rows where the policy is `refuse`, or where shrinking cannot help.
    """
    kept: list[Row] = []
    too_long: list[Row] = []
    dropped = shrunk = 0
    for row in rows:
        if row.length <= limit:
            kept.append(row)
        elif policy is OverLong.drop:
            dropped += 1
        elif policy is OverLong.shrink_image and (smaller := _shrink(encoder, row, limit)):
            kept.append(smaller)
            shrunk += 1
        else:
            too_long.append(row)
    if too_long:
        worst = sorted(too_long, key=lambda row: -row.length)[:5]
        listed = ", ".join(f"{row.question} ({row.length})" for row in worst)
        raise DataError(
            f"{len(too_long)} rows have more than method.max_row_tokens={limit} tokens, the longest: {listed}. "
            "Raise method.max_row_tokens, lower model.max_pixels, or set dataset.over_long to drop or shrink_image."
        )
    return Encoded(kept, dropped, shrunk)


def _shrink(encoder: Encoder, row: Row, limit: int) -> Row | None:
    """The row with its pictures made smaller until it fits, or None where the text alone is too long."""
    counts = encoder.visual_tokens(row.images)
    room = limit - (row.length - sum(counts))
    pictures = row.images
    while counts and sum(counts) > room:
        scale = min(0.95, (room / sum(counts)) ** 0.5) if room > 0 else 0.0
        sizes = [size or images.size(path) for path, size in pictures]
        if min(min(size) for size in sizes) * scale < 1:
            return None
        pictures = tuple(
            (path, (max(1, int(width * scale)), max(1, int(height * scale))))
            for (path, _), (width, height) in zip(pictures, sizes, strict=True)
        )
        smaller = encoder.visual_tokens(pictures)
        if sum(smaller) == sum(counts) and scale < 0.5:
            return None  # the processor enlarges small pictures again: no size fits
        counts = smaller
    if not counts:
        return None
    old = encoder.visual_tokens(row.images)

    def shrunk(branch: Row) -> dict[str, Any]:
        ids, labels = encoder.with_visual_tokens(branch.input_ids, branch.labels, old, counts)
        return {"input_ids": ids, "labels": labels, "images": pictures}

    if isinstance(row, Pair):
        return replace(row, rejected=replace(row.rejected, **shrunk(row.rejected)), **shrunk(row))
    return replace(row, **shrunk(row))
