"""Messages → tokens and loss mask.

A training row is exactly what generation starts from, followed by the answer: the prompt is rendered by the model's
own chat template with its generation prefix, then come the target and the token that ends a turn. Only these last two
carry labels. Image tokens are counted from the image's header, so no picture is decoded here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from vlmft.chat.image_cache import ImageCache
from vlmft.chat.prompts import messages, target
from vlmft.data import images
from vlmft.data.question import Question, Turn
from vlmft.errors import DataError
from vlmft.schema import AnswerStyle, OverLong

IGNORED = -100  # the label that every Hugging Face loss passes over


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence. `input_ids` and `labels` have the same length; for a prompt to generate from, labels are empty.

    `question` names it as <set>:<id>. `images` holds (path, size), with size None for the file's own, or (width,
    height) to shrink it to first.
    """

    question: str
    input_ids: list[int]
    labels: list[int]
    images: tuple[images.Picture, ...]

    @property
    def answer_tokens(self) -> int:
        return sum(label != IGNORED for label in self.labels)


@dataclass(frozen=True, slots=True)
class Encoded:
    """Rows ready for batches, and what the over-long policy did to how many."""

    rows: list[Row]
    dropped: int = 0
    shrunk: int = 0


class Encoder:
    """Encodes questions for one processor and answer style.

    `processor` is what `AutoProcessor` gives: a processor with a tokenizer and an image processor, or a tokenizer.
    Raises DataError where the chat template cannot be used.
    """

    def __init__(self, processor: Any, style: AnswerStyle, stop_ids: Iterable[int] = ()) -> None:
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.style = style
        self.image_token = getattr(processor, "image_token", None)
        self.image_token_id = self.tokenizer.convert_tokens_to_ids(self.image_token) if self.image_token else None
        self._visual_tokens: dict[images.Size, int] = {}
        known = {self.tokenizer.eos_token_id, *stop_ids} - {None}
        self.end_id = self._end_of_turn(known)
        self.stop_ids = sorted(known | {self.end_id})
        # Some templates begin the answer with <think> themselves; a reply then holds only the closing tag.
        asked = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
        self.think_prefilled = self._render(asked, generate=True).rstrip().endswith("<think>")

    @cached_property
    def image_cache(self) -> ImageCache:
        """Where this processor's pictures are kept."""
        return ImageCache(getattr(self.processor, "image_processor", None))

    def train_rows(self, question: Question) -> list[Row]:
        """One row with every answer trained; where the template rewrites history (drops thoughts), one row each."""
        if len(question.turns) == 1:
            return [self._row(question, labelled=1)]
        try:
            return [self._row(question, labelled=len(question.turns))]
        except _HistoryRewritten:
            turns = range(1, len(question.turns) + 1)
            return [self._row(replace(question, turns=question.turns[:n]), labelled=1) for n in turns]

    def prompt_row(self, question: Question) -> Row:
        """What generation starts from: history, the last question, the generation prefix."""
        text = self._render(messages(question, self.style)[:-1], generate=True)
        ids, pictures = self._expand(self._tokens(text), question)
        return Row(_named(question), ids, [], pictures)

    def answer_ids(self, turn: Turn) -> list[int]:
        """The tokens that follow a prompt: the turn's answer as it is trained, and the end of the turn."""
        return [*self._tokens(target(turn, self.style)), self.end_id]

    def _row(self, question: Question, labelled: int) -> Row:
        """The row of a conversation with its last `labelled` answers trained."""
        said = messages(question, self.style)
        whole = self._render(said[:-1], generate=True)
        ids: list[int] = []
        labels: list[int] = []
        done = 0
        for number in range(len(question.turns) - labelled, len(question.turns)):
            last = number + 1 == len(question.turns)
            before = whole if last else self._render(said[: 2 * number + 1], generate=True)
            answer = target(question.turns[number], self.style)
            if not (last or whole.startswith(before + answer)):
                raise _HistoryRewritten
            between = self._tokens(whole[done : len(before)])
            if done and between[0] in self.stop_ids:  # the token that ended the answer before this one
                labels.append(between[0])
                labels += [IGNORED] * (len(between) - 1)
            else:
                labels += [IGNORED] * len(between)
            spoken = self._tokens(answer)
            ids += between + spoken
            labels += spoken
            done = len(before) + len(answer)
        ids.append(self.end_id)
        labels.append(self.end_id)
        expanded, pictures = self._expand(ids, question)
        if len(expanded) != len(ids):
            labels = self._spread(ids, labels, expanded)
        return Row(_named(question), expanded, labels, pictures)

    def _spread(self, ids: list[int], labels: list[int], expanded: list[int]) -> list[int]:
        """Labels for ids in which image tokens were repeated; those never carry a label."""
        rest = iter(label for token, label in zip(ids, labels, strict=True) if token != self.image_token_id)
        return [IGNORED if token == self.image_token_id else next(rest) for token in expanded]

    def _expand(self, ids: list[int], question: Question) -> tuple[list[int], tuple[images.Picture, ...]]:
        """Each image token repeated as often as the picture has visual tokens."""
        pictures = tuple((path, None) for path in question.images)
        found = ids.count(self.image_token_id) if self.image_token_id is not None else 0
        if found != len(pictures):
            raise DataError(
                f"question {question.id} of {question.set}: {len(pictures)} images, but {found} image places in its "
                f"text. A text must not contain {self.image_token or 'images: this model reads text only'}."
            )
        counts = iter(self.visual_tokens(pictures))
        out: list[int] = []
        for token in ids:
            out += [token] * next(counts) if token == self.image_token_id else [token]
        return out, pictures

    def visual_tokens(self, pictures: Sequence[images.Picture]) -> list[int]:
        """Visual tokens of each picture, from its header."""
        sizes = [size or images.size(path) for path, size in pictures]
        if new := [size for size in dict.fromkeys(sizes) if size not in self._visual_tokens]:
            data = self.processor._get_num_multimodal_tokens(image_sizes=[(height, width) for width, height in new])
            self._visual_tokens.update(zip(new, data.num_image_tokens, strict=True))
        return [self._visual_tokens[size] for size in sizes]

    def _render(self, said: list[dict[str, Any]], generate: bool) -> str:
        text: str = self.processor.apply_chat_template(said, tokenize=False, add_generation_prompt=generate)
        return text

    def _tokens(self, text: str) -> list[int]:
        # The template has written every special token already.
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def _end_of_turn(self, stop_ids: set[int]) -> int:
        """The token the template writes after an answer, if generation stops at it, else the tokenizer's eos token."""
        answer = "b"
        said = [
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
            {"role": "user", "content": [{"type": "text", "text": "c"}]},
        ]
        before, whole = self._render(said[:1], generate=True), self._render(said, generate=False)
        if whole.startswith(before + answer):
            after = self._tokens(whole[len(before) + len(answer) :])
            if after and after[0] in stop_ids:
                return after[0]
        if self.tokenizer.eos_token_id is None:
            raise DataError("the tokenizer has no eos token, so the model could not be taught to stop")
        return int(self.tokenizer.eos_token_id)


