"""The vision tower and the projector at their own learning rates."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.test_fine_tuning import QUICK, decisions, parts, train
from vlmft.errors import ConfigError, DataError
from vlmft.identity import run_name
from vlmft.models.load import part_of
from vlmft.schema import Config
from vlmft.training import fine_tuning
from vlmft.training.callbacks import checksums
from vlmft.training.trainer import Planned

RATES = {"vision": 3e-3, "projector": 5e-2, "llm": 1e-2}
TWO = ("method.learning_rates.vision=3e-3", "method.learning_rates.projector=5e-2")
LLM = ("method.trainer.learning_rate=1e-2",)


@pytest.fixture(scope="module")
def config(composed: Callable[..., Config]) -> Callable[..., Config]:
    return lambda *overrides: composed("model=tiny_glm41v", "dataset=demo_ct", *QUICK, "method=full", *overrides)


def moved(config: Config, run: Path) -> dict[str, torch.Tensor]:
    """How far each weight went in training."""
    model, encoder, rows = parts(config)
    start = {name: weight.detach().double() for name, weight in model.named_parameters()}
    train(config, run, model=model, encoder=encoder, rows=rows)
    return {name: weight.detach().double() - start[name] for name, weight in model.named_parameters()}


def test_each_part_moves_at_its_rate(config: Callable[..., Config], tmp_path: Path) -> None:
    """In one step of plain SGD a weight moves by its rate times its gradient, which the rates do not change."""
    one_step = ("method.trainer.optim=sgd", "method.trainer.max_steps=1", "method.trainer.lr_scheduler_type=constant",
                "method.trainer.max_grad_norm=0", "method.trainer.weight_decay=0")  # fmt: skip
    alike = moved(config(*one_step, "method.trainer.learning_rate=1"), tmp_path / "alike")
    apart = moved(config(*one_step, *TWO, *LLM), tmp_path / "apart")
    seen = set()
    for name, far in alike.items():
        seen.add(part_of(name))
        wanted = RATES[part_of(name)] * far
        assert (apart[name] - wanted).norm() <= 1e-2 * wanted.norm() + 1e-7, name
    assert seen == set(RATES)


def trainer_of(config: Config, run: Path) -> Any:
    model, encoder, rows = parts(config)
    epochs = fine_tuning.plan(config.method, decisions(config), rows, encoder, 0, model.config.model_type)
    args = fine_tuning.arguments(config.method, decisions(config), run, 0, debug=False)
    return fine_tuning.trainer_of(
        config, model=model, encoder=encoder, epochs=epochs, validation=[], args=args, callbacks=[]
    )  # fmt: skip


def grouped(config: Config, run: Path) -> dict[str, tuple[float, float]]:
    """The learning rate and the weight decay of each weight."""
    trainer = trainer_of(config, run)
    trainer.create_optimizer()
    of = {id(weight): (g["lr"], g["weight_decay"]) for g in trainer.optimizer.param_groups for weight in g["params"]}
    assert len(of) == sum(len(group["params"]) for group in trainer.optimizer.param_groups), "each weight is there once"
    return {name: of[id(weight)] for name, weight in trainer.model.named_parameters() if id(weight) in of}


def test_weight_decay_stays_as_it_was(config: Callable[..., Config], tmp_path: Path) -> None:
    before, after = grouped(config(*LLM), tmp_path), grouped(config(*LLM, *TWO), tmp_path)
    assert {decay for _, decay in before.values()} == {0.0, 0.01}
    assert {name: decay for name, (_, decay) in after.items()} == {name: decay for name, (_, decay) in before.items()}
    assert {name: rate for name, (rate, _) in after.items()} == {name: RATES[part_of(name)] for name in before}


def test_all_follow_one_schedule(config: Callable[..., Config], tmp_path: Path) -> None:
    trainer = trainer_of(config(*LLM, *TWO, "method.trainer.max_steps=8"), tmp_path)
    trainer.create_optimizer_and_scheduler(8)
    first = {group["initial_lr"] for group in trainer.optimizer.param_groups}
    assert first == set(RATES.values())
    for step in range(1, 8):
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        share = 0.5 * (1 + math.cos(math.pi * step / 8))
        for group in trainer.optimizer.param_groups:
            assert group["lr"] == pytest.approx(group["initial_lr"] * share)


@pytest.mark.slow
def test_without_rates_of_their_own_nothing_changes(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit what the trainer comes to whose optimizer is made by transformers alone."""
    weights = []
    for own in (True, False):
        if not own:
            monkeypatch.delattr(Planned, "create_optimizer")
        chosen = config("method.trainer.weight_decay=0.1")
        model, encoder, rows = parts(chosen)
        train(chosen, tmp_path / str(own), model=model, encoder=encoder, rows=rows)
        weights.append(checksums(model))
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_a_resumed_run_keeps_the_groups(config: Callable[..., Config], tmp_path: Path) -> None:
    chosen = config(*LLM, *TWO, "method.trainer.save_steps=2")
    train(chosen, tmp_path / "whole")
    killed = tmp_path / "killed"
    shutil.copytree(tmp_path / "whole", killed, ignore=shutil.ignore_patterns("final", "checkpoint-3"))
    assert fine_tuning.checkpoints.newest(killed) == killed / "checkpoint-2"
    train(chosen, killed)
    one, other = (tmp_path / run / "final" / "model.safetensors" for run in ("whole", "killed"))
    assert one.read_bytes() == other.read_bytes()


def test_a_part_without_trained_weights_is_refused(
    config: Callable[..., Config], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConfigError, match=r"learning_rates\.vision=0\.003: model\.freeze\.vision=true leaves nothing"):
        config(*TWO, "model.freeze.vision=true")
    with pytest.raises(ConfigError, match=r"learning_rates\.projector=0 should be above 0; to stop its learning: m"):
        config("method.learning_rates.projector=0")
    with pytest.raises(DataError, match=r"learning_rates\.vision=0\.003: no weight of this part is trained\. LoRA"):
        grouped(config("method=lora", *TWO), tmp_path)
    with caplog.at_level(logging.INFO, "vlmft"):
        both = grouped(config("method=lora", "model.lora_targets='.*(q_proj|attn.qkv)'", TWO[0]), tmp_path)
    assert {(part_of(name), rate) for name, (rate, _) in both.items()} == {("vision", 3e-3), ("llm", 1e-3)}
    trained = sum("visual" in name for name in both)
    assert trained and "rates     vision: 0.003, for " in caplog.text


def test_rates_are_part_of_the_name_where_they_are_set(config: Callable[..., Config]) -> None:
    names = {run_name(config(*rates)) for rates in ((), TWO[:1], TWO, ("method.learning_rates.vision=4e-3",))}
    assert len(names) == 4
    assert run_name(config("method.learning_rates.vision=null")) == run_name(config())
