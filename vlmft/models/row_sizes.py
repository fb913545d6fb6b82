"""How many tokens a micro-batch has at most and on average: of the rows at hand, or of rows as long as they may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlmft.chat.encode import Row
from vlmft.chat.packing import Pack, lines_of, questions_per_row
from vlmft.hardware import divisors
from vlmft.models.memory import typical
from vlmft.schema import Algorithm, Method, Model


@dataclass(frozen=True)
class Batch:
    """A micro-batch: its tokens with padding, and how many of them how many pictures give."""

    tokens: int
    visual: int
    pictures: int


@dataclass(frozen=True)
class RowSizes:
    """Of a run's rows; `longest` is the longest prompt of the evaluation, and `prompts` how many there are."""

    said: str  # whose rows these are
    largest: dict[int, Batch]  # by micro-batch
    means: dict[str, float]  # as `memory.choose` takes them
    longest: int
    prompts: int
    at_hand: bool

    def batch(self, micro_batch: int, picture_tokens: int | None) -> Batch:
        """The largest micro-batch, with at most `picture_tokens` for each picture."""
        found = self.largest[micro_batch]
        if picture_tokens is None:
            return found
        visual = min(found.visual, found.pictures * picture_tokens)
        # Rows that are made up stay as long as rows may be.
        return Batch(found.tokens - (found.visual - visual if self.at_hand else 0), visual, found.pictures)


def visual_tokens(config: Any, pixels: int | None) -> int | None:
    """What a picture of so many pixels gives at most; None where the model reads none, or where nothing is said."""
    vision: Any = getattr(config, "vision_config", None)
    if pixels is None or not hasattr(vision, "spatial_merge_size"):
        return None
    return max(1, int(pixels // (vision.patch_size * vision.spatial_merge_size) ** 2))


def of_rows(
    rows: Sequence[Row], prompts: Sequence[Row], method: Method, family: str, image_token_id: int | None, seed: int,
    said: str,
) -> RowSizes:  # fmt: skip
    """The sizes of rows that are here, packed as they are in training."""
    from vlmft.training.epochs import Epochs

    most = questions_per_row(method, family)
    largest = {}
    for micro_batch in divisors(method.batch_size):
        epochs = Epochs(
            rows, image_token_id, batch_size=method.batch_size, micro_batches=method.batch_size // micro_batch,
            most=most, max_tokens=method.max_row_tokens, seed=seed,
        )  # fmt: skip
        planned = (epochs[number] for number in range(len(epochs)))
        largest[micro_batch] = _batch(max(planned, key=_tokens), image_token_id)
    prompts = prompts or rows
    longest = max(row.length for row in prompts)
    return RowSizes(said, largest, typical(rows, most, image_token_id), longest, len(prompts), at_hand=True)


def made_up(config: Any, model: Model, method: Method, said: str) -> RowSizes:
    """Rows of `method.max_row_tokens` tokens, each with a picture of `model.max_pixels` where the model reads any.

    A pair has two of them.
    """
    tokens = longest = method.max_row_tokens
    reads = hasattr(getattr(config, "vision_config", None), "spatial_merge_size")
    visual = min(tokens, visual_tokens(config, model.max_pixels) or tokens) if reads else 0
    shown = int(reads)
    if method.algorithm is Algorithm.dpo and questions_per_row(method, config.model_type) > 1:
        tokens = 2 * tokens - visual
    elif method.algorithm is Algorithm.dpo:
        tokens, visual, shown = 2 * tokens, 2 * visual, 2 * shown
    means = {
        "tokens_per_question": float(tokens), "visual_tokens_per_question": float(visual), "questions_per_pack": 1.0
    }  # fmt: skip
    largest = {n: Batch(n * tokens, n * visual, n * shown) for n in divisors(method.batch_size)}
    return RowSizes(said, largest, means, longest, 10**9, at_hand=False)


def _tokens(packs: Sequence[Pack]) -> int:
    return sum(pack.tokens for pack in packs)


def _batch(packs: Sequence[Pack], image_token_id: int | None) -> Batch:
    """As `collate_packs` lays it out."""
    lines = lines_of(packs)
    visual = pictures = 0
    for pack in packs:
        first, *others = pack.branches
        visual += first.input_ids.count(image_token_id) if image_token_id is not None else 0
        pictures += len(first.images)
        if not pack.prefix:
            visual += sum(row.input_ids.count(image_token_id) for row in others) if image_token_id is not None else 0
            pictures += sum(len(row.images) for row in others)
    return Batch(len(lines) * max(map(_tokens, lines)), visual, pictures)
