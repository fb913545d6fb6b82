"""What can go wrong for a user, as exceptions, and how a command tells it: in a few lines, and by its exit code."""

from __future__ import annotations

import difflib
import os
import signal
import sys
from collections.abc import Callable, Iterable
from typing import Any

# Exit codes of a worker: its run is to go on in new processes (EX_TEMPFAIL); it was told to end.
AGAIN, INTERRUPTED = 75, 130


class ConfigError(Exception):
    """A config that cannot be run; the message says which key, where, and what would be right."""


class DataError(Exception):
    """Something about data or a model that its owner can put right; the message says what, where and how."""


class RunFailed(Exception):
    """A run did not end well; the message says why and where its log is."""


def told_plainly(main: Callable[[], Any]) -> None:
    """Call Hydra's `main`, and say what went wrong in a few lines instead of a stack of frames.

    HYDRA_FULL_ERROR=1 shows the frames. The exit code is 1 for an error and 130 for an interrupt.
    """
    frames_wanted = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises what it would otherwise print and exit on
    global _failures
    _failures = []
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        if frames_wanted or not _expected(error):
            raise
        tell(error)
        sys.exit(1)
    if _failures:
        sys.exit(1)


_failures: list[Exception] | None = None  # of the runs of this command; None where nobody waits for the exit code


def fail(error: Exception) -> None:
    """A run failed: say so now, and let the other runs of the command go on; the exit code will tell.

    Raised on where a launcher runs this in a process of its own, which is then Hydra's to report.
    """
    tell(error)
    if _failures is None:
        raise error
    _failures.append(error)


def nearest(wrong: str, names: Iterable[str]) -> str:
    """ " Did you mean …?", or where nothing is near, what is legal; to stand behind a sentence."""
    names = list(names)
    near = difflib.get_close_matches(wrong, names, n=2, cutoff=0.5)
    if near:
        return f" Did you mean {' or '.join(near)}?"
    return f" Legal here: {', '.join(names)}." if names else ""


def tell(error: Exception) -> None:
    from vlmft.config_check import explain

    print(explain(error), file=sys.stderr, flush=True)


def _expected(error: Exception) -> bool:
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    known = (ConfigError, DataError, RunFailed, HydraException, OmegaConfBaseException)
    return isinstance(error, known)


def how_it_died(code: int) -> str:
    """What the exit code of a process that said nothing itself means."""
    if code == -signal.SIGKILL:
        return "killed by SIGKILL: by hand, by the scheduler, or because the machine ran out of memory"
    if code == INTERRUPTED:
        return "interrupted"
    return f"ended by signal {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
