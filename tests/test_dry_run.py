"""task=dry_run on tiny models: what it finds, what it forecasts, what it notices, and that nothing of it stays."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.prepared import TRAIN, Prepared
from vlmft.chat.encode import Row
from vlmft.dry_run import dry_run, lines
from vlmft.errors import DataError
from vlmft.models.load import source
from vlmft.schema import Config
from vlmft.status import Status
from vlmft.training import fine_tuning, rehearsal
from vlmft.training.prepare import prepare
from vlmft.training.sft import VqaTrainer

Command = Callable[..., subprocess.CompletedProcess[str]]
SMALL = ("dataset=demo_ct", "dataset.max_rows=60", "method.batch_size=4", "hardware=cpu", "eval.max_rows=6",
         "method.trainer.num_train_epochs=2", "eval.generation.max_new_tokens=4", "eval.ablations=[blank]")  # fmt: skip


@pytest.fixture(scope="module")
def config(composed: Callable[..., Config]) -> Callable[..., Config]:
    return lambda *overrides: composed("model=tiny_glm41v", *SMALL, *overrides)


def at(place: Path) -> dict[str, str]:
    """An environment in which temporary folders are made in `place`."""
    place.mkdir()
    return os.environ | {"TMPDIR": str(place)}


def in_folder(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name.startswith("vlmft-")}


def test_the_command_leaves_nothing_but_what_it_says(command: Command, tmp_path: Path) -> None:
    done = command("task=dry_run", "model=tiny_glm41v", *SMALL, "method=lora", env=at(tmp_path / "tmp"))
    assert done.returncode == 0, done.stdout + done.stderr
    said = {line[:10].strip() for line in done.stdout.splitlines()}
    assert said >= {"loss", "gradients", "memory", "speed", "answers", "reply", "forecast"}, done.stdout
    assert "training: 30 steps, about " in done.stdout and " answers, about " in done.stdout
    assert in_folder(tmp_path / "tmp") == set() and [path.name for path in tmp_path.iterdir()] == ["tmp"]


def test_a_loss_that_is_no_number_is_told_in_a_line(command: Command, tmp_path: Path) -> None:
    wild = ("method=full", "method.trainer.learning_rate=1e30", "method.trainer.max_grad_norm=0")
    done = command("task=dry_run", "model=tiny_glm41v", *SMALL, *wild, env=at(tmp_path / "tmp"))
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    (told,) = done.stderr.strip().splitlines()
    assert told.startswith("failed    dry run: the ") and "lower method.trainer.learning_rate" in told
    assert in_folder(tmp_path / "tmp") == set() and not (tmp_path / "outputs").exists()


def test_a_signal_leaves_nothing(prepared: Prepared, tmp_path: Path) -> None:
    words = ["task=dry_run", "model=tiny_glm41v", *SMALL]
    process = prepared.start([TRAIN, *words], tmp_path, at(tmp_path / "tmp"))
    while not list(tmp_path.glob("tmp/vlmft-dry-run-*/status.json")):
        assert process.poll() is None, "it ended before it could be stopped"
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 130
    assert in_folder(tmp_path / "tmp") == set() and not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("method", ["lora", "full", "lora on a model of one's own"])
def test_the_forecast_is_what_a_run_has_on_disk(method: str, config: Callable[..., Config], tmp_path: Path) -> None:
    """Within 15 %, and the run has the steps that were foreseen."""
    chosen = config(f"method={method.split()[0]}", "method.trainer.save_steps=2", "method.trainer.save_total_limit=1",
                    "eval=none", "dataset.max_rows=24", "method.trainer.num_train_epochs=1",
                    "seed=0" if method == "full" else "method.peft.r=32")  # fmt: skip
    if "own" in method:
        chosen = replace(chosen, init_from=source(chosen.model))  # `final/` is whole then
    dry, run = folder(tmp_path / "dry"), folder(tmp_path / "run")
    found = rehearse(chosen, prepare(chosen, dry, Status(dry)), dry)
    ready = prepare(chosen, run, Status(run))
    summary = fine_tuning.train(
        chosen, model=ready.model, encoder=ready.encoder, rows=ready.rows.rows, validation=[],
        decisions=ready.decisions, run=run, callbacks=[],
    )  # fmt: skip
    (checkpoint,) = run.glob("checkpoint-*")
    assert found["steps"] == summary["steps"]
    assert found["final_bytes"] == pytest.approx(size(run / ".final"), rel=0.15)
    assert found["checkpoint_bytes"] == pytest.approx(size(checkpoint), rel=0.15)
    assert found["checkpoints"] == 2, "while one goes, the next is there"
    assert found["disk_bytes"] == found["final_bytes"] + 2 * found["checkpoint_bytes"]


def folder(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    return path


def size(place: Path) -> int:
    return sum(file.stat().st_size for file in place.rglob("*") if file.is_file())


def test_what_is_measured_and_what_follows_from_it(config: Callable[..., Config], tmp_path: Path) -> None:
    chosen = config("method=full", "model.freeze.vision=true", "model.dtype=bfloat16", "eval.baseline=true",
                    "method.trainer.learning_rate=1e-2")  # fmt: skip
    found = dry_run(chosen, tmp_path, Status(tmp_path))
    facts, answers = found["training"], found["evaluation"]
    assert len(facts["loss"]) == 5 and facts["loss"][-1] < facts["loss"][0], "it learns at the full rate at once"
    assert facts["gradients"]["reached"] == facts["gradients"]["trained"] > 10
    assert facts["memory"]["process"] > 1e8
    assert facts["seconds"] < facts["most_seconds"] == facts["steps"] * facts["step_seconds"], "rows are smaller mostly"
    assert facts["questions_per_second"] == pytest.approx(4 / facts["step_seconds"])
    assert answers["questions"] == 4 * answers["batch"] > 8, "blank pictures, and the model as it is"
    assert answers["seconds"] == pytest.approx(4 * answers["batch_seconds"])
    assert answers["raw"] and answers["tokens_per_second"] > 0
    told = "\n".join(lines(found, chosen))
    assert "TOO LITTLE" not in told and "without validation" not in told
    short = lines(found | {"outputs": 10}, chosen)
    assert "TOO LITTLE, lower method.trainer.save_total_limit" in short[-1]
    none = lines(found | {"evaluation": None}, chosen)
    assert not any(line.startswith(("answers", "reply", "forecast  evaluation")) for line in none)
    assert not list(tmp_path.glob("checkpoint-*")) and not (tmp_path / ".final").exists()


def test_experts_without_a_token_are_counted(composed: Callable[..., Config], tmp_path: Path) -> None:
    chosen = composed("model=tiny_glm45v", *SMALL, "method=lora", "eval=none")
    found = dry_run(chosen, tmp_path, Status(tmp_path))
    assert found["evaluation"] is None and found["training"]["gradients"]["idle_experts"] == 0
    model = torch.nn.ModuleDict(
        {"experts": torch.nn.ModuleDict({"0": torch.nn.Linear(1, 1), "1": torch.nn.Linear(1, 1)})}
    )
    outer = torch.nn.ModuleDict({"mlp": model})
    first = {"mlp.experts.0.weight", "mlp.experts.0.bias"}
    assert rehearsal.reached(outer, first, images=True) == {"trained": 4, "reached": 2, "idle_experts": 2}


def test_a_trained_weight_that_nothing_reaches_is_an_error(config: Callable[..., Config], tmp_path: Path) -> None:
    chosen = config("method=full")
    ready = prepare(chosen, tmp_path, Status(tmp_path))
    ready.model.model.language_model.unused = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(DataError, match=r"1 of \d+ trained weights got no gradient .*language_model\.unused.*Freeze"):
        rehearse(chosen, ready, tmp_path)


def rehearse(chosen: Config, ready: Any, run: Path) -> dict[str, Any]:
    return rehearsal.rehearse(
        chosen, model=ready.model, encoder=ready.encoder, rows=ready.rows.rows, decisions=ready.decisions, run=run,
        callbacks=[],
    )[1]  # fmt: skip


def test_gradients_that_do_not_count() -> None:
    model = torch.nn.ModuleDict({"visual": torch.nn.Linear(1, 1), "head": torch.nn.Linear(2, 1)})
    watch = rehearsal.Watch()
    model.head(torch.tensor([1.0, 0.0])).backward()
    model.head.bias.grad = torch.tensor([float("nan")])
    watch.on_pre_optimizer_step(None, None, None, model=model)
    assert watch.reached == {"head.weight"}, "neither zero, nor absent, nor not a number"
    model.head.bias.requires_grad_(False)
    assert rehearsal.reached(model, watch.reached, images=False) == {"trained": 1, "reached": 1, "idle_experts": 0}
    with pytest.raises(DataError, match=r"2 of 3 trained weights.*visual"):
        rehearsal.reached(model, watch.reached, images=True)
    with pytest.raises(RuntimeError, match=r"1 frozen weights got a gradient.*head\.bias"):
        rehearsal.reached(model, {"head.weight", "head.bias"}, images=False)


@pytest.mark.parametrize(
    ("place", "advice"),
    [((VqaTrainer, "training_step"), r"lower hardware\.micro_batch \(it is 4\), set .*checkpointing=true, .*pixels"),
     (("vlmft.evaluation.generate.answer_all",), r"lower eval\.generation\.batch_size \(it is 32\)")],
)  # fmt: skip
def test_too_little_memory_is_told_with_what_to_change(
    place: Any, advice: str, config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(*place, full)
    with pytest.raises(DataError, match=f"out of GPU memory .*{advice}"):
        dry_run(config("method=lora"), tmp_path, Status(tmp_path))


def test_the_largest_rows_are_those_that_cost_most_where_they_are() -> None:
    picture, tokens = 99, 20

    def row(name: str, image: str, images: int, text: int) -> Row:
        ids = [picture] * images + list(range(text))
        return Row(name, ids, [-100] * (len(ids) - 1) + ids[-1:], ((image, None),))

    shared = [row(f"s{n}", "s.png", tokens + 10, 5) for n in range(4)]
    alone = [row(f"a{n}", f"{n}.png", tokens, 5) for n in range(3)]
    rows = [alone[0], *shared, *alone[1:]]

    def names(most: int, count: int) -> list[str]:
        return [row.question for row in rehearsal.largest(rows, picture, most, count)]

    assert names(1, 3) == ["s0", "s1", "s2"], "each by itself: the longest"
    assert names(16, 3) == ["a0", "a1", "a2"], "four that share their picture cost less"
    assert names(16, 7) == names(1, 99) == [row.question for row in rows], "all, where there are no more"


@pytest.mark.parametrize(
    ("settings", "most"),
    [({"save_strategy": "no"}, 0), ({"save_steps": 10, "save_total_limit": 2}, 3), ({"save_steps": 60}, 2),
     ({"save_steps": 0.5}, 2), ({"save_steps": 30}, 4), ({"save_strategy": "epoch"}, 3),
     ({"save_steps": 10, "save_total_limit": 1}, 2),
     ({"save_strategy": "best", "eval_strategy": "steps", "eval_steps": 25, "metric_for_best_model": "loss"}, 4),
     ({"save_steps": 10, "save_total_limit": 1, "eval_strategy": "steps", "eval_steps": 10,
       "load_best_model_at_end": True}, 3)],
)  # fmt: skip
def test_checkpoints_side_by_side(settings: dict[str, Any], most: int, tmp_path: Path) -> None:
    args = fine_tuning.SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", **settings)
    assert rehearsal.most_checkpoints(args, steps=100, steps_per_epoch=40) == most
