"""`status.json` of a run, kept true while it runs, and the progress line on the terminal."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from vlmft import ranks
from vlmft.files import read_json, write_json
from vlmft.history import ranked

_WRITE_EVERY = 0.5  # seconds between two writes of the file
_PRINT_EVERY = 15.0  # seconds between two lines where the output is no terminal


def read(folder: Path) -> dict[str, Any]:
    """The run's status, or an empty dict where it has none."""
    try:
        return read_json(folder / "status.json") or {}
    except ValueError:
        return {}


class Status:
    """The status of one attempt at a run. States: running, done, failed, interrupted.

    Of several processes the first one tells it; the others write and print nothing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._silent = not ranks.first()
        self.values: dict[str, Any] = {
            "state": "running",
            "attempt": read(folder).get("attempt", 0) + 1,
            "phase": "starting",
            "step": 0,
            "total": None,
            "loss": None,
            "eta": None,  # seconds
            "error": None,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": time.time(),
        }
        self._written = self._printed = 0.0
        self._began = (time.monotonic(), 0)  # when this phase began, and at which step
        self._bar: Any = None
        self._task: Any = None
        self._write(now=True)

    def phase(self, name: str, total: int | None = None, done: int = 0) -> None:
        """A new part of the work begins, `done` of `total` steps of it done already."""
        self._close_bar()
        self.values.update(phase=name, step=done, total=total, eta=None)
        self._began = (time.monotonic(), done)
        self._printed = time.monotonic()
        if total and sys.stdout.isatty() and not self._silent:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(), console=Console(file=sys.stdout),
            )  # fmt: skip
            self._task = self._bar.add_task(name, total=total, completed=done, note="")
            self._bar.start()
        self._write(now=True)

    def advance(self, done: int) -> None:
        """`done` steps of this phase are done."""
        self.values["step"] = done
        began, first = self._began
        total = self.values["total"]
        if total and done > first:
            self.values["eta"] = round((time.monotonic() - began) / (done - first) * (total - done), 1)
        if self._bar is not None:
            self._bar.update(self._task, completed=done)
        elif time.monotonic() - self._printed > _PRINT_EVERY:
            self._printed = time.monotonic()
            self._print()
        self._write(now=done == total)

    def note(self, step: int, **values: float) -> None:
        """Figures to show beside the progress, those of history.SHOWN."""
        self.values.update(values)
        if self._bar is not None and "loss" in values:
            self._bar.update(self._task, note=self._loss())
        self._write(now=False)

    def finish(self, state: str, error: str | None = None) -> None:
        """The attempt ends in `state`."""
        self._close_bar()
        self.values.update(state=state, error=error, eta=None, phase="" if state == "done" else self.values["phase"])
        self._write(now=True)

    def _line(self) -> str:
        training = self.values["phase"] == "training" and self.values["loss"] is not None
        loss = f", {self._loss()}" if training else ""
        left = f", {self.values['eta']:.0f} s left" if self.values["eta"] is not None else ""
        return f"{self.values['phase']} {self.values['step']}/{self.values['total']}{loss}{left}"

    def _loss(self) -> str:
        return f"loss {self.values['loss']:.4g}{ranked(self.values)}"

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        elif self.values["total"] and self.values["step"]:
            self._print()

    def _print(self) -> None:
        if not self._silent:
            print(self._line(), flush=True)

    def _write(self, now: bool) -> None:
        if self._silent:
            return
        if now or time.monotonic() - self._written > _WRITE_EVERY:
            self._written = time.monotonic()
            write_json(self.folder / "status.json", self.values | {"updated": time.time()})


def correct(folder: Path, state: str, error: str) -> None:
    """Set the state of an attempt that could not do so itself."""
    write_json(folder / "status.json", read(folder) | {"state": state, "error": error, "eta": None})
