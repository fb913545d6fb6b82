"""task=plan: what is said of a run before anything is queued, by the real command and piece by piece."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.models.test_needs import needs_of
from vlmft import plan
from vlmft.errors import ConfigError, DataError
from vlmft.hardware import free_gpus, gpu_memory
from vlmft.models.load import load_config, source
from vlmft.models.memory import Need
from vlmft.schema import Config

Composed = Callable[..., Config]


def test_the_command_tells_the_plan_and_leaves_nothing(
    command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = command("task=plan", "model=tiny_qwen3vl", "dataset=demo_ct", "method=full", "hardware.gpu_memory=0.005")
    assert done.returncode == 0 and done.stderr == "", done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []
    lines = done.stdout.splitlines()
    assert lines[0] == "model     tiny_qwen3vl, full, weights in float32"
    assert "rows      2,488 of demo_ct, the longest 33 tokens" in lines
    starts = {line.split("  ")[0] for line in lines}
    assert starts >= {"vision", "projector", "llm", "together", "gradients", "optimiser states", "activations"}
    assert {"16 GB", "141 GB", "0.005 GB (this one)", "2", "4", "8"} <= starts
    assert sum("ZeRO-3, offload" in line for line in lines) == 1
    assert any(line.startswith("verdict   training does not fit on 5.0 MB") for line in lines)


def test_a_checkpoint_that_is_nowhere_is_told_by_the_parent(
    composed: Composed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = composed("task=plan", "model=glm41v", "model.path=nobody/nothing", "dataset=demo_ct")
    with pytest.raises(DataError, match=r"model glm41v: nobody/nothing is neither a folder here nor"):
        plan.start(config)


def test_what_cannot_be_planned(composed: Composed) -> None:
    with pytest.raises(ConfigError, match="model=… is missing"):
        plan.start(composed("task=plan"))
    with pytest.raises(ConfigError, match=r"hardware.gpu_memory=-1 should be the GB of a GPU"):
        plan.start(composed("task=plan", "model=tiny_glm41v", "hardware.gpu_memory=-1"))


def test_the_worker_leaves_its_problem_for_the_parent(composed: Composed, tmp_path: Path) -> None:
    config = composed("model=tiny_glm41v", "dataset=demo_ct", "method.max_row_tokens=12")
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    assert plan.main(tmp_path) == 1
    assert "rows have more than method.max_row_tokens=12 tokens" in (tmp_path / "problem.txt").read_text()


def test_rows_are_made_up_only_where_there_are_none(composed: Composed, tmp_path: Path) -> None:
    config = composed("model=tiny_glm41v", "dataset=vqa_rad", f"paths.root={tmp_path}", "method.max_row_tokens=100")
    model = load_config(config.model)
    found = plan.row_sizes(config, model)
    assert found.said.startswith("vqa_rad is not here: counted for rows of method.max_row_tokens=100")
    assert found.largest[1].tokens == 100 and found.largest[1].visual == 16, "12544 pixels"
    assert plan.row_sizes(composed("model=tiny_glm41v"), model).said.startswith("no dataset is chosen: ")
    # A checkpoint of which there is the config and nothing else.
    folder = tmp_path / "bare"
    folder.mkdir()
    shutil.copy(Path(source(config.model)) / "config.json", folder)
    bare = composed("model=glm41v", f"model.path={folder}", "dataset=demo_ct")
    assert plan.row_sizes(bare, load_config(bare.model)).said.startswith("the model's processor is not here: ")
    wrong = composed("model=tiny_glm41v", "dataset=demo_ct", "model.min_pixels=99999")
    with pytest.raises(DataError, match="min_pixels=99999 is more than"):
        plan.row_sizes(wrong, model)


def test_prompts_of_the_test_set_count_for_the_evaluation(composed: Composed) -> None:
    config = composed("model=tiny_glm41v", "dataset=demo_ct", "dataset.max_rows=20", "eval.max_rows=7")
    found = plan.row_sizes(config, load_config(config.model))
    assert found.at_hand and 0 < found.prompts <= 7, "whole images"
    assert found.longest < found.largest[1].tokens, "a prompt has no answer"
    bare = plan.row_sizes(replace(config, eval=replace(config.eval, own=False)), load_config(config.model))
    assert bare.prompts > 7 and bare.longest > found.longest, "training rows stand in"


def test_the_advice_ends_where_the_run_fits(composed: Composed, capsys: pytest.CaptureFixture[str]) -> None:
    needs = needs_of("glm41v")

    def said(size: float, *overrides: str) -> list[str]:
        config = composed("model=glm41v", f"hardware.gpu_memory={size}", *overrides)
        plan.show(config, needs)
        lines = capsys.readouterr().out.splitlines()
        return lines[[line.startswith("memory") for line in lines].index(True) :]

    memory, verdict = said(141)
    assert memory.startswith("memory    20.7 GB weights, 0.3 GB optimiser and gradients, ")
    assert memory.endswith(" of 141.0 GB") and verdict == "verdict   training fits on 141.0 GB"
    _, verdict, change, evaluation = said(24, "eval.generation.batch_size=32")
    assert verdict == "verdict   training tight on 24.0 GB"
    assert change == "fits with method.quantization.load_in_8bit=true"
    assert evaluation == "evaluate  is tight with eval.generation.batch_size=16"
    # In 4 bits already, and the shards are as large as the base.
    assert said(5, "method.quantization.load_in_4bit=true")[2] == (
        "needs     more than 8 GPUs with ZeRO-3, or larger ones"
    )
    assert said(5, "method.quantization.load_in_4bit=true")[3] == (
        "evaluate  does not fit with one question at a time either"
    )


def test_more_gpus_are_named_where_no_change_helps(composed: Composed, monkeypatch: pytest.MonkeyPatch) -> None:
    config = composed("model=qwen3vl_4b", "method=full")
    needs = needs_of("qwen3vl")
    monkeypatch.setattr(needs, "cheaper", lambda config, gpu: None)
    for size, wanted in (
        (40, "needs     4 GPUs with ZeRO-3"),
        (8, "needs     ZeRO-3 with offload to the host's memory"),
    ):
        lines = list(plan._advice(config, needs, size * 1e9, needs.training(config, size * 1e9)))
        assert lines[2] == wanted


def test_an_optimiser_that_is_not_known_is_said(composed: Composed, capsys: pytest.CaptureFixture[str]) -> None:
    needs = needs_of("qwen3vl")
    plan.show(composed("model=qwen3vl_4b", "method.trainer.optim=galore_adamw"), needs)
    out = capsys.readouterr().out
    assert "optimiser galore_adamw is counted as AdamW" in out
    assert "micro-batch 1: 1,000 tokens, 700 of pictures (the smallest, as no GPU is named)" in out
    assert "verdict" not in out and "141 GB" in out


def test_the_line_at_the_start_of_a_run() -> None:
    need = Need(20_600_000_000, 10**8, 10**8, 10**8, 6_100_000_000)
    assert need.line(139.8e9) == (
        "memory    20.6 GB weights, 0.3 GB optimiser and gradients, 6.1 GB activations: 27.0 GB of 139.8 GB"
    )
    assert replace(need, activations=0).total == 20_900_000_000


def test_the_gpu_here_is_asked_for_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\necho "GPU-x, [N/A], [N/A]"\necho "GPU-a, 23000, 24564"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert gpu_memory() == pytest.approx(25.76, abs=0.01), "busy or not"
    assert free_gpus() == []
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert gpu_memory() is None
