"""The child process that does a run's work: `python -m vlmft.worker RUN_DIR`. It never sees Hydra.

`python -m vlmft.worker --evaluation CONFIG RUN_DIR…` evaluates runs that exist, by the `eval` part of another config.
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from vlmft.data import leakage
from vlmft.errors import AGAIN, DataError
from vlmft.evaluation import results
from vlmft.evaluation.evaluate import TRAINED_ON, chosen_sets, prompts_of
from vlmft.evaluation.runs import Together, in_turn
from vlmft.files import disk_full
from vlmft.hardware import Decisions, decide
from vlmft.provenance import decided, write_decided
from vlmft.schema import Algorithm, Config, Task, read_config
from vlmft.status import Status
from vlmft.training import init_from
from vlmft.training.out_of_memory import TryAgain, smaller, within

if TYPE_CHECKING:
    from vlmft.chat.encode import Encoded, Encoder, Row
    from vlmft.data.load import Loaded
    from vlmft.data.training_split import TrainingSplit
    from vlmft.training.streamed import Stream

logger = logging.getLogger("vlmft.worker")


@dataclass(frozen=True)
class Prepared:
    """What training starts from: data read and encoded, the device's choices, and the model with its frozen parts."""

    split: TrainingSplit
    encoder: Encoder
    rows: Encoded
    held_out: Encoded
    tests: dict[str, tuple[Loaded, Encoded]]  # the questions and prompts of each set to evaluate on
    decisions: Decisions
    model: Any
    stream: Stream | None = None  # of a set that is read while training; `split` and `rows` then hold its first buffer


def prepare(config: Config, run: Path, status: Status) -> Prepared:
    """Read, encode and audit the data, decide for the device, and load the model. Raises DataError."""
    from vlmft.chat.encode import Encoder, fit
    from vlmft.data.training_split import training_questions
    from vlmft.models.load import freeze, load_processor, stop_ids
    from vlmft.training import streamed

    loaded = replace(config, model=init_from.base(config))
    status.phase("reading data")
    encoder = Encoder(load_processor(loaded.model), config.model.answer_style, stop_ids(loaded.model))
    limit, policy = config.method.max_row_tokens, config.dataset.over_long
    stream, trained_on = None, run / TRAINED_ON
    if config.dataset.streaming:
        earlier = init_from.with_earlier_rows(config, [])
        stream = streamed.read_through(config.dataset, config.method, encoder, run, trained_on, earlier)
        split, rows = stream.split(), stream.encoded()
    else:
        split = training_questions(config.dataset, config.seed)
        rows = fit(encoder, encoder.rows(split.train, config.method.algorithm), limit, policy)
        leakage.write(trained_on, init_from.with_earlier_rows(config, leakage.trained_on(split.train)))
    held_out = fit(encoder, encoder.rows(split.validation, config.method.algorithm), limit, policy)
    logger.info("data      %s", stream.describe() if stream else split.describe())
    for what, count in (("over-long rows dropped", rows.dropped), ("images shrunk to fit", rows.shrunk)):
        if count:
            logger.info("data      %d %s", count, what)
    tests = {}
    for name, spec in chosen_sets(config.eval, config.dataset).items():
        # What is wrong with a test set shows before training.
        tests[name] = prompts_of(encoder, spec, config.eval, limit, policy)
        found = leakage.sentences(leakage.audit(leakage.each(trained_on), tests[name][0].questions).counts, name)
        for sentence in found or [f"nothing of {name} is in train"]:
            logger.info("leakage   %s", sentence)
    decisions = _decisions(loaded, run, rows.rows, encoder.image_token_id)
    model = init_from.load(config, decisions.load_dtype, run)
    if config.method.algorithm is Algorithm.dpo:
        rows, held_out = (
            _with_reference(part, config, model, encoder, decisions, run, status) for part in (rows, held_out)
        )
    freeze(model, **vars(config.model.freeze))
    return Prepared(split, encoder, rows, held_out, tests, decisions, model, stream)


def _with_reference(
    encoded: Encoded, config: Config, model: Any, encoder: Encoder, decisions: Decisions, run: Path, status: Status
) -> Encoded:
    """The pairs with what the reference model says of them."""
    from vlmft.training.reference import with_reference

    if not encoded.rows:
        return encoded
    status.phase("asking the reference", total=len(encoded.rows))
    return replace(encoded, rows=with_reference(config, model, encoded.rows, encoder, decisions, run, status.advance))


