"""Hydra launcher `vlmft_local_gpus`: the jobs of a sweep side by side on this machine, one for each free GPU.

Every start of Hydra imports this file, so what takes time to import is imported where it is used; torch is not at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict


@dataclass
class LocalGpusConf:
    _target_: str = "hydra_plugins.vlmft_local_gpus.LocalGpus"
    slots: int | None = None


ConfigStore.instance().store(group="hydra/launcher", name="vlmft_local_gpus", node=LocalGpusConf, provider="vlmft")


class LocalGpus(Launcher):
    """Runs each job in a process of its own, `slots` at a time: None for one on each free GPU, or one on the CPU."""

    def __init__(self, slots: int | None = None) -> None:
        self.slots = slots

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """One JobReturn for each job, in order; that of a job that failed or died holds the reason.

        Raises ConfigError where `slots` is no number from 1 up, and KeyboardInterrupt at Ctrl-C and SIGTERM.
        """
        import tempfile
        from pathlib import Path

        from hydra_plugins.vlmft_local_gpus._processes import Job, run_jobs
        from vlmft.config_check import explain

        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        slots = self._slots(len(job_overrides))
        sweep_dir = Path(str(self.config.hydra.sweep.dir))
        logs = sweep_dir / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        shared = set.intersection(*map(set, job_overrides)) if len(job_overrides) > 1 else set()
        jobs = []
        with tempfile.TemporaryDirectory(prefix="vlmft-sweep-") as scratch:
            # Composed before any starts: a file of conf/ that is edited meanwhile changes no job.
            for number, overrides in enumerate(job_overrides, initial_job_idx):
                label = " ".join(override for override in filter_overrides(overrides) if override not in shared)
                outcome = JobReturn(overrides=list(overrides), status=JobStatus.FAILED)
                job = Job(number, label, logs / f"{number}.log", Path(scratch) / f"{number}.call", outcome)
                try:
                    job.call.write_bytes(self._call(number, overrides))
                except Exception as error:
                    outcome.return_value, job.failure = error, explain(error)
                jobs.append(job)
            return run_jobs(jobs, slots, sweep_dir)

    def _call(self, number: int, overrides: Sequence[str]) -> bytes:
        """What the process of a job has to know, for `_child.py`."""
        import pickle
        import sys

        import cloudpickle
        from hydra.core.singleton import Singleton

        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        call = {"hydra_context": self.hydra_context, "task_function": self.task_function, "config": config}
        # The path comes first, as it takes that to load the rest.
        return pickle.dumps(sys.path) + bytes(cloudpickle.dumps((Singleton.get_state(), call)))

    def _slots(self, jobs: int) -> list[dict[str, str]]:
        """What each slot adds to the environment of its jobs; says how many there are."""
        import os

        from vlmft.errors import ConfigError
        from vlmft.hardware import free_gpus
        from vlmft.schema import Device

        if self.slots is not None and self.slots < 1:
            raise ConfigError(f"hardware.slots={self.slots}: a number of runs from 1 up, or null for one per free GPU")
        on_cpu = OmegaConf.select(self.config, "hardware.device") is Device.cpu
        named = os.environ.get("CUDA_VISIBLE_DEVICES")  # by a user or a scheduler; it stands
        gpus = free_gpus() if named is None else [gpu for gpu in named.split(",") if gpu not in ("", "-1")]
        if gpus and not on_cpu:
            gpus = gpus[: min(self.slots or len(gpus), jobs)]
            print(f"slots     {len(gpus)}, on GPU {', '.join(gpus)}", flush=True)
            return [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus]
        count = min(self.slots or 1, jobs)
        environment = {"CUDA_VISIBLE_DEVICES": ""}
        if count > 1 and "OMP_NUM_THREADS" not in os.environ:
            environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // count))
        print(f"slots     {count}, on the CPU{'' if on_cpu else ': no GPU is free'}", flush=True)
        return [environment] * count
