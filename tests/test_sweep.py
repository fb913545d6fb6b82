"""Sweeps: their names, their plans, the configs that jobs keep, and what cannot be swept."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from PIL import Image

from tests.conftest import ROOT
from tests.prepared import Prepared
from vlmft import sweep
from vlmft.errors import ConfigError
from vlmft.schema import Config

Command = Callable[..., subprocess.CompletedProcess[str]]


def test_a_sweep_is_named_by_key_by_experiment_or_by_its_axes() -> None:
    axes = {"dataset": ["a", "b"], "seed": ["0"]}
    assert sweep.folder_of("mine", "demo_grid", axes) == Path("multirun_reports/mine")
    assert sweep.folder_of("", "demo_grid", axes) == Path("multirun_reports/demo_grid")
    unnamed = sweep.folder_of("", None, axes)
    assert unnamed == sweep.folder_of("", None, dict(reversed(axes.items())))
    assert unnamed != sweep.folder_of("", None, axes | {"seed": ["1"]})
    for wrong in ("a/b", "..", "a b", "-x"):
        with pytest.raises(ConfigError, match=r"sweep=.*folder"):
            sweep.folder_of(wrong, None, axes)


@pytest.mark.parametrize("key", ["hardware", "experiment"])
def test_what_holds_for_the_whole_sweep_is_no_axis(key: str) -> None:
    sweep.refuse_fixed_axes({key: ["cpu"], "seed": ["0", "1"]})
    with pytest.raises(ConfigError, match=rf"{key}=a,b cannot be swept"):
        sweep.refuse_fixed_axes({key: ["a", "b"]})


def test_a_sweep_over_hardware_is_refused_before_anything_is_made(tmp_path: Path, command: Command) -> None:
    done = command("-m", "model=tiny_glm41v", "dataset=demo_ct,demo_path", "hardware=auto,cpu")
    assert done.returncode == 1 and "hardware=auto,cpu cannot be swept" in done.stderr
    assert list(tmp_path.rglob("*")) == []


def test_a_wrong_key_in_one_job_stops_the_sweep(tmp_path: Path, command: Command) -> None:
    done = command("-m", "model=tiny_glm41v", "dataset=demo_ct,demo_path", "method.trainer.learning_rat=1,2")
    assert done.returncode == 1 and "nearest: learning_rate" in done.stderr
    assert list(tmp_path.rglob("*")) == []


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A planned sweep whose job 0 this process is."""
    monkeypatch.setattr(sweep, "this_job", lambda: (tmp_path, 0))
    (tmp_path / "jobs").mkdir()
    (tmp_path / "plan.json").write_text(json.dumps({"jobs": [{"number": 0, "folder": None, "base": None}]}))
    return tmp_path


def node(*overrides: str) -> Any:
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        return compose("config", list(overrides))


