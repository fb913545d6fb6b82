"""The rows of a split as the model reads them: how long they are, what of them is trained, and what does not fit."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from vlmft.chat.encode import IGNORED, Encoder, Row
from vlmft.chat.prompts import target
from vlmft.check.findings import ERROR, NOTE, WARNING, Finding, finding, where
from vlmft.check.parts import TEST, Part
from vlmft.data.question import Question
from vlmft.errors import DataError
from vlmft.evaluation.answers import parse
from vlmft.schema import Algorithm, OverLong

SAMPLES = 8  # rows of a part that are shown
WORST = 5
_AT_ONCE = 2000  # questions encoded together


@dataclass
class Measured:
    """Tokens of each row of a part, in order; `visual` is what its pictures give of them."""

    tokens: list[int] = field(default_factory=list)
    visual: list[int] = field(default_factory=list)
    worst: list[tuple[int, str]] = field(default_factory=list)  # tokens and row, the longest first
    samples: list[dict[str, Any]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Spread of the tokens, the longest rows, and the samples."""
        spread = {name: _spread(values) for name, values in (("row", self.tokens), ("visual", self.visual)) if values}
        worst = [{"row": name, "tokens": count} for count, name in self.worst]
        return {"tokens": spread, "longest": worst, "samples": self.samples}


def measure(
    part: Part, encoder: Encoder, *, algorithm: Algorithm, limit: int, over_long: OverLong, new_tokens: int,
    progress: Callable[[int], None],
) -> tuple[Measured, list[Finding]]:  # fmt: skip
    """What the part's rows are for the model of `encoder`, and what is wrong with them for it.

    A row may have `limit` tokens, a reply `new_tokens`.
    """
    found = Measured()
    unread: list[str] = []
    long: list[tuple[int, str]] = []
    names = [where(question) for question in part.questions]
    shown = set(random.Random(f"samples {part.name}").sample(names, min(SAMPLES, len(names))))
    for start in range(0, len(part.questions), _AT_ONCE):
        for row in _encoded(part, encoder, algorithm, part.questions[start : start + _AT_ONCE], unread):
            count = row.length
            found.tokens.append(count)
            found.visual.append(0 if encoder.image_token_id is None else row.input_ids.count(encoder.image_token_id))
            if count > limit:
                long.append((count, f"{row.question}: {count} tokens"))
            if len(found.worst) < WORST or count > found.worst[-1][0]:
                found.worst = sorted([*found.worst, (count, row.question)], reverse=True)[:WORST]
            if row.question in shown:
                found.samples.append(_sample(encoder, row))
        progress(min(start + _AT_ONCE, len(part.questions)))
    return found, [
        *finding(ERROR, "rows that cannot be encoded for this model", unread),
        *_too_long(part, [said for _, said in sorted(long, reverse=True)], limit, over_long),
        *_answers(part, encoder, new_tokens),
    ]


def _encoded(
    part: Part, encoder: Encoder, algorithm: Algorithm, questions: Sequence[Question], unread: list[str]
) -> Iterator[Row]:
    """The questions' rows; one that has none is added to `unread` with the reason."""
    encode = encoder.prompts if part.use == TEST else partial(encoder.rows, algorithm=algorithm)
    try:
        yield from list(encode(questions))
    except DataError:  # of one of them; which ones is found one by one
        for question in questions:
            try:
                yield from list(encode([question]))
            except DataError as error:
                unread.append(f"{where(question)}: {error}")


def _too_long(part: Part, rows: Sequence[str], limit: int, over_long: OverLong) -> list[Finding]:
    if over_long is OverLong.drop and part.use != TEST:
        return finding(NOTE, f"rows of more than {limit} tokens, which over_long=drop leaves out", rows)
    if over_long is OverLong.shrink_image:
        return finding(
            NOTE, f"rows of more than {limit} tokens, whose pictures over_long=shrink_image makes smaller", rows
        )
    return finding(ERROR, f"rows of more than method.max_row_tokens={limit} tokens", rows)


def _answers(part: Part, encoder: Encoder, new_tokens: int) -> list[Finding]:
    """Gold answers that a reply has no room for, that the tokenizer changes, or that are read back as another one."""
    said: dict[tuple[str, ...], tuple[int, str, str]] = {}
    cut, changed, misread = [], [], []
    for question in part.questions:
        turn = question.turns[-1]
        key = (turn.answer, turn.thought or "", question.answer_type, question.task)
        if key not in said:
            said[key] = _said(encoder, question)
        length, back, read = said[key]
        if part.use == TEST and length > new_tokens:
            cut.append(f"{where(question)}: {length} tokens")
        if back != target(turn, encoder.style, encoder.think_prefilled):
            changed.append(f"{where(question)}: {turn.answer!r} becomes {back!r}")
        elif read.strip() != turn.answer.strip():
            misread.append(f"{where(question)}: {turn.answer!r} is read as {read!r}")
    return [
        *finding(
            WARNING,
            f"answers longer than the {new_tokens} tokens a reply may have (eval.generation.max_new_tokens)",
            cut,
        ),
        *finding(WARNING, "answers that the tokenizer changes", changed),
        *finding(WARNING, "answers that are read back as another one when a model gives them", misread),
    ]


def _said(encoder: Encoder, question: Question) -> tuple[int, str, str]:
    """Of the last answer as it is trained: its tokens with the end of the turn, it decoded, and how that is scored."""
    ids = encoder.answer_ids(question.turns[-1])
    back = encoder.tokenizer.decode(ids[:-1], skip_special_tokens=False)
    read = parse(
        back,
        finish_reason="stop",
        answer_type=question.answer_type,
        task=question.task,
        think_prefilled=encoder.think_prefilled,
    )
    return len(ids), back, read.text or ""


def _sample(encoder: Encoder, row: Row) -> dict[str, Any]:
    """A row for people to read: runs of tokens as text, and whether they are trained; of a pair both answers."""
    labels = row.labels or [IGNORED] * len(row.input_ids)
    kinds = [
        "image" if token == encoder.image_token_id else "trained" if label != IGNORED else "read"
        for token, label in zip(row.input_ids, labels, strict=True)
    ]
    pieces = []
    for kind, ids in _runs(kinds, row.input_ids):
        text = f"{len(ids)} image tokens" if kind == "image" else encoder.tokenizer.decode(ids)
        pieces.append({"kind": kind, "text": text})
    for other in row.branches[1:]:
        said = [label for label in other.labels if label != IGNORED]
        pieces.append({"kind": "rejected", "text": encoder.tokenizer.decode(said)})
    images = [path for path, _ in row.images]
    return {"row": row.question, "images": images, "tokens": len(row.input_ids), "pieces": pieces}


def _runs(kinds: Sequence[str], ids: Sequence[int]) -> Iterable[tuple[str, list[int]]]:
    begin = 0
    for place in range(1, len(kinds) + 1):
        if place == len(kinds) or kinds[place] != kinds[begin]:
            yield kinds[begin], list(ids[begin:place])
            begin = place


def _spread(values: Sequence[int]) -> dict[str, float]:
    ordered = np.asarray(values)
    return {
        "least": int(ordered.min()),
        "median": float(np.median(ordered)),
        "p95": float(np.percentile(ordered, 95)),
        "most": int(ordered.max()),
        "all": int(ordered.sum()),
    }
