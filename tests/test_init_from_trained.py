"""Training from weights of before: what it starts with, and what it ends in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.earlier_runs import SHORT, SMALL, Command, Composed, write
from vlmft.data import leakage
from vlmft.evaluation.evaluate import TRAINED_ON
from vlmft.evaluation.runs import Together
from vlmft.identity import weights_fingerprint
from vlmft.models.load import load_model
from vlmft.schema import Config
from vlmft.status import Status
from vlmft.training import checkpoints, init_from
from vlmft.worker import train

# So little that the weights stay as they were when training began.
STILL = (*SMALL, "method.trainer.learning_rate=1e-30", "method.trainer.max_steps=1", "method.trainer.weight_decay=0")


@pytest.fixture(scope="module")
def outputs(composed: Composed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs that are done: lora, and full."""
    folder = tmp_path_factory.mktemp("trained") / "outputs"
    for method in ("lora", "full"):
        trained(composed(*SMALL, f"method={method}"), folder / method)
    return folder


def trained(config: Config, run: Path) -> Path:
    if not run.exists():
        write(config, run)
    train(config, run, Status(run))
    return run


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    (file,) = folder.glob("*model.safetensors")
    return load_file(file)


def same(one: dict[str, Any], other: dict[str, Any], within: float = 0) -> bool:
    return one.keys() == other.keys() and all(one[name].allclose(other[name], 0, within) for name in one)


def answers(run: Path, composed: Composed) -> list[str]:
    """What a run says when it is evaluated, from its own folder alone."""
    wanted = composed("task=eval", *SHORT, "eval=demo", "eval.max_rows=4", "~eval.sets.demo_path")
    from vlmft.schema import read_config

    Together().evaluate(read_config(run / "config.yaml"), run, wanted, Status(run))
    return [
        json.loads(line)["raw"] for file in sorted(run.glob("pred*.jsonl")) for line in file.read_text().splitlines()
    ]


@pytest.mark.slow
def test_the_same_lora_goes_on_where_it_was(outputs: Path, composed: Composed, tmp_path: Path) -> None:
    run = trained(composed(*STILL, "dataset=demo_xray", f"init_from={outputs / 'lora'}"), tmp_path / "next")
    assert same(weights(run / "final"), weights(outputs / "lora" / "final"))
    assert {entry["set"] for entry in leakage.read(run / TRAINED_ON) or []} == {"demo_ct", "demo_xray"}
    moving = trained(composed(*SMALL, f"init_from={outputs / 'lora'}"), tmp_path / "moving")
    before, after = weights(outputs / "lora" / "final"), weights(moving / "final")
    assert before.keys() == after.keys() and not any(before[name].equal(after[name]) for name in before)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["method.peft.r=4", "method=full"])
def test_another_lora_begins_on_the_merged_base(method: str, outputs: Path, composed: Composed, tmp_path: Path) -> None:
    config = composed(*STILL, method, f"init_from={outputs / 'lora'}")
    merged = init_from._merged(load_model(config.model, "float32"), outputs / "lora" / "final")
    merged.save_pretrained(tmp_path / "merged")
    run = trained(config, tmp_path / "next")
    assert not (run / "final" / "adapter_config.json").exists()
    assert same(weights(run / "final"), weights(tmp_path / "merged"), within=1e-20)
    assert not same(weights(run / "final"), weights(outputs / "full" / "final"), within=1e-20)
    assert answers(run, composed) == answers(outputs / "lora", composed)


@pytest.mark.slow
def test_a_whole_model_takes_the_place_of_the_base(outputs: Path, composed: Composed, tmp_path: Path) -> None:
    """Also where its own base is gone, and for one who comes after and starts from what is left at the end."""
    full = outputs / "full"
    lost = ("model.tiny=null", "model.path=gone/away")
    found = Path(shutil.copytree(full / "final", tmp_path / "found"))
    run = trained(composed(*STILL, *lost, f"init_from={found}"), tmp_path / "lora")
    assert same(weights(run / "final"), weights(full / "final"))
    again = trained(composed(*STILL, *lost, "method=full", f"init_from={run}"), tmp_path / "again")
    assert same(weights(again / "final"), weights(full / "final"), within=1e-20)
    assert answers(again, composed) == answers(full, composed)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["lora", "full"])
def test_a_killed_run_goes_on_from_the_base_it_had(
    start: str, outputs: Path, composed: Composed, tmp_path: Path
) -> None:
    more = (
        f"init_from={outputs / start}",
        "method.peft.r=4",
        "method.trainer.max_steps=3",
        "method.trainer.save_steps=1",
    )
    config = composed(*SMALL, *more)
    whole = trained(config, tmp_path / "whole")
    killed = Path(shutil.copytree(whole, tmp_path / "killed", ignore=shutil.ignore_patterns("final", "checkpoint-3")))
    assert checkpoints.newest(killed) == killed / "checkpoint-2"
    trained(config, killed)
    assert same(weights(killed / "final"), weights(whole / "final"))
    assert not same(weights(whole / "final"), weights(outputs / "full" / "final"))
    assert not [path for path in killed.iterdir() if path.name.startswith(".")], "and nothing of the way there is left"


@pytest.mark.slow
def test_a_quantised_base_is_merged_unquantised(outputs: Path, composed: Composed, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    few = ("method.peft.r=4", "method.quantization.load_in_8bit=true", f"init_from={outputs / 'lora'}")
    config = composed(*STILL, *few)
    merged = init_from._merged(load_model(config.model, "float32"), outputs / "lora" / "final")
    merged.save_pretrained(tmp_path / "merged")
    run = trained(config, tmp_path / "next")
    assert same(weights(run / "final"), weights(tmp_path / "merged"))
    assert len(answers(run, composed)) > 5


@pytest.mark.slow
def test_by_command(outputs: Path, command: Command, tmp_path: Path) -> None:
    small = (*SHORT, "dataset=demo_xray", "dataset.max_rows=16", "eval=own", "eval.max_rows=4")
    done = command(*small, f"init_from={outputs / 'lora'}", "method.peft.r=4")
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (tmp_path / "outputs").glob("tiny*")
    provenance = json.loads((run / "provenance.json").read_text())
    fingerprint = weights_fingerprint(outputs / "lora" / "final")
    assert provenance["init_from"] == {
        "folder": str(outputs / "lora" / "final"), "run": "lora", "fingerprint": fingerprint,
    }  # fmt: skip
    assert json.loads((run / "result.json").read_text())["evaluations"]["demo_xray"]["leakage"].keys() == {
        "demo_ct", "demo_xray",
    }  # fmt: skip
    other = command("task=eval", f"runs=[{run}]", "eval=demo", "eval.max_rows=4", "hardware=cpu",
                    "eval.generation.max_new_tokens=8")  # fmt: skip
    assert other.returncode == 0, other.stderr
    assert set(json.loads((run / "result.json").read_text())["evaluations"]) == {"demo_ct", "demo_xray", "demo_path"}
