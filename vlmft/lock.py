"""One process at a time works on a run. The lock goes with the process, however it dies."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from pathlib import Path
from types import TracebackType

_PATIENCE = 2.0  # seconds for the worker of a killed parent to be gone


class Locked(Exception):
    """Someone else is at work on the run; the message says who."""


class RunLock:
    """Holds the lock of a run as a context manager. Children that inherit `fileno()` hold it too."""

    def __init__(self, outputs: Path, name: str) -> None:
        self.name = name
        self.path = outputs / ".locks" / name
        self._file: int | None = None

    def __enter__(self) -> RunLock:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    holder = self._holder()
                    os.close(self._file)
                    self._file = None
                    raise Locked(f"{holder} is at work on it") from None
                time.sleep(0.1)
        me = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, json.dumps(me).encode(), 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def fileno(self) -> int:
        assert self._file is not None
        return self._file

    def _holder(self) -> str:
        try:
            found = json.loads(self.path.read_text())
            return f"process {found['pid']} on {found['host']} since {found['since']}"
        except (OSError, ValueError, KeyError):
            return "another process"
