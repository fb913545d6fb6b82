"""What a job asks Slurm for: its shape, from what it does and from hardware.*. It takes no Slurm to know it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vlmft.errors import ConfigError
from vlmft.schema import Config, Device, Hardware, SplitModel, Task

TRAINING, COMBINED, EVALUATION = "training", "combined training", "evaluation"
_MEMORY = {TRAINING: 64, COMBINED: 128, EVALUATION: 32}  # GB on each machine
_HOURS = {TRAINING: 24, COMBINED: 48, EVALUATION: 12}
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<clock>\d+(?::\d+){0,2})")
_OWN_KEYS = {  # options of sbatch that hardware.* has keys for
    "time": "time", "mem": "memory", "gres": "gres", "gpus": "gpus", "gpus-per-node": "gpus", "gpus-per-task": "gpus",
    "nodes": "nodes", "cpus-per-task": "cpus", "partition": "partition", "account": "account", "qos": "qos",
    "constraint": "constraint", "exclude": "exclude",
}  # fmt: skip
_NOT_TO_BE_SET = {
    "signal": "it would take the place of the signal that makes a job save and be queued again; "
    "hardware.signal_delay says how long before its end that comes",
    "requeue": "a job that is preempted is always queued again; hardware.max_timeouts=0 has it end where its time does",
    "array": "a sweep is an array already; hardware.array_parallelism says how many of its jobs run at a time",
    "ntasks": "a job has one task on each machine, and starts hardware.processes itself",
    "ntasks-per-node": "a job has one task on each machine, and starts hardware.processes itself",
    "output": "logs have their place, which is told where a job fails",
    "error": "logs have their place, which is told where a job fails",
    "open-mode": "a job that is queued again goes on with its log",
}


@dataclass(frozen=True)
class Shape:
    """What jobs have in common that are submitted as one array."""

    kind: str  # of the presets
    minutes: int
    memory: int  # GB on each machine
    gpus: int | None  # on each machine; None where none are asked for, or by gres
    hardware: Hardware

    def parameters(self) -> dict[str, Any]:
        """The parameters of sbatch in submitit's names."""
        hardware = self.hardware
        setup = list(hardware.setup)
        if hardware.cpus:
            setup.append("export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK")  # which srun does not take over by itself
        given = {
            "timeout_min": self.minutes, "mem_gb": self.memory, "nodes": hardware.nodes, "tasks_per_node": 1,
            "gpus_per_node": self.gpus, "slurm_gres": hardware.gres, "cpus_per_task": hardware.cpus,
            "slurm_partition": hardware.partition, "slurm_account": hardware.account, "slurm_qos": hardware.qos,
            "slurm_constraint": hardware.constraint, "slurm_exclude": hardware.exclude,
            "slurm_array_parallelism": hardware.array_parallelism, "slurm_setup": setup or None,
            "slurm_signal_delay_s": hardware.signal_delay,
            # A task that fails takes the others with it, which would wait for it.
            "slurm_srun_args": ["--kill-on-bad-exit=1"],
            "slurm_additional_parameters": {"requeue": True, **hardware.additional_parameters},
        }  # fmt: skip
        return {name: value for name, value in given.items() if value is not None}

    def same_as(self, other: Shape) -> bool:
        """Whether both can be of one array."""
        mine, its = ((one.kind, one.hardware.max_timeouts, one.parameters()) for one in (self, other))
        return mine == its

    def __str__(self) -> str:
        """In words, such as 1 GPU, 64 GB, 24 h, partition low."""
        hardware = self.hardware
        parts = [hardware.gres or (_count(self.gpus, "GPU") if self.gpus else "no GPU"), f"{self.memory} GB"]
        if hardware.nodes > 1:
            parts = [f"{hardware.nodes} machines of {', '.join(parts)}"]
        parts += [duration(self.minutes), f"partition {hardware.partition}" if hardware.partition else ""]
        return ", ".join(filter(None, parts))


