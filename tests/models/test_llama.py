"""Llama-3.2-Vision, which looks at pictures beside the text, and DeepSeek-R1-Distill-Llama, which reads text only."""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from vlmft.chat.collate import collate, for_model
from vlmft.chat.encode import Encoder, Row
from vlmft.chat.packing import questions_per_row
from vlmft.data.question import CLOSED, Question, Turn
from vlmft.errors import DataError
from vlmft.evaluation import shared_prefix
from vlmft.evaluation.answers import parse
from vlmft.evaluation.generate import generate
from vlmft.models.load import freeze, load_model, load_processor, part_of, refuse_lossy_tokenizer, stop_ids
from vlmft.schema import AnswerStyle, Config, Generation, Method

SIZES = {"wide": (80, 30), "tall": (20, 90), "small": (25, 25), "square": (56, 56)}  # 2, 4, 1 and 4 tiles


@pytest.fixture(scope="module")
def vision(composed: Callable[..., Config]) -> tuple[Any, Encoder]:
    chosen = composed("model=tiny_llama32_vision").model
    model = load_model(chosen, "float32").eval()
    return model, Encoder(load_processor(chosen), chosen.answer_style, stop_ids(chosen))


@pytest.fixture(scope="module")
def text(composed: Callable[..., Config]) -> tuple[Any, Encoder]:
    chosen = composed("model=tiny_deepseek_r1").model
    model = load_model(chosen, "float32").eval()
    return model, Encoder(load_processor(chosen), chosen.answer_style, stop_ids(chosen))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pictures")
    noise = torch.Generator().manual_seed(1)
    paths = {name: str(folder / f"{name}.png") for name in SIZES}
    for name, (width, height) in SIZES.items():
        values = torch.randint(0, 256, (height, width, 3), generator=noise, dtype=torch.uint8)
        Image.fromarray(values.numpy()).save(paths[name])
    return paths


def asked(*images: str, text: str = "Is it red?", turns: tuple[Turn, ...] = ()) -> Question:
    return Question("q1", "set", images, turns or (Turn(text, "no, blue"),), CLOSED)


def questions(pictures: dict[str, str]) -> list[Question]:
    """With one picture, two of them between words, none, one of a single tile, and two in a row."""
    wide, tall, small, square = pictures.values()
    return [
        asked(wide, text="Is there a lesion in the left lung?"),
        asked(tall, small, text="Look: <image> What of <image> then?"),
        asked(text="Is the liver an organ?"),
        asked(small),
        asked(square, wide, turns=(Turn("Are they alike?", "no"), Turn("Is one red?", "yes"))),
    ]


def logits(model: Any, encoder: Encoder, rows: list[Row], side: str) -> list[torch.Tensor]:
    """Of each row's own tokens."""
    batch = for_model(encoder, collate(encoder, rows, padding_side=side), "cpu", torch.float32)
    batch.pop("labels", None)
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.inference_mode():
        given = model(**batch, position_ids=positions, use_cache=False).logits
    return [line[mask.bool()] for line, mask in zip(given, batch["attention_mask"], strict=True)]


def test_a_batch_is_the_processors_own(vision: tuple[Any, Encoder], pictures: dict[str, str]) -> None:
    """Prompt and answer as one: what a row is trained on is what the processor makes of the whole conversation."""
    model, encoder = vision
    for question in questions(pictures):
        (row,) = encoder.train_rows(question)
        ours = collate(encoder, [row], padding_side="right")
        shown = iter(question.images)
        said = []
        for turn in question.turns:
            words = turn.question.split("<image>")
            marked = [{"type": "image", "path": next(shown)} for _ in words[1:]]
            content = [{"type": "image", "path": path} for path in shown] if len(words) == 1 else []
            for number, part in enumerate(words):
                content += [marked[number - 1]] if number else []
                content += [{"type": "text", "text": part}] if part.strip() else []
            said += [{"role": "user", "content": content}]
            said += [{"role": "assistant", "content": [{"type": "text", "text": turn.answer}]}]
        theirs = encoder.processor.apply_chat_template(
            said, tokenize=True, return_dict=True, return_tensors="pt", date_string="26 Jul 2024"
        )
        assert theirs.keys() == ours.keys() - {"labels"}
        for name, values in theirs.items():
            assert torch.equal(ours[name], values), name
        with torch.inference_mode():
            same = model(**theirs).logits[0]
        assert torch.equal(logits(model, encoder, [row], "right")[0], same)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_gives_in_any_batch_what_it_gives_alone(
    side: str, vision: tuple[Any, Encoder], pictures: dict[str, str]
) -> None:
    model, encoder = vision
    rows = [encoder.train_rows(question)[0] for question in questions(pictures)]
    alone = [logits(model, encoder, [row], side)[0] for row in rows]
    for chosen in ([0, 1, 2, 3, 4], [2, 0], [3, 4, 1], [0, 3]):
        together = logits(model, encoder, [rows[number] for number in chosen], side)
        for number, given in zip(chosen, together, strict=True):
            torch.testing.assert_close(given, alone[number], rtol=1e-4, atol=1e-4)


