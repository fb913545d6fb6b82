"""An interpreter with everything imported, from which commands of train.py and vlmft, and their workers, are forked:
most of a small run's time is imports. What a command does, and in which processes, is the same.

    python tests/prepared.py SOCKET      a request comes with three files, for stdin, stdout and stderr
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import logging
import os
import pkgutil
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ("vlmft.worker", "vlmft.dry_run", "vlmft.check")  # that are forked
OF_ITS_OWN = ("VLMFT_", "TMP", "PYTEST_")  # variables that no library reads as it is imported


class Prepared:
    """The interpreter, seen from the tests; it ends with them."""

    def __init__(self) -> None:
        self.environment = dict(os.environ)
        self.ours, theirs = socket.socketpair()
        # By its last argument a worker that is forked from it is known for one (vlmft/machine.py).
        command = [sys.executable, __file__, str(theirs.fileno()), "vlmft.worker"]
        nothing = subprocess.DEVNULL
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=nothing, stdout=nothing)
        theirs.close()

    def fits(self, environment: Mapping[str, str]) -> bool:
        """Whether a command with this environment would have imported the same."""
        changed = {name for name, _ in environment.items() ^ self.environment.items()}
        return all(name.startswith(OF_ITS_OWN) for name in changed)

    def run(
        self, command: Sequence[str], folder: Path, environment: Mapping[str, str], timeout: float, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """A command of train.py or vlmft, as subprocess.run would have it. Raises subprocess.TimeoutExpired."""
        request = {"command": list(command), "folder": str(folder), "environment": dict(environment)}
        files = [os.memfd_create(name) for name in ("stdin", "stdout", "stderr")]
        os.pwrite(files[0], stdin.encode(), 0)
        socket.send_fds(self.ours, [json.dumps(request).encode() + b"\n"], files)
        self.ours.settimeout(None)
        pid = self._number()
        try:
            self.ours.settimeout(timeout)
            code = self._number()
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            self.ours.settimeout(None)
            self._number()
            raise subprocess.TimeoutExpired(command, timeout) from None
        _, *said = map(_read, files)
        return subprocess.CompletedProcess(command, code, *said)

    def _number(self) -> int:
        return int.from_bytes(self.ours.recv(8, socket.MSG_WAITALL), "big", signed=True)

    def end(self) -> None:
        self.ours.close()
        self.process.wait()


def _read(file: int) -> str:
    with open(file, "rb") as text:
        text.seek(0)
        return text.read().decode()


class Worker(subprocess.Popen[bytes]):
    """A process that a command starts: vlmft's own is forked, anything else is started as ever."""

    def _execute_child(self, args: Any, *others: Any) -> None:
        if list(args[1:2]) != ["-m"] or args[2] not in PROGRAMS:
            super()._execute_child(args, *others)  # type: ignore[misc]
            return
        environment = others[5]
        sys.stdout.flush()
        self.pid = _forked(lambda: _module(args[2], args[3:], environment))
        self._child_created = True


def _module(name: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    from huggingface_hub import constants

    from vlmft import errors

    constants.HF_HUB_OFFLINE = True  # as the worker has it before it imports anything
    errors._failures = None
    logging.root.handlers.clear()  # Hydra's, of the command
    logging.root.setLevel(logging.WARNING)
    for known in map(logging.getLogger, logging.root.manager.loggerDict):
        known.disabled = False
    _become(environment)
    sys.argv = [name, *arguments]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def _command(request: dict[str, Any], files: Sequence[int]) -> None:
    os.chdir(request["folder"])
    _become(request["environment"])
    for number, file in enumerate(files):
        os.dup2(file, number)
    subprocess.Popen = Worker  # type: ignore[misc]
    sys.argv = request["command"]
    if Path(sys.argv[0]).name == "vlmft":
        from vlmft.cli import main as program

        program()
    else:
        sys.path.insert(0, str(ROOT))
        runpy.run_path(sys.argv[0], run_name="__main__")


def _become(environment: Mapping[str, str]) -> None:
    tempfile.tempdir = None  # as the environment has it
    os.environ.clear()
    os.environ.update(environment)


def _forked(does: Callable[[], None]) -> int:
    """The number of a process that does it, and ends as an interpreter does."""
    if pid := os.fork():
        return pid
    for kept in weakref.finalize._registry.values():  # type: ignore[attr-defined]
        kept.atexit = False  # such as the temporary folders of the process that this one is forked from
    code = 0
    try:
        does()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(bool(end.code))
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _import_all() -> None:
    """What small runs import by and by; most of it is loaded when a name of it is first asked for."""
    import deepspeed  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401
    from transformers import (  # noqa: F401
        AutoProcessor,
        Glm4vForConditionalGeneration,
        Glm4vMoeForConditionalGeneration,
        LlamaForCausalLM,
        MllamaForConditionalGeneration,
        Qwen3VLForConditionalGeneration,
        Trainer,
    )
    from trl import DPOTrainer, SFTTrainer  # noqa: F401

    import vlmft

    for module in pkgutil.walk_packages(vlmft.__path__, "vlmft."):
        if module.name not in PROGRAMS and not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def main() -> None:
    requests = socket.socket(fileno=int(sys.argv[1]))
    _import_all()
    gc.collect()
    gc.freeze()
    while True:
        text, files, _, _ = socket.recv_fds(requests, 1 << 20, 3)
        while text and not text.endswith(b"\n"):
            text += requests.recv(1 << 20)
        if not text:
            os._exit(0)
        request = json.loads(text)
        pid = _forked(lambda: _command(request, files))  # noqa: B023
        for file in files:
            os.close(file)
        requests.sendall(pid.to_bytes(8, "big", signed=True))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        requests.sendall(code.to_bytes(8, "big", signed=True))


if __name__ == "__main__":
    main()
