"""What must hold for every model family, from its chat template to its saved names, on the twins of the presets."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from vlmft.chat.encode import IGNORED, Encoder, Row
from vlmft.data import images
from vlmft.data.load import load
from vlmft.data.question import Question, Turn
from vlmft.data.training_split import training_questions
from vlmft.evaluation.generate import answer_all, generate
from vlmft.hardware import decide
from vlmft.models.adapters import is_adapter, load_adapter
from vlmft.models.load import freeze, load_model, load_processor, part_of, stop_ids
from vlmft.schema import AnswerStyle, Config, Generation, Model
from vlmft.training import fine_tuning
from vlmft.training.callbacks import checksums

FAMILIES = ("glm41v", "glm41v_base", "glm45v", "qwen3vl", "llama32_vision", "deepseek_r1")
TEXT_ONLY = ("deepseek_r1",)
TILED = ("llama32_vision",)  # its text has one token for a picture of any size
END = {"glm41v": "<|user|>", "glm41v_base": "<|user|>", "glm45v": "<|user|>", "qwen3vl": "<|im_end|>",
       "llama32_vision": "<|eot_id|>", "deepseek_r1": "<｜end▁of▁sentence｜>"}  # fmt: skip
SAID = {  # of a turn with a thought, and of one without
    AnswerStyle.plain: ("no", "no"),
    AnswerStyle.answer: ("<answer>no</answer>", "<answer>no</answer>"),
    AnswerStyle.think: ("<think>It is blue.</think>\nno", "<think></think>\nno"),
    AnswerStyle.think_answer: ("<think>It is blue.</think><answer>no</answer>", "<answer>no</answer>"),
}
SAID_AFTER_THINK = {  # where the template begins every answer with a thought
    AnswerStyle.plain: ("\n</think>\n\nno", "\n</think>\n\nno"),
    AnswerStyle.answer: ("\n</think>\n\n<answer>no</answer>", "\n</think>\n\n<answer>no</answer>"),
    AnswerStyle.think: ("It is blue.\n</think>\n\nno", "\n</think>\n\nno"),
    AnswerStyle.think_answer: ("It is blue.\n</think>\n\n<answer>no</answer>", "\n</think>\n\n<answer>no</answer>"),
}
QUICK = ("dataset=demo_ct", "dataset.max_rows=40", "method.trainer.max_steps=4", "method.trainer.learning_rate=1e-3",
         "method.trainer.warmup_steps=0", "method.batch_size=8", "hardware=cpu")  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def config(family: str, composed: Callable[..., Config]) -> Callable[..., Config]:
    blind = ["dataset.images=ignore"] if family in TEXT_ONLY else []
    return lambda *overrides: composed(f"model=tiny_{family}", *QUICK, *blind, *overrides)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("pictures") / "a.png"
    Image.new("RGB", (112, 84), (90, 10, 200)).save(path)
    return str(path)


def encoder_for(config: Config, style: AnswerStyle | None = None) -> tuple[Any, Encoder]:
    model = load_model(config.model, "float32")
    return model, Encoder(load_processor(config.model), style or config.model.answer_style, stop_ids(config.model))


def trained(encoder: Encoder, rows: list[Row]) -> list[str]:
    """The runs of labelled tokens of all rows, decoded."""
    runs: list[list[int]] = [[]]
    for row in rows:
        assert all(label in (IGNORED, token) for token, label in zip(row.input_ids, row.labels, strict=True))
        for label in [*row.labels, IGNORED]:
            runs[-1].append(label) if label != IGNORED else runs.append([]) if runs[-1] else None
    return [encoder.tokenizer.decode(run) for run in runs if run]


@pytest.mark.parametrize("style", AnswerStyle)
def test_the_loss_is_on_the_answers_and_their_ends_only(
    style: AnswerStyle, family: str, config: Callable[..., Config], picture: str
) -> None:
    _, encoder = encoder_for(config(), style)
    thought, bare = (SAID_AFTER_THINK if encoder.think_prefilled else SAID)[style]
    assert encoder.think_prefilled is (family == "deepseek_r1")
    shown = () if family in TEXT_ONLY else (picture,)
    turns = (Turn("Is it red?", "no", "It is blue."), Turn("Is it green?", "no"))
    for asked, said in ((turns[:1], [thought]), (turns[1:], [bare]), (turns, [thought, bare])):
        question = Question("q", "set", shown, asked, "closed")
        rows = encoder.train_rows(question)
        assert trained(encoder, rows) == [text + END[family] for text in said]
        prompt = encoder.prompt_row(question).input_ids
        assert rows[-1].input_ids[: len(prompt)] == prompt, "training starts from what generation starts from"


def test_image_tokens_are_counted_as_the_family_counts_them(
    family: str, config: Callable[..., Config], picture: str
) -> None:
    """P pixels are P pixels in every family, and headers give what the processor gives from the pixels."""
    if family in TEXT_ONLY + TILED:
        pytest.skip("it refuses pixel limits: tests/models/test_llama.py")
    chosen = config("model.min_pixels=784", "model.max_pixels=50176")
    _, encoder = encoder_for(chosen)
    side = 2 * encoder.processor.image_processor.patch_size
    for size in ((112, 84), (500, 300), (3000, 2000), (90, 1500)):
        Image.new("RGB", size).save(picture)
        asked = Question("q", "set", (picture,), (Turn("Is it red?", "no"),), "closed")
        said = [{"role": "user", "content": [{"type": "image", "path": picture}, {"type": "text", "text": asked.text}]}]
        theirs = encoder.processor.apply_chat_template(
            said, tokenize=True, add_generation_prompt=True, return_dict=True
        )
        images.size.cache_clear()
        row = encoder.prompt_row(asked)
        assert row.input_ids == list(theirs["input_ids"][0])
        tokens = row.input_ids.count(encoder.image_token_id)
        assert tokens * side**2 <= 50176
        assert size != (3000, 2000) or tokens * side**2 > 0.8 * 50176, "and the limit is used"


def train(config: Config, run: Path) -> tuple[Any, Encoder, dict[str, int]]:
    """Train and save; returns the model in memory, its encoder, and the checksums from before."""
    model, encoder = encoder_for(config)
    before = checksums(model)
    rows = [row for question in training_questions(config.dataset, 0).train for row in encoder.train_rows(question)]
    decisions = decide(config.model, config.method, config.hardware)
    trainer_model: list[Any] = []
    watch = type(
        "Watch", (fine_tuning.TrainerCallback,), {"on_train_begin": lambda *a, model, **k: trainer_model.append(model)}
    )
    fine_tuning.train(config, model=model, encoder=encoder, rows=rows, validation=[], decisions=decisions, run=run,
              callbacks=[watch()])  # fmt: skip
    fine_tuning.put_in_place(run)
    return trainer_model[0] if trainer_model else model, encoder, before


def greedy(model: Any, encoder: Encoder, config: Config) -> list[str]:
    questions = load(config.dataset, "test", limit=12).questions
    model.eval()
    rows = [encoder.prompt_row(question) for question in questions]
    settings = Generation(max_new_tokens=12)
    plain = [reply["raw"] for reply in generate(model, encoder, rows, settings)]
    shared = {n: reply["raw"] for numbers, replies in answer_all(model, encoder, rows, settings)
              for n, reply in zip(numbers, replies, strict=True)}  # fmt: skip
    assert [shared[n] for n in range(len(rows))] == plain, "sharing the pictures changes no text"
    return plain


@pytest.mark.parametrize("method", ["full", "lora"])
def test_what_should_move_moves_and_what_was_saved_answers_alike(
    method: str, family: str, config: Callable[..., Config], tmp_path: Path
) -> None:
    chosen = config(f"method={method}")
    model, encoder, before = train(chosen, tmp_path)
    plain = {name.replace("base_model.model.", "").replace(".base_layer", ""): value
             for name, value in checksums(model).items() if "lora_" not in name}  # fmt: skip
    moved = {name for name in before if plain[name] != before[name]}
    assert moved == (set(before) if method == "full" else set())
    said = greedy(model, encoder, chosen)
    final = tmp_path / "final"
    if is_adapter(final):
        reloaded = load_adapter(load_model(chosen.model, "float32"), final)
    else:
        folder = Model(name="final", path=str(final))
        reloaded = load_model(folder, "float32")
        saved, base = load_file(final / "model.safetensors"), load_file(Path(chosen.model.path) / "model.safetensors")
        assert {name: weight.shape for name, weight in saved.items()} == {
            name: weight.shape for name, weight in base.items()
        }, "the names and shapes of the base repository"
        if family not in TEXT_ONLY:
            assert encoder.processor.image_processor.size == load_processor(folder).image_processor.size
    assert greedy(reloaded, encoder, chosen) == said
    assert any(said), "and the texts say something"


@pytest.mark.parametrize("part", ["vision", "projector", "llm"])
def test_a_frozen_part_stays(part: str, family: str, config: Callable[..., Config], tmp_path: Path) -> None:
    if family in TEXT_ONLY:
        pytest.skip("it has one part only")
    chosen = config("method=full", f"model.freeze.{part}=true", "method.trainer.max_steps=3")
    model, encoder = encoder_for(chosen)
    freeze(model, **vars(chosen.model.freeze))
    rows = [row for q in training_questions(chosen.dataset, 0).train for row in encoder.train_rows(q)]
    before = checksums(model)
    decisions = decide(chosen.model, chosen.method, chosen.hardware)
    fine_tuning.train(chosen, model=model, encoder=encoder, rows=rows, validation=[], decisions=decisions, run=tmp_path,
              callbacks=[])  # fmt: skip
    moved = {part_of(name) for name, value in checksums(model).items() if value != before[name]}
    assert moved == {"vision", "projector", "llm"} - {part}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_resumed_run_ends_as_an_undisturbed_one(
    checkpointing: bool, config: Callable[..., Config], tmp_path: Path
) -> None:
    """Checkpoints hold the base repository's names, whatever the names in memory (fused patches, fused experts)."""
    chosen = config("method=full", "method.trainer.save_steps=2",
                    f"method.trainer.gradient_checkpointing={str(checkpointing).lower()}")  # fmt: skip
    train(chosen, tmp_path)
    once = load_file(tmp_path / "final" / "model.safetensors")
    shutil.rmtree(tmp_path / "final")
    shutil.rmtree(tmp_path / "checkpoint-4")
    train(chosen, tmp_path)
    again = load_file(tmp_path / "final" / "model.safetensors")
    assert all(torch.equal(once[name], again[name]) for name in once)


