"""Sweeps on a real Slurm: an array for each shape, what its jobs are given, and jobs that end in every bad way."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.slurm.conftest import RUN, SLURM, Command, asked, start, states_of, vlmft
from vlmft.slurm_queue import submitted

pytestmark = pytest.mark.slow

SHORT = (*(word for word in RUN if not word.startswith(("dataset=", "method.trainer.max_steps", "hardware.device"))),
         "method.trainer.max_steps=2")  # fmt: skip
SAY = 'echo "given: CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES GPUS=$SLURM_GPUS_ON_NODE CPUS=$SLURM_CPUS_PER_TASK"'
# By the number in the array: exits before it begins, is killed at work as where memory runs out, and is left to run.
KILL = (
    'until kill -9 $(grep -lzx "SLURM_JOB_ID=$SLURM_JOB_ID" $(pgrep -f "^[^ ]*python[^ ]* .*submitit.core._submit" '
    '| sed "s:.*:/proc/&/environ:") | cut -d/ -f3); do sleep 1; done 2>/dev/null'
)
BAD = f'case "$SLURM_ARRAY_TASK_ID" in 1) exit 3 ;; 2) ({KILL}) & ;; esac'


def grid(folder: Path) -> Command:
    """Two trainings on one set and one on three, each with a GPU; not of the machine where others wait for all."""
    sets, elsewhere = "dataset=demo_ct,demo_xray,demo", asked("sinfo", "-h", "-p", "low", "-o", "%N").strip()
    words = (f"hardware.setup=['{SAY}']", "hardware.cpus=1", f"hardware.exclude='{elsewhere}'")
    return start(folder, *SLURM, *SHORT, sets, *words).end()


def bad_ends(folder: Path) -> Command:
    """One for weights that are not here, one for each bad end, one that is fine."""
    words = ("model=glm41v,tiny_glm41v", "seed=0,1", "dataset=demo_ct", "hardware.device=cpu")
    short = [word for word in SHORT if not word.startswith("model=")]
    return start(folder, *SLURM, *short, *words, f"hardware.setup=['{BAD}']").end()


def by_submitit_local(folder: Path) -> Command:
    words = ("-m", "hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10", "hardware=cpu")
    return start(folder, *words, *SHORT, "dataset=demo_ct", "hardware.device=cpu").end()


def refused(folder: Path) -> Command:
    return start(folder, *SLURM, *SHORT, "dataset=demo_ct", "hardware.gres=gpu:9").end()


def edited(folder: Path) -> Command:
    """Its config is not as the plan has frozen it when it begins."""
    fast = 'sed -i "s/learning_rate: 0.001/learning_rate: 0.002/" multirun_reports/*/jobs/0.yaml'
    return start(folder, *SLURM, *SHORT, "dataset=demo_ct", "hardware.device=cpu", f"hardware.setup=['{fast}']").end()


SCENARIOS: tuple[Callable[[Path], Command], ...] = (grid, bad_ends, by_submitit_local, refused, edited)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Command]:
    """Every scenario by its name, when it is over; all run at the same time."""
    folder = tmp_path_factory.mktemp("arrays")
    with ThreadPoolExecutor(len(SCENARIOS)) as pool:
        found = pool.map(lambda scenario: scenario(folder / scenario.__name__), SCENARIOS)
        return {scenario.__name__: command for scenario, command in zip(SCENARIOS, found, strict=True)}


def test_an_array_for_each_shape(ended: dict[str, Command]) -> None:
    command = ended["grid"]
    assert command.code == 0, command.out + command.log()
    lines = command.out.splitlines()
    one, other = (re.fullmatch(r"submitted (array|job) (\d+): (.*)", line) for line in lines[:2])
    assert one and other
    assert one.group(1, 3) == ("array", "2 x training, each 1 GPU, 1 GB, 30 min")
    assert other.group(1, 3) == ("job", "combined training, 1 GPU, 1 GB, 30 min")
    assert submitted(command.sweep) == {0: f"{one[2]}_0", 1: f"{one[2]}_1", 2: other[2]}
    assert sum(line.startswith("done ") for line in lines) == 3
    assert len(list(command.folder.glob("outputs/*/final"))) == 3
    assert states_of(other[2]) == ["COMPLETED"]


def test_each_job_is_given_its_gpu(ended: dict[str, Command]) -> None:
    given = re.findall(r"^given: CUDA_VISIBLE_DEVICES=(\d) GPUS=1 CPUS=1$", ended["grid"].log(), re.MULTILINE)
    assert len(given) == 3 and set(given) <= {"0", "1"}


def test_every_bad_end_is_told_and_touches_no_other(ended: dict[str, Command]) -> None:
    command = ended["bad_ends"]
    assert command.code == 1
    failed = dict(re.findall(r"^failed    #(\d) [^:]*: (.*)$", command.out, re.MULTILINE))
    jobs = submitted(command.sweep)
    assert set(failed) >= {"0", "1", "2"} and "3" not in failed, command.out
    assert "glm41v" in failed["0"] and f"(job {jobs[0]}, log: " in failed["0"]
    assert failed["1"].startswith(f"job {jobs[1]} is over: FAILED (it ended with an error): exit code 3")
    assert failed["2"].startswith(f"job {jobs[2]} is over: FAILED (it ended with an error): ")
    assert "done      #3" in command.out
    assert [states_of(job)[-1] for job in jobs.values()] == ["FAILED", "FAILED", "FAILED", "COMPLETED"]
    assert "Error executing job" not in command.log()
    told = vlmft(command.folder, "status", str(command.sweep))
    assert "1 done" in told and "its job of Slurm is over: FAILED" in told


def test_the_stock_local_launcher(ended: dict[str, Command]) -> None:
    command = ended["by_submitit_local"]
    assert command.code == 0, command.out
    assert command.status()["state"] == "done"


def test_what_the_cluster_has_not_is_refused(ended: dict[str, Command]) -> None:
    command = ended["refused"]
    assert command.code == 1
    assert "refused   training, gpu:9, 1 GB, 30 min\n          " in command.out
    assert "sbatch refused it: " in command.out and not list(command.folder.glob("outputs/*/status.json"))


def test_a_job_keeps_the_config_it_was_launched_with(ended: dict[str, Command]) -> None:
    command = ended["edited"]
    assert command.code == 0, command.out + command.log()
    assert "launched  the config has changed since; this job keeps" in command.log()
    assert "learning_rate: 0.002" in (command.run / "config.yaml").read_text()
