"""kill -9 at three moments, then the same command: it finishes, with the weights of an undisturbed run, bit for bit."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.prepared import TRAIN, Prepared
from tests.test_run import only_run, read

Command = Callable[..., subprocess.CompletedProcess[str]]
RUN = ("model=tiny_glm41v", "dataset=demo_ct", "dataset.max_rows=40", "method.trainer.max_steps=24",
       "method.trainer.learning_rate=1e-3", "method.batch_size=4", "hardware.micro_batch=2", "hardware=cpu",
       "method.trainer.save_steps=5", "eval=none")  # fmt: skip

# Found by Python at start through PYTHONPATH: the worker kills itself where a file of this name is put in place.
KILLER = """
import os, signal
replace, seen = os.replace, []
def deadly(source, target, **kwargs):
    if str(target).endswith(os.environ["KILL_BEFORE"]):
        seen.append(target)
        if len(seen) == int(os.environ["KILL_AT"]):
            os.kill(os.getpid(), signal.SIGKILL)
    return replace(source, target, **kwargs)
os.replace = deadly
"""


def weights(run: Path) -> str:
    (file,) = (run / "final").glob("*model.safetensors")
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture(scope="module", params=["full", "lora"])
def undisturbed(
    request: pytest.FixtureRequest, prepared: Prepared, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Any, str]:
    """The method, its name's hash, and the weights it comes to when nothing happens."""
    folder = tmp_path_factory.mktemp("undisturbed")
    method = [f"method={request.param}"] + (["method.peft.lora_dropout=0.1"] if request.param == "lora" else [])
    assert prepared.run([TRAIN, *RUN, *method], folder).returncode == 0
    run = only_run(folder)
    return method, run.name, weights(run)


@pytest.mark.slow
def test_killed_in_a_step(
    undisturbed: tuple[list[str], str, str], command: Command, prepared: Prepared, tmp_path: Path
) -> None:
    method, name, expected = undisturbed
    process = prepared.start([TRAIN, *RUN, *method], tmp_path, session=True)
    status = tmp_path / "outputs" / name / "status.json"
    while not (status.exists() and read(status)["phase"] == "training" and read(status)["step"] >= 7):
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    run = tmp_path / "outputs" / name
    assert not (run / "final").exists() and (run / "checkpoint-5" / "complete.json").exists()
    finish(command, method, run, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "at"), [("complete.json", 3), ("checkpoint-15", 1), ("final", 1)],
    ids=["in a save", "before it takes its place", "at the end"],
)  # fmt: skip
def test_killed_while_writing(
    file: str, at: int, undisturbed: tuple[list[str], str, str], command: Command, tmp_path: Path
) -> None:
    method, name, expected = undisturbed
    (tmp_path / "killer").mkdir()
    (tmp_path / "killer" / "sitecustomize.py").write_text(KILLER)
    deadly = os.environ | {"PYTHONPATH": str(tmp_path / "killer"), "KILL_BEFORE": file, "KILL_AT": str(at)}
    done = command(*RUN, *method, env=deadly)
    assert done.returncode == 1 and "killed by SIGKILL" in done.stderr
    run = tmp_path / "outputs" / name
    assert read(run / "status.json")["state"] == "failed" and not (run / "final").exists()
    if file != "final":
        half = run / ".saving" / "checkpoint-15"
        assert (half / "complete.json").exists() is (file == "checkpoint-15") and not (run / "checkpoint-15").exists()
    finish(command, method, run, expected)


def finish(command: Command, method: list[str], run: Path, expected: str) -> None:
    done = command(*RUN, *method)
    assert done.returncode == 0, done.stderr
    assert "resume    from checkpoint-" in done.stdout
    status = read(run / "status.json")
    assert (status["state"], status["attempt"]) == ("done", 2)
    assert read(run / "result.json")["train"]["steps"] == 24
    assert weights(run) == expected


@pytest.mark.slow
def test_sigterm_stops_worker_and_all(prepared: Prepared, tmp_path: Path) -> None:
    process = prepared.start([TRAIN, *RUN, "method=lora"], tmp_path)
    while not list(tmp_path.glob("outputs/*/checkpoint-5/complete.json")):
        assert process.poll() is None
        time.sleep(0.01)
    process.terminate()
    assert process.wait(timeout=30) == 130
    status = read(only_run(tmp_path) / "status.json")
    assert status["state"] == "interrupted" and "SIGTERM" in status["error"]
    with pytest.raises(ProcessLookupError):
        os.kill(status["pid"], 0)
