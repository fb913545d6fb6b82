"""Validation while training: the best checkpoint is what stays, and training ends where it no longer helps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vlmft.evaluation import results
from vlmft.identity import method_facts
from vlmft.schema import Config, EarlyStopping
from vlmft.status import Status
from vlmft.training import checkpoints, early_stopping
from vlmft.worker import train

Composed = Callable[..., Config]
# At such a rate every step after the first ones makes it worse.
SMALL = ("model=tiny_glm41v", "dataset=demo_ct", "dataset.max_rows=24", "dataset.validation=0.3", "hardware=cpu",
         "eval=none", "method.batch_size=8", "method.trainer.max_steps=8", "method.trainer.warmup_steps=0",
         "method.trainer.lr_scheduler_type=constant", "method.trainer.eval_strategy=steps",
         "method.trainer.eval_steps=1", "method.trainer.save_steps=1", "method.trainer.save_total_limit=2",
         "method.trainer.load_best_model_at_end=true", "method.early_stopping.patience=2",
         "method.early_stopping.threshold=0.001")  # fmt: skip
RATES = {"full": 0.1, "lora": 0.3}


def log(*losses: float) -> list[dict[str, Any]]:
    """As the trainer writes it, with an evaluation at every tenth step."""
    entries: list[dict[str, Any]] = []
    for number, loss in enumerate(losses, 1):
        entries += [{"loss": 9.0, "step": 10 * number}, {"eval_loss": loss, "step": 10 * number}]
    return entries


@pytest.mark.parametrize(
    ("losses", "threshold", "step", "since"),
    [
        ((3, 2, 1), 0, 30, 0),
        ((3, 2, 2, 2), 0, 20, 2),
        ((3, 2, 4, 1.5), 0.5, 40, 0),
        ((3, 2.6, 2.2, 1.8), 0.5, 30, 1),  # small falls add up
        ((3, 2.9, 2.8), 0.5, 10, 2),
        ((3, float("nan"), 3.5), 0, 10, 2),
        ((), 0, 0, 0),
    ],
)
def test_the_last_improvement(losses: tuple[float, ...], threshold: float, step: int, since: int) -> None:
    assert early_stopping.last_improvement(log(*losses), threshold) == (step, since)


@pytest.mark.parametrize(
    ("patience", "losses", "stops"),
    [
        (2, (3, 2, 2), False),
        (2, (3, 2, 2, 2), True),
        (0.1, (3, 2, 2), True),  # of 100 steps: ten without improvement
        (0.15, (3, 2, 2), False),
        (0.15, (3, 2, 2, 2), True),
        (0.01, (3, 2), False),
    ],
)
def test_patience_counts_evaluations_or_is_a_share_of_all_steps(
    patience: float, losses: tuple[float, ...], stops: bool
) -> None:
    control = SimpleNamespace(should_training_stop=False)
    state = SimpleNamespace(log_history=log(*losses), global_step=10 * len(losses), max_steps=100)
    early_stopping.StopEarly(EarlyStopping(patience=patience)).on_evaluate(None, state, control)
    assert control.should_training_stop is stops


def test_what_is_told() -> None:
    settings = EarlyStopping(patience=2, threshold=0.001)
    state = SimpleNamespace(log_history=log(3, 2, 2, 2), global_step=40, max_steps=100)
    assert early_stopping.told(settings, state) == (
        "stopped early at step 40 of 100 (no improvement of 0.001 since step 20)"
    )
    state.max_steps = 40
    assert early_stopping.told(settings, state) is None
    assert early_stopping.told(EarlyStopping(), SimpleNamespace(global_step=1, max_steps=2)) is None


def test_it_names_a_run_only_where_it_is_set(composed: Composed) -> None:
    assert "early_stopping" not in method_facts(composed(*SMALL[:6]).method)
    assert method_facts(composed(*SMALL).method)["early_stopping"] == {"patience": 2, "threshold": 0.001}


@pytest.fixture(scope="module", params=[pytest.param("full", marks=pytest.mark.slow), "lora"])
def stopped(request: pytest.FixtureRequest, composed: Composed, tmp_path_factory: Any) -> tuple[Config, Path]:
    """A run that stopped early, and its config."""
    rate = f"method.trainer.learning_rate={RATES[request.param]}"
    config = composed(f"method={request.param}", *SMALL, rate)
    run: Path = tmp_path_factory.mktemp("runs") / "run"
    run.mkdir()
    train(config, run, Status(run))
    return config, run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def same(one: Path, other: Path) -> bool:
    left, right = weights(one), weights(other)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def validated(run: Path) -> dict[int, float]:
    entries = map(json.loads, (run / "history.jsonl").read_text().splitlines())
    return {entry["step"]: entry["eval_loss"] for entry in entries if "eval_loss" in entry}


def test_the_best_checkpoint_is_what_stays(stopped: tuple[Config, Path]) -> None:
    _, run = stopped
    losses = validated(run)
    best, last = min(losses, key=losses.__getitem__), max(losses)
    assert list(losses) == list(range(1, last + 1)) and last == best + 2 < 8
    assert sorted(path.name for path in run.glob("checkpoint-*")) == [f"checkpoint-{best}", f"checkpoint-{last}"]
    assert same(run / "final", run / f"checkpoint-{best}")
    assert not same(run / "final", run / f"checkpoint-{last}")
    told = results.read(run)["train"]
    assert told["steps"] == last
    assert told["stopped"] == (f"stopped early at step {last} of 8 (no improvement of 0.001 since step {best})")


def test_killed_after_the_stop(stopped: tuple[Config, Path], tmp_path: Path) -> None:
    """Nothing is trained again, though there would be steps; the folder may have moved."""
    config, run = stopped
    again = shutil.copytree(run, tmp_path / "elsewhere")
    shutil.rmtree(again / "final")
    newest = checkpoints.newest(again)
    assert newest is not None
    train(config, again, Status(again))
    assert same(again / "final", run / "final") and checkpoints.newest(again) == newest
    assert results.read(again)["train"]["stopped"] == results.read(run)["train"]["stopped"]


def test_killed_before_the_stop(stopped: tuple[Config, Path], tmp_path: Path) -> None:
    """Patience is not begun anew."""
    config, run = stopped
    again = shutil.copytree(run, tmp_path / "elsewhere")
    shutil.rmtree(again / "final")
    newest = checkpoints.newest(again)
    assert newest is not None
    shutil.rmtree(newest)
    train(config, again, Status(again))
    assert same(again / "final", run / "final") and validated(again) == validated(run)
    assert results.read(again)["train"]["stopped"] == results.read(run)["train"]["stopped"]


def test_a_best_checkpoint_that_is_gone_is_an_error(stopped: tuple[Config, Path], tmp_path: Path) -> None:
    config, run = stopped
    again = shutil.copytree(run, tmp_path / "elsewhere")
    shutil.rmtree(again / "final")
    losses = validated(run)
    shutil.rmtree(again / f"checkpoint-{min(losses, key=losses.__getitem__)}")
    with pytest.raises(RuntimeError, match="the best validation loss, and is gone"):
        train(config, again, Status(again))
