"""DPO: TRL's loss and gradients on pairs that share their prompt, and the right reference from every start."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from PIL import Image
from trl import DPOConfig, DPOTrainer
from trl.trainer.utils import add_fused_lm_head

from vlmft.chat.collate import collate, for_model
from vlmft.chat.encode import IGNORED, Encoder, Row
from vlmft.chat.prompts import target
from vlmft.chat.rendering import prompt
from vlmft.data.question import Question, Turn
from vlmft.errors import DataError
from vlmft.hardware import Decisions, decide
from vlmft.models.adapters import lora_config
from vlmft.models.load import load_model, load_processor
from vlmft.schema import Algorithm, Config
from vlmft.training import fine_tuning, init_from
from vlmft.training.callbacks import checksums
from vlmft.training.reference import with_reference

WORDS = "is there a lesion in the left lung how many which organ side red blue large small".split()  # noqa: SIM905
METHODS = {"dpo": "method.peft.lora_alpha=16", "dpo_full": "method.batch_size=16"}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder, chance = tmp_path_factory.mktemp("pictures"), random.Random(0)
    paths = [str(folder / f"{n}.png") for n in range(3)]
    for path, size in zip(paths, ((56, 56), (112, 84), (84, 140)), strict=True):
        Image.frombytes("RGB", size, chance.randbytes(3 * size[0] * size[1])).save(path)
    return paths


def some_pairs(pictures: list[str], *, images: bool = True) -> list[Question]:
    """Pairs about one picture, about two, with a turn before, with thoughts, and with answers of unequal length."""
    chance = random.Random(7)

    def said(least: int = 1) -> str:
        return " ".join(chance.choice(WORDS) for _ in range(chance.randint(least, 6)))

    shown = [(pictures[0],)] * 3 + [(pictures[1], pictures[2])] * 2 + [(pictures[2],)] if images else [()] * 4
    found = []
    for number, paths in enumerate(shown):
        turns = (Turn(said(), said(), said()),) * (number == 1) + (Turn(said(3), said(), said()),)
        wrong = Turn(turns[-1].question, said() + " not", said())
        found.append(Question(str(number), "set", paths, turns, "open", rejected=wrong))
    return found


def parts(config: Config) -> tuple[Encoder, Decisions]:
    encoder = Encoder(load_processor(config.model), config.model.answer_style, [7])
    return encoder, decide(config.model, config.method, config.hardware)


LOADED: dict[str, Any] = {}  # loading takes longer than most tests


def fresh(config: Config) -> Any:
    """The config's model as it is loaded."""
    if config.model.path not in LOADED:
        LOADED[config.model.path] = load_model(config.model, "float32")
    return copy.deepcopy(LOADED[config.model.path])


def referred(config: Config, questions: list[Question], folder: Path) -> list[Any]:
    encoder, decisions = parts(config)
    rows = list(encoder.rows(questions, Algorithm.dpo))
    starts = config.init_from or config.method.quantization
    model = init_from.load(config, decisions.load_dtype, folder) if starts else fresh(config)
    before = checksums(model)
    found = with_reference(config, model, rows, encoder, decisions, folder, lambda done: None)
    assert checksums(model) == before and not hasattr(model, "peft_config")
    return found


def ours(config: Config, rows: list[Any], folder: Path) -> Any:
    encoder, decisions = parts(config)
    model = fresh(config)
    epochs = fine_tuning.plan(config.method, decisions, rows, encoder, 0, model.config.model_type)
    args = fine_tuning.arguments(config.method, decisions, folder, 0, debug=False)
    return fine_tuning.trainer_of(
        config, model=model, encoder=encoder, epochs=epochs, validation=[], args=args, callbacks=[]
    )


