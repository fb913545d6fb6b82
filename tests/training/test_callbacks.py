"""What training writes while it goes on: history.jsonl, each step once however often the run is resumed."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from vlmft import history, status
from vlmft.training.callbacks import Progress


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
