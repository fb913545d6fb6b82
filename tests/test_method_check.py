"""Settings of a method that need each other are refused apart, with what to set."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vlmft.errors import ConfigError
from vlmft.schema import Config

TINY = ("model=tiny_glm41v", "dataset=demo_ct")
HELD_OUT = "dataset.validation=0.2"
STEPS = ("method.trainer.eval_strategy=steps", "method.trainer.eval_steps=50")
BEST = "method.trainer.load_best_model_at_end=true"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (STEPS, "trainer.eval_strategy needs rows to validate on: set dataset.validation"),
        ((*STEPS, "method.trainer.save_steps=50", BEST), "load_best_model_at_end needs rows to validate on"),
        ((HELD_OUT, BEST), "add method.trainer.eval_strategy=steps"),
        ((HELD_OUT, *STEPS, BEST), "every 50 steps, .* set method.trainer.save_strategy=steps and save_steps=50"),
        ((HELD_OUT, "method.trainer.eval_strategy=steps", BEST), "every 10 steps, "),
        ((HELD_OUT, "method.trainer.eval_strategy=epoch", BEST), "set method.trainer.save_strategy=epoch"),
        ((HELD_OUT, *STEPS, "method.early_stopping.patience=2"), "add method.trainer.load_best_model_at_end=true"),
        (("method.early_stopping.patience=0.1",), "early_stopping needs rows to validate on"),
        (("method.early_stopping.patience=2.5",), "patience=2.5 should be a whole number of evaluations, or below 1"),
        (("method.early_stopping.patience=0",), "patience=0 should be"),
        (("method.early_stopping.threshold=-1",), "threshold=-1 should be 0 or more"),
        (("method.trainer.metric_for_best_model=f1",), "metric_for_best_model=f1: validation yields eval_loss"),
        (("method.trainer.greater_is_better=true",), "the smallest eval_loss"),
        (("method=full", "method.quantization.load_in_8bit=true"), "cannot be trained themselves; method=lora8"),
        (("method=lora8", "method.quantization.load_in_4bit=true"), "load_in_4bit and load_in_8bit; name one"),
        (("method.quantization.bnb_4bit_quant_type=nf4",), "neither load_in_4bit nor load_in_8bit; name one"),
    ],
)  # fmt: skip
def test_what_is_refused(overrides: tuple[str, ...], said: str, composed: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=said):
        composed(*TINY, *overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        (HELD_OUT, *STEPS),
        (HELD_OUT, *STEPS, BEST, "method.trainer.save_steps=50", "method.early_stopping.patience=0.1"),
        (HELD_OUT, *STEPS, BEST, "method.trainer.save_strategy=best", "method.early_stopping.patience=3"),
        (HELD_OUT, "method.trainer.eval_strategy=epoch", BEST, "method.trainer.save_strategy=epoch"),
        ("task=eval", "method=full", "method.quantization.load_in_8bit=true"),
    ],
)
def test_what_is_not(overrides: tuple[str, ...], composed: Callable[..., Config]) -> None:
    composed(*TINY, *overrides)


def test_each_stage_has_its_own_validation(composed: Callable[..., Config]) -> None:
    stages = ("model=tiny_glm41v", "+dataset@stages.one=demo_ct", "+dataset@stages.two=demo_path", *STEPS)
    with pytest.raises(ConfigError, match=r"stages\.two: method\.trainer.eval_strategy needs rows") as refused:
        composed(*stages, "stages.one.validation=0.2")
    assert "stages.one" not in str(refused.value)
    composed(*stages, "stages.one.validation=0.2", "stages.two.validation=0.2")
