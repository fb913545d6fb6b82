"""Inside a process that is to be killed: its trainer is watched, and the signal of the order sent at its moment.

crash.py gives the order in the environment; Python finds `arm` at start. Only the standard library is imported here.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

IN_A_STEP = ("before the first micro-batch", "between micro-batches", "after the optimizer")
WRITES = ("torch.save", "safetensors' save")  # of a file, named by their second argument
RETURN = "its return"
TRAINER, ORDER = "vlmft.training.trainer", "VLMFT_CRASH"


def arm() -> None:
    """Have the trainer watched as soon as a process imports it: only the worker does, and trains."""
    order = json.loads(os.environ[ORDER])
    if TRAINER in sys.modules:  # of a process that is forked
        watch(sys.modules[TRAINER].Planned, order)
        return

    class Finder:
        def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
            if name != TRAINER:
                return None
            sys.meta_path.remove(self)  # type: ignore[arg-type]
            spec: Any = importlib.util.find_spec(name)
            execute = spec.loader.exec_module

            def execute_and_watch(module: Any) -> None:
                execute(module)
                watch(module.Planned, order)

            spec.loader.exec_module = execute_and_watch
            return spec

    sys.meta_path.insert(0, Finder())  # type: ignore[arg-type]


def watch(trainer: Any, order: dict[str, Any]) -> None:
    """Count steps and calls of the trainer, carry out the order's kill at its moment, and note each save's calls."""
    import safetensors.torch
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    training_step, save = trainer.training_step, trainer._save_checkpoint
    step = part = 0
    calls: list[str] | None = None  # of the save under way

    def reached(moment: str) -> None:
        if order["kill"] and (order["kill"]["step"], order["kill"]["in_step"]) == (step, moment):
            strike(order, moment)

    def called(name: str) -> bool:
        """Whether the kill is to fall in this call of a save; at the latest it falls as the save returns."""
        assert calls is not None
        calls.append(name)
        kill = order["kill"]
        if not kill or kill["in_step"] or kill["step"] != step:
            return False
        return bool(len(calls) == kill["call"] or (name == RETURN and len(calls) < kill["call"]))

    def watched(name: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        if calls is not None and called(name):
            if order["kill"]["half"]:
                function(*arguments, **named)
                os.truncate(arguments[1], os.path.getsize(arguments[1]) // 2)
            strike(order, name, len(calls))
        return function(*arguments, **named)  # SIGKILL never comes here; told to end, the training saves on

    def watched_step(self: Any, *arguments: Any, **named: Any) -> Any:
        nonlocal step, part
        now = self.state.global_step + 1
        step, part = now, part + 1 if step == now else 0
        reached(IN_A_STEP[min(part, 1)])
        return training_step(self, *arguments, **named)

    def watched_save(self: Any, *arguments: Any, **named: Any) -> None:
        nonlocal step, calls
        step, calls = self.state.global_step, []
        try:
            save(self, *arguments, **named)
            if called(RETURN):
                strike(order, RETURN, len(calls))
            with open(order["saves"], "a", encoding="utf-8") as file:
                file.write(json.dumps([step, calls]) + "\n")
        finally:
            calls = None

    trainer.training_step, trainer._save_checkpoint = watched_step, watched_save
    register_optimizer_step_post_hook(lambda *_: reached(IN_A_STEP[2]))
    for owner, name, said in (
        (os, "replace", "os.replace"), (os, "rename", "os.rename"), (os, "fsync", "os.fsync"),
        (os, "unlink", "os.unlink"), (torch, "save", WRITES[0]), (safetensors.torch, "serialize_file", WRITES[1]),
    ):  # fmt: skip
        setattr(owner, name, partial(watched, said, getattr(owner, name)))


def strike(order: dict[str, Any], moment: str, call: int = 0) -> None:
    """Say where it falls, and send the signal."""
    Path(order["fell"]).write_text(json.dumps([moment, call]), encoding="utf-8")
    number = signal.Signals[order["kill"]["signal"]]
    if number is signal.SIGTERM:
        os.kill(os.getppid(), number)
    else:
        os.killpg(0, number)  # as Slurm sends SIGUSR2
    time.sleep(2)  # it comes back from the command, and has to find this moment; told, the training goes on and saves
