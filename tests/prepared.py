"""An interpreter with everything imported, from which commands of train.py and vlmft, and their workers, are forked:
most of a small run's time is imports. What a command does, and in which processes, is the same.

    python tests/prepared.py SOCKET      a request comes with files for stdin, stdout and stderr, and a socket to answer
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
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TRAIN = str(ROOT / "train.py")
WORKERS = ("vlmft.worker", "vlmft.dry_run", "vlmft.check")
# What is forked: these modules, and these files.
PROGRAMS = (*WORKERS, "vlmft.plan", "vlmft.torchrun", "torch.distributed.run")
FILES = (TRAIN, f"{ROOT}/hydra_plugins/", f"{ROOT}/tests/")
READ_AT_IMPORT = ("HF_", "HOME", "TRANSFORMERS_", "XDG_")  # variables that libraries read as they are imported
# Those of every command: tiny models gain nothing from several threads.
OF_ALL = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR", "DS_ACCELERATOR": "cpu"}


class Started:
    """A command that is running or has ended, as subprocess.Popen would have it."""

    def __init__(self, command: Sequence[str], outcome: socket.socket, files: Sequence[int]) -> None:
        self.args, self._outcome, self._files = command, outcome, files
        self.returncode: int | None = None
        self.pid = self._number()

    def _number(self) -> int:
        number = self._outcome.recv(8, socket.MSG_WAITALL)
        if not number:
            raise ConnectionError("the prepared interpreter is gone")  # and 0 is the number of every process of a group
        return int.from_bytes(number, "big", signed=True)

    def poll(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._outcome], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(list(self.args), timeout or 0.0)
            self.returncode = self._number()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        return self.said()

    def said(self) -> tuple[str, str]:
        """What it has said until now, on stdout and stderr."""
        out, err = (os.pread(file, os.fstat(file).st_size, 0).decode() for file in self._files[1:])
        return out, err

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __del__(self) -> None:
        self._outcome.close()
        for file in self._files:
            os.close(file)


class Prepared:
    """The interpreter, seen from the tests; it ends with them."""

    def __init__(self) -> None:
        self.environment = os.environ | OF_ALL
        self.ours, theirs = socket.socketpair()
        # By its last argument a worker that is forked from it is known for one (vlmft/machine.py).
        command = [sys.executable, __file__, str(theirs.fileno()), "vlmft.worker"]
        self.process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], env=self.environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        theirs.close()

    def others(self, environment: Mapping[str, str]) -> set[str]:
        """The variables for which a command with this environment may import something else."""
        changed = {name for name, _ in environment.items() ^ self.environment.items()}
        return {name for name in changed if name.startswith(READ_AT_IMPORT)}

    def start(
        self, command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None, *,
        stdin: str = "", session: bool = False,
    ) -> Started:  # fmt: skip
        """A command in its folder: train.py or another file of the repository, "-m" and a module of PROGRAMS, vlmft.

        With `session` it has a process group of its own.
        """
        environment = os.environ if environment is None else environment
        assert not (others := self.others(environment)), f"it may import something else, by {', '.join(others)}"
        request = {
            "command": list(command), "folder": str(folder), "environment": {**environment, **OF_ALL},
            "session": session,
        }  # fmt: skip
        files = [os.memfd_create(name, os.MFD_CLOEXEC) for name in ("stdin", "stdout", "stderr")]
        os.pwrite(files[0], stdin.encode(), 0)
        ours, theirs = socket.socketpair()
        socket.send_fds(self.ours, [json.dumps(request).encode() + b"\n"], [*files, theirs.fileno()])
        theirs.close()
        return Started(command, ours, files)

    def run(
        self, command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None, *,
        timeout: float = 300, stdin: str = "", session: bool = False,
    ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """As subprocess.run would have it. Raises subprocess.TimeoutExpired."""
        started = self.start(command, folder, environment, stdin=stdin, session=session)
        try:
            said = started.communicate(timeout)
        except subprocess.TimeoutExpired:
            started.kill()
            raise
        return subprocess.CompletedProcess(list(command), started.wait(), *said)

    def end(self) -> None:
        self.ours.close()
        self.process.wait()


class Worker(subprocess.Popen[Any]):
    """A process that a command starts: those of this repository are forked, anything else is started as ever."""

    def _execute_child(self, args: Any, *others: Any) -> None:
        words = _forkable(args)
        if words is None:
            super()._execute_child(args, *others)  # type: ignore[misc]
            return
        folder, environment, session, pipes = others[4], others[5], others[20], others[9:15]

        def does() -> None:
            for file, number in ((pipes[0], 0), (pipes[3], 1), (pipes[5], 2)):  # its ends of stdin, stdout, stderr
                if file not in (-1, number):
                    os.dup2(file, number)
            for file in set(pipes) - {-1, 0, 1, 2}:
                os.close(file)
            _as_anew(words, folder, os.environ if environment is None else environment, session)

        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = _forked(does)
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


def _forkable(args: Any) -> list[str] | None:
    """What the interpreter is to run, where that can be forked."""
    words = [str(word) for word in args[1:]] if isinstance(args, list | tuple) else []
    while words[:1] in (["-u"], ["-P"]):
        del words[0]
    module = words[:1] == ["-m"] and words[1] in PROGRAMS
    return words if module or (words and words[0].startswith(FILES)) else None


def _as_anew(words: Sequence[str], folder: Any, environment: Mapping[str, str], session: bool) -> None:
    """Do what an interpreter does that is started with these words, in this process."""
    if session:
        os.setsid()
    if folder:
        os.chdir(folder)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None
    _forget(worker=words[0] == "-m" and words[1] in WORKERS)
    for place in filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)):
        sys.path.insert(0, place)
        if (file := Path(place) / "sitecustomize.py").is_file():
            exec(compile(file.read_text(), file, "exec"), {"__name__": "sitecustomize"})
    if words[0] == "-m":
        sys.argv = list(words[1:])
        sys.modules.pop(words[1], None)
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif Path(words[0]).name == "vlmft":
        from vlmft.cli import main

        sys.argv = list(words)
        main()
    else:
        sys.argv = list(words)
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")


def _forget(worker: bool) -> None:
    """What the process that this one is forked from has done to modules, and what they were told when imported."""
    from huggingface_hub import constants
    from hydra.core.global_hydra import GlobalHydra
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler
    from transformers.utils.logging import disable_progress_bar

    from vlmft import errors, start

    subprocess.Popen = subprocess_handler.Popen = Worker  # type: ignore[misc, attr-defined]
    # A worker asks for that before it imports anything.
    constants.HF_HUB_OFFLINE = worker or os.environ.get("HF_HUB_OFFLINE") == "1"
    if os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS") == "1":
        disable_progress_bar()
    errors._failures = start._meeting = None
    GlobalHydra.instance().clear()
    logging.root.handlers.clear()  # Hydra's
    logging.root.setLevel(logging.WARNING)
    for known in map(logging.getLogger, logging.root.manager.loggerDict):
        known.disabled = False


def _command(request: dict[str, Any], files: Sequence[int]) -> None:
    """In a process of its own: start the command, and tell its number and then its exit code."""
    *standard, outcome = files

    def does() -> None:
        for number, file in enumerate(standard):
            os.dup2(file, number)
        for file in files:
            os.close(file)
        _as_anew(request["command"], request["folder"], request["environment"], request["session"])

    pid = _forked(does)
    os.write(outcome, pid.to_bytes(8, "big", signed=True))
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.write(outcome, code.to_bytes(8, "big", signed=True))


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
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)  # whatever happens: the caller's work is the other process's


def _import_all() -> None:
    """What small runs import by and by; most of it is loaded when a name of it is first asked for."""
    import deepspeed  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401
    from torch.distributed.elastic.rendezvous import dynamic_rendezvous
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
    # The same name, without looking for every caller in all these modules, which took the agents of two machines 25 s.
    dynamic_rendezvous.get_method_name = lambda depth=2: sys._getframe(depth).f_code.co_name


def main() -> None:
    requests = socket.socket(fileno=int(sys.argv[1]))
    _import_all()
    gc.collect()
    gc.freeze()
    while True:
        text, files, _, _ = socket.recv_fds(requests, 1 << 20, 4)
        while text and not text.endswith(b"\n"):
            text += requests.recv(1 << 20)
        if not text:
            os._exit(0)
        request = json.loads(text)
        _forked(lambda: _command(request, files))  # noqa: B023
        for file in files:
            os.close(file)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:  # those that have ended
                pass


if __name__ == "__main__":
    main()