def test_what_is_generated_is_the_same_in_any_batch(vision: tuple[Any, Encoder], pictures: dict[str, str]) -> None:
    model, encoder = vision
    rows = [encoder.prompt_row(question) for question in questions(pictures)]
    settings = Generation(max_new_tokens=5)
    alone = [reply["raw"] for row in rows for reply in generate(model, encoder, [row], settings)]
    assert [reply["raw"] for reply in generate(model, encoder, rows, settings)] == alone
    longer = []  # and with the cache what there is without
    for row in rows[:3]:
        ids = list(row.input_ids)
        for _ in range(5):
            whole = Row("", ids, [], row.images)
            ids.append(int(logits(model, encoder, [whole], "right")[0][-1].argmax()))
            if ids[-1] in encoder.stop_ids:
                ids.pop()
                break
        longer.append(encoder.tokenizer.decode(ids[len(row.input_ids) :]))
    assert longer == alone[:3]


def test_answers_depend_on_the_picture(vision: tuple[Any, Encoder], pictures: dict[str, str]) -> None:
    model, encoder = vision
    for first, second in (("wide", "square"), ("small", "tall")):
        one, other = (encoder.train_rows(asked(pictures[name]))[0] for name in (first, second))
        assert one.input_ids == other.input_ids, "one token for a picture of any size"
        given, otherwise = (logits(model, encoder, [row], "right")[0] for row in (one, other))
        places = [number for number, label in enumerate(one.labels) if label != -100]
        assert all((given[place - 1] - otherwise[place - 1]).abs().max() > 1e-3 for place in places)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradients_of_a_batch_are_those_of_its_rows(
    checkpointing: bool, composed: Callable[..., Config], vision: tuple[Any, Encoder], pictures: dict[str, str]
) -> None:
    model, encoder = load_model(composed("model=tiny_llama32_vision").model, "float32").train(), vision[1]
    if checkpointing:
        model.gradient_checkpointing_enable()
    rows = [encoder.train_rows(question)[0] for question in questions(pictures)[:3]]

    def gradients(*batches: list[Row]) -> dict[str, torch.Tensor]:
        model.zero_grad()
        for batch in batches:
            inputs = for_model(encoder, collate(encoder, batch, padding_side="right"), "cpu", torch.float32)
            model(**inputs, use_cache=False, num_items_in_batch=10).loss.backward()
        return {name: weight.grad.clone() for name, weight in model.named_parameters()}

    together, alone = gradients(rows), gradients(*[[row] for row in rows])
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, alone[name], rtol=1e-3, atol=1e-5, msg=name)


def test_neither_is_packed(vision: tuple[Any, Encoder], text: tuple[Any, Encoder]) -> None:
    for model, _ in (vision, text):
        assert questions_per_row(Method(), model.config.model_type) == 1 and not shared_prefix.usable(model)


def test_parts(vision: tuple[Any, Encoder], text: tuple[Any, Encoder], composed: Callable[..., Config]) -> None:
    model = load_model(composed("model=tiny_llama32_vision").model, "float32")
    assert sum(weight.numel() for weight in model.parameters()) < 1_000_000
    assert {part_of(name) for name, _ in text[0].named_parameters()} == {"llm"}
    freeze(model, vision=True, projector=False, llm=True)
    free = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert free == {"model.multi_modal_projector.weight", "model.multi_modal_projector.bias"}
    freeze(model, vision=False, projector=True, llm=False)
    assert all(part_of(name) == "vision" for name, _ in model.named_parameters() if ".vision_model." in name)


@pytest.mark.parametrize(("name", "layers", "inside"), [("llama32_vision", 40, "language_model.layers."),
                                                        ("deepseek_r1_8b", 32, "model.layers.")])  # fmt: skip
