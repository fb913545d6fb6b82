"""Options by likelihood on the tiny twins: what a plain forward pass over each option alone gives, in fewer passes."""

from __future__ import annotations

import copy
import logging
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image

from vlmft.chat.collate import collate, for_model
from vlmft.chat.encode import Encoder, Row
from vlmft.chat.packing import PROVEN
from vlmft.chat.prompts import target
from vlmft.data.question import Question, Turn
from vlmft.errors import DataError
from vlmft.evaluation import shared_prefix
from vlmft.evaluation.likelihood import choose
from vlmft.models.load import load_model, load_processor
from vlmft.schema import AnswerStyle, Config, Generation, Packing

Parts = tuple[Any, Callable[[AnswerStyle], Encoder]]
YES_NO = ("yes", "no")
ORGANS = ("lung", "the left lung", "liver and a small part of the right kidney")


@pytest.fixture(scope="module", params=["glm41v", "qwen3vl"])
def parts(request: pytest.FixtureRequest, composed: Callable[..., Config]) -> Parts:
    """A model, and how to get its encoder for an answer style."""
    config = composed(f"model=tiny_{request.param}").model
    model, processor = load_model(config, "float32").eval(), load_processor(config)
    return model, lambda style: Encoder(processor, style, model.generation_config.eos_token_id)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("pictures")
    chance = random.Random(0)
    paths = []
    for n, size in enumerate(((112, 84), (60, 100))):
        paths.append(str(folder / f"{n}.png"))
        Image.frombytes("RGB", size, chance.randbytes(3 * size[0] * size[1])).save(paths[-1])
    return paths


@pytest.fixture(scope="module")
def asked(pictures: list[str]) -> list[Question]:
    """Three questions about one picture with others between them, one with a history; one that shows nothing.

    The last has the longest row, the three together the longest pack: they come in another order in lines.
    """
    first, second = pictures
    history = (
        Turn("is there a lesion?", "yes, a large one"),
        Turn("which side?", "left", "it is not on the right"),
        Turn("which organ?", "lung", "the dark area"),
    )
    return [
        Question("a", "set", (first,), (Turn("is there a lesion in the left lung?", "no"),), "closed"),
        Question("b", "set", (second,), (Turn("which organ is this?", "liver", "it is large"),), "closed"),
        Question("c", "set", (first,), history, "closed"),
        Question("d", "set", (first,), (Turn("is it red?", "yes"),), "closed"),
        Question("e", "set", (), (Turn("is water wet? " * 20, "yes"),), "closed"),
    ]


OPTIONS = [YES_NO, ORGANS, ORGANS, ("no", "yes"), YES_NO]


def chosen(
    model: Any, encoder: Encoder, asked: list[Question], options: list[tuple[str, ...]], **settings: Any
) -> list[dict[str, Any]]:
    """The replies in the order of the questions, each of which has to come exactly once."""
    replies: dict[int, dict[str, Any]] = {}
    prompts = [encoder.prompt_row(question) for question in asked]
    for numbers, batch in choose(model, encoder, prompts, options, Generation(**settings)):
        assert numbers and not set(numbers) & set(replies)
        replies |= zip(numbers, batch, strict=True)
    return [replies[number] for number in range(len(asked))]


def alone(model: Any, encoder: Encoder, question: Question, option: str) -> float:
    """The log-probability of an option by an ordinary forward pass over the prompt and the option, nothing else."""
    prompt = encoder.prompt_row(question)
    said = encoder.tokenizer(target(Turn("", option), encoder.style), add_special_tokens=False).input_ids
    said = [*said, encoder.end_id]
    row = Row("", prompt.input_ids + said, [], prompt.images)
    batch = for_model(encoder, collate(encoder, [row], padding_side="right"), "cpu", torch.float32)
    with torch.inference_mode():
        logs = torch.log_softmax(model(**batch).logits[0], dim=-1)
    start = len(prompt.input_ids) - 1
    return sum(logs[start + n, token].item() for n, token in enumerate(said))


@pytest.mark.parametrize("style", [AnswerStyle.think_answer, AnswerStyle.plain])
@pytest.mark.parametrize("packing", Packing)
def test_each_option_has_the_probability_that_it_has_alone(
    packing: Packing, style: AnswerStyle, parts: Parts, asked: list[Question]
) -> None:
    model, encoder = parts[0], parts[1](style)
    assert model.config.model_type in PROVEN
    replies = chosen(model, encoder, asked, OPTIONS, packing=packing)
    for question, options, reply in zip(asked, OPTIONS, replies, strict=True):
        wanted = {option: alone(model, encoder, question, option) for option in options}
        assert list(reply["likelihood"]) == list(options)
        assert reply["likelihood"] == pytest.approx(wanted, abs=1e-4)
        assert all(value == round(value, 4) for value in reply["likelihood"].values())
        assert reply == {
            "raw": max(wanted, key=lambda option: wanted[option]),
            "tokens": 0,
            "finish_reason": "stop",
            "think_prefilled": False,
            "likelihood": reply["likelihood"],
        }