def stock(config: Config, folder: Path) -> Any:
    """TRL's own trainer and collator, with the model that it loads itself as the reference."""
    model = fresh(config)
    given = {"prompt": ["a"], "chosen": ["b"], "rejected": ["c"], "images": [[0]]}
    settings: Any = {
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "report_to": "none",
        "seed": 0,
        "router_aux_loss_coef": 0.0,
    }
    return DPOTrainer(
        model=model, train_dataset=Dataset.from_dict(given), processing_class=load_processor(config.model),
        args=DPOConfig(str(folder / "stock"), max_length=None, beta=config.method.trainer["beta"], **settings),
        peft_config=None if config.method.peft is None else lora_config(config.method, config.model),
    )  # fmt: skip


def as_trl_takes_it(encoder: Encoder, question: Question) -> dict[str, Any]:
    (asked,) = prompt(encoder._render, question, encoder.style, encoder.think_prefilled)
    end = encoder.tokenizer.decode([encoder.end_id])
    chosen, rejected = (
        target(turn, encoder.style, encoder.think_prefilled) + end
        for turn in (question.turns[-1], question.rejected)  # type: ignore[arg-type]
    )
    images = [Image.open(path).convert("RGB") for path in question.images]
    return {"prompt": asked, "chosen": chosen, "rejected": rejected, "images": images}


def moved(trainer: Any) -> Any:
    """The trainer's model away from where it started, by the same steps whoever trains it."""
    trainer.model.train()
    chance = torch.Generator().manual_seed(3)
    for _, weight in sorted((n.replace("base_model.model.", ""), w) for n, w in trainer.model.named_parameters()):
        if weight.requires_grad:
            weight.data += 0.03 * torch.randn(weight.shape, generator=chance)
    return trainer


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("twin", "images"), [("glm41v", True), ("qwen3vl", True), ("glm45v", True), ("glm41v", False)])
def test_loss_gradients_and_metrics_are_those_of_trl(
    twin: str, method: str, images: bool, composed: Callable[..., Config], pictures: list[str], tmp_path: Path
) -> None:
    config = composed(f"model=tiny_{twin}", "dataset=demo", f"method={method}", METHODS[method], "hardware=cpu",
                      "method.trainer.beta=0.7")  # fmt: skip
    questions = some_pairs(pictures, images=images)
    trainer = moved(ours(config, referred(config, questions, tmp_path), tmp_path))
    (packs,) = [trainer.train_dataset[0]]
    assert sum(len(pack.rows) for pack in packs) == len(questions) and all(pack.prefix for pack in packs)
    batch = trainer.data_collator([packs])
    count = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
    assert count == len(questions)
    batch.pop("questions")
    loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch), num_items_in_batch=count)
    loss.backward()

    theirs = moved(stock(config, tmp_path))
    given = theirs.data_collator([as_trl_takes_it(trainer.encoder, question) for question in questions])
    wanted = theirs.compute_loss(theirs.model, theirs._prepare_inputs(given))
    wanted.backward()

    assert abs(wanted.item() - 0.6931) > 0.01  # not where it started
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    got, expected = gradients(trainer.model), gradients(theirs.model)
    assert got.keys() == expected.keys()
    norm = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    apart = torch.stack([(got[name] - expected[name]).norm() for name in expected]).norm()
    assert apart / norm < 1e-4
    for name, values in theirs._metrics["train"].items():
        if name != "num_tokens":
            assert trainer._metrics["train"][name] == pytest.approx(values, rel=1e-4, abs=1e-5), name
    tokens = sum(pack.tokens for pack in packs)
    assert trainer._metrics["train"]["num_tokens"] == [tokens] and tokens < theirs._metrics["train"]["num_tokens"][0]


def one_step(trainer: Any, micro_batches: int) -> tuple[float, dict[str, torch.Tensor], dict[str, float]]:
    """Loss, gradients and metrics of the first optimiser step."""
    batches = [trainer.data_collator([trainer.train_dataset[number]]) for number in range(micro_batches)]
    count = trainer._get_num_items_in_batch(batches, torch.device("cpu"))
    total = 0.0
    for batch in batches:
        batch.pop("questions")
        loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch), num_items_in_batch=count)
        loss.backward()
        total += loss.item()
    logs: dict[str, float] = {}
    trainer.log(logs)
    return total, gradients(trainer.model), logs


