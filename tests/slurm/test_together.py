"""Several processes of a job of a real Slurm work on one run: on one machine, and on two, which are told to save."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.slurm.conftest import RUN, SLURM, STEPS, Command, asked, in_training, start, states_of

pytestmark = pytest.mark.slow


def on_one_machine(folder: Path) -> Command:
    return start(folder, *SLURM, *RUN, "hardware.processes=2").end()


def on_two_machines(folder: Path) -> Command:
    command = start(folder, "hardware=slurm_multinode", *SLURM[1:], *RUN, "hardware.signal_delay=60", pause=1)
    in_training(command)
    asked("scancel", "--signal=USR2", command.job)
    return command.end()


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Command, Command]:
    folder = tmp_path_factory.mktemp("together")
    with ThreadPoolExecutor(2) as pool:
        one, two = (pool.submit(of, folder / of.__name__) for of in (on_one_machine, on_two_machines))
        return one.result(), two.result()


def test_two_processes_on_one_machine(ended: tuple[Command, Command]) -> None:
    command, _ = ended
    assert command.code == 0, command.out + command.log()
    assert command.status()["state"] == "done" and command.weights()


def test_two_machines_save_are_queued_again_and_come_to_the_same_weights(ended: tuple[Command, Command]) -> None:
    one, two = ended
    assert two.code == 0, two.out + two.log()
    assert "training, 2 machines of no GPU, 1 GB, 30 min" in two.out
    (step,) = re.findall(r"resume +from checkpoint-(\d+)", two.log())
    assert 3 <= int(step) < STEPS
    assert states_of(two.job) == ["REQUEUED", "COMPLETED"]
    assert two.weights() == one.weights() != {}