def shape(cfg: DictConfig) -> Shape:
    """The shape of a job by its composed config: the preset of what it does, and the keys of hardware that are set.

    Raises ConfigError naming every key of hardware that Slurm could not be asked for.
    """
    hardware: Hardware = OmegaConf.to_object(cfg.hardware)  # type: ignore[assignment]
    if found := list(problems(hardware)):
        raise ConfigError("\n".join(found))
    kind = kind_of(cfg)
    gpus = hardware.gpus
    if gpus is None and not hardware.gres and hardware.device is not Device.cpu:
        gpus = hardware.processes if isinstance(hardware.processes, int) else 1
    time = minutes(hardware.time) if hardware.time else 60 * _HOURS[kind]
    if hardware.signal_delay >= 60 * time:
        raise ConfigError(
            f"hardware.signal_delay={hardware.signal_delay} seconds are all of the job's time ({duration(time)}): it "
            "would be told to save as it begins; make one smaller or the other longer"
        )
    return Shape(
        kind=kind,
        minutes=time,
        memory=hardware.memory or _MEMORY[kind],
        gpus=gpus or None,
        hardware=hardware,
    )


def kind_of(cfg: DictConfig | Config) -> str:
    """Which of the presets a job has: training, combined training (on several sets, or in stages), or evaluation."""
    if cfg.task is Task.eval:
        return EVALUATION
    return COMBINED if cfg.dataset.sets or cfg.stages else TRAINING


def problems(hardware: Hardware) -> Iterator[str]:
    """What Slurm cannot be asked for, each with its key and what would be right."""
    if hardware.time is not None:
        try:
            minutes(hardware.time)
        except ConfigError as error:
            yield str(error)
    for key in ("memory", "cpus", "nodes", "array_parallelism", "signal_delay"):
        if (value := getattr(hardware, key)) is not None and value < 1:
            yield f"hardware.{key}={value} should be at least 1"
    for key in ("gpus", "max_timeouts"):
        if (value := getattr(hardware, key)) is not None and value < 0:
            yield f"hardware.{key}={value} should be 0 or more"
    if hardware.gpus is not None and hardware.gres:
        yield (
            f"hardware.gpus={hardware.gpus} and hardware.gres={hardware.gres} ask for GPUs twice, which Slurm refuses; "
            "give one of them"
        )
    processes, gpus = hardware.processes, hardware.gpus
    if gpus and gpus > 0 and isinstance(processes, int) and gpus != processes and hardware.split_model is SplitModel.no:
        yield (
            f"hardware.gpus={gpus} and hardware.processes={processes}: each process uses one GPU; "
            f"set hardware.processes={gpus}, or leave hardware.gpus out"
        )
    for option in hardware.additional_parameters:
        name = str(option).lstrip("-").replace("_", "-")
        if name in _OWN_KEYS:
            yield f"hardware.additional_parameters.{option}: set hardware.{_OWN_KEYS[name]} for that"
        elif name in _NOT_TO_BE_SET:
            yield f"hardware.additional_parameters.{option} cannot be set: {_NOT_TO_BE_SET[name]}"


def minutes(time: str) -> int:
    """Minutes of a time as sbatch takes it, seconds rounded up: 90, 90:00, 24:00:00, 1-12, 1-12:00, 1-12:00:00.

    Raises ConfigError for anything else, and for no time at all.
    """
    found = _TIME.fullmatch(str(time).strip())
    seconds = 0
    if found:
        clock = [int(part) for part in found["clock"].split(":")]
        if found["days"]:
            hours, minute, second = [*clock, 0, 0][:3]
            seconds = int(found["days"]) * 86400 + hours * 3600 + minute * 60 + second
        elif len(clock) == 3:
            seconds = clock[0] * 3600 + clock[1] * 60 + clock[2]
        else:
            seconds = clock[0] * 60 + (clock[1] if len(clock) == 2 else 0)
    if not seconds:
        raise ConfigError(
            f"hardware.time={time} is no time that sbatch takes: hours:minutes:seconds (24:00:00), "
            "days-hours:minutes:seconds (1-12:00:00), or minutes (90)"
        )
    return -(-seconds // 60)


def duration(minutes: int) -> str:
    """Minutes in words: 24 h, 1 h 30 min, 5 min."""
    hours, rest = divmod(minutes, 60)
    return " ".join(filter(None, [f"{hours} h" if hours else "", f"{rest} min" if rest else ""]))


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
