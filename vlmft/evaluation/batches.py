"""Which prompts are answered together: those about the same pictures, by one process, as many as memory should hold."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import Any

from vlmft.chat.encode import Row

_BATCH_TOKENS = 65_536  # of keys in memory: some 3 GB for GLM-4.1V-9B, 10 GB for Qwen3-VL-4B


def batches(
    rows: Sequence[Row], together: list[tuple[list[int], int]], size: int
) -> Iterator[list[tuple[list[int], int]]]:
    """Groups of row numbers in batches of at most `size` rows; like lengths together, the largest first.

    A batch's prompts have at most `_BATCH_TOKENS` tokens, each counted whole, as their keys are kept while they decode.
    """
    size = max(1, min(size, _BATCH_TOKENS // max(map(_length, rows), default=1)))
    parts = [(part[n : n + size], prefix) for part, prefix in together for n in range(0, len(part), size)]
    parts.sort(key=lambda part: -max(_length(rows[number]) for number in part[0]))
    batch: list[tuple[list[int], int]] = []
    held = 0
    for part in parts:
        if held + len(part[0]) > size:
            yield batch
            batch, held = [], 0
        batch.append(part)
        held += len(part[0])
    if batch:
        yield batch


def share(rows: Sequence[Row], todo: Sequence[int], times: Sequence[int], process: int, count: int) -> list[int]:
    """Of the row numbers `todo`, in their order, those that `process` of `count` answers; every process counts alike.

    Rows about the same pictures stay together. The processes have about as many tokens, those of a row counted as often
    as `times`, in the order of `todo`, says that it is read.
    """
    together: dict[Any, list[int]] = {}
    tokens: dict[Any, int] = {}
    for number, reads in zip(todo, times, strict=True):
        key = rows[number].images or number
        together.setdefault(key, []).append(number)
        tokens[key] = tokens.get(key, 0) + reads * _length(rows[number])
    held = [(0, one) for one in range(count)]
    mine: list[int] = []
    for key in sorted(together, key=lambda key: -tokens[key]):  # the largest first, each to who has least
        least, one = held[0]
        heapq.heapreplace(held, (least + tokens[key], one))
        if one == process:
            mine += together[key]
    return sorted(mine)


def _length(row: Row) -> int:
    return len(row.input_ids)
