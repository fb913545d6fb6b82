"""Which questions each micro-batch of each epoch holds: a plan that is a function of the seed and the epoch alone.

An epoch has as many optimiser steps as the recipe of single questions has, each of about `batch_size` questions, and
each step the same number of micro-batches; an item of the data set is a planned micro-batch. So the Trainer's own
counting (steps, epochs, what to skip on a resume) stays right, whatever the number of ranks or loader workers.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

from torch.utils.data import Dataset, Sampler

from vlmft.chat.encode import IGNORED, Pair, Row
from vlmft.chat.packing import Pack, groups, own_tokens, pack


class Epochs(Dataset[list[Pack]]):
    """Item `n` is a micro-batch: its packs. Epoch 0 has the items 0 to len - 1, epoch 1 the next ones, and so on.

    `micro_batches` are those of one optimiser step over all ranks. `most` is the largest number of questions in a pack
    (1: every row by itself), and no pack has more than `max_tokens` tokens.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        image_token_id: int | None,
        *,
        batch_size: int,
        micro_batches: int,
        most: int,
        max_tokens: int,
        seed: int,
    ) -> None:
        self.rows = rows
        self.batch_size, self.micro_batches, self.seed = batch_size, micro_batches, seed
        # Which questions a step has does not depend on how it is cut up.
        self.most, self.max_tokens = min(most, batch_size), max_tokens
        self.steps = math.ceil(len(rows) / batch_size)  # optimiser steps in an epoch
        self.shares = most > 1
        self.picture = with_picture(rows)
        self._groups = groups(rows, image_token_id) if self.shares else [([n], 0) for n in range(len(rows))]
        self._plan = lru_cache(maxsize=2)(self._planned)

    def __len__(self) -> int:
        return self.steps * self.micro_batches

    def __getitem__(self, item: int) -> list[Pack]:
        epoch, number = divmod(item, len(self))
        return self._plan(epoch)[number]

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "_plan"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._plan = lru_cache(maxsize=2)(self._planned)

    def questions(self, steps: int) -> int:
        """How many questions the first `steps` optimiser steps hold, counted as often as they come."""
        epochs, rest = divmod(steps, self.steps)
        begun = self._plan(epochs)[: rest * self.micro_batches] if rest else []
        labelled = (row.answer_tokens > 0 for micro_batch in begun for pack in micro_batch for row in pack.rows)
        return epochs * len(self.rows) + sum(labelled)

    def questions_per_pack(self) -> float:
        """Of the first epoch, on average."""
        packs = [pack for micro_batch in self._plan(0) for pack in micro_batch]
        return sum(len(pack.rows) for pack in packs) / len(packs)

    def _planned(self, epoch: int) -> list[list[Pack]]:
        chance = random.Random(f"plan {self.seed} {epoch}")
        packs = [pack for numbers, prefix in self._groups for pack in self._packs(numbers, prefix, chance)]
        chance.shuffle(packs)
        return [part for step in self._in_steps(packs) for part in self._in_micro_batches(step)]

    def _packs(self, numbers: list[int], prefix: int, chance: random.Random) -> Iterator[Pack]:
        """The rows of one group in packs of about equal size, in an order of this epoch."""
        if len(numbers) == 1:
            yield pack([self.rows[numbers[0]]], prefix)
            return
        order = chance.sample(numbers, len(numbers))
        pieces = math.ceil(len(order) / self.most)
        for piece in range(pieces):
            tokens = prefix
            rows: list[Row] = []
            for number in order[piece * len(order) // pieces : (piece + 1) * len(order) // pieces]:
                row = self.rows[number]
                tokens += own_tokens(row, prefix)
                if rows and tokens > self.max_tokens:
                    yield pack(rows, prefix)
                    rows, tokens = [], prefix + own_tokens(row, prefix)
                rows.append(row)
            yield pack(rows, prefix)

    def _in_steps(self, packs: list[Pack]) -> Iterator[list[Pack]]:
        """The packs in `steps` parts of about as many questions each, none of them empty."""
        done, start = 0, 0
        for step in range(self.steps):
            wanted = (step + 1) * len(self.rows) / self.steps
            end = start
            while end < len(packs) - (self.steps - step - 1):
                # The pack that crosses the line belongs to the side that most of it is on.
                if end > start and done + len(packs[end].rows) / 2 > wanted:
                    break
                done += len(packs[end].rows)
                end += 1
            yield packs[start:end]
            start = end

    def _in_micro_batches(self, packs: list[Pack]) -> list[list[Pack]]:
        """The packs of a step in as many micro-batches as every step has, of about as many tokens each."""
        limit = self.batch_size // self.micro_batches
        if self.picture and not any(row.images for pack in packs for row in pack.rows):
            # Else what reads pictures would stand still in this step on one process, and not on several.
            packs = [*packs, alone(self.picture, self.shares)]
        packs = [part for whole in packs for part in _cut(whole, -(-len(whole.rows) // limit))]
        while len(packs) < self.micro_batches and (largest := max(packs, key=lambda one: len(one.rows))).rows[1:]:
            packs.remove(largest)
            packs += _cut(largest, 2)
        # With fewer questions than micro-batches, one without labels stands in the place of each that is missing.
        packs += [Pack((unlabelled(packs[0].rows[0]),))] * (self.micro_batches - len(packs))
        parts: list[list[Pack]] = [[] for _ in range(self.micro_batches)]
        for one in sorted(packs, key=lambda one: -one.tokens):
            min(parts, key=lambda part: sum(other.tokens for other in part)).append(one)
        return parts


class InOrder(Sampler[int]):
    """The items of the epoch that the trainer has come to, in the plan's order."""

    def __init__(self, epochs: Epochs, step: Callable[[], int]) -> None:
        self.epochs, self.step = epochs, step  # `step` tells how many optimiser steps are done

    def __len__(self) -> int:
        return len(self.epochs)

    def __iter__(self) -> Iterator[int]:
        first = self.step() // self.epochs.steps * len(self.epochs)
        return iter(range(first, first + len(self.epochs)))


def _cut(whole: Pack, pieces: int) -> list[Pack]:
    """The pack's rows in packs of about equal size."""
    if pieces == 1:
        return [whole]
    bounds = [piece * len(whole.rows) // pieces for piece in range(pieces + 1)]
    return [pack(whole.rows[start:end], whole.prefix) for start, end in pairwise(bounds)]


def with_picture(rows: Sequence[Row]) -> Row | None:
    """The shortest row with a picture, without its labels; None where no row has one."""
    seen = [row for row in rows if row.images]
    return unlabelled(min(seen, key=lambda row: len(row.input_ids))) if seen else None


def alone(row: Row, shares: bool) -> Pack:
    """A pack of one row, whose prefix a pair's two answers share."""
    return pack([row], int(shares and isinstance(row, Pair)))


def unlabelled(row: Row) -> Row:
    """The row with nothing to learn from: its loss is zero, and every rank still has something to do."""
    silent = replace(row, labels=[IGNORED] * len(row.labels))
    return replace(silent, rejected=unlabelled(silent.rejected)) if isinstance(silent, Pair) else silent
