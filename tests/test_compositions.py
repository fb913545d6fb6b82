"""Every preset composes, and passes vlmft's own check."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle, product

import pytest

from tests.conftest import ROOT
from vlmft.schema import Config, Task

OPTIONS = {group: sorted(f.stem for f in (ROOT / "conf" / group).glob("*.yaml")) for group in
           ("model", "dataset", "method", "hardware", "eval", "experiment")}  # fmt: skip


def pairs() -> Iterator[tuple[str, str, str, str]]:
    """Every model with every method and every dataset with every eval, in as few compositions as that takes."""
    left = list(product(OPTIONS["model"], OPTIONS["method"]))
    right = list(product(OPTIONS["dataset"], OPTIONS["eval"]))
    for (model, method), (dataset, evaluated) in zip(cycle(left), right, strict=False):
        yield model, dataset, method, evaluated


def test_every_pair_of_presets_composes(composed: Callable[..., Config]) -> None:
    seen = set()
    for choice in pairs():
        axes = dict(zip(("model", "dataset", "method", "eval"), choice, strict=True))
        config = composed(*(f"{axis}={option}" for axis, option in axes.items()))
        assert {axis: getattr(config, axis).name for axis in axes} == axes
        seen |= {(axes["model"], axes["method"]), (axes["dataset"], axes["eval"])}
    assert len(seen) == 8 * 2 + 9 * 7


@pytest.mark.parametrize("hardware", OPTIONS["hardware"])
def test_hardware(hardware: str, composed: Callable[..., Config]) -> None:
    config = composed(f"hardware={hardware}")
    assert config.hardware is not None and config.hardware.name == hardware


@pytest.mark.parametrize("experiment", OPTIONS["experiment"])
def test_an_experiment_says_its_command_and_composes(experiment: str, composed: Callable[..., Config]) -> None:
    lines = (ROOT / "conf" / "experiment" / f"{experiment}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1].startswith(f"# python train.py experiment={experiment}")
    config = composed(f"experiment={experiment}")
    assert config.model.name and (config.dataset.name or config.task is Task.eval)


def test_every_key_of_a_set_is_there_for_evaluation_too(composed: Callable[..., Config]) -> None:
    own = composed("dataset=vqa_rad").dataset
    evaluated = composed("eval=vqa_rad").eval
    assert evaluated.sets["vqa_rad"].path == own.path