@pytest.mark.parametrize("packing", Packing)
def test_batches_of_any_size_choose_alike(packing: Packing, parts: Parts, asked: list[Question]) -> None:
    """Also where the options of a question come in several batches."""
    model, encoder = parts[0], parts[1](AnswerStyle.answer)
    together = chosen(model, encoder, asked, OPTIONS, packing=packing)
    for size in (1, 3):
        apart = chosen(model, encoder, asked, OPTIONS, packing=packing, batch_size=size)
        for one, other in zip(together, apart, strict=True):
            assert one["raw"] == other["raw"] and list(one["likelihood"]) == list(other["likelihood"])
            assert one["likelihood"] == pytest.approx(other["likelihood"], abs=2e-4)


def given(model: Any, run: Callable[[], Any]) -> list[tuple[int, int, int, int]]:
    """For each forward pass of `run`: pictures, lines and their width, places with logits."""
    seen = []

    def look(module: Any, arguments: Any, inputs: dict[str, Any], output: Any) -> None:
        grid = inputs.get("image_grid_thw", ())
        seen.append((len(grid), *inputs["input_ids"].shape, output.logits.shape[1]))

    hook = model.register_forward_hook(look, with_kwargs=True)
    try:
        run()
    finally:
        hook.remove()
    return seen


def test_a_picture_goes_through_the_model_once(
    parts: Parts, asked: list[Question], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the family is proven; and logits are made only where something is predicted."""
    model, encoder = parts[0], parts[1](AnswerStyle.plain)
    about, options = [asked[0], asked[3]], [YES_NO, ("no", "yes", "red")]
    ((shown, _, width, places),) = given(model, lambda: chosen(model, encoder, about, options))
    assert shown == 1 and places < width / 2
    ((shown, rows, width, places),) = given(model, lambda: chosen(model, encoder, about, options, packing=Packing.none))
    assert (shown, rows) == (5, 5) and places < width / 2
    monkeypatch.setattr(shared_prefix, "PROVEN", ())
    with caplog.at_level(logging.INFO):
        ((shown, rows, _, _),) = given(model, lambda: chosen(model, encoder, about, options))
    assert (shown, rows) == (5, 5)
    assert f"not proven equal for {model.config.model_type}" in caplog.text


def test_batches_are_bounded(parts: Parts, asked: list[Question]) -> None:
    model, encoder = parts[0], parts[1](AnswerStyle.plain)
    seen = given(model, lambda: chosen(model, encoder, asked, OPTIONS, packing=Packing.none, batch_size=5))
    assert [rows for _, rows, _, _ in seen] == [5, 5, 2]


def test_a_model_that_makes_all_logits(parts: Parts, asked: list[Question]) -> None:
    model, encoder = parts[0], parts[1](AnswerStyle.answer)

    class Whole(torch.nn.Module):
        config, device, dtype = model.config, model.device, model.dtype

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **rest: Any) -> Any:
            assert "logits_to_keep" not in rest
            return model(input_ids=input_ids, attention_mask=attention_mask, **rest)

    whole = chosen(Whole(), encoder, asked, OPTIONS, packing=Packing.none)
    kept = chosen(model, encoder, asked, OPTIONS, packing=Packing.none)
    for one, other in zip(whole, kept, strict=True):
        assert one["likelihood"] == pytest.approx(other["likelihood"], abs=2e-4)


@pytest.fixture
def indifferent(parts: Parts) -> Any:
    """The model with every token as probable as any other."""
    model = copy.deepcopy(parts[0])
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(torch.zeros_like(head.weight))
    return model


@pytest.mark.parametrize(
    ("tokens", "best"),  # tokens of each option with its end, in the order given
    [
        ({"no": 3, "yes": 2, "normal": 2}, "yes"),
        ({"no": 3, "normal": 2, "yes": 2}, "normal"),
        ({"the left lung": 6, "right": 3, "left": 3}, "right"),
    ],
)
def test_a_tie_goes_to_the_first_and_every_token_counts(
    tokens: dict[str, int], best: str, indifferent: Any, parts: Parts, asked: list[Question]
) -> None:
    (reply,) = chosen(indifferent, parts[1](AnswerStyle.plain), asked[:1], [(*tokens, *tokens)])
    assert reply["raw"] == best
    each = math.log(640)  # the twins' vocabulary
    assert reply["likelihood"] == pytest.approx({text: -each * count for text, count in tokens.items()}, abs=1e-4)


def test_what_cannot_be_scored(indifferent: Any, parts: Parts, asked: list[Question]) -> None:
    encoder = parts[1](AnswerStyle.plain)
    with pytest.raises(DataError, match=r"question set:b has no options"):
        chosen(parts[0], encoder, asked[:2], [YES_NO, ()])
    with pytest.raises(ValueError, match="zip"):
        chosen(parts[0], encoder, asked[:2], [YES_NO])
    with torch.no_grad():
        indifferent.get_output_embeddings().weight += math.nan
    with pytest.raises(DataError, match=r"question set:a: .* 'yes' is nan"):
        chosen(indifferent, encoder, asked[:1], [YES_NO])
