"""Questions → predictions: batches that share their pictures, or stock `generate`; one record per question on disk."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from vlmft import ranks
from vlmft.chat.collate import collate, for_model
from vlmft.chat.encode import Encoder, Row
from vlmft.chat.packing import Pack, groups
from vlmft.chat.prompts import token_limit
from vlmft.data.question import Question
from vlmft.evaluation import likelihood, shared_prefix
from vlmft.evaluation.batches import batches, share
from vlmft.evaluation.parts import Parts
from vlmft.evaluation.predictions import answer_line
from vlmft.schema import Generation, Packing

_OPTIONS_AT_ONCE = 512  # questions whose rows, one for each option, are held in memory

logger = logging.getLogger(__name__)


def predict(
    model: Any,
    encoder: Encoder,
    questions: Sequence[Question],
    rows: Sequence[Row],
    settings: Generation,
    file: Path,
    generation: str,
    on_progress: Callable[[int], None],
    notes: Sequence[dict[str, Any]] = (),
    options: Sequence[Sequence[str]] | None = None,
) -> list[dict[str, Any]]:
    """Answer every question, and return the records in the order of `questions`.

    `rows` are the prompts of `questions`, `notes` what their records say of the training rows, and `options` what they
    are to be answered with (nothing: freely), each in the same order. Records are kept batch by batch beside `file`
    until they are whole, so that a killed evaluation goes on where it was. Of several processes each answers its share;
    all have to come here, with the same questions.
    """
    parts = Parts(file, generation)
    answered = parts.gather(question.id for question in questions)
    on_progress(len(answered))
    todo = [number for number, question in enumerate(questions) if question.id not in answered]
    times = [len(options[number]) or 1 for number in todo] if options else [1] * len(todo)
    mine = share(rows, todo, times, ranks.number(), ranks.count())
    with open(parts.own, "a", encoding="utf-8") as out:
        for numbers, replies in _replies(model, encoder, rows, options, mine, settings):
            for number, reply in zip(numbers, replies, strict=True):
                out.write(answer_line(questions[number], generation, reply, notes[number] if notes else None))
            out.flush()
            if ranks.first():
                on_progress(parts.lines())
    ordered = parts.put_together([question.id for question in questions])
    on_progress(len(ordered))
    return ordered


def _replies(
    model: Any,
    encoder: Encoder,
    rows: Sequence[Row],
    options: Sequence[Sequence[str]] | None,
    todo: Sequence[int],
    settings: Generation,
) -> Iterator[tuple[list[int], list[dict[str, Any]]]]:
    """The replies to the questions numbered `todo`, batch by batch: the likeliest option where there are any."""
    free = [number for number in todo if options is None or not options[number]]
    for numbers, replies in answer_all(model, encoder, [rows[number] for number in free], settings):
        yield [free[number] for number in numbers], replies
    if options is None:
        return
    bound = [number for number in todo if options[number]]
    for start in range(0, len(bound), _OPTIONS_AT_ONCE):
        part = bound[start : start + _OPTIONS_AT_ONCE]
        prompts, among = [rows[number] for number in part], [options[number] for number in part]
        for numbers, replies in likelihood.choose(model, encoder, prompts, among, settings):
            yield [part[number] for number in numbers], replies


def answer_all(
    model: Any, encoder: Encoder, rows: Sequence[Row], settings: Generation
) -> Iterator[tuple[list[int], list[dict[str, Any]]]]:
    """Row numbers with their replies, batch by batch.

    Prompts about the same pictures share them, where the model and the settings allow that.
    """
    shares = settings.packing is Packing.image and not settings.do_sample
    if shares and not shared_prefix.usable(model):
        family = shared_prefix.named_with_attention(model)
        logger.info("packing   none in evaluation: not proven to give the same text for %s", family)
        shares = False
    if not shares:
        for batch in batches(rows, [([number], 0) for number in range(len(rows))], settings.batch_size):
            numbers = [number for part, _ in batch for number in part]
            yield numbers, list(generate(model, encoder, [rows[number] for number in numbers], settings))
        return
    for batch in batches(rows, groups(rows, encoder.image_token_id), settings.batch_size):
        packs = [Pack(tuple(rows[number] for number in part), prefix) for part, prefix in batch]
        said = shared_prefix.greedy(model, encoder, packs, token_limit(encoder.style, settings))
        yield [number for part, _ in batch for number in part], [_reply(encoder, ids) for ids in said]


def generate(model: Any, encoder: Encoder, rows: Sequence[Row], settings: Generation) -> Iterator[dict[str, Any]]:
    """The reply to each prompt: `raw` text without its stop token, `tokens`, `finish_reason` stop or length."""
    batch = for_model(encoder, collate(encoder, rows, padding_side="left"), model.device, model.dtype)
    sampling = {"temperature": settings.temperature, "top_p": settings.top_p} if settings.do_sample else {}
    with torch.inference_mode():
        output = model.generate(
            **batch,
            max_new_tokens=token_limit(encoder.style, settings),
            do_sample=settings.do_sample,
            eos_token_id=encoder.stop_ids,
            pad_token_id=encoder.tokenizer.pad_token_id,
            **sampling,
        )
    for ids in output[:, batch["input_ids"].shape[1] :].tolist():
        yield _reply(encoder, ids)


def _reply(encoder: Encoder, ids: list[int]) -> dict[str, Any]:
    stop = next((position for position, token in enumerate(ids) if token in encoder.stop_ids), None)
    said = ids if stop is None else ids[:stop]
    return {
        "raw": encoder.tokenizer.decode(said, skip_special_tokens=False),
        "tokens": len(said),
        "finish_reason": "length" if stop is None else "stop",
        "think_prefilled": encoder.think_prefilled,
    }
