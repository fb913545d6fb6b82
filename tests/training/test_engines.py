"""Two processes on a CPU, by every engine: the losses of one process; told to end, resumed, and whole in the end."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch.utils.cpp_extension import _get_build_directory

from benchmarks import crash
from tests.conftest import ROOT
from tests.prepared import Prepared
from vlmft.data.load import load
from vlmft.files import write_text
from vlmft.schema import Config
from vlmft.training import checkpoints

Composed = Callable[..., Config]
STEPS, STOP = 6, 4
COMMON = ("model=tiny_glm41v", "dataset=demo_ct", "dataset.max_rows=40", "dataset.validation=0.2", "eval=none",
          "hardware.device=cpu", "method.batch_size=4", "hardware.micro_batch=2", "method.trainer.learning_rate=1e-3",
          f"method.trainer.max_steps={STEPS}", "method.trainer.save_steps=3", "method.trainer.logging_steps=1",
          "method.trainer.eval_strategy=steps", "method.trainer.eval_steps=3")  # fmt: skip
# torch's AdamW in the host's memory: DeepSpeed's own is compiled in another test.
UNWATCHED = ("dataset.validation=null", "method.trainer.eval_strategy=no", "dataset.absolute_paths=true")
UNCOMPILED = "hardware.deepspeed.zero_force_ds_cpu_optimizer=false"
ENGINES = {
    "ddp": ("hardware=ddp",), "fsdp": ("hardware=fsdp",), "zero2": ("hardware=zero2",), "zero3": ("hardware=zero3",),
    "zero3_offload": ("hardware=zero3_offload", UNCOMPILED),
}  # fmt: skip
METHODS = {"full": ("method=full",), "lora": ("method=lora",)}
IN_TURN = ROOT / "tests" / "training" / "in_turn.py"
# What needs more than the plain run: rows without a picture on one process, experts, pairs, rows read while training.
OTHERS = {
    "mixed": ("dataset=conversations", "method=full", "hardware.micro_batch=1"),
    "mixed_llama": ("dataset=conversations", "model=tiny_llama32_vision", "method=lora", "hardware.micro_batch=1"),
    "experts": ("model=tiny_glm45v", "method=full"),
    "pairs": ("dataset=pairs", "dataset.absolute_paths=true", "method=dpo"),
    "streamed": ("dataset=conversations", "dataset.streaming=true", "method=full", "hardware.micro_batch=1"),
}
OF_OTHERS = [
    ("mixed", "ddp"), ("mixed", "fsdp"), ("mixed", "zero3"), ("mixed_llama", "zero3"), ("experts", "zero3"),
    ("pairs", "ddp"), ("pairs", "zero3"), ("streamed", "ddp"),
]  # fmt: skip
TYPES = {"ddp": "MULTI_CPU", "fsdp": "FSDP"}


def carry_out(orders: list[dict[str, Any]], folder: Path, prepared: Prepared, count: int = 2) -> None:
    """The orders of in_turn.py, by so many processes."""
    file = folder / f"orders-{count}.json"
    file.write_text(json.dumps(orders))
    words = ["--processes", str(count), "--failure", str(folder / "failure.json"), "--", str(IN_TURN), str(file)]
    done = prepared.run(["-m", "vlmft.torchrun", *words], ROOT, os.environ | {"CUDA_VISIBLE_DEVICES": ""}, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def written(folder: Path, config: Config) -> Path:
    folder.mkdir(parents=True)
    write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(config)))
    return folder


@pytest.fixture(scope="module")
def runs(composed: Composed, prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with `<engine>-<method>`, each told to end and then resumed, and `one-<method>` by one process."""
    folder = tmp_path_factory.mktemp("together")
    several, alone = [], []
    for method, chosen in METHODS.items():
        alone.append({"run": str(written(folder / f"one-{method}", composed(*COMMON, *chosen)))})
        for engine, hardware in ENGINES.items():
            config = composed(*COMMON, *chosen, *hardware, "hardware.processes=2")
            run = str(written(folder / f"{engine}-{method}", config))
            several += [{"run": run, "stop": STOP}, {"run": run}]
    rows_without_pictures(folder / "conversations", composed)
    crash.pairs(folder / "pairs")
    paths = (f"paths.conversations={folder}/conversations", f"paths.pairs={folder}/pairs", *UNWATCHED)
    for what, chosen in OTHERS.items():
        alone.append({"run": str(written(folder / f"one-{what}", composed(*COMMON, *paths, *chosen)))})
    for what, engine in OF_OTHERS:
        config = composed(*COMMON, *paths, *OTHERS[what], *ENGINES[engine], "hardware.processes=2")
        several.append({"run": str(written(folder / f"{engine}-{what}", config))})
    for orders, count in ((alone, 1), (several, 2)):
        carry_out(orders, folder, prepared, count)
    yield folder


