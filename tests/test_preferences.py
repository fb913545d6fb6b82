"""DPO as it is used: on a run's own mistakes, in a grid that asks the reference once, and after a kill."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import crash
from tests.test_kill import KILLER, weights
from tests.test_run import read
from vlmft.cli import main

Command = Callable[..., "subprocess.CompletedProcess[str]"]
QUIET = ("hardware=cpu", "check=false", "eval.generation.max_new_tokens=16", "eval.protocols=[normalized]")


def run_of(done: subprocess.CompletedProcess[str]) -> Path:
    assert done.returncode == 0, done.stdout + done.stderr
    return Path(next(line.split()[1] for line in done.stdout.splitlines() if line.startswith("run ")))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preferences") / "pairs"
    crash.pairs(folder)
    return folder


def on(pairs: Path) -> tuple[str, ...]:
    return ("model=tiny_glm41v", "dataset=pairs", f"paths.pairs={pairs}", "dataset.absolute_paths=true", "eval=none",
            "method.batch_size=4", "hardware.micro_batch=2", "method.trainer.learning_rate=1e-3", *QUIET)  # fmt: skip


@pytest.mark.slow
def test_a_grid_over_beta_asks_the_reference_once(pairs: Path, command: Command, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    given = os.environ | {"VLMFT_CACHE": str(cache)}
    done = command("-m", *on(pairs), "method=dpo", "method.trainer.beta=0.1,0.5", "method.trainer.max_steps=4",
                   "sweep=betas", env=given)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("reference computed for 48 pairs") == 1
    assert done.stdout.count("reference known from an earlier run for 48 pairs") == 1
    assert len([file for file in (cache / "reference").glob("*.jsonl") if file.name[0] != "."]) == 1
    first, second = sorted((tmp_path / "outputs").glob("tiny_*"))
    assert weights(first) != weights(second)
    for run in (first, second):
        train = read(run / "result.json")["train"]
        assert train["steps"] == 4 and 0 <= train["rewards/accuracies"] <= 1 and "rewards/margins" in train
    report = (tmp_path / "multirun_reports" / "betas" / "report.md").read_text()
    assert "pairs · beta=0.1" in report and "pairs · beta=0.5" in report
    assert "of pairs ranked rightly" in (tmp_path / "multirun_reports" / "betas" / "index.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dpo", "dpo_full"])
def test_killed_in_a_save_it_comes_to_the_same_weights(
    method: str, pairs: Path, command: Command, tmp_path: Path
) -> None:
    """Each in a cache of its own; the one that goes on finds there what the reference said."""
    words = (*on(pairs), f"method={method}", "method.trainer.max_steps=12", "method.trainer.save_steps=5")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    expected = weights(run_of(command(*words, f"paths.outputs={whole}", env=os.environ | {"VLMFT_CACHE": str(whole)})))
    killer = tmp_path / "killer"
    killer.mkdir()
    (killer / "sitecustomize.py").write_text(KILLER)
    own = os.environ | {"VLMFT_CACHE": str(cut)}
    deadly = own | {"PYTHONPATH": str(killer), "KILL_BEFORE": "complete.json", "KILL_AT": "2"}
    done = command(*words, f"paths.outputs={cut}", env=deadly)
    assert done.returncode != 0 and not list(cut.glob("*/final"))
    done = command(*words, f"paths.outputs={cut}", env=own)
    assert "reference known" in done.stdout and "resume    from checkpoint-5" in done.stdout
    assert weights(run_of(done)) == expected


@pytest.mark.slow
def test_on_its_own_mistakes_a_model_that_learnt_too_little_gets_better(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three seeds: 39 steps of SFT, what it then says wrongly of training rows, and DPO on that."""
    start = ("model=tiny_glm41v", "method.batch_size=32", "method.trainer.adam_beta2=0.95", *QUIET)
    sft = ("dataset=demo_ct", "method=full", "hardware.micro_batch=32", "method.trainer.learning_rate=1.5e-3",
           "method.trainer.max_steps=39")  # fmt: skip
    dpo = ("dataset=pairs", "method=dpo_full", "method.trainer.loss_type=[sigmoid,sft]", "hardware.micro_batch=16",
           "method.trainer.learning_rate=1e-3", "method.trainer.num_train_epochs=3", "eval=none",
           "+dataset@eval.sets.demo_ct=demo_ct")  # fmt: skip
    runs = [tmp_path / run_of(command(*start, *sft, f"seed={seed}")) for seed in range(3)]
    asked = command("task=eval", f"runs=[{','.join(map(str, runs))}]", "eval.split=train", *QUIET)
    assert asked.returncode == 0, asked.stdout + asked.stderr
    for seed, run in enumerate(runs):
        main(["pairs", str(run)])
        assert "method=dpo_full" in capsys.readouterr().out
        folder = run / "pairs" / "demo_ct"
        better = tmp_path / run_of(command(*start, *dpo, f"seed={seed}", f"paths.pairs={folder}", f"init_from={run}"))
        before, after = (accuracy(one) for one in (run, better))
        assert after > before + 3, (seed, before, after)


def accuracy(run: Path) -> float:
    metric = read(run / "result.json")["evaluations"]["demo_ct"]["scores"]["normalized"]["metrics"]["accuracy"]
    return 100 * float(metric["value"])
