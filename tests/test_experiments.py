"""The five earlier systems, each one command: their settings, and the whole way of their small siblings."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from vlmft.data.mixture import training_sets
from vlmft.evaluation.evaluate import chosen_sets
from vlmft.schema import Config

Command = Callable[..., subprocess.CompletedProcess[str]]
PUBLISHED: dict[str, dict[str, Any]] = {
    "medvqa_combined": {
        "model.name": "glm41v", "method.peft.r": 8, "method.peft.lora_alpha": 16, "method.batch_size": 16,
        "method.trainer.learning_rate": 5e-5, "method.trainer.num_train_epochs": 3,
    },
    "glm45v_medvqa": {"model.name": "glm45v", "method.peft.r": 8, "method.trainer.learning_rate": 5e-5},
    "flare25_qwen3vl": {
        "model.name": "qwen3vl_4b", "model.min_pixels": 784, "model.max_pixels": 50176, "method.peft": None,
        "method.batch_size": 16, "method.max_row_tokens": 4096, "method.trainer.learning_rate": 1e-5,
        "method.trainer.num_train_epochs": 1, "method.trainer.weight_decay": 0.01, "method.trainer.warmup_steps": 0.03,
        "method.trainer.lr_scheduler_type": "cosine", "method.trainer.save_steps": 200,
        "method.trainer.save_total_limit": 2, "method.trainer.eval_strategy": "steps",
    },
    "flare25_all": {
        "model.name": "qwen3vl_4b", "model.max_pixels": 50176, "method.peft": None, "dataset.include": [],
        "method.batch_size": 16, "method.trainer.num_train_epochs": 2, "method.trainer.save_steps": 500,
    },
    "pmc_vqa_r1": {
        "model.name": "deepseek_r1_8b", "dataset.images": "ignore", "dataset.streaming": False,
        "method.quantization.load_in_8bit": True, "method.max_row_tokens": 4096, "method.trainer.learning_rate": 2e-4,
        "method.trainer.num_train_epochs": 3, "method.trainer.load_best_model_at_end": True,
    },
    "aqua_llama32_vision": {
        "model.name": "llama32_vision", "method.quantization.load_in_4bit": True, "method.peft.r": 32,
        "method.peft.lora_alpha": 32, "method.peft.lora_dropout": 0.05, "method.batch_size": 8,
        "method.max_row_tokens": 2048, "method.trainer.learning_rate": 2e-4, "method.trainer.num_train_epochs": 3,
        "method.early_stopping.patience": 0.1, "method.early_stopping.threshold": 0.001, "dataset.streaming": True,
        "dataset.buffer_size": 1000, "dataset.validation": "validation", "dataset.max_knowledge_words": 256,
        "eval.protocols": ["squad", "strict"], "eval.debug_matches": 10, "tracking.wandb": True,
    },
}  # fmt: skip
SIBLINGS = [name for name in PUBLISHED if name != "flare25_all"]
SIZES = {
    "samples", "dataset.validation", "method.trainer.max_steps", "method.trainer.logging_steps",
    "method.trainer.save_steps", "method.trainer.eval_steps", "eval.generation.max_new_tokens",
}  # fmt: skip
PLACES = {"path", "hub", "image_root", "knowledge"}  # of a set: where its sample lies
OF_A_TWIN = {"name", "path", "tiny"}


def settings(node: Any, place: str = "") -> dict[str, Any]:
    """Every key of a config, by its whole name."""
    if not isinstance(node, dict):
        return {place: getattr(node, "value", node)}
    return {key: value for name in node for key, value in settings(node[name], f"{place}.{name}".strip(".")).items()}


@pytest.mark.parametrize("experiment", PUBLISHED)
def test_settings_are_those_of_the_system(experiment: str, composed: Callable[..., Config]) -> None:
    found = settings(asdict(composed(f"experiment={experiment}")))
    assert {key: found.get(key) for key in PUBLISHED[experiment]} == PUBLISHED[experiment]


def test_sets_are_those_of_the_systems_and_need_no_hidden_answers(composed: Callable[..., Config]) -> None:
    def sets(experiment: str) -> tuple[list[str], list[str]]:
        config = composed(f"experiment={experiment}")
        tested = chosen_sets(config.eval, config.dataset)
        assert not any("hidden" in str(spec.splits) for spec in tested.values())
        return list(training_sets(config.dataset)), list(tested)

    medical = ["slake", "vqa_rad", "pathvqa"]
    assert sets("medvqa_combined") == sets("glm45v_medvqa") == (medical, medical)
    starters = ["neojaundice", "retino", "busi_det", "boneresorption", "bone_marrow"]
    assert sets("flare25_qwen3vl") == tuple([f"flare25_{name}" for name in those] for those in (starters, starters[:3]))
    assert sets("flare25_all") == (["flare25_all"], ["flare25_all"])
    assert sets("pmc_vqa_r1") == (["pmc_vqa"], ["pmc_vqa"])
    assert sets("aqua_llama32_vision") == (["aqua"], ["aqua"])
    assert composed("experiment=aqua_llama32_vision").dataset.knowledge == "data/semart"


@pytest.mark.parametrize("experiment", SIBLINGS)
def test_a_small_sibling_differs_in_size_alone(experiment: str, composed: Callable[..., Config]) -> None:
    real, tiny = (settings(asdict(composed(f"experiment={experiment}{suffix}"))) for suffix in ("", "_tiny"))
    for key in {key for key in real | tiny if real.get(key) != tiny.get(key)} - SIZES:
        group, *_, last = key.split(".")
        allowed = {"model": OF_A_TWIN, "dataset": PLACES, "eval": PLACES, "hardware": {"name", "device"}}
        assert last in allowed.get(group, ()) or key == "model.max_pixels", key
    assert tiny["samples"] and all(tiny[key] is None for key in tiny if key.endswith(".hub"))


def through(experiment: str, command: Command, folder: Path, *overrides: str) -> dict[str, Any]:
    """What result.json of the small sibling's run says, after what holds for all of them was asserted."""
    done = command(f"experiment={experiment}_tiny", *overrides)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "samples   small drawn sets stand in for the published ones" in done.stdout
    (run,) = (path for path in (folder / "outputs").iterdir() if path.name[0] != ".")
    result: dict[str, Any] = json.loads((run / "result.json").read_text())
    # Training ends with an error where, after more than two steps, a trained weight has not moved, or a frozen one has.
    assert result["state"] == "done" and result["train"]["steps"] > 2
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in history if "loss" in entry] == list(range(1, result["train"]["steps"] + 1))
    report = folder / "multirun_reports" / f"{experiment}_tiny"
    with (report / "cells.csv").open(newline="") as file:
        cells = list(csv.DictReader(file))
    assert {cell["set"] for cell in cells} == set(result["evaluations"])
    assert {cell["state"] for cell in cells} == {"done"}
    page = (report / "index.html").read_text()
    assert all(name in page for name in result["evaluations"])
    return result | {"run": run, "history": history, "said": done.stdout}


