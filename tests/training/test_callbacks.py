"""What training writes while it goes on: history.jsonl, each step once however often the run is resumed; and W&B."""

from __future__ import annotations

import json
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import wandb
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tests.conftest import ROOT
from vlmft import history, status, sweep, worker
from vlmft import run as parent
from vlmft.evaluation.runs import Together
from vlmft.models import load
from vlmft.schema import Config, Tracking
from vlmft.training import callbacks
from vlmft.training.callbacks import Progress, Wandb, gpu_memory

CUDA = torch.cuda.is_available()


def train(run: Path, steps: range, total: int = 6) -> dict[str, Any]:
    """The calls that a Trainer makes, from the checkpoint of steps.start (or 0) to steps.stop; returns the status."""
    progress = Progress(status.Status(run))
    state = SimpleNamespace(global_step=steps.start, max_steps=total)
    progress.on_train_begin(None, state, None)
    for step in range(steps.start + 1, steps.stop + 1):
        state.global_step = step
        progress.on_step_end(None, state, None)
        progress.on_log(None, state, None, {"loss": 10.0 - step, "grad_norm": 1, "learning_rate": 1e-4, "epoch": 0.5})
        if step % 2 == 0:
            progress.on_log(None, state, None, {"eval_loss": 5.0, "eval_runtime": 1.0})
    return progress.status.values