def test_lora_reaches_every_layer_of_the_real_architecture(
    name: str, layers: int, inside: str, composed: Callable[..., Config]
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM, MllamaConfig, MllamaForConditionalGeneration

    with torch.device("meta"):
        if name == "llama32_vision":
            model: Any = MllamaForConditionalGeneration(MllamaConfig())
        else:
            model = LlamaForCausalLM(LlamaConfig(num_key_value_heads=8, intermediate_size=14336, vocab_size=128256))
        adapted = get_peft_model(model, LoraConfig(target_modules=composed(f"model={name}").model.lora_targets, r=2))
    touched = {name.split(".lora_A")[0] for name, _ in adapted.named_parameters() if "lora_A" in name}
    assert len(touched) == 7 * layers and all(inside in name for name in touched)
    assert sum(".cross_attn." in name for name in touched) == (4 * 8 if name == "llama32_vision" else 0)


@pytest.mark.parametrize(("name", "reason"), [("llama32_vision", "up to 4 tiles of 28x28 pixels instead; leave both"),
                                              ("deepseek_r1", "reads no pictures; leave both")])  # fmt: skip
def test_pixel_limits_are_refused(name: str, reason: str, composed: Callable[..., Config]) -> None:
    with pytest.raises(DataError, match=reason):
        load_processor(composed(f"model=tiny_{name}", "model.max_pixels=50176").model)


def test_a_prompt_is_the_same_every_day(vision: tuple[Any, Encoder]) -> None:
    _, encoder = vision
    said = encoder.tokenizer.decode(encoder.prompt_row(asked()).input_ids)
    assert said.count("<|begin_of_text|>") == 1 and "Today Date: 26 Jul 2024<|eot_id|>" in said


def test_a_text_model_refuses_pictures_and_says_what_to_do(text: tuple[Any, Encoder]) -> None:
    for encode in (text[1].train_rows, text[1].prompt_row):
        with pytest.raises(DataError, match=r"q1 of set shows pictures, but .* text only; dataset\.images=ignore"):
            encode(asked("a.png"))


@pytest.mark.parametrize("style", AnswerStyle)
@pytest.mark.parametrize("thought", ["It is blue.", None])
def test_the_thought_that_the_template_begins_is_closed_and_read(
    style: AnswerStyle, thought: str | None, text: tuple[Any, Encoder]
) -> None:
    encoder = Encoder(text[1].processor, style)
    question = asked(turns=(Turn("Is it red?", "no, blue", thought),))
    (row,) = encoder.train_rows(question)
    prompt = encoder.prompt_row(question).input_ids
    assert encoder.think_prefilled and encoder.tokenizer.decode(prompt).endswith("<｜Assistant｜><think>\n")
    assert row.input_ids[: len(prompt)] == prompt and row.input_ids[len(prompt) :] == encoder.answer_ids(
        question.turns[0]
    )
    assert row.input_ids.count(0) == 1, "the text begins once"
    raw = encoder.tokenizer.decode([label for label in row.labels if label != -100])
    kept = thought if thought and style in (AnswerStyle.think, AnswerStyle.think_answer) else ""
    assert raw.startswith(f"{kept}\n</think>\n\n") and raw.endswith("<｜end▁of▁sentence｜>")
    assert parse(raw, finish_reason="stop", answer_type="open", think_prefilled=True).text == "no, blue"


def test_the_familys_own_template_gives_the_same_rows(
    text: tuple[Any, Encoder], composed: Callable[..., Config]
) -> None:
    """TRL ships DeepSeek's: contents must be strings, and thoughts leave history."""
    theirs = load_processor(composed("model=tiny_deepseek_r1").model)
    theirs.chat_template = (importlib.resources.files("trl") / "chat_templates/deepseek_r1_distill.jinja").read_text()
    turns = (Turn("Is it red?", "no", "It is blue."), Turn("Is it green?", "no"))
    question = asked(turns=turns)
    ours = text[1].train_rows(question)
    assert ours == Encoder(theirs, AnswerStyle.think).train_rows(question) and len(ours) == 2
    assert "blue" not in text[1].tokenizer.decode(ours[1].input_ids)


def test_a_tokenizer_that_loses_spaces_is_refused(text: tuple[Any, Encoder], composed: Callable[..., Config]) -> None:
    from transformers import LlamaTokenizer

    path = composed("model=tiny_deepseek_r1").model.path
    assert '"LlamaTokenizerFast"' in (Path(path) / "tokenizer_config.json").read_text(), "as the real one says"
    with pytest.raises(
        DataError, match=r"loaded as LlamaTokenizer, turns 'Is it\\nthe left one' into .*TokenizersBack"
    ):
        refuse_lossy_tokenizer(LlamaTokenizer.from_pretrained(path), path)
