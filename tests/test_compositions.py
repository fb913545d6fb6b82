"""Every preset composes, and passes vlmft's own check: the whole product, counted."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest

from tests.conftest import ROOT
from vlmft.schema import Config

OPTIONS = {group: sorted(f.stem for f in (ROOT / "conf" / group).glob("*.yaml")) for group in
           ("model", "dataset", "method", "hardware", "eval", "experiment")}  # fmt: skip


def test_the_whole_product_composes(composed: Callable[..., Config]) -> None:
    axes = ("model", "dataset", "method", "eval")
    count = 0
    for choice in product(*(OPTIONS[axis] for axis in axes)):
        config = composed(*(f"{axis}={option}" for axis, option in zip(axes, choice, strict=True)))
        for axis, option in zip(axes, choice, strict=True):
            assert getattr(config, axis).name == option
        count += 1
    assert count == 3 * 6 * 2 * 4


@pytest.mark.parametrize("hardware", OPTIONS["hardware"])
def test_hardware(hardware: str, composed: Callable[..., Config]) -> None:
    config = composed(f"hardware={hardware}")
    assert config.hardware is not None and config.hardware.name == hardware


@pytest.mark.parametrize("experiment", OPTIONS["experiment"])
def test_an_experiment_says_its_command_and_composes(experiment: str, composed: Callable[..., Config]) -> None:
    lines = (ROOT / "conf" / "experiment" / f"{experiment}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1] == f"# python train.py experiment={experiment}"
    config = composed(f"experiment={experiment}")
    assert config.model.name and config.dataset.name


def test_every_key_of_a_set_is_there_for_evaluation_too(composed: Callable[..., Config]) -> None:
    own = composed("dataset=vqa_rad").dataset
    evaluated = composed("eval=vqa_rad").eval
    assert evaluated.sets["vqa_rad"].path == own.path
