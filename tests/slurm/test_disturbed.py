"""Jobs of a real Slurm that are told to stop, cut off, put back or cancelled: what is left goes on, bit for bit.

All of them run at the same time, as most of it is waiting. No run saves checkpoints by itself before its end.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.slurm.conftest import RUN, SLURM, STEPS, Command, asked, in_training, start, states_of, until, vlmft

pytestmark = pytest.mark.slow


def undisturbed(folder: Path) -> Command:
    """By the launcher that comes with Hydra's plugin, as its users call it."""
    words = ("-m", "hydra/launcher=submitit_slurm", "hydra.launcher.mem_gb=1", "hydra.launcher.timeout_min=30")
    return start(folder, *words, *RUN, "hardware=cpu").end()


def told_to_save(folder: Path) -> Command:
    """By Slurm's signal, with processes that load rows."""
    command = start(folder, *SLURM, *RUN, "method.trainer.dataloader_num_workers=2", pause=1)
    in_training(command)
    asked("scancel", "--signal=USR2", command.job)
    until(lambda: "PENDING" in asked("squeue", "-h", "-j", command.job, "-o", "%T"), command)
    asked("scontrol", "hold", command.job)  # until it was looked at
    command.notes["status"] = vlmft(folder, "status", str(command.sweep))
    asked("scontrol", "release", command.job)
    return command.end()


def out_of_time(folder: Path) -> Command:
    words = ("hardware.time=3", "hardware.signal_delay=20")  # more than a step takes
    return start(folder, *SLURM, *RUN, *words, pause=12).end()


def preempted(folder: Path) -> Command:
    """Submitted and left alone; then a job of higher priority wants the GPUs."""
    words = ("hardware.partition=low", "hardware.gres=gpu:2", "hardware.wait=false")
    command = start(folder, *SLURM, *RUN, *words, pause=1).end()
    command.notes["queue"] = asked("squeue", "-h", "-j", command.job, "-o", "%T")
    in_training(command)
    asked("srun", "--quiet", "--partition=high", "--gres=gpu:2", "--time=1", "sleep", "1")
    until(lambda: not asked("squeue", "-h", "-j", command.job).strip())
    return command


def requeued(folder: Path) -> Command:
    command = start(folder, *SLURM, *RUN, pause=1)
    in_training(command)
    asked("scontrol", "requeue", command.job)
    return command.end()


def cancelled(folder: Path) -> Command:
    command = start(folder, *SLURM, *RUN, pause=1)
    in_training(command)
    asked("scancel", command.job)
    return command.end()


SCENARIOS: tuple[Callable[[Path], Command], ...] = (
    out_of_time, preempted, told_to_save, requeued, cancelled, undisturbed
)  # fmt: skip


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Command]]:
    """Every scenario by its name, when it is over."""
    folder = tmp_path_factory.mktemp("disturbed")
    with ThreadPoolExecutor(len(SCENARIOS)) as pool:
        begun = {scenario.__name__: pool.submit(scenario, folder / scenario.__name__) for scenario in SCENARIOS}
        found: dict[str, Command] = {}
        wrong = {}
        for name, future in begun.items():
            try:
                found[name] = future.result()
            except (AssertionError, subprocess.SubprocessError) as error:
                wrong[name] = error
    assert not wrong, wrong
    yield found


def test_the_stock_launcher_on_slurm(ended: dict[str, Command]) -> None:
    command = ended["undisturbed"]
    assert command.code == 0, command.out
    assert command.status()["state"] == "done" and command.weights()
    assert list(command.folder.glob("multirun_reports/.submitit/*/*_result.pkl"))


@pytest.mark.parametrize(
    ("name", "states"),
    [
        ("told_to_save", ["REQUEUED", "COMPLETED"]),
        ("requeued", ["REQUEUED", "COMPLETED"]),
        ("preempted", ["PREEMPTED", "COMPLETED"]),
    ],
)
def test_it_saves_is_queued_again_and_goes_on_to_the_same_weights(
    name: str, states: list[str], ended: dict[str, Command]
) -> None:
    command = ended[name]
    assert command.code == 0, command.out + command.log()
    status = command.status()
    assert (status["state"], status["attempt"]) == ("done", 2), command.log()
    (step,) = re.findall(r"resume +from checkpoint-(\d+)", command.log())
    assert 3 <= int(step) < STEPS, "what was done when it was told is not done again"
    assert command.weights() == ended["undisturbed"].weights()
    assert len(list(command.folder.glob("outputs/tiny*"))) == 1
    found = states_of(command.job)
    assert found[-1] == "COMPLETED" and len(found) == 2 and found[0] in (states[0], "REQUEUED"), found


def test_out_of_time(ended: dict[str, Command]) -> None:
    command = ended["out_of_time"]
    assert command.code == 0, command.out + command.log()
    status = command.status()
    assert status["state"] == "done" and status["attempt"] >= 2, command.log()
    assert "resume    from checkpoint-" in command.log() and "this job is timed-out" in command.log()
    assert command.weights() == ended["undisturbed"].weights()
    assert states_of(command.job)[-1] == "COMPLETED"


def test_children_do_not_queue_the_job_again(ended: dict[str, Command]) -> None:
    log = ended["told_to_save"].log()
    assert log.count("Calling checkpoint method") == 1 and "Traceback" not in log


def test_what_is_told_while_waiting(ended: dict[str, Command]) -> None:
    words = [line.split()[0] for line in ended["told_to_save"].out.splitlines()]
    assert words[:5] == ["submitted", "start", "requeued", "start", "done"], ended["told_to_save"].out
    assert "1 run: 1 requeued" in ended["told_to_save"].notes["status"]


def test_submitted_and_left_alone(ended: dict[str, Command]) -> None:
    command = ended["preempted"]
    first, second = command.out.splitlines()[:2]
    place = command.sweep.relative_to(command.folder)
    assert first == f"submitted job {command.job}: training, gpu:2, 1 GB, 30 min, partition low"
    assert second.split() == f"next vlmft status --watch {place} then vlmft report {place}".split()
    assert command.notes["queue"].strip() in ("PENDING", "RUNNING"), "the command is over before the job"


def test_cancelled(ended: dict[str, Command]) -> None:
    command = ended["cancelled"]
    assert command.code == 1
    assert f"job {command.job} is over: CANCELLED (somebody cancelled it); log: " in command.out
    status = command.status()
    assert status["state"] == "interrupted" and "saved at step" in status["error"]
    assert states_of(command.job) == ["CANCELLED"]