def test_lora_stays_in_the_language_model(family: str, config: Callable[..., Config]) -> None:
    from peft import get_peft_model

    chosen = config("method=lora")
    adapted = get_peft_model(load_model(chosen.model, "float32"), fine_tuning.lora_config(chosen.method, chosen.model))
    touched = {name.split(".lora_A")[0] for name, _ in adapted.named_parameters() if "lora_A" in name}
    inside = "model.layers" if family in TEXT_ONLY else "language_model.layers"
    assert touched and all(inside in name for name in touched)
    kinds = {name.rsplit(".", 1)[1] for name in touched}
    experts = "glm45v" in chosen.model.name
    assert kinds >= {"q_proj", "k_proj", "v_proj", "o_proj"} | (set() if experts else {"down_proj"})
    assert ("no adapter" in fine_tuning.describe(adapted)) is experts


def test_routed_experts_can_have_adapters(composed: Callable[..., Config], tmp_path: Path) -> None:
    targets = "method.peft.target_parameters=[mlp.experts.gate_up_proj,mlp.experts.down_proj]"
    chosen = composed("model=tiny_glm45v", *QUICK, "method=lora", targets)
    model, encoder, _ = train(chosen, tmp_path)
    assert any("experts" in name and "lora_" in name for name, _ in model.named_parameters())
    assert "no adapter" not in fine_tuning.describe(model)
    reloaded = load_adapter(load_model(chosen.model, "float32"), tmp_path / "final")
    assert greedy(reloaded, encoder, chosen) == greedy(model, encoder, chosen)


def test_a_load_balancing_loss_can_be_asked_for(composed: Callable[..., Config], tmp_path: Path) -> None:
    """It is off unless set, since TRL averages it over micro-batches."""
    plain = ("model=tiny_glm45v", *QUICK, "method=full", "method.packing=none")
    with_it = checksums(train(composed(*plain, "method.trainer.router_aux_loss_coef=0.5"), tmp_path / "with")[0])
    without = checksums(train(composed(*plain), tmp_path / "without")[0])
    router = "model.language_model.layers.1.mlp.gate.weight"
    assert with_it[router] != without[router]