@pytest.mark.parametrize("cut", [("method.packing=none",), ("hardware.micro_batch=2",), ("hardware.micro_batch=1",),
                                 ("hardware.micro_batch=1", "method.packing=none")])  # fmt: skip
def test_a_step_is_the_same_however_it_is_cut_up(
    cut: tuple[str, ...], composed: Callable[..., Config], pictures: list[str], tmp_path: Path
) -> None:
    """With a micro-batch of one, eight micro-batches hold six pairs: two have none."""
    overrides = ("model=tiny_qwen3vl", "dataset=demo", "method=dpo", "method.batch_size=8", "hardware=cpu")
    found = []
    for more in ((), cut):
        config = composed(*overrides, *more)
        trainer = moved(ours(config, referred(config, some_pairs(pictures), tmp_path), tmp_path))
        trainer.model.zero_grad()
        found.append(one_step(trainer, 8 // decide(config.model, config.method, config.hardware).micro_batch))
    (loss, grads, logs), (other_loss, other_grads, other_logs) = found
    assert other_loss == pytest.approx(loss, rel=1e-5)
    assert all(torch.allclose(grads[name], other_grads[name], rtol=1e-3, atol=1e-6) for name in grads)
    for name in ("rewards/accuracies", "rewards/margins", "rewards/chosen", "logps/rejected"):
        assert other_logs[name] == pytest.approx(logs[name], rel=1e-4, abs=1e-6), name


def test_text_alone_shares_its_prompt(composed: Callable[..., Config], tmp_path: Path) -> None:
    found = []
    for packing in ("image", "none"):
        config = composed("model=tiny_deepseek_r1", "dataset=demo", "method=dpo", f"method.packing={packing}",
                          "method.batch_size=4", "hardware=cpu")  # fmt: skip
        trainer = moved(ours(config, referred(config, some_pairs([], images=False), tmp_path), tmp_path))
        assert all(bool(pack.prefix) is (packing == "image") for pack in trainer.train_dataset[0])
        found.append(one_step(trainer, 1))
    (loss, grads, _), (other_loss, other_grads, _) = found
    assert other_loss == pytest.approx(loss, rel=1e-5) and loss != pytest.approx(0.6931, abs=0.01)
    assert all(torch.allclose(grads[name], other_grads[name], rtol=1e-3, atol=1e-6) for name in grads)


def test_pictures_beside_the_text(composed: Callable[..., Config], pictures: list[str], tmp_path: Path) -> None:
    """Llama-3.2-Vision is not packed; where policy and reference are the same, the loss is log 2."""
    config = composed("model=tiny_llama32_vision", "dataset=demo", "method=dpo", "method.batch_size=6", "hardware=cpu")
    trainer = ours(config, referred(config, some_pairs(pictures), tmp_path), tmp_path)
    trainer.model.train()
    loss, grads, logs = one_step(trainer, 1)
    assert loss == pytest.approx(0.693147, abs=1e-4) and abs(logs["rewards/margins"]) < 1e-3
    assert any(gradient.abs().max() > 0 for gradient in grads.values())


STARTS = ["base", "adapter", "another adapter", "full"]


@pytest.fixture(scope="module")
def trained(composed: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What a run with LoRA and a full run have trained, far enough from the base to tell them apart."""
    found = {}
    for method in ("lora", "full"):
        folder = tmp_path_factory.mktemp(method) / "final"
        config = composed("model=tiny_glm41v", "dataset=demo", f"method={method}", "hardware=cpu")
        encoder, decisions = parts(config)
        rows = list(encoder.rows([Question("0", "set", (), (Turn("a", "b"),), "open")]))
        model = fresh(config)
        trainer = fine_tuning.trainer_of(
            config, model=model, encoder=encoder, validation=[], callbacks=[],
            epochs=fine_tuning.plan(config.method, decisions, rows, encoder, 0, "glm4v"),
            args=fine_tuning.arguments(config.method, decisions, folder.parent, 0, debug=False),
        )  # fmt: skip
        moved(trainer).save_model(str(folder))
        found[method] = folder
    return found


@pytest.mark.parametrize("start", STARTS)
def test_the_reference_is_what_training_starts_from(
    start: str, trained: dict[str, Path], composed: Callable[..., Config], pictures: list[str], tmp_path: Path
) -> None:
    """As transformers and PEFT load it, answer by answer; and before the first step the policy is the reference."""
    from peft import PeftModel

    folder = None if start == "base" else trained["full" if start == "full" else "lora"]
    more = {"another adapter": ("method.peft.r=4",), "full": ("method=dpo_full",)}.get(start, ("method=dpo",))
    more += ("method=dpo",) * (start == "another adapter")
    config = composed("model=tiny_glm41v", "dataset=demo", "method.batch_size=6", "hardware=cpu", *more,
                      *([f"init_from={folder}"] if folder else []))  # fmt: skip
    questions = some_pairs(pictures)
    rows = referred(config, questions, tmp_path)

    base = fresh(config)
    model: Any = base
    if start == "full":
        model = type(base).from_pretrained(str(folder), dtype="float32")
    elif folder:
        model = PeftModel.from_pretrained(base, str(folder))
    encoder, decisions = parts(config)
    said = [answer_log_probability(model, encoder, side) for row in rows for side in row.branches]
    assert [value for row in rows for value in row.reference] == pytest.approx(said, rel=1e-4, abs=1e-4)
    if folder:
        raw = fresh(config)
        other = [answer_log_probability(raw, encoder, side) for row in rows for side in row.branches]
        assert max(abs(a - b) for a, b in zip(said, other, strict=True)) > 0.5

    policy = init_from.load(config, "float32", tmp_path)
    epochs = fine_tuning.plan(config.method, decisions, rows, encoder, 0, "glm4v")
    args = fine_tuning.arguments(config.method, decisions, tmp_path, 0, debug=False)
    trainer = fine_tuning.trainer_of(
        config, model=policy, encoder=encoder, epochs=epochs, validation=[], args=args, callbacks=[]
    )
    trainer.model.train()
    loss, _, logs = one_step(trainer, 1)
    assert loss == pytest.approx(0.693147, abs=1e-5) and abs(logs["rewards/margins"]) < 1e-5
    assert getattr(trainer, "ref_model", None) is None and "ref" not in getattr(trainer.model, "peft_config", {})


def answer_log_probability(model: Any, encoder: Encoder, row: Row) -> float:
    batch = for_model(encoder, collate(encoder, [row], padding_side="right"), "cpu", torch.float32)
    labels = batch.pop("labels")[0, 1:]
    with torch.no_grad():
        each = torch.log_softmax(model(**batch).logits[0, :-1], dim=-1)
    kept = labels != IGNORED
    return float(each[kept].gather(-1, labels[kept][:, None]).sum())


def test_every_loss_of_trl_goes_through(composed: Callable[..., Config], pictures: list[str], tmp_path: Path) -> None:
    """Several at once, weighted by the policy's own probabilities (WPO), which needs another field of TRL's head."""
    losses = ["sigmoid", "ipo", "apo_zero", "sigmoid_norm", "bco_pair"]  # TRL itself cannot weight "sft"
    named = f"method.trainer.loss_type=[{','.join(losses)}]"
    config = composed("model=tiny_qwen3vl", "dataset=demo", "method=dpo", "hardware=cpu", "method.trainer.beta=0.7",
                      named, "method.trainer.use_weighting=true")  # fmt: skip
    questions = some_pairs(pictures)
    loss, _, _ = one_step(moved(ours(config, referred(config, questions, tmp_path), tmp_path)), 1)
    theirs = moved(stock(config, tmp_path))
    theirs.loss_types, theirs.loss_weights, theirs.use_weighting = losses, [1.0] * len(losses), True
    add_fused_lm_head(theirs.model.get_base_model(), outputs=("log_probs", "entropy", "mean_logits", "is_top1",
                                                              "log_sum_sq_probs"))  # fmt: skip
    encoder, _ = parts(config)
    given = theirs.data_collator([as_trl_takes_it(encoder, question) for question in questions])
    wanted = theirs.compute_loss(theirs.model, theirs._prepare_inputs(given))
    assert loss == pytest.approx(wanted.item(), rel=1e-5)


def test_on_a_base_in_few_bits(composed: Callable[..., Config], pictures: list[str], tmp_path: Path) -> None:
    config = composed("model=tiny_glm41v", "dataset=demo", "method=qlora4", "method.algorithm=dpo", "hardware=cpu",
                      "method.batch_size=6")  # fmt: skip
    rows = referred(config, some_pairs(pictures), tmp_path)
    encoder, decisions = parts(config)
    model = init_from.load(config, "float32", tmp_path)
    trainer = fine_tuning.trainer_of(
        config, model=model, encoder=encoder, validation=[], callbacks=[],
        epochs=fine_tuning.plan(config.method, decisions, rows, encoder, 0, "glm4v"),
        args=fine_tuning.arguments(config.method, decisions, tmp_path, 0, debug=False),
    )  # fmt: skip
    trainer.model.train()
    loss, grads, logs = one_step(trainer, 1)
    assert loss == pytest.approx(0.693147, abs=1e-4) and abs(logs["rewards/margins"]) < 1e-3
    assert any(gradient.abs().max() > 0 for gradient in grads.values())


def test_validation_is_a_mean_over_pairs(composed: Callable[..., Config], pictures: list[str], tmp_path: Path) -> None:
    found = []
    for more in ("method.trainer.per_device_eval_batch_size=1", "method.trainer.per_device_eval_batch_size=4",
                 "method.packing=none"):  # fmt: skip
        config = composed("model=tiny_glm41v", "dataset=demo", "method=dpo", "hardware=cpu", more)
        rows = referred(config, some_pairs(pictures), tmp_path)
        encoder, decisions = parts(config)
        trainer = moved(
            fine_tuning.trainer_of(
                config,
                model=fresh(config),
                encoder=encoder,
                validation=rows,
                callbacks=[],
                epochs=fine_tuning.plan(config.method, decisions, rows, encoder, 0, "glm4v"),
                args=fine_tuning.arguments(config.method, decisions, tmp_path, 0, debug=False),
            )
        )
        one = trainer.evaluate()
        (logged,) = trainer.state.log_history
        found.append([one["eval_loss"], logged["eval_rewards/margins"], logged["eval_rewards/accuracies"]])
    assert found[1] == pytest.approx(found[0], abs=1e-5) and found[2] == pytest.approx(found[0], abs=1e-5)


def test_rows_without_a_rejected_answer_are_named(composed: Callable[..., Config], pictures: list[str]) -> None:
    config = composed("model=tiny_glm41v", "model.answer_style=plain", "dataset=demo", "method=dpo", "hardware=cpu")
    encoder, _ = parts(config)
    plain = Question("7", "mine", (), (Turn("a", "b"),), "open")
    with pytest.raises(DataError, match=r"question 7 of mine has no rejected answer.*vlmft pairs RUN_DIR"):
        list(encoder.rows([plain], Algorithm.dpo))
    same = Question("8", "mine", (), (Turn("a", "b", "x"),), "open", rejected=Turn("a", "b", "y"))
    with pytest.raises(DataError, match=r"mine:8: as model.answer_style=.* the same"):
        list(encoder.rows([same], Algorithm.dpo))
