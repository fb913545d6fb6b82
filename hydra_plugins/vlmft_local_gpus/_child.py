"""The process of one job: `_child.py CALL PARENT` does what the file CALL holds, and puts the JobReturn beside it.

It exits with 0 however the job went, with 130 where it was interrupted, and otherwise where it could not begin.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
import traceback
from pathlib import Path
from typing import Any


def _end_with(parent: int) -> None:
    """SIGTERM, which the kernel sends also when the parent is gone, is an interrupt like Ctrl-C."""
    pr_set_pdeathsig = 1

    def interrupted(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt(signal.Signals(signum).name)

    signal.signal(signal.SIGTERM, interrupted)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
    if os.getppid() != parent:  # gone before it was asked for
        raise KeyboardInterrupt


def _do(call: Path) -> Any:
    """The JobReturn of the job, whatever goes wrong with it."""
    with open(call, "rb") as file:
        sys.path[:] = pickle.load(file)
        from hydra.core.singleton import Singleton
        from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals

        state, arguments = pickle.load(file)
    Singleton.set_state(state)
    setup_globals()
    try:
        returned = run_job(**arguments, job_dir_key="hydra.sweep.dir", job_subdir_key="hydra.sweep.subdir")
    except Exception as error:
        returned = JobReturn(overrides=list(arguments["config"].hydra.overrides.task), status=JobStatus.FAILED)
        returned.return_value = error
    return returned


def told(error: Exception) -> bool:
    """Whether `vlmft.errors.fail` has told it in plain words already."""
    from vlmft.errors import ConfigError, DataError, RunFailed

    return isinstance(error, ConfigError | DataError | RunFailed)


def pickled(returned: Any) -> bytes:
    """The JobReturn as a parent can read it; what cannot travel is replaced by its text."""
    import cloudpickle
    from hydra.core.utils import JobStatus

    try:
        data = cloudpickle.dumps(returned)
        pickle.loads(data)  # an exception may take more arguments than it keeps
        return bytes(data)
    except Exception as problem:
        value = returned._return_value
        if returned.status is JobStatus.FAILED:
            returned.return_value = RuntimeError(f"{type(value).__name__}: {value}")
        else:
            returned.status = JobStatus.FAILED
            returned.return_value = RuntimeError(f"the job returned what cannot be pickled, {type(value)}: {problem}")
            print(returned._return_value, file=sys.stderr)
        return bytes(cloudpickle.dumps(returned))


def main(call: Path, parent: int) -> int:
    try:
        _end_with(parent)
        returned = _do(call)
        error = returned._return_value
        if isinstance(error, Exception) and not told(error):
            traceback.print_exception(error)
        half = call.with_suffix(".half")
        half.write_bytes(pickled(returned))
        half.replace(call.with_suffix(".return"))
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
