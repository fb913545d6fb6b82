"""The child process that does a run's work: `python -m vlmft.worker RUN_DIR`. It never sees Hydra.

Where several work on a run together (vlmft/torchrun.py starts them), the first of them writes what there is one of.

`python -m vlmft.worker --evaluation CONFIG RUN_DIR…` evaluates runs that exist, by the `eval` part of another config.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vlmft import ranks
from vlmft.errors import AGAIN, INTERRUPTED, DataError
from vlmft.evaluation import results, served
from vlmft.evaluation.evaluate import chosen_sets
from vlmft.evaluation.runs import Together, in_turn
from vlmft.files import disk_full
from vlmft.lifetime import end_with_parent, leave_word
from vlmft.schema import Backend, Config, SplitModel, Strategy, Task, read_config
from vlmft.status import Status
from vlmft.training.out_of_memory import TryAgain, smaller
from vlmft.training.prepare import Prepared, prepare

logger = logging.getLogger("vlmft.worker")


def train(config: Config, run: Path, status: Status) -> bool:
    """The run's training, unless `final/` shows that it is done; whether there was any."""
    if (run / "final").is_dir() or config.task is Task.eval:
        return False
    import torch

    from vlmft.training import checkpoints, engines, fine_tuning
    from vlmft.training.callbacks import Progress, Wandb

    first = ranks.first()
    engines.join(config)
    ready = prepare(config, run, status)
    ready.tests.clear()  # evaluation reads its own, and training can do without them
    if first and (broken := checkpoints.remove_broken(run)):
        logger.info("resume    half-written %s removed", ", ".join(broken))
    if checkpoint := checkpoints.newest(run):
        logger.info("resume    from %s", checkpoint.name)
    callbacks: list[Any] = [Progress(status), *_memory(config, ready, run)] if first else []
    if config.tracking.wandb and first:
        settings: Any = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
        callbacks.append(Wandb(config.tracking, run, settings))
    try:
        summary = fine_tuning.train(
            config, model=ready.model, encoder=ready.encoder, rows=ready.rows.rows, validation=ready.held_out.rows,
            decisions=ready.decisions, run=run, callbacks=callbacks, stream=ready.stream,
        )  # fmt: skip
    except torch.OutOfMemoryError as error:
        raise smaller(run, ready.decisions, config.method.batch_size) from error
    if first:
        counts = {
            "dropped_rows": ready.split.dropped, "over_long_dropped": ready.rows.dropped,
            "images_shrunk": ready.rows.shrunk, "answers_renamed": ready.split.renamed,
        }  # fmt: skip
        results.update(run, train=summary | {"device": ready.decisions.as_dict()} | counts)
        fine_tuning.put_in_place(run)  # last: from here on the training counts as done
    return True


def _apart(config: Config) -> bool:
    """Whether evaluation has processes of its own, with nothing left of what several shared, or of one GPU alone."""
    hardware = config.hardware
    alone = ranks.count() == 1 and hardware.strategy is Strategy.ddp and hardware.split_model is SplitModel.no
    return not alone and bool(chosen_sets(config.eval, config.dataset))


def _memory(config: Config, ready: Prepared, run: Path) -> list[Any]:
    """On a GPU: say what training is estimated to need, and have the estimate compared with the real peak."""
    if ready.decisions.device != "cuda" or ready.decisions.engine != "ddp":
        return []
    import torch

    from vlmft.models import needs
    from vlmft.training.peak_memory import MeasuredPeak

    need = needs.of_run(config, ready.rows.rows, ready.encoder.image_token_id, ready.decisions)
    logger.info("%s", need.line(torch.cuda.mem_get_info()[1]))

    def compared(found: dict[str, Any]) -> None:
        results.update(run, memory=found)

    return [MeasuredPeak(need.total, compared)]


