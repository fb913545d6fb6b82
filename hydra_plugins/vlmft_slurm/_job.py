"""What goes on around a run inside its Slurm job: signals, and an outcome that both the launcher and Slurm learn of."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

from hydra.core.utils import JobReturn, JobStatus

from hydra_plugins.vlmft_local_gpus._child import pickled, told


def in_job(call: Callable[[], JobReturn]) -> JobReturn:
    """Do the job and return what it returned; where that is a failure, leave it for the launcher and exit with 1."""
    _answer_signals()
    _forget_earlier_attempts()
    try:
        returned = call()
    except KeyboardInterrupt as stop:
        print(f"stopped by {stop or 'SIGINT'}", file=sys.stderr)
        sys.exit(130)
    if returned.status is not JobStatus.FAILED:
        return returned
    error = returned._return_value
    if isinstance(error, Exception) and not told(error):
        traceback.print_exception(error)
    _leave(returned)
    # Were it returned, submitit would end the job well, and sacct call it COMPLETED.
    sys.exit(1)


def _answer_signals() -> None:
    """SIGTERM ends the job as Ctrl-C would, where submitit passes over it; forked children do nothing at SIGUSR2.

    Slurm signals all processes of a job. A child that has inherited submitit's handler would queue the job once more.
    """

    def interrupted(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt(signal.Signals(signum).name)

    signal.signal(signal.SIGTERM, interrupted)
    handler = signal.getsignal(signal.SIGUSR2)

    def queue_again(signum: int, frame: Any) -> None:
        logging.getLogger("submitit").disabled = False  # by Hydra, and the job's log is to say what is done now
        if callable(handler):
            handler(signum, frame)

    signal.signal(signal.SIGUSR2, queue_again)
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN))


def _forget_earlier_attempts() -> None:
    """Remove the outcome of an earlier attempt of this job, and what one that was killed has half-written."""
    from submitit import JobEnvironment

    job = JobEnvironment()
    mine = [job.paths.result_pickle] + ([job.paths.submitted_pickle] if job.global_rank == 0 else [])
    for file in (job.paths.result_pickle, *(place.with_suffix(place.suffix + ".save_tmp") for place in mine)):
        file.unlink(missing_ok=True)  # at one of the latter submitit could not write again


def _leave(returned: JobReturn) -> None:
    """Put the outcome where submitit would have put it."""
    from submitit import JobEnvironment
    from submitit.core.utils import cloudpickle_dump

    place = JobEnvironment().paths.result_pickle
    half = place.with_suffix(".half")
    cloudpickle_dump(("success", pickle.loads(pickled(returned))), half)
    half.replace(place)
