"""Jobs are submitted, an array for each shape among them; one that is refused has failed, and the rest goes on."""

from __future__ import annotations

import io
import shlex
import shutil
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, setup_globals

import vlmft
from vlmft.errors import ConfigError, RunFailed
from vlmft.schema import Task
from vlmft.slurm import Shape, shape
from vlmft.slurm_queue import FOLDER, note_submitted

if TYPE_CHECKING:
    from hydra_plugins.vlmft_slurm import VlmftSlurm

_HERE = (Task.fetch, Task.plan, Task.check)  # nothing that takes a GPU, and compute nodes may have no internet


@dataclass
class Job:
    """One job of the sweep: what Slurm is asked for, and what came of it."""

    number: int
    label: str
    overrides: list[str]
    shape: Shape
    outcome: JobReturn
    id: str = ""  # Slurm's: 12, or 12_0 for an element of an array
    tasks: list[Any] = field(default_factory=list)  # submitit's JobPaths of each, one on each machine

    def failed(self, why: str) -> JobReturn:
        """The outcome that it failed for a reason which is not its own error."""
        outcome = JobReturn(overrides=self.overrides, status=JobStatus.FAILED)
        outcome.return_value = RunFailed(f"failed    #{self.number} {self.label}: {why}")
        return outcome


def launch(launcher: VlmftSlurm, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
    """What VlmftSlurm.launch returns and raises."""
    config, context = launcher.config, launcher.hydra_context
    assert config is not None and context is not None
    if launcher.params:
        named = ", ".join(f"hydra.launcher.{name}" for name in launcher.params)
        raise ConfigError(f"{named}: what Slurm is asked for stands in hardware.*, such as hardware.partition=…")
    setup_globals()
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    composed = [context.config_loader.load_sweep_config(config, list(overrides)) for overrides in job_overrides]
    if all(cfg.task in _HERE for cfg in composed):
        return _here(launcher, job_overrides, initial_job_idx)
    sweep_dir = Path(str(config.hydra.sweep.dir))
    # What all have in common is left out of the name of each.
    shared = set.intersection(*map(set, job_overrides))
    jobs = []
    for number, (overrides, cfg) in enumerate(zip(job_overrides, composed, strict=True), initial_job_idx):
        label = " ".join(override for override in filter_overrides(overrides) if override not in shared)
        failed = JobReturn(overrides=list(overrides), status=JobStatus.FAILED)
        jobs.append(Job(number, label or sweep_dir.name, list(overrides), shape(cfg), failed))
    if not (shutil.which("sbatch") and shutil.which("srun")):
        raise ConfigError(
            f"hardware={config.hardware.name}: there is no sbatch here to submit with; log in to a machine of the "
            "cluster, or use this one's own GPUs: hardware=gpus, hardware=auto"
        )
    for group in grouped(jobs):
        _submit(launcher, group, sweep_dir)
    submitted = [job for job in jobs if job.id]
    if all(job.shape.hardware.wait for job in submitted):
        from hydra_plugins.vlmft_slurm._waiting import wait_for

        wait_for(jobs, sweep_dir)
    else:
        print(f"next      vlmft status --watch {sweep_dir}   then   vlmft report {sweep_dir}", flush=True)
        for job in submitted:
            job.outcome = JobReturn(overrides=job.overrides, status=JobStatus.COMPLETED)
            job.outcome.return_value = job.id
    return [job.outcome for job in jobs]


def grouped(jobs: Sequence[Job]) -> list[list[Job]]:
    """The jobs by shape, in their order; each group is one array."""
    groups: list[list[Job]] = []
    for job in jobs:
        for group in groups:
            if group[0].shape.same_as(job.shape):
                group.append(job)
                break
        else:
            groups.append([job])
    return groups


def _submit(launcher: VlmftSlurm, group: Sequence[Job], sweep_dir: Path) -> None:
    """Submit jobs of one shape, and say so in a line."""
    from submitit import AutoExecutor
    from submitit.core.utils import FailedJobError, JobPaths

    of_all = group[0].shape
    asked = f"{len(group)} x {of_all.kind}, each" if len(group) > 1 else f"{of_all.kind},"
    executor = AutoExecutor(
        folder=sweep_dir / FOLDER / "%j", cluster="slurm", slurm_max_num_timeout=of_all.hardware.max_timeouts
    )
    executor.update_parameters(name=f"vlmft-{sweep_dir.name}", **of_all.parameters())
    # The code that submits is the code that runs, also where a plugin is newer than the installation.
    root = Path(vlmft.__file__).parents[1]
    path = f"export PYTHONPATH={shlex.quote(str(root))}${{PYTHONPATH:+:$PYTHONPATH}}"
    executor.update_parameters(slurm_setup=[*of_all.parameters().get("slurm_setup", []), path])
    calls = [
        (job.overrides, "hydra.sweep.dir", job.number, f"job_id_for_{job.number}", Singleton.get_state())
        for job in group
    ]
    try:
        with redirect_stderr(io.StringIO()):  # the reason is in the exception as well
            submitted = executor.map_array(launcher, *zip(*calls, strict=True))
    except FailedJobError as error:
        why = str(error).strip().removeprefix("sbatch: error: ").replace("\nsbatch: error: ", "; ")
        for job in group:
            job.outcome = job.failed(f"sbatch refused it: {why}")
        print(f"refused   {asked} {of_all}\n          {why}", flush=True)
        return
    for job, at_slurm in zip(group, submitted, strict=True):
        job.id = at_slurm.job_id
        job.tasks = [JobPaths(sweep_dir / FOLDER / "%j", job.id, task) for task in range(at_slurm.num_tasks)]
    note_submitted(sweep_dir, {job.number: job.id for job in group})
    what = "array" if len(group) > 1 else "job"
    print(f"submitted {what} {group[0].id.partition('_')[0]}: {asked} {of_all}", flush=True)


def _here(launcher: VlmftSlurm, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
    """Do in this process what needs no job."""
    from hydra._internal.core_plugins.basic_launcher import BasicLauncher

    here = BasicLauncher()
    assert launcher.hydra_context and launcher.task_function and launcher.config is not None
    here.setup(
        hydra_context=launcher.hydra_context, task_function=launcher.task_function, config=launcher.config
    )  # fmt: skip
    print(f"here      task={launcher.config.task.name} needs no job of Slurm", flush=True)
    return list(here.launch(job_overrides, initial_job_idx))
