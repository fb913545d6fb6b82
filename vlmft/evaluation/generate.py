"""Questions → predictions: batched generation with the model's stock `generate`, one record per question on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from vlmft.chat.collate import collate
from vlmft.chat.encode import Encoder, Row
from vlmft.data.question import Question
from vlmft.evaluation.predictions import (
    as_line,
    partial_file,
    put_in_place,
    read_predictions,
    record,
    write_predictions,
)
from vlmft.schema import AnswerStyle, Generation

# A model that ends its answer pays nothing for a high limit; one that rambles is cut here, and counted as unparsed.
_AUTO_NEW_TOKENS = {
    AnswerStyle.plain: 64, AnswerStyle.answer: 64, AnswerStyle.think: 2048, AnswerStyle.think_answer: 2048
}  # fmt: skip


def predict(
    model: Any,
    encoder: Encoder,
    questions: Sequence[Question],
    rows: Sequence[Row],
    settings: Generation,
    file: Path,
    generation: str,
    on_progress: Callable[[int], None],
) -> list[dict[str, Any]]:
    """Answer every question, and return the records in the order of `questions`.

    `rows` are the prompts of `questions`, in the same order. Records are kept batch by batch beside `file` until they
    are whole, so that a killed evaluation goes on where it was.
    """
    partial = partial_file(file, generation)
    wanted = {question.id for question in questions}
    kept = [r for r in read_predictions(partial) if r["generation"] == generation and r["id"] in wanted]
    write_predictions(partial, kept)
    done = {r["id"]: r for r in kept}
    on_progress(len(done))
    todo = [pair for pair in zip(questions, rows, strict=True) if pair[0].id not in done]
    todo.sort(key=lambda pair: -len(pair[1].input_ids))  # like lengths together; the largest first shows memory trouble
    with open(partial, "a", encoding="utf-8") as out:
        for start in range(0, len(todo), settings.batch_size):
            batch = todo[start : start + settings.batch_size]
            replies = generate(model, encoder, [row for _, row in batch], settings)
            for (question, _), reply in zip(batch, replies, strict=True):
                done[question.id] = record(question, generation=generation, **reply)
                out.write(as_line(done[question.id]))
            out.flush()
            on_progress(len(done))
    ordered = [done[question.id] for question in questions]
    write_predictions(partial, ordered)
    put_in_place(file, partial)
    return ordered


def generate(model: Any, encoder: Encoder, rows: Sequence[Row], settings: Generation) -> Iterator[dict[str, Any]]:
    """The reply to each prompt: `raw` text without its stop token, `tokens`, `finish_reason` stop or length."""
    limit = settings.max_new_tokens
    if limit == "auto":
        limit = _AUTO_NEW_TOKENS[encoder.style]
    batch = collate(encoder, rows, padding_side="left")
    batch = {key: value.to(model.device) for key, value in batch.items()}
    if "pixel_values" in batch:
        batch["pixel_values"] = batch["pixel_values"].to(model.dtype)
    sampling = {"temperature": settings.temperature, "top_p": settings.top_p} if settings.do_sample else {}
    with torch.inference_mode():
        output = model.generate(
            **batch,
            max_new_tokens=limit,
            do_sample=settings.do_sample,
            eos_token_id=encoder.stop_ids,
            pad_token_id=encoder.tokenizer.pad_token_id,
            **sampling,
        )
    for ids in output[:, batch["input_ids"].shape[1] :].tolist():
        stop = next((position for position, token in enumerate(ids) if token in encoder.stop_ids), None)
        said = ids if stop is None else ids[:stop]
        yield {
            "raw": encoder.tokenizer.decode(said, skip_special_tokens=False),
            "tokens": len(said),
            "finish_reason": "length" if stop is None else "stop",
            "think_prefilled": encoder.think_prefilled,
        }