def test_pmc_vqa_by_text_alone(command: Command, tmp_path: Path) -> None:
    result = through("pmc_vqa_r1", command, tmp_path)
    found = result["evaluations"]["pmc_vqa"]
    assert found["images"] == 0 and found["n"] == 24
    # A random twin never ends its thought; what counts is that letters are asked for and scored.
    assert {"accuracy", "balanced_accuracy", "constant_letter"} <= set(found["scores"]["strict"]["metrics"])
    assert 0 < found["floor"]["constant"]["strict"]["accuracy"] < 1
    prediction = json.loads((result["run"] / "predictions_pmc_vqa.jsonl").read_text().splitlines()[0])
    assert prediction["images"] == [] and "<image>" not in prediction["question"]
    assert prediction["task"] == "multiple_choice" and prediction["gold"] in "ABCD" and len(prediction["options"]) == 4
    losses = {entry["step"]: entry["eval_loss"] for entry in result["history"] if "eval_loss" in entry}
    assert set(losses) == {2, 4}
    adapter = (result["run"] / "final" / "adapter_model.safetensors").read_bytes()
    best = result["run"] / f"checkpoint-{min(losses, key=lambda step: losses[step])}"
    assert adapter == (best / "adapter_model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["medvqa_combined", "glm45v_medvqa"])
def test_medical_sets_together(experiment: str, command: Command, tmp_path: Path) -> None:
    evaluations = through(experiment, command, tmp_path)["evaluations"]
    assert list(evaluations) == ["slake", "vqa_rad", "pathvqa"]
    for found in evaluations.values():
        assert {"accuracy", "closed_accuracy", "open_f1"} <= set(found["scores"]["normalized"]["metrics"])
        assert {"constant", "question_only"} <= set(found["floor"])
        assert not any(counts["same_image"] for counts in found["leakage"].values())


@pytest.mark.slow
def test_flare_by_the_metrics_of_its_tasks(command: Command, tmp_path: Path) -> None:
    result = through("flare25_qwen3vl", command, tmp_path)
    assert {"train.log", "tensorboard", "checkpoint-4"} <= {path.name for path in result["run"].iterdir()}
    assert len([entry for entry in result["history"] if "eval_loss" in entry]) == 2
    again = command("task=eval", "eval=flare25", "samples=true", f"runs=[{result['run']}]", "hardware=cpu",
                    "eval.generation.max_new_tokens=32")  # fmt: skip
    assert again.returncode == 0, again.stdout + again.stderr
    evaluations = json.loads((result["run"] / "result.json").read_text())["evaluations"]
    headlines = {name: found["scores"]["flare"]["headline"] for name, found in evaluations.items()}
    letters = dict.fromkeys(("flare25_neojaundice", "flare25_retino", "flare25_bone_marrow"), "balanced_accuracy")
    assert headlines == letters | {"flare25_busi_det": "f1@0.5", "flare25_boneresorption": "mae"}
    assert list(result["evaluations"]) == ["flare25_neojaundice", "flare25_retino", "flare25_busi_det"]
    audits = [counts for found in evaluations.values() for counts in found["leakage"].values()]
    assert len(audits) == 25 and not any(counts["same_image"] or counts["same_id"] for counts in audits)


@pytest.mark.slow
def test_aqua_with_what_it_needs_to_know(command: Command, tmp_path: Path) -> None:
    result = through("aqua_llama32_vision", command, tmp_path)
    found = result["evaluations"]["aqua"]
    assert list(found["scores"]) == ["squad", "strict"]
    for scored in found["scores"].values():
        assert {"accuracy", "open_exact_match"} <= set(scored["metrics"])
        assert {value: kind["n"] for value, kind in scored["groups"]["need_external_knowledge"].items()} == {
            "false": 20, "true": 20,
        }  # fmt: skip
    assert "aqua, squad: raw | understood | gold | verdict" in result["said"]
    asked = [json.loads(line) for line in (result["run"] / "predictions_aqua.jsonl").read_text().splitlines()]
    for prediction in asked:
        needed = prediction["facts"]["need_external_knowledge"] == "true"
        assert ("About the painting:" in prediction["question"]) == needed
    assert any("eval_loss" in entry for entry in result["history"])
    assert "streamed and shuffled in 1,000" in (result["run"] / "train.log").read_text()
    assert list((result["run"] / "wandb").glob("offline-run-*"))