def test_a_job_keeps_the_config_it_was_launched_with(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launched = node("model=tiny_glm41v", "dataset=demo_ct", "method.trainer.learning_rate=1e-4")
    (job / "jobs" / "0.yaml").write_text(sweep._settings(launched))
    assert sweep.as_launched(launched) is launched and capsys.readouterr().out == ""
    edited = node("model=tiny_glm41v", "dataset=demo_ct", "method.trainer.learning_rate=9e-9", "seed=3")
    kept = sweep.as_launched(edited)
    assert (kept.method.trainer.learning_rate, kept.seed) == (1e-4, 0)
    told = capsys.readouterr().out
    assert "changed since" in told and "+    learning_rate: 9.0e-09" in told and "-seed: 0" in told


def test_a_job_tells_the_plan_where_its_run_is(job: Path, composed: Callable[..., Config]) -> None:
    config = composed("model=tiny_glm41v", "dataset=demo_ct", "eval.baseline=true", "paths.outputs=o")
    sweep.found(Path("o/run"), config)
    entry = json.loads((job / "plan.json").read_text())["jobs"][0]
    assert entry["folder"].startswith("o/tiny_glm41v-demo_ct-lora-s0-")
    assert entry["base"].startswith("o/tiny_glm41v-base-")


@pytest.mark.slow
def test_a_grid_is_planned_run_reported_and_not_run_again(tmp_path: Path, command: Command) -> None:
    small = (
        "experiment=demo_grid", "dataset=demo_ct,demo_path", "dataset.max_rows=40", "eval.max_rows=6",
        "method.trainer.num_train_epochs=1",
    )  # fmt: skip
    first = command(*small)
    assert first.returncode == 0, first.stdout + first.stderr
    folder = tmp_path / "multirun_reports" / "demo_grid"
    plan = json.loads((folder / "plan.json").read_text())
    assert plan["axes"] == {"dataset": ["demo_ct", "demo_path"]}
    assert {job["base"] for job in plan["jobs"]} == {plan["jobs"][0]["base"]} != {None}
    for job in plan["jobs"]:
        assert job["sets"] == ["demo_ct", "demo_xray", "demo_path"]
        for place in (job["folder"], job["base"]):
            result = json.loads((tmp_path / place / "result.json").read_text())
            assert result["state"] == "done" and set(result["evaluations"]) == set(job["sets"])
    assert "9 cells: 9 done" in first.stdout and (folder / "index.html").is_file()
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
    again = command(*small)
    assert again.returncode == 0 and again.stdout.count("nothing to do") == 4 and "trained" not in again.stdout
    changed = [f.name for f, mtime in before.items() if f.stat().st_mtime_ns != mtime and f.parent.name != ".locks"]
    assert set(changed) <= {"multirun.yaml", ".plan.lock"} | {f"{n}.yaml" for n in range(2)}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the entrypoint and its config files, to be edited."""
    shutil.copytree(ROOT / "conf", tmp_path / "conf", ignore=shutil.ignore_patterns("local.yaml"))
    shutil.copytree(ROOT / "hydra_plugins", tmp_path / "hydra_plugins")
    shutil.copy(ROOT / "train.py", tmp_path / "train.py")
    return tmp_path


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)
    return found


@pytest.mark.slow
def test_a_grid_survives_a_failure_a_kill_and_an_edit_and_is_repaired(project: Path, prepared: Prepared) -> None:
    arguments = [
        str(project / "train.py"), "-m", "model=tiny_glm41v", "dataset=conversations,demo_ct,demo_path", "method=full",
        "eval=demo", "eval.max_rows=6", "dataset.max_rows=40", "sweep=hard", "hardware=cpu",
        "method.trainer.num_train_epochs=8", "method.trainer.save_steps=5", "eval.generation.max_new_tokens=8",
    ]  # fmt: skip
    folder = project / "multirun_reports" / "hard"
    grid = prepared.start(arguments, project)
    plan = json.loads(wait_for(lambda: (folder / "plan.json").is_file() and (folder / "plan.json").read_text()))
    failing, killed, edited = plan["jobs"]
    assert failing["folder"] is None and "conversations" in failing["error"]

    # the last job waits while the second one trains: now is the time to edit, and to kill
    status = project / killed["folder"] / "status.json"
    wait_for(lambda: status.is_file() and json.loads(status.read_text())["phase"] == "training")
    method = project / "conf" / "method" / "full.yaml"
    method.write_text(method.read_text().replace("learning_rate: 1e-5", "learning_rate: 9e-1"))
    wait_for(lambda: json.loads(status.read_text())["step"] >= 6)
    os.kill(json.loads(status.read_text())["pid"], signal.SIGKILL)

    said = "".join(grid.communicate(timeout=500))
    assert grid.returncode == 1
    assert "killed by SIGKILL" in said and "changed since" in said and "9 cells: 3 done, 6 failed" in said
    kept = yaml.safe_load((project / edited["folder"] / "config.yaml").read_text())
    assert kept["method"]["trainer"]["learning_rate"] == 1e-5
    told = (folder / "report.md").read_text()
    assert "killed by SIGKILL" in told and "conversations" in told

    method.write_text(method.read_text().replace("learning_rate: 9e-1", "learning_rate: 1e-5"))
    write_conversations(project / "data" / "conversations")
    again = prepared.run(arguments, project, timeout=500)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "resume    from checkpoint" in again.stdout, "the killed one goes on"
    assert again.stdout.count("nothing to do") == 1 and "9 cells: 9 done" in again.stdout


def write_conversations(folder: Path) -> None:
    """A small set in the conversation form."""
    folder.mkdir(parents=True)
    for split, colours in (("train", ("red", "blue", "lime", "black")), ("test", ("white", "navy"))):
        rows = []
        for colour in colours:
            Image.new("RGB", (56, 56), colour).save(folder / f"{split}_{colour}.png")
            turns = [{"from": "human", "value": "<image>\nWhich colour?"}, {"from": "gpt", "value": colour}]
            rows.append({"id": colour, "image": f"{split}_{colour}.png", "conversations": turns})
        (folder / f"{split}.json").write_text(json.dumps(rows))