def entries(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def test_a_line_for_each_log(tmp_path: Path) -> None:
    before = time.time()
    told = train(tmp_path, range(0, 2))
    first, second, validation = entries(tmp_path)
    assert before - 0.1 <= first.pop("time") <= time.time() + 0.1
    assert first == {"step": 1, "loss": 9.0, "grad_norm": 1.0, "learning_rate": 1e-4}
    assert second["step"] == 2 and validation.keys() == {"step", "time", "eval_loss"}
    assert (told["loss"], told["eval_loss"], told["step"], told["total"]) == (8.0, 5.0, 2, 6), "so is the status"


def test_what_is_not_shown_makes_no_line(tmp_path: Path) -> None:
    progress = Progress(status.Status(tmp_path))
    progress.on_log(None, SimpleNamespace(global_step=3), None, {"train_runtime": 1.0, "train_loss": 2.0})
    assert not (tmp_path / "history.jsonl").exists()


def test_a_resumed_run_has_each_step_once(tmp_path: Path) -> None:
    train(tmp_path, range(0, 5))
    with open(tmp_path / "history.jsonl", "a") as file:
        file.write('{"step": 6, "lo')  # the kill
    kept = entries_up_to(tmp_path, 4)
    train(tmp_path, range(4, 6))
    assert [(entry["step"], "loss" in entry) for entry in entries(tmp_path)] == [
        (1, True), (2, True), (2, False), (3, True), (4, True), (4, False), (5, True), (6, True), (6, False),
    ]  # fmt: skip
    assert entries_up_to(tmp_path, 4) == kept, "what was logged before the checkpoint stays as it was"


def test_a_run_without_a_checkpoint_begins_its_history_again(tmp_path: Path) -> None:
    history.append(tmp_path, 0, {"eval_loss": 9.0})  # a validation before the first step, which will come again
    train(tmp_path, range(0, 3))
    train(tmp_path, range(0, 1))
    assert [entry["step"] for entry in entries(tmp_path)] == [1]


def test_losses_of_a_history_that_is_being_written(tmp_path: Path) -> None:
    assert history.losses(tmp_path) == []
    for step, values in enumerate([{"loss": 2.5}, {"eval_loss": 7.0}, {"loss": float("nan")}, {"loss": 1e-06}]):
        history.append(tmp_path, step, values)
    with open(tmp_path / "history.jsonl", "ab") as file:
        file.write(b'{"step": 9, "loss": 1.2\xc3')
    assert history.losses(tmp_path) == [2.5, 1e-06]


def entries_up_to(run: Path, step: int) -> list[str]:
    lines = (run / "history.jsonl").read_text().splitlines()
    return [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]


def test_memory_of_a_gpu_is_in_the_history(tmp_path: Path) -> None:
    progress = Progress(status.Status(tmp_path), memory=lambda: {"gpu_allocated": 5, "gpu_peak_reserved": 7})
    progress.on_log(None, SimpleNamespace(global_step=1), None, {"loss": 2.0})
    (entry,) = entries(tmp_path)
    assert (entry["loss"], entry["gpu_allocated"], entry["gpu_peak_reserved"]) == (2.0, 5, 7)
    assert "gpu_allocated" not in progress.status.values
    assert gpu_memory().keys() == ({"gpu_allocated", "gpu_peak_allocated", "gpu_peak_reserved"} if CUDA else set())


def test_nothing_of_training_is_left_when_evaluation_loads_its_model(
    composed: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[str, weakref.ref[Any]] = {}

    class Watch(Progress):
        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            moments = next(iter(kwargs["optimizer"].state.values()))["exp_avg"]
            weight = next(kwargs["model"].parameters())
            alive = {"model": kwargs["model"], "weight": weight, "optimiser": kwargs["optimizer"], "moments": moments}
            kept.update((name, weakref.ref(of)) for name, of in alive.items())

    monkeypatch.setattr(callbacks, "Progress", Watch)
    config = composed("model=tiny_glm41v", "dataset=demo_ct", "method=lora", "hardware=cpu", "dataset.max_rows=8",
                      "method.trainer.max_steps=1", "method.trainer.save_strategy=no", "method.batch_size=4",
                      "method.trainer.warmup_steps=0", "eval.max_rows=2",
                      "eval.generation.max_new_tokens=2")  # fmt: skip
    worker.train(config, tmp_path, status.Status(tmp_path))
    assert kept
    left: list[list[str]] = []

    def load_model(*args: Any, of: Any = load.load_model) -> Any:
        left.append([name for name, reference in kept.items() if reference() is not None])
        return of(*args)

    monkeypatch.setattr(load, "load_model", load_model)
    Together().evaluate(config, tmp_path, config, status.Status(tmp_path))
    assert left == [[]]


def test_wandb_is_told_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Name, group and tags are the config's; the key is in the environment and nowhere below the run."""
    secret = "0123456789abcdef" * 2 + "deadbeef"
    monkeypatch.setenv("WANDB_API_KEY", secret)
    monkeypatch.setenv("WANDB_MODE", "offline")
    given: dict[str, Any] = {}
    monkeypatch.setattr(wandb, "init", lambda of=wandb.init, **settings: given.update(settings) or of(**settings))
    config = Config(tracking=Tracking(wandb=True, project="p", name="mine", group="sweep", tags=["a"]))
    run = tmp_path / "model-set-lora-s0-12345678"
    run.mkdir()
    told = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    callback = Wandb(config.tracking, run, told)  # type: ignore[arg-type]
    state = SimpleNamespace(global_step=1)
    callback.on_train_begin(None, state, None)
    callback.on_log(None, state, None, {"loss": 1.0})
    callback.on_train_end(None, state, None)
    assert (given["project"], given["name"], given["group"], given["tags"]) == ("p", "mine", "sweep", ["a"])
    assert given["id"] == run.name and given["mode"] == "offline"
    files = [file for file in run.rglob("*") if file.is_file()]
    assert any(file.suffix == ".wandb" for file in files)
    assert not [file for file in files if secret.encode() in file.read_bytes()]


def test_the_group_of_a_sweep_is_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Config] = []
    monkeypatch.setattr(parent, "_in_stages", started.append)
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        composed = [compose("config", ["model=tiny_glm41v", "dataset=demo_ct", *more]) for more in
                    ([], ["tracking.group=own"])]  # fmt: skip
    for job in (None, (Path("multirun_reports") / "grid", 0)):
        monkeypatch.setattr(sweep, "this_job", lambda job=job: job)
        for config in composed:
            parent.run(config)
    assert [config.tracking.group for config in started] == [None, "own", "grid", "own"]
