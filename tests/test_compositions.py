"""Every preset composes, and passes vlmft's own check."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from tests.conftest import ROOT
from vlmft.config_check import check
from vlmft.schema import Config, Task

OPTIONS = {group: sorted(f.stem for f in (ROOT / "conf" / group).glob("*.yaml")) for group in
           ("model", "dataset", "method", "hardware", "eval", "experiment")}  # fmt: skip
PAIRED = (("model", "method"), ("dataset", "eval"))


def test_every_pair_of_presets_passes_the_check() -> None:
    """Every model with every method, and every dataset with every eval.

    Hydra composes each option once. It merges no two groups into one node, so a pair of them is what either option made
    of its own node; only the check looks at both.
    """
    composed: dict[str, dict[str, DictConfig]] = {group: {} for pair in PAIRED for group in pair}
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        for number in range(max(len(OPTIONS[group]) for group in composed)):
            choice = {group: OPTIONS[group][number % len(OPTIONS[group])] for group in composed}
            cfg = compose("config", [f"{group}={option}" for group, option in choice.items()])
            for group, option in choice.items():
                composed[group][option] = cfg[group]
    cfg, seen = copy.deepcopy(cfg), set()
    for pair in PAIRED:
        for options in product(*(OPTIONS[group] for group in pair)):
            for group, option in zip(pair, options, strict=True):
                cfg[group] = composed[group][option]
            config = check(cfg)
            assert tuple(getattr(config, group).name for group in pair) == options
            seen.add((pair, options))
    sizes = {group: len(options) for group, options in OPTIONS.items()}
    assert sizes["model"] >= 12 and sizes["method"] >= 4 and sizes["dataset"] >= 19 and sizes["eval"] >= 10
    assert len(seen) == sizes["model"] * sizes["method"] + sizes["dataset"] * sizes["eval"]


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
    assert config.model.name and (config.dataset.name or config.stages or config.task is Task.eval)


def test_every_key_of_a_set_is_there_for_evaluation_too(composed: Callable[..., Config]) -> None:
    own = composed("dataset=vqa_rad").dataset
    evaluated = composed("eval=vqa_rad").eval
    assert evaluated.sets["vqa_rad"].path == own.path
