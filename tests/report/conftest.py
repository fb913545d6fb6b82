"""A made-up sweep on disk: a base model, individual and combined runs; one each that failed, runs and is missing."""

from __future__ import annotations

import json
import random
import time
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from vlmft.data.question import CLOSED, OPEN
from vlmft.evaluation import results
from vlmft.evaluation.comparison import compare
from vlmft.evaluation.predictions import as_line, predictions_file
from vlmft.evaluation.scores import score
from vlmft.files import write_json
from vlmft.report.scan import Run

SETS = ("demo_ct", "demo_xray", "demo_path")
PROTOCOLS = ("normalized", "strict")
ERROR = "Traceback (most recent call last):\n  step 12\nOutOfMemoryError: 80 GiB | tried to allocate <2 GiB> & failed"
ORGANS = ("liver", "lung", "heart", "brain", "left kidney")
QUESTIONS = (  # with answers
    ("Is there a lesion?", ("yes", "no")),
    ("Which organ is shown?", ORGANS),
    ("Is the picture <sharp> | clear?", ("yes", "no")),
    ("What stands out & where?", ORGANS),
)
PER_IMAGE = 4
CHANCE = 0.35  # of a base model to be right


def make_sweep(
    folder: Path, *, runs: int = 4, sets: int = 3, questions: int = 40, failed: bool = True, predictions: bool = True
) -> Path:
    """Write a sweep below `folder` and return `folder`/multirun_reports/demo_grid; its runs are in `folder`/outputs.

    One base, then `runs` trained ones that are done: one per set, one on all of them, and so on with the next seed.
    With `failed` three more of a later seed: one failed, one running, one missing. Without `predictions` the runs
    hold their scores alone, which is enough for a thousand of them.
    """
    outputs, sweep = folder / "outputs", folder / "multirun_reports" / "demo_grid"
    names = [SETS[n] if n < len(SETS) else f"set_{n + 1}" for n in range(sets)]
    if predictions:
        for name in names:
            _draw(folder / "images" / name, -(-questions // PER_IMAGE))
    base = outputs / "tiny-base-0000beef"
    _write_run(base, _config("", names, 0, folder), names, questions, folder, predictions)
    cycle = [*names, "demo"]
    plans = [(cycle[n % len(cycle)], n // len(cycle), "done") for n in range(runs)]
    if failed:
        seed = (runs - 1) // len(cycle) + 1
        plans += [(cycle[n % len(cycle)], seed, state) for n, state in enumerate(("failed", "running", "missing"))]
    jobs = []
    for number, (dataset, seed, state) in enumerate(plans):
        config = _config(dataset, names, seed, folder)
        run = outputs / f"tiny-{dataset}-lora-s{seed}-{number:08x}"
        if state != "missing":
            _write_run(run, config, names, questions, folder, predictions, state)
        jobs.append(
            {
                "number": number,
                "overrides": [f"dataset={dataset}", f"seed={seed}"],
                "folder": str(run),
                "base": str(base),
                "sets": names,
                "config": {key: config[key] for key in ("model", "dataset", "method", "seed")},
                "error": None,
            }
        )
    sweep.mkdir(parents=True, exist_ok=True)
    plan = {
        "sweep": sweep.name,
        "command": ["train.py", "-m", "model=tiny", f"dataset={','.join(cycle)}", "eval=demo"],
        "created": "2026-01-31T12:00:00+0000",
        "axes": {"dataset": cycle, "seed": sorted({seed for _, seed, _ in plans})},
        "jobs": jobs,
    }
    write_json(sweep / "plan.json", plan)
    return sweep


@pytest.fixture(name="make_sweep", scope="session")
def _make_sweep() -> Callable[..., Path]:
    return make_sweep


@pytest.fixture(name="a_run", scope="session")
def _made_run() -> Callable[..., Run]:
    return a_run


def a_run(name: str, scores: dict[str, float], *, metric: str = "accuracy", n: int = 100, **config: Any) -> Run:
    """A run that is done, with these values; trained on "a" unless `config` says otherwise."""
    entries = {
        name: {
            "n": n,
            "smallest_difference": 0.1,
            "scores": {
                "normalized": {
                    "headline": metric,
                    "unparsed_rate": 0.0,
                    "metrics": {metric: {"value": value, "low": value - 0.1, "high": value + 0.1, "n": n}},
                }
            },
        }
        for name, value in scores.items()
    }
    known = {
        "task": "train",
        "model": {"name": "tiny"},
        "dataset": {"name": "a"},
        "method": {"name": "lora"},
        "seed": 0,
    }
    return Run(Path(name), known | config, {"evaluations": entries}, {"state": "done"})


def _config(dataset: str, names: Sequence[str], seed: int, folder: Path) -> dict[str, Any]:
    """Of a run trained on `dataset`; "" is the base model's."""
    members = {name: {"name": name, "format": "demo", "weight": 1.0} for name in names} if dataset == "demo" else {}
    rate = 0.001 if dataset == "demo" else 0.002
    return {
        "task": "train" if dataset else "eval",
        "model": {"name": "tiny", "path": str(folder / "models" / "tiny")},
        "dataset": {"name": dataset, "sets": members},
        "method": {
            "name": "lora",
            "batch_size": 32,
            "trainer": {"learning_rate": rate},
        },
        "hardware": {"name": "cpu", "device": "cpu"},
        "eval": {"protocols": list(PROTOCOLS), "ablations": ["blank", "shuffled"]},
        "paths": {"outputs": str(folder / "outputs")},
        "tracking": {"wandb": False},
        "seed": seed,
        "runs": [],
        "label": f"run {dataset}",
        "force": False,
    }


def _write_run(
    run: Path,
    config: dict[str, Any],
    names: Sequence[str],
    questions: int,
    folder: Path,
    predictions: bool,
    state: str = "done",
) -> None:
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    trained = _trained(config, names)
    now = time.time()
    total = 200
    step = total if state == "done" else 120
    write_json(
        run / "status.json",
        {
            "state": state,
            "phase": "" if state == "done" else "training",
            "step": step,
            "total": total,
            "loss": 0.4,
            "eta": 80.0 if state == "running" else None,
            "error": ERROR if state == "failed" else None,
            "pid": 1,
            "host": "vm",
            "started": now - 200,
            "updated": now,
        },
    )
    if trained:
        _write_history(run, step, now, config["seed"])
    train = {"steps": total, "questions": 6400, "seconds": 200.0, "questions_per_second": 32.0, "loss": 0.4}
    evaluations: dict[str, Any] = {}
    for name in names if state == "done" else []:
        real = blind = _Answers(name, "", questions, CHANCE, 0, str(folder), ())
        if trained:
            chance = 0.9 if name in trained else 0.5
            real = blind._replace(chance=chance, draw=config["seed"] % 3, trained=tuple(trained))
        passes = ("blank", "shuffled") if trained else ()
        for made in (real, *(blind._replace(kind=kind) for kind in passes)):
            full = f"{name}.{made.kind}".rstrip(".")
            evaluations[full] = dict(_entry(made))
            if predictions:
                if made.kind:
                    evaluations[full]["difference"] = {p: compare(_records(made), _records(real), p) for p in PROTOCOLS}
                predictions_file(run, full).write_text("".join(map(as_line, _records(made))), encoding="utf-8")
        if trained:
            evaluations[name]["leakage"] = {one: _leakage(one, name, questions) for one in trained}
    result = {"schema": 2, "run": run.name, "state": state, "train": train if trained else None}
    write_json(run / "result.json", result | {"evaluations": evaluations})


def _trained(config: dict[str, Any], names: Sequence[str]) -> list[str]:
    if config["task"] == "eval":
        return []
    return [name for name in names if config["dataset"]["name"] in (name, "demo")]


def _write_history(run: Path, steps: int, now: float, seed: int) -> None:
    rng = random.Random(run.name)
    with open(run / "history.jsonl", "w", encoding="utf-8") as file:
        for step in range(1, steps + 1, 5):
            line: dict[str, Any] = {"step": step, "time": now - 200 + step, "learning_rate": 1e-3, "grad_norm": 1.0}
            line["loss"] = 2.2 * 0.985**step + 0.3 + 0.1 * rng.random() + 0.02 * seed
            if step % 50 == 1:
                line["eval_loss"] = line["loss"] + 0.1
            file.write(json.dumps(line) + "\n")


class _Answers(NamedTuple):
    """What a run said on a set, and what decides it: the same of these is made and scored once."""

    set: str
    kind: str  # blank, shuffled, or "" with the pictures
    questions: int
    chance: float  # to be right
    draw: int
    folder: str
    trained: tuple[str, ...]


@cache
def _records(made: _Answers) -> list[dict[str, Any]]:
    """The same question has the same gold whoever answers."""
    gold, said = random.Random(made.set), random.Random(repr(made[:5] + made[6:]))
    records = []
    for n in range(made.questions):
        text, answers = QUESTIONS[n % len(QUESTIONS)]
        right = gold.choice(answers)
        wrong = [answer for answer in answers if answer != right]
        answer = right if said.random() < made.chance else said.choice(wrong)
        records.append(
            {
                "id": f"{made.set}_{n}",
                "set": made.set,
                "images": [str(Path(made.folder) / "images" / made.set / f"{n // PER_IMAGE:03d}.png")],
                "question": text,
                "gold": right,
                "answer_type": CLOSED if answers == ("yes", "no") else OPEN,
                "task": "vqa",
                "options": [],
                "facts": {"topic": "organ" if answers is ORGANS else "finding"},
                "raw": "I cannot tell" if said.random() < 0.03 else f"<answer>{answer}</answer>",
                "tokens": 4,
                "finish_reason": "stop",
                "think_prefilled": False,
                "generation": f"{zlib.crc32(repr(made).encode()):08x}",
                "train": {"constant": answers[0], "question_only": answers[-1], "answer_seen": True},
            }
        )
    return records


@cache
def _entry(made: _Answers) -> dict[str, Any]:
    records = _records(made)
    facts = {"generation": records[0]["generation"], "scoring": results.scoring_hash(), "dropped_rows": 0}
    return score(records, PROTOCOLS) | facts


def _leakage(trained: str, name: str, questions: int) -> dict[str, int]:
    """None of what is trained on, but for the third set, which holds two pictures of the first."""
    shared = 2 if (trained, name) == (SETS[0], SETS[2]) else 0
    images = -(-questions // PER_IMAGE)
    return {
        "images": images, "same_image": shared, "alike": shared + 1, "questions": questions,
        "on_same_image": PER_IMAGE * shared, "on_alike_image": PER_IMAGE * (shared + 1), "same_question": shared,
        "same_pair": shared, "same_id": 0,
    }  # fmt: skip


def _draw(folder: Path, count: int) -> None:
    from PIL import Image, ImageDraw

    folder.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        picture = Image.new("L", (56, 56), 20 + 13 * n % 60)
        ImageDraw.Draw(picture).ellipse((8 + n % 9, 10, 40 + n % 9, 46), fill=120 + 17 * n % 130)
        picture.save(folder / f"{n:03d}.png")