def rows_without_pictures(folder: Path, composed: Composed) -> None:
    """A set of conversations in which every fourth row has a picture, and a step of four rows so often none."""
    questions = load(composed("dataset=demo_ct", "dataset.max_rows=40").dataset, "train").questions[:24]
    rows = [
        {"id": number, "conversations": [{"from": "human", "value": ("<image>\n" if shown else "") + question.text},
                                         {"from": "gpt", "value": question.answer}]}
        | ({"image": question.images[0]} if shown else {})
        for number, question in enumerate(questions)
        for shown in [number % 4 == 0]
    ]  # fmt: skip
    folder.mkdir()
    (folder / "train.json").write_text(json.dumps(rows))


def losses(run: Path, key: str = "loss") -> list[float]:
    lines = map(json.loads, (run / "history.jsonl").read_text().splitlines())
    return [line[key] for line in lines if key in line]


def weights(run: Path) -> dict[str, torch.Tensor]:
    (file,) = (run / "final").glob("*model.safetensors")
    return load_file(file)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_come_to_what_one_does(engine: str, method: str, runs: Path) -> None:
    run, alone = runs / f"{engine}-{method}", runs / f"one-{method}"
    said = json.loads((run / "engine.json").read_text())
    assert said["type"] == TYPES.get(engine, "DEEPSPEED"), "what runs is what was asked for"
    assert len(losses(run)) == STEPS
    assert losses(run) == pytest.approx(losses(alone), rel=1e-4)
    assert losses(run, "grad_norm") == pytest.approx(losses(alone, "grad_norm"), rel=1e-3)
    assert losses(run, "eval_loss") == pytest.approx(losses(alone, "eval_loss"), rel=1e-4)
    log = (run / "train.log").read_text()
    assert f"resume    from checkpoint-{STOP}" in log, "told to end, it saved the step it was in"
    assert {path.name for path in run.glob("checkpoint-*")} >= {"checkpoint-4", "checkpoint-6"}
    assert all(checkpoints.manifest(path) for path in run.glob("checkpoint-*"))
    found, expected = weights(run), weights(alone)
    assert found.keys() == expected.keys(), "final/ is what from_pretrained reads, whatever the engine"
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        torch.testing.assert_close(found[name], value, rtol=0, atol=5e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("what", "engine"), OF_OTHERS)
def test_what_else_is_trained_comes_to_the_same(what: str, engine: str, runs: Path) -> None:
    run, alone = runs / f"{engine}-{what}", runs / f"one-{what}"
    assert losses(run) == pytest.approx(losses(alone), rel=1e-4)
    assert losses(run, "grad_norm") == pytest.approx(losses(alone, "grad_norm"), rel=1e-3)
    assert weights(run).keys() == weights(alone).keys()


@pytest.mark.slow
def test_nothing_differs_by_a_bit_under_ddp(runs: Path) -> None:
    for name, value in weights(runs / "one-full").items():
        assert torch.equal(weights(runs / "ddp-full")[name], value)


@pytest.mark.slow
def test_the_hosts_optimiser_is_compiled_past_the_lock_of_a_killed_compiler(
    composed: Composed, prepared: Prepared, tmp_path: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one GPU has it: a single process, with weights and optimiser states in the host's memory."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    compiler = tmp_path / "c++"
    compiler.write_text('#!/bin/sh\nexec c++ "$@" -O0 -g0\n')  # optimising takes as long again
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    folder = Path(_get_build_directory("cpu_adam", verbose=False))
    (folder / "lock").touch()
    config = composed(*COMMON, *METHODS["full"], "hardware=zero3_offload", "hardware.processes=1")
    run = written(tmp_path / "run", config)
    carry_out([{"run": str(run)}], tmp_path, prepared, 1)
    assert list(folder.glob("*.so")), "it was compiled here"
    assert losses(run) == pytest.approx(losses(runs / "one-full"), rel=1e-4)
