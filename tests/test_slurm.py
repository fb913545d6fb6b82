"""What jobs ask Slurm for: pure functions of their config."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from tests.conftest import ROOT
from vlmft import slurm
from vlmft.errors import ConfigError
from vlmft.schema import Hardware


def composed(*overrides: str, hydra: bool = False) -> Any:
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        return compose("config", ["model=tiny_glm41v", "hardware=slurm", *overrides], return_hydra_config=hydra)


@cache
def shape(*overrides: str) -> slurm.Shape:
    return slurm.shape(composed(*overrides))


@pytest.mark.parametrize(
    ("time", "minutes"),
    [
        ("90", 90), ("90:01", 91), ("24:00:00", 1440), ("0:30:00", 30), ("1-12", 2160), ("1-12:30", 2190),
        ("1-12:00:00", 2160), ("0:00:01", 1), (" 60 ", 60),
    ],
)  # fmt: skip
def test_times_as_sbatch_takes_them(time: str, minutes: int) -> None:
    assert slurm.minutes(time) == minutes


@pytest.mark.parametrize("time", ["24h", "1d", "1-2-3", "1:2:3:4", "", "0", "-5", "unlimited", "1.5", "00:00:00"])
def test_no_times(time: str) -> None:
    with pytest.raises(ConfigError, match=r"hardware.time=.*hours:minutes:seconds \(24:00:00\)"):
        slurm.minutes(time)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["dataset=demo_ct"], "training: 1 GPU, 64 GB, 24 h"),
        (["dataset=demo"], "combined training: 1 GPU, 128 GB, 48 h"),
        (["+dataset@stages.a=demo_ct", "+dataset@stages.b=demo_path"], "combined training: 1 GPU, 128 GB, 48 h"),
        (["dataset=demo_ct", "task=eval"], "evaluation: 1 GPU, 32 GB, 12 h"),
        (["dataset=demo", "task=eval"], "evaluation: 1 GPU, 32 GB, 12 h"),
        (["dataset=demo_ct", "hardware.time=1-12:00:00", "hardware.memory=7"], "training: 1 GPU, 7 GB, 36 h"),
        (["dataset=demo_ct", "hardware.processes=4"], "training: 4 GPUs, 64 GB, 24 h"),
        (["dataset=demo_ct", "hardware.processes=auto", "hardware.gpus=2"], "training: 2 GPUs, 64 GB, 24 h"),
        (["dataset=demo_ct", "hardware.gres=gpu:a100:2"], "training: gpu:a100:2, 64 GB, 24 h"),
        (["dataset=demo_ct", "hardware.device=cpu"], "training: no GPU, 64 GB, 24 h"),
        (["dataset=demo_ct", "hardware.device=cpu", "hardware.gres=gpu:1"], "training: gpu:1, 64 GB, 24 h"),
        (["dataset=demo_ct", "hardware.time=75", "hardware.partition=low"],
         "training: 1 GPU, 64 GB, 1 h 15 min, partition low"),
        (["dataset=demo_ct", "hardware=slurm_multinode"], "training: 2 machines of 1 GPU, 64 GB, 24 h"),
    ],
)  # fmt: skip
def test_the_shape_is_that_of_the_kind_of_job_unless_hardware_says_otherwise(overrides: list[str], said: str) -> None:
    found = shape(*overrides)
    assert f"{found.kind}: {found}" == said


def test_what_sbatch_is_given() -> None:
    given = shape(
        "dataset=demo_ct", "hardware.cpus=4", "hardware.account=a", "hardware.qos=q", "hardware.constraint=a100",
        "hardware.exclude=n9", "hardware.setup=[module load cuda]", "hardware.signal_delay=60",
        "hardware.additional_parameters={mail-type: END}", "hardware.nodes=3", "hardware.processes=2",
    ).parameters()  # fmt: skip
    assert given == {
        "timeout_min": 1440, "mem_gb": 64, "nodes": 3, "tasks_per_node": 1, "gpus_per_node": 2, "cpus_per_task": 4,
        "slurm_account": "a", "slurm_qos": "q", "slurm_constraint": "a100", "slurm_exclude": "n9",
        "slurm_array_parallelism": 256, "slurm_signal_delay_s": 60,
        "slurm_setup": ["module load cuda", "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK"],
        "slurm_srun_args": ["--kill-on-bad-exit=1"],
        "slurm_additional_parameters": {"requeue": True, "mail-type": "END"},
    }  # fmt: skip
    typed = shape("dataset=demo_ct", "hardware.gres=gpu:1").parameters()
    assert typed["slurm_gres"] == "gpu:1" and "gpus_per_node" not in typed and "slurm_setup" not in typed


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"time": "1d"}, "hardware.time=1d is no time"),
        ({"memory": 0}, "hardware.memory=0 should be at least 1"),
        ({"gpus": -1}, "hardware.gpus=-1 should be 0 or more"),
        ({"gpus": 1, "gres": "gpu:1"}, "hardware.gpus=1 and hardware.gres=gpu:1 ask for GPUs twice"),
        ({"gpus": 4}, "set hardware.processes=4, or leave hardware.gpus out"),
        (
            {"additional_parameters": {"signal": "B:TERM@60"}},
            "hardware.additional_parameters.signal cannot be set: it ",
        ),
        ({"additional_parameters": {"--mem": "1G"}}, "hardware.additional_parameters.--mem: set hardware.memory for"),
        ({"additional_parameters": {"cpus_per_task": 1}}, "set hardware.cpus for that"),
    ],
)
def test_what_slurm_cannot_be_asked_for(keys: dict[str, Any], said: str) -> None:
    (problem,) = slurm.problems(Hardware(**keys))
    assert said in problem


def test_everything_wrong_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        shape("dataset=demo_ct", "hardware.time=1d", "hardware.cpus=0")
    assert len(str(error.value).splitlines()) == 2


def test_a_job_has_some_time_before_it_is_told_to_save() -> None:
    with pytest.raises(ConfigError, match=r"hardware.signal_delay=120 seconds are all of the job's time \(2 min\)"):
        shape("dataset=demo_ct", "hardware.time=2")
    assert shape("dataset=demo_ct", "hardware.time=2", "hardware.signal_delay=10").minutes == 2
