"""DPO: TRL's loss, gradients and metrics on pairs that share their prompt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from PIL import Image
from trl import DPOConfig, DPOTrainer
from trl.trainer.utils import add_fused_lm_head

from tests.training.dpo_trainers import fresh, gradients, moved, one_step, ours, parts, referred, some_pairs
from vlmft.chat.encode import Encoder
from vlmft.chat.prompts import target
from vlmft.chat.rendering import prompt
from vlmft.data.question import Question, Turn
from vlmft.errors import DataError
from vlmft.hardware import decide
from vlmft.models.adapters import lora_config
from vlmft.models.load import load_processor
from vlmft.schema import Algorithm, Config
from vlmft.training import fine_tuning

METHODS = {"dpo": "method.peft.lora_alpha=16", "dpo_full": "method.batch_size=16"}


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
