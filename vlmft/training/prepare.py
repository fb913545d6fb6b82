"""What training starts from: rows read, encoded and audited, the device's choices, and the model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmft import ranks
from vlmft.data import leakage
from vlmft.errors import DataError
from vlmft.evaluation.evaluate import TRAINED_ON, chosen_sets, prompts_of
from vlmft.hardware import Decisions, decide
from vlmft.provenance import decided, write_decided
from vlmft.schema import Algorithm, Config
from vlmft.status import Status
from vlmft.training import init_from
from vlmft.training.out_of_memory import within

if TYPE_CHECKING:
    from vlmft.chat.encode import Encoder, Row
    from vlmft.chat.over_long import Encoded
    from vlmft.data.load import Loaded
    from vlmft.data.training_split import TrainingSplit
    from vlmft.training.streamed import Stream

logger = logging.getLogger(__name__)


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
    """Read, encode and audit the data, decide for the device, and load the model. Raises DataError.

    Where there are several processes, they have made their group, and the first of them writes what is written.
    """
    from vlmft.chat.encode import Encoder
    from vlmft.chat.over_long import fit
    from vlmft.data.training_split import training_questions
    from vlmft.models.load import freeze, load_processor, stop_ids
    from vlmft.training import engines, streamed

    loaded = replace(config, model=init_from.base(config))
    status.phase("reading data")
    encoder = Encoder(load_processor(loaded.model), config.model.answer_style, stop_ids(loaded.model))
    limit, policy = config.method.max_row_tokens, config.dataset.over_long
    stream, trained_on = None, run / TRAINED_ON
    if config.dataset.streaming:
        earlier = init_from.with_earlier_rows(config, [])
        with ranks.first_goes_first():  # the others find what it writes down
            stream = streamed.read_through(config.dataset, config.method, encoder, run, trained_on, earlier)
        split, rows = stream.split(), stream.encoded()
    else:
        split = training_questions(config.dataset, config.seed)
        rows = fit(encoder, encoder.rows(split.train, config.method.algorithm), limit, policy)
        if ranks.first():
            leakage.write(trained_on, init_from.with_earlier_rows(config, leakage.trained_on(split.train)))
    held_out = fit(encoder, encoder.rows(split.validation, config.method.algorithm), limit, policy)
    logger.info("data      %s", stream.describe() if stream else split.describe())
    for what, count in (("over-long rows dropped", rows.dropped), ("images shrunk to fit", rows.shrunk)):
        if count:
            logger.info("data      %d %s", count, what)
    tests = {}
    for name, spec in chosen_sets(config.eval, config.dataset).items() if ranks.first() else ():
        # What is wrong with a test set shows before training.
        tests[name] = prompts_of(encoder, spec, config.eval, limit, policy)
        found = leakage.sentences(leakage.audit(leakage.each(trained_on), tests[name][0].questions).counts, name)
        for sentence in found or [f"nothing of {name} is in train"]:
            logger.info("leakage   %s", sentence)
    decisions = decisions_of(loaded, run, rows.rows, encoder.image_token_id)
    model = None
    if config.method.algorithm is Algorithm.dpo:
        model = init_from.load(config, decisions.load_dtype, run)
        rows, held_out = (
            _with_reference(part, config, model, encoder, decisions, run, status) for part in (rows, held_out)
        )
    if model is None or decisions.engine == "zero3":
        del model
        with engines.loading(config.hardware, decisions):
            model = init_from.load(config, decisions.load_dtype, run)
    freeze(model, **vars(config.model.freeze))
    if config.method.peft is None and stream is None and not any(row.images for row in rows.rows):
        _freeze_what_sees(model)
    return Prepared(split, encoder, rows, held_out, tests, decisions, model, stream)


def _freeze_what_sees(model: Any) -> None:
    """Where no row shows a picture, nothing reaches these weights; trained ones would cost memory all the same."""
    from vlmft.models.load import freeze, part_of
    from vlmft.models.quantized import elements

    seeing = [w for name, w in model.named_parameters() if w.requires_grad and part_of(name) != "llm"]
    if seeing:
        freeze(model, vision=True, projector=True, llm=False)
        count = sum(map(elements, seeing))
        logger.info("training  no row shows a picture: the %s weights that see stay as they are", f"{count:,}")


def _with_reference(
    encoded: Encoded, config: Config, model: Any, encoder: Encoder, decisions: Decisions, run: Path, status: Status
) -> Encoded:
    """The pairs with what the reference model says of them."""
    from vlmft.training.reference import with_reference

    if not encoded.rows:
        return encoded
    status.phase("asking the reference", total=len(encoded.rows))
    return replace(encoded, rows=with_reference(config, model, encoded.rows, encoder, decisions, run, status.advance))


def decisions_of(config: Config, run: Path, rows: Sequence[Row], image_token_id: int | None) -> Decisions:
    """The device's choices of the first start; DataError where this machine cannot go on with them.

    Until there is a checkpoint nothing depends on them, and a later start may choose again.
    """
    from vlmft.training import checkpoints

    now, first = decide(config.model, config.method, config.hardware), ranks.same(decided(run))
    if first is None or checkpoints.newest(run) is None:
        if now.device == "cuda":
            import torch

            from vlmft.models.load import load_config
            from vlmft.models.memory import fitted

            now = fitted(
                now, load_config(config.model), config.model, config.method, config.hardware, rows, image_token_id,
                free_bytes=torch.cuda.mem_get_info()[0],
            )  # fmt: skip
        now = Decisions(**ranks.same(within(run, now, config.method.batch_size).as_dict()))
        several = f", {now.ranks} processes ({now.engine})" if now.ranks > 1 or now.engine != "ddp" else ""
        logger.info(
            "device    %s, %s, micro-batch %d, gradient checkpointing %s%s",
            now.device, "bfloat16" if now.bf16 else now.load_dtype, now.micro_batch,
            "on" if now.gradient_checkpointing else "off", several,
        )  # fmt: skip
        if ranks.first():
            write_decided(run, now.as_dict())
        return now
    then = Decisions(**first)
    if (then.device, then.load_dtype, then.bf16) != (now.device, now.load_dtype, now.bf16):
        raise DataError(
            f"this run was started on {then.device} ({then.load_dtype}, bf16 {'on' if then.bf16 else 'off'}) and "
            f"this machine would use {now.device} ({now.load_dtype}): the weights would differ. Resume it on such a "
            "device, or start again with force=true."
        )
    if (then.ranks, then.engine) != (now.ranks, now.engine):
        raise DataError(
            f"this run was started on {_shown(then)}, and this start has {_shown(now)}: which process draws which "
            "random numbers, and the order of sums, would differ, and so the weights. Resume it on as many, "
            f"hardware.processes={then.ranks}, or start again with force=true."
        )
    if then != now:
        logger.info(
            "device    going on as at the first start: micro-batch %d, gradient checkpointing %s",
            then.micro_batch, "on" if then.gradient_checkpointing else "off",
        )  # fmt: skip
    return then


def _shown(decisions: Decisions) -> str:
    return f"{decisions.ranks} process{'es' if decisions.ranks > 1 else ''} ({decisions.engine})"