def train(config: Config, run: Path, status: Status) -> None:
    """The run's training, unless `final/` shows that it is done."""
    if (run / "final").is_dir() or config.task is Task.eval:
        return
    import torch

    from vlmft.training import checkpoints, fine_tuning
    from vlmft.training.callbacks import Progress, Wandb

    ready = prepare(config, run, status)
    ready.tests.clear()  # evaluation reads its own, and training can do without them
    if broken := checkpoints.remove_broken(run):
        logger.info("resume    half-written %s removed", ", ".join(broken))
    if checkpoint := checkpoints.newest(run):
        logger.info("resume    from %s", checkpoint.name)
    callbacks: list[Any] = [Progress(status), *_memory(config, ready, run)]
    if config.tracking.wandb:
        settings: Any = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
        callbacks.append(Wandb(config.tracking, run, settings))
    try:
        summary = fine_tuning.train(
        config, model=ready.model, encoder=ready.encoder, rows=ready.rows.rows, validation=ready.held_out.rows,
        decisions=ready.decisions, run=run, callbacks=callbacks, stream=ready.stream,
        )  # fmt: skip
    except torch.OutOfMemoryError as error:
        raise smaller(run, ready.decisions, config.method.batch_size) from error
    counts = {
        "dropped_rows": ready.split.dropped, "over_long_dropped": ready.rows.dropped,
        "images_shrunk": ready.rows.shrunk, "answers_renamed": ready.split.renamed,
    }  # fmt: skip
    results.update(run, train=summary | {"device": ready.decisions.as_dict()} | counts)
    fine_tuning.put_in_place(run)  # last: from here on the training counts as done


def _memory(config: Config, ready: Prepared, run: Path) -> list[Any]:
    """On a GPU: say what training is estimated to need, and have the estimate compared with the real peak."""
    if ready.decisions.device != "cuda":
        return []
    import torch

    from vlmft.models import needs
    from vlmft.training.peak_memory import MeasuredPeak

    need = needs.of_run(config, ready.rows.rows, ready.encoder.image_token_id, ready.decisions)
    logger.info("%s", need.line(torch.cuda.mem_get_info()[1]))

    def compared(found: dict[str, Any]) -> None:
        results.update(run, memory=found)

    return [MeasuredPeak(need.total, compared)]


def _decisions(config: Config, run: Path, rows: Sequence[Row], image_token_id: int | None) -> Decisions:
    """The device's choices of the first start; DataError where this machine cannot go on with them.

    Until there is a checkpoint nothing depends on them, and a later start may choose again.
    """
    from vlmft.training import checkpoints

    now, first = decide(config.model, config.method, config.hardware), decided(run)
    if first is None or checkpoints.newest(run) is None:
        if now.device == "cuda":
            import torch

            from vlmft.models.load import load_config
            from vlmft.models.memory import fitted

            now = fitted(
                now, load_config(config.model), config.model, config.method, config.hardware, rows, image_token_id,
                free_bytes=torch.cuda.mem_get_info()[0],
            )  # fmt: skip
        now = within(run, now, config.method.batch_size)
        logger.info(
            "device    %s, %s, micro-batch %d, gradient checkpointing %s",
            now.device, "bfloat16" if now.bf16 else now.load_dtype, now.micro_batch,
            "on" if now.gradient_checkpointing else "off",
        )  # fmt: skip
        write_decided(run, now.as_dict())
        return now
    then = Decisions(**first)
    if (then.device, then.load_dtype, then.bf16) != (now.device, now.load_dtype, now.bf16):
        raise DataError(
            f"this run was started on {then.device} ({then.load_dtype}, bf16 {'on' if then.bf16 else 'off'}) and "
            f"this machine would use {now.device} ({now.load_dtype}): the weights would differ. Resume it on such a "
            "device, or start again with force=true."
        )
    if then != now:
        logger.info(
            "device    going on as at the first start: micro-batch %d, gradient checkpointing %s",
            then.micro_batch, "on" if then.gradient_checkpointing else "off",
        )  # fmt: skip
    return then


def log_to(run: Path, level: str) -> logging.Handler:
    """Everything goes to the run's train.log; vlmft's own lines also to the terminal."""
    handler = logging.FileHandler(run / "train.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    own = logging.getLogger("vlmft")
    own.setLevel(level.upper())
    if not own.handlers:
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


def die_with_parent() -> None:
    """Ask the kernel to end this process when the one that started it is killed."""
    pr_set_pdeathsig = 1
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)

    def interrupted(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt(signal.Signals(signum).name)

    signal.signal(signal.SIGTERM, interrupted)


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
        results.update(run, state="running")
        quiet_libraries()
        if not evaluate_only:
            train(config, run, status)
        together.evaluate(config, run, wanted, status)
        results.update(run, state="done")
        status.finish("done")
        logger.debug("done in %.1f s", time.monotonic() - started)
        return 0
    except KeyboardInterrupt as stop:
        for again in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C reaches this process and its parent, which passes it on
            signal.signal(again, signal.SIG_IGN)
        results.update(run, state="interrupted")
        status.finish("interrupted", f"stopped by {stop or 'SIGINT'}")
        return 130
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
        try:
            results.update(run, state="failed")
            status.finish("failed", told)
        except OSError:  # there is no room for that either
            print(f"failed    {run}: {told}", file=sys.stderr)
        return 1
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


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
    die_with_parent()
    configs = {run: read_config(run / "config.yaml") for run in options.runs}
    stay_offline(configs.values())
    failures, together = 0, Together()
    for run in in_turn(configs):
        wanted = read_config(options.evaluation) if options.evaluation else configs[run]
        code = _attempt(run, configs[run], wanted, together, evaluate_only=options.evaluation is not None)
        if code in (130, AGAIN):
            return code
        failures += code
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