def log_to(run: Path, level: str) -> logging.Handler:
    """Everything goes to the run's train.log; vlmft's own lines also to the terminal. Of the other ranks only what is
    wrong, to the log."""
    rank = "" if ranks.first() else f"rank {ranks.number()} "
    handler = logging.FileHandler(run / "train.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter(f"%(asctime)s {rank}%(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    own = logging.getLogger("vlmft")
    own.setLevel(level.upper() if ranks.first() else logging.WARNING)
    if not own.handlers and ranks.first():
        terminal = logging.StreamHandler(sys.stdout)
        terminal.setFormatter(logging.Formatter("%(message)s"))
        own.addHandler(terminal)
    return handler


def quiet_libraries() -> None:
    """No progress bars; what the libraries have to say goes to the log alone."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_default_handler()
    transformers.utils.logging.enable_propagation()


def heed_signals() -> None:
    """SIGTERM, and SIGHUP when the process that started this one is gone, end it like Ctrl-C, with a word.

    A rank goes without one, as it may be waiting for others that are gone too. SIGUSR2, which Slurm sends to every
    process of a job, is for the parent to decide on.
    """
    end_with_parent(signal.SIGHUP if ranks.count() == 1 else signal.SIGKILL)

    def interrupted(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt(signal.Signals(signum).name)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def stay_offline(configs: Iterable[Config]) -> None:
    """Ask the Hub for nothing, as the parent has fetched everything. Only before a library reads the environment."""
    # A model's own code may lie in yet another repository.
    if not any(config.model.trust_remote_code for config in configs):
        os.environ["HF_HUB_OFFLINE"] = "1"


def _attempt(run: Path, config: Config, wanted: Config, together: Together, evaluate_only: bool) -> int:
    """One attempt at a run, its outcome told truthfully in status.json, the log and the exit code."""
    handler = log_to(run, wanted.log_level)
    status = Status(run)
    started = time.monotonic()
    try:
        _tell(run, "running")
        if config.eval.backend is Backend.server:
            served.evaluate(run, wanted, status)
            _tell(run, "done")
            status.finish("done")
            return 0
        quiet_libraries()
        if not evaluate_only and train(config, run, status) and _apart(config):
            return AGAIN
        together.evaluate(config, run, wanted, status)
        _tell(run, "done")
        status.finish("done")
        logger.debug("done in %.1f s", time.monotonic() - started)
        return 0
    except KeyboardInterrupt as stop:
        # Ctrl-C reaches this process and its parent, which passes it on; so may a scheduler's signal.
        for again in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(again, signal.SIG_IGN)
        _tell(run, "interrupted")
        status.finish("interrupted", f"stopped by {stop or 'SIGINT'}")
        return INTERRUPTED
    except TryAgain as again:
        logger.info("memory    %s", again)
        status.finish("interrupted", str(again))
        return AGAIN
    except Exception as error:
        # The traceback belongs to the log; the terminal gets the last line of it from the parent.
        logging.getLogger("traceback").exception("the run failed")
        told = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
        if disk_full(error):
            told = _make_room(run)
        leave_word(told)
        try:
            _tell(run, "failed")
            status.finish("failed", told)
        except OSError:  # there is no room for that either
            print(f"failed    {run}: {told}", file=sys.stderr)
        return 1
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


def _tell(run: Path, state: str) -> None:
    if ranks.first():
        results.update(run, state=state)


def _make_room(run: Path) -> str:
    """Remove what was half-written, and say what is left to go on from."""
    from vlmft.training import checkpoints

    checkpoints.remove_broken(run)
    left = checkpoints.newest(run)
    return (
        f"there is no room left on the disk of {run}. "
        + (f"{left.name} is whole: make room, and" if left else "Make room, and")
        + f" the same command goes on {'from there' if left else 'from the start'}; "
        "method.trainer.save_total_limit says how many checkpoints are kept"
    )


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="vlmft.worker", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--evaluation", type=Path, help="a config whose eval part says what to evaluate")
    options = parser.parse_args(arguments)
    heed_signals()
    configs = {run: read_config(run / "config.yaml") for run in options.runs}
    stay_offline(configs.values())
    failures, together = 0, Together()
    for run in in_turn(configs):
        wanted = read_config(options.evaluation) if options.evaluation else configs[run]
        code = _attempt(run, configs[run], wanted, together, evaluate_only=options.evaluation is not None)
        if code in (INTERRUPTED, AGAIN):
            return code
        failures += code
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
