"""Runs that several processes train one after the other, in one set of processes: most of a run's time is starting up.

    python -m vlmft.torchrun --processes 2 --failure FILE -- tests/training/in_turn.py ORDERS.json

An order is a run directory with its config.yaml, and the step at which one of the processes, not the first, is told to
end. What the engine was and what was saved is written beside it, as engine.json.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState

from vlmft import ranks, worker
from vlmft.schema import read_config
from vlmft.status import Status
from vlmft.training import engines, fine_tuning
from vlmft.training.leaving import SaveAndLeave


class Told(SaveAndLeave):
    """The last process is told at a step, by a real signal."""

    at: int | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.at and ranks.number() == ranks.count() - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        super().on_step_end(args, state, control, **kwargs)


def main(orders: list[dict[str, Any]]) -> None:
    checked = engines.check

    def note(trainer: Any, decisions: Any) -> None:
        checked(trainer, decisions)
        if ranks.first():
            state = trainer.accelerator.distributed_type.value
            (run / "engine.json").write_text(json.dumps({"type": state, "steps": trainer.state.global_step}))

    engines.check = note
    fine_tuning.SaveAndLeave = Told  # type: ignore[misc]
    worker.heed_signals()
    worker.quiet_libraries()
    for order in orders:
        run, Told.at = Path(order["run"]), order.get("stop")
        handler = worker.log_to(run, "info")
        config = read_config(run / "config.yaml")
        try:
            worker.train(config, run, Status(run))
        except KeyboardInterrupt:
            assert Told.at is not None
        except Exception as error:
            raise RuntimeError(f"{run.name}: {type(error).__name__}: {error}") from error
        ranks.meet()
        handler.close()
        engines.let_go()
        AcceleratorState._reset_state(reset_partial_state=True)
        for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_"))]:
            del os.environ[name]


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
