"""Training that is told to end, by SIGTERM: it ends with the step under way, saved."""

from __future__ import annotations

import signal
from contextlib import suppress
from typing import Any

from transformers import TrainerCallback

from vlmft import ranks


class SaveAndLeave(TrainerCallback):
    """After SIGTERM the step is done and saved, and KeyboardInterrupt raised; of several processes all do so after the
    same step, whichever of them was told. A second SIGTERM changes nothing: a scheduler sends it to every process, and
    each passes it on."""

    def __init__(self) -> None:
        self.told = self.leaving = False
        self._before: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        def note(signum: int, frame: Any) -> None:
            self.told = True

        with suppress(ValueError):  # not the main thread
            self._before = signal.signal(signal.SIGTERM, note)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if ranks.any_of_them(self.told):
            self.leaving = control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.leaving or ranks.any_of_them(self.told):
            raise KeyboardInterrupt(f"{signal.SIGTERM.name}, saved at step {state.global_step}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None
            if self.told:  # too late for a step to save
                raise KeyboardInterrupt(signal.SIGTERM.name)
