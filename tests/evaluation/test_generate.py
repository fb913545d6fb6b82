"""Predictions on the tiny GLM-4.1V: batching changes nothing, and a killed evaluation goes on where it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vlmft.chat.encode import Encoder
from vlmft.data.load import load
from vlmft.data.question import Question
from vlmft.evaluation import generate as module
from vlmft.evaluation.generate import generate, predict
from vlmft.evaluation.predictions import generation_of
from vlmft.evaluation.shared_prefix import greedy
from vlmft.models.load import load_model, load_processor
from vlmft.schema import Config, Generation, Model, Packing


@pytest.fixture(scope="module")
def asked(composed: Callable[..., Config]) -> list[Question]:
    dataset = composed("dataset=demo_ct").dataset
    return load(dataset, "test", limit=20).questions


@pytest.fixture(scope="module")
def parts(tiny: Model) -> tuple[Any, Encoder]:
    return load_model(tiny, "float32"), Encoder(load_processor(tiny), tiny.answer_style, {0, 7, 9})


def answer(
    parts: tuple[Any, Encoder], asked: list[Question], file: Path, generation: str = "abc", **settings: Any
) -> list[dict[str, Any]]:
    model, encoder = parts
    rows = [encoder.prompt_row(question) for question in asked]
    chosen = Generation(max_new_tokens=12, **settings)
    return predict(model, encoder, asked, rows, chosen, file, generation, lambda done: None)


@pytest.mark.parametrize("packing", Packing)
def test_batches_of_any_size_give_the_same_text(
    packing: Packing, parts: tuple[Any, Encoder], asked: list[Question], tmp_path: Path
) -> None:
    together = answer(parts, asked, tmp_path / "a", batch_size=16, packing=packing)
    alone = answer(parts, asked, tmp_path / "b", batch_size=1, packing=Packing.none)
    assert [(r["id"], r["raw"]) for r in together] == [(r["id"], r["raw"]) for r in alone]
    assert [r["id"] for r in together] == [question.id for question in asked], "in the order of the questions"


def test_eager_attention_shares_nothing(tiny: Model, parts: tuple[Any, Encoder], asked: list[Question]) -> None:
    """It would take the mask of who sees whom for numbers to add."""
    model, encoder = load_model(replace(tiny, attention="eager"), "float32"), parts[1]
    rows = [encoder.prompt_row(question) for question in asked]
    assert module.shared_prefix.usable(parts[0]) and not module.shared_prefix.usable(model)

    def said(one: Any) -> dict[int, str]:
        answers = module.answer_all(one, encoder, rows, Generation(max_new_tokens=4))
        return {n: reply["raw"] for numbers, replies in answers for n, reply in zip(numbers, replies, strict=True)}

    assert said(model) == said(parts[0])


def test_a_killed_evaluation_goes_on_and_others_predictions_are_kept(
    parts: tuple[Any, Encoder], asked: list[Question], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "predictions_demo_ct.jsonl"
    whole = answer(parts, asked, file)
    text = file.read_text()
    answered: list[int] = []
    stop_after = 9

    def counted(model: Any, encoder: Any, packs: Any, limit: int) -> Any:
        if sum(answered) >= stop_after:
            raise KeyboardInterrupt
        answered.append(sum(len(pack.rows) for pack in packs))
        return greedy(model, encoder, packs, limit)

    monkeypatch.setattr(module.shared_prefix, "greedy", counted)
    with pytest.raises(KeyboardInterrupt):
        answer(parts, asked, file, generation="other", batch_size=3)
    assert file.read_text() == text, "what is whole stays until the new predictions are"
    (partial,) = tmp_path.glob(".*.other.jsonl")
    partial.write_text(partial.read_text() + '{"id": "cut')
    answered.clear()
    stop_after = 1000
    again = answer(parts, asked, file, generation="other", batch_size=3)
    assert sum(answered) == len(asked) - 9
    assert [r["raw"] for r in again] == [r["raw"] for r in whole]
    assert generation_of(file) == "other"
    answered.clear()
    assert answer(parts, asked, file) == whole and not answered, "and earlier ones come back without being made again"
    assert file.read_text() == text and generation_of(file) == "abc"
    assert [path.name for path in (tmp_path / "earlier").iterdir()] == ["predictions_demo_ct.other.jsonl"]


def test_the_end_of_a_reply(parts: tuple[Any, Encoder], asked: list[Question]) -> None:
    """Text stops before the stop token; without one it was cut by the limit."""
    model, encoder = parts
    rows = [encoder.prompt_row(question) for question in asked[:4]]
    replies = list(generate(model, encoder, rows, Generation(max_new_tokens=5)))
    assert {reply["finish_reason"] for reply in replies} <= {"stop", "length"}
    assert all(reply["tokens"] == 5 for reply in replies if reply["finish_reason"] == "length")
    every = Encoder(encoder.processor, encoder.style, range(len(encoder.tokenizer)))
    assert list(generate(model, every, rows[:1], Generation(max_new_tokens=5))) == [
        {"raw": "", "tokens": 0, "finish_reason": "stop", "think_prefilled": False}
    ]