def _named(question: Question) -> str:
    return f"{question.set}:{question.id}"


class _HistoryRewritten(Exception):
    """The template shows an earlier answer otherwise than it was trained."""


def fit(encoder: Encoder, rows: Iterable[Row], limit: int, policy: OverLong) -> Encoded:
    """Apply `dataset.over_long` to rows of more than `limit` tokens. Image tokens are never cut.

    Raises DataError naming the longest rows where the policy is `refuse`, or where shrinking cannot help.
    """
    kept: list[Row] = []
    too_long: list[Row] = []
    dropped = shrunk = 0
    for row in rows:
        if len(row.input_ids) <= limit:
            kept.append(row)
        elif policy is OverLong.drop:
            dropped += 1
        elif policy is OverLong.shrink_image and (smaller := _shrink(encoder, row, limit)):
            kept.append(smaller)
            shrunk += 1
        else:
            too_long.append(row)
    if too_long:
        worst = sorted(too_long, key=lambda row: -len(row.input_ids))[:5]
        listed = ", ".join(f"{row.question} ({len(row.input_ids)})" for row in worst)
        raise DataError(
            f"{len(too_long)} rows have more than method.max_row_tokens={limit} tokens, the longest: {listed}. "
            "Raise method.max_row_tokens, lower model.max_pixels, or set dataset.over_long to drop or shrink_image."
        )
    return Encoded(kept, dropped, shrunk)


def _shrink(encoder: Encoder, row: Row, limit: int) -> Row | None:
    """The row with its pictures made smaller until it fits, or None where the text alone is too long."""
    counts = encoder.visual_tokens(row.images)
    room = limit - (len(row.input_ids) - sum(counts))
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
    return _with_visual_tokens(encoder, row, counts, pictures)


def _with_visual_tokens(encoder: Encoder, row: Row, counts: list[int], pictures: tuple[images.Picture, ...]) -> Row:
    ids: list[int] = []
    labels: list[int] = []
    old = iter(encoder.visual_tokens(row.images))
    new = iter(counts)
    position = 0
    while position < len(row.input_ids):
        token = row.input_ids[position]
        if token == encoder.image_token_id:
            count = next(new)
            ids += [token] * count
            labels += [IGNORED] * count if row.labels else []
            position += next(old)
        else:
            ids.append(token)
            labels += row.labels[position : position + 1]
            position += 1
    return Row(row.question, ids, labels, pictures)
