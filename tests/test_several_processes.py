"""One run on several processes, as it is typed: trained and evaluated, started by other launchers, failing, resumed."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.prepared import TRAIN, Prepared
from tests.test_kill import weights
from tests.test_run import only_run, read
from vlmft.errors import ConfigError
from vlmft.nodes import as_torchrun_says, started_by_torchrun
from vlmft.schema import Hardware
from vlmft.training import checkpoints

Command = Callable[..., "subprocess.CompletedProcess[str]"]
RUN = ("model=tiny_glm41v", "dataset=demo_ct", "dataset.max_rows=24", "method=full", "method.trainer.max_steps=4",
       "method.trainer.save_steps=2", "method.trainer.learning_rate=1e-3", "method.batch_size=4",
       "hardware.micro_batch=2", "hardware.device=cpu", "check=false", "eval=own", "eval.max_rows=10",
       "eval.generation.max_new_tokens=4")  # fmt: skip
TWO = ("hardware=ddp", "hardware.processes=2")
TORCHRUN = ("-m", "torch.distributed.run")

# Found by Python at start through PYTHONPATH: rank 1 fails as training begins.
FAILS = """
import os, signal
if os.environ.get("RANK") == "1":
    install = signal.signal
    def deadly(number, handler):
        if "on_train_begin" in getattr(handler, "__qualname__", ""):
            raise RuntimeError("row 17 has no image")
        return install(number, handler)
    signal.signal = deadly
"""


@pytest.fixture(scope="module")
def alone(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run by one process."""
    folder = tmp_path_factory.mktemp("alone")
    assert prepared.run([TRAIN, *RUN], folder).returncode == 0
    return only_run(folder)


def answers(run: Path) -> str:
    return (run / "predictions_demo_ct.jsonl").read_text()


@pytest.mark.slow
def test_two_processes_make_the_run_of_one(alone: Path, command: Command, tmp_path: Path) -> None:
    done = command(*RUN, *TWO)
    assert done.returncode == 0, done.stdout + done.stderr
    run = only_run(tmp_path)
    assert run.name == alone.name, "hardware is no part of what a run is"
    assert weights(run) == weights(alone)
    assert answers(run) == answers(alone)
    decided = read(run / "provenance.json")["decided"]
    assert (decided["ranks"], decided["engine"]) == (2, "ddp")
    assert read(run / "status.json")["state"] == read(run / "result.json")["state"] == "done"
    assert done.stdout.count("device    cpu") == 1, "one process tells"
    again = command(*RUN)
    assert "nothing to do" in again.stdout, "on any number of processes it is done"


@pytest.mark.slow
def test_started_by_torchrun(alone: Path, prepared: Prepared, tmp_path: Path) -> None:
    words = ["--nproc-per-node", "2", "--master-port", str(port())]
    done = prepared.run([*TORCHRUN, *words, TRAIN, *RUN], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    run = only_run(tmp_path)
    assert read(run / "provenance.json")["decided"]["ranks"] == 2, "two in all, not two times two"
    assert weights(run) == weights(alone)


@pytest.mark.slow
def test_two_machines(alone: Path, prepared: Prepared, tmp_path: Path) -> None:
    """Two agents of torchrun on this one, as there would be one on each."""
    where = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(port())]
    machines = [
        prepared.start([*TORCHRUN, *where, "--node-rank", str(number), TRAIN, *RUN], tmp_path) for number in (0, 1)
    ]
    said = ["".join(machine.communicate(timeout=300)) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    run = only_run(tmp_path)
    assert weights(run) == weights(alone) and answers(run) == answers(alone)
    assert said[0].count("device    cpu") == 1 and "device" not in said[1], "the first machine tells"


@pytest.mark.slow
def test_the_rank_that_failed_is_named_and_a_resume_needs_as_many(command: Command, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(FAILS)
    done = command(*RUN, *TWO, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    run = only_run(tmp_path)
    told = "rank 1 of 2: RuntimeError: row 17 has no image"
    assert done.returncode == 1 and told in done.stderr
    status = read(run / "status.json")
    assert (status["state"], status["error"]) == ("failed", told)
    assert read(run / "result.json")["state"] == "failed"
    log = (run / "train.log").read_text()
    assert "rank 1 ERROR traceback" in log and "in deadly" in log

    checkpoint = run / checkpoints.SAVING / "checkpoint-2"
    checkpoint.mkdir(parents=True)
    checkpoints.put_in_place(run, "checkpoint-2", 2, total=4, seconds=1.0)
    other = command(*RUN)
    assert other.returncode == 1
    assert "was started on 2 processes (ddp), and this start has 1 process (ddp)" in other.stderr


def test_what_torchrun_and_accelerate_launch_say(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not started_by_torchrun()
    for name, value in {"LOCAL_RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert started_by_torchrun()
    told = as_torchrun_says(Hardware())
    assert (told.processes, told.nodes) == (2, 2)
    assert as_torchrun_says(Hardware(processes="auto", nodes=2)) == told
    with pytest.raises(ConfigError, match=r"hardware\.processes=4, and torchrun has started 2"):
        as_torchrun_says(Hardware(processes=4))
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ConfigError, match=r"accelerate launch asks for DEEPSPEED.*hardware=zero2, zero3"):
        as_torchrun_says(Hardware())


def test_what_cannot_be_asked_of_processes(command: Command) -> None:
    for words, told in [
        (("hardware.processes=3",), "does not divide over 3 ranks; nearest: 3 or 6"),
        (("hardware.processes=some",), "hardware.processes=some should be a number from 1 up, or auto"),
        (("hardware=fsdp", "hardware.processes=1"), "hardware.processes should be 2 or more"),
        (("hardware=zero3", "hardware.deepspeed.zero_optimisation=1"), "Did you mean zero_optimization"),
        (("hardware=zero3", "hardware.deepspeed.optimizer.type=Adam"), "method.trainer.optim"),
        (("hardware=fsdp", "hardware.processes=2", "hardware.fsdp.reshard=true"), "Did you mean reshard_after_forward"),
        (("hardware.nodes=2",), "nothing says which of the machines this one is"),
        (("hardware=ddp", "hardware.processes=2", "task=dry_run"), "tries a run out by one process"),
    ]:
        done = command(*RUN, *words)
        assert done.returncode == 1 and told in done.stderr, (words, done.stderr)


def port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])
