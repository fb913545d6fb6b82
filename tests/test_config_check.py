"""Mistakes stop before torch is imported, and the message names the key, the place and the nearest right name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.start_time import assert_quick

Command = Callable[..., subprocess.CompletedProcess[str]]
TINY = ("model=tiny_glm41v", "dataset=demo_ct")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((*TINY, "model.attension=eager"), ["model.attension", "on the command line", "Did you mean attention"]),
        ((*TINY, "+model.attension=eager"), ["model.attension", "Did you mean attention"]),
        ((TINY[0], "dataset=demo", "+dataset.sets.demo_ct.pth=x"), ["dataset.sets.demo_ct.pth", "Did you mean path"]),
        ((*TINY, "method.trainer.learning_ratee=1"), ["method.trainer.learning_ratee", "learning_rate"]),
        ((*TINY, "method.peft.lora_alfa=1"), ["method.peft.lora_alfa", "lora_alpha"]),
        ((*TINY, "method.trainer.max_steps=many"), ["method.trainer.max_steps", "many", "whole number"]),
        ((*TINY, "method.trainer.per_device_train_batch_size=4"), ["per_device_train_batch_size", "method.batch_size"]),
        ((*TINY, "method.batch_size=many"), ["method.batch_size", "many"]),
        (("modle=tiny_glm41v",), ["modle", "Did you mean model"]),
        (("model=tiny_glm41", "dataset=demo"), ["tiny_glm41", "Did you mean tiny_glm41v"]),
        (("dataset=demo",), ["model=… is missing", "glm41v", "tiny_glm41v"]),
        (("model.path=here", "dataset=demo"), ["model=… is missing"]),
        ((TINY[0], "dataset=demo", "dataset.language=en"), ["dataset.sets.demo_ct.language=…"]),
        ((*TINY, "dataset.bad_rows=keep"), ["dataset.bad_rows", "refuse", "drop"]),
        ((*TINY, "hardware.device=gpu"), ["hardware.device", "cuda"]),
        ((*TINY, "hardware.micro_batch=3"), ["hardware.micro_batch=3", "1, 2, 4, 8, 16, or auto"]),
        ((*TINY, "eval.protocols=[normalised]"), ["eval.protocols", "Did you mean normalized"]),
        ((*TINY, "eval.ablations=[blnk]", "eval.debug_matches=-1"),
         ["eval.ablations: there is no blnk. Did you mean blank", "eval.debug_matches=-1"]),
        ((*TINY, "eval.debug_matches=many"), ["eval.debug_matches=many", "a number of comparisons, or true"]),
        ((*TINY, "eval.closed=likely"), ["eval.closed", "generate", "likelihood"]),
        ((*TINY, "log_level=loud", "eval.generation.max_new_tokens=-1"), ["log_level", "max_new_tokens=-1"]),
    ],
)  # fmt: skip
def test_a_mistake_is_named(arguments: tuple[str, ...], said: list[str], command: Command, tmp_path: Path) -> None:
    done = command(*arguments)
    assert done.returncode == 1, done.stderr
    for words in said:
        assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not any(tmp_path.iterdir()), "a command that cannot run leaves nothing behind"


def test_a_wrong_key_in_a_file_is_named_with_the_file(tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    (conf / "model").mkdir(parents=True)
    (conf / "model" / "mine.yaml").write_text("name: mine\npth: here\n")
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--config-dir", str(conf), "model=mine", "dataset=demo"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert "model.pth" in done.stderr and "model/mine.yaml" in done.stderr and "Did you mean path" in done.stderr


LIGHT = """
import os, runpy, sys
sys.argv = ["train.py", *sys.argv[2:]]
sys.path[0] = os.path.dirname({train!r})  # as `python train.py` has it
try:
    runpy.run_path({train!r}, run_name="__main__")
except SystemExit:
    pass
heavy = [name for name in ("torch", "transformers", "trl", "peft", "datasets") if name in sys.modules]
sys.exit(f"imported {{heavy}}" if heavy else 0)
"""


@pytest.mark.parametrize("arguments", [("--help",), (*TINY, "+model.attension=1")], ids=["help", "typo"])
def test_help_and_a_typo_are_quick_and_import_no_torch(arguments: tuple[str, ...], tmp_path: Path) -> None:
    train = str(ROOT / "train.py")
    script = LIGHT.format(train=train)
    done = subprocess.run(
        [sys.executable, "-c", script, train, *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert_quick(arguments, tmp_path)


def test_help_shows_groups_and_options(command: Command) -> None:
    shown = command("--help").stdout
    assert "model: deepseek_r1_8b, glm41v, glm41v_base, glm45v, llama32_vision, qwen3vl_4b" in shown
    for group in ("dataset", "method", "hardware", "eval", "experiment"):
        assert f"\n{group}: " in shown
    assert shown.count("  python train.py") >= 3
