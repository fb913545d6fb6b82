"""Hydra launcher `vlmft_slurm`: the jobs of a sweep on a Slurm cluster, in one array for each shape among them.

Every start of Hydra imports this file, so what takes time to import, submitit above all, is imported where it is used.
"""

from collections.abc import Sequence
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher

# What it takes stands in hardware.*, so there is no class of settings here, which every pickled job would have to find.
_NODE = {"_target_": "hydra_plugins.vlmft_slurm.VlmftSlurm"}
ConfigStore.instance().store(group="hydra/launcher", name="vlmft_slurm", node=_NODE, provider="vlmft")


class VlmftSlurm(SlurmLauncher):
    """Submits each job with what hardware.* asks for, and waits for all of them unless hardware.wait is false.

    What is pickled for a job, how it is called there, and that it is called again, is hydra-submitit-launcher's.
    """

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """One JobReturn for each job, in order; that of a job that failed, died or was refused holds the reason.

        Raises ConfigError where a job's hardware cannot be asked for or there is no Slurm, and KeyboardInterrupt at
        Ctrl-C, which leaves the jobs in the queue.
        """
        from hydra_plugins.vlmft_slurm._submission import launch

        return launch(self, job_overrides, initial_job_idx)

    def __call__(self, *args: Any, **kwargs: Any) -> JobReturn:
        """The job, on its machine. One that failed tells the launcher why, and exits with 1 for Slurm to know it."""
        from hydra_plugins.vlmft_slurm._job import in_job

        call = super().__call__  # by no name of the class, as Hydra imports it anew and pickles go by the older one
        return in_job(lambda: call(*args, **kwargs))
