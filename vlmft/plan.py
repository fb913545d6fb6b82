"""`task=plan`: what a run needs of a GPU's memory and whether it fits, told before anything is queued or loaded.

The parent imports no torch; `python -m vlmft.plan FOLDER` counts on the meta device, from the checkpoint's config.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from vlmft.config_check import require
from vlmft.data import stream
from vlmft.data.load import source
from vlmft.data.mixture import training_sets
from vlmft.errors import ConfigError, DataError, RunFailed, how_it_died
from vlmft.evaluation.evaluate import chosen_sets, prompts_of
from vlmft.fetch import without_waiting
from vlmft.hardware import child_environment, gpu_memory
from vlmft.schema import Config, Device, Hardware, QuestionSet, read_config

if TYPE_CHECKING:
    from vlmft.models.needs import Needs, Training
    from vlmft.models.row_sizes import RowSizes

SIZES = (16, 24, 40, 48, 80, 141)  # GB of common GPUs
_PROBLEM = "problem.txt"


def start(config: Config) -> None:
    """Print the plan of the run that the config names, made in a process of its own. Nothing is left on disk.

    Raises ConfigError, DataError where the checkpoint's config or a row cannot be used, and RunFailed.
    """
    require(config, "model")
    asked = config.hardware.gpu_memory
    if asked is not None and asked <= 0:
        raise ConfigError(f"hardware.gpu_memory={asked:g} should be the GB of a GPU, such as 24")
    if asked is None and config.hardware.device is not Device.cpu:
        config = replace(config, hardware=replace(config.hardware, gpu_memory=gpu_memory()))
    with tempfile.TemporaryDirectory(prefix="vlmft-") as scratch:
        request = OmegaConf.to_yaml(OmegaConf.structured(config))
        (Path(scratch) / "config.yaml").write_text(request, encoding="utf-8")
        environment = child_environment(Hardware(device=Device.cpu)) | without_waiting(
            config.model
        )  # it counts; no GPU is taken
        code = subprocess.run([sys.executable, "-m", "vlmft.plan", scratch], env=environment).returncode
        problem = Path(scratch) / _PROBLEM
        if problem.is_file():
            raise DataError(problem.read_text(encoding="utf-8"))
    if code in (130, -signal.SIGINT, -signal.SIGTERM):
        raise KeyboardInterrupt
    if code:
        raise RunFailed(f"the plan could not be made: it {how_it_died(code)}")


def row_sizes(config: Config, model_config: Any) -> RowSizes:
    """Of the run's rows, packed as in training, where its sets and its processor are here; else as long as allowed."""
    from vlmft.chat.encode import Encoder
    from vlmft.chat.over_long import fit
    from vlmft.data.training_split import training_questions
    from vlmft.models import row_sizes
    from vlmft.models.load import load_processor, stop_ids

    limit, policy = config.method.max_row_tokens, config.dataset.over_long
    sets = training_sets(config.dataset)
    missing = [name for name, spec in sets.items() if not _here(spec, "train")]
    try:
        processor = None if missing or not sets else load_processor(config.model)
    except DataError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        processor, missing = None, ["the model's processor"]
    if processor is None:
        why = f"{', '.join(missing)} is not here" if missing else "no dataset is chosen"
        said = f"{why}: counted for rows of method.max_row_tokens={limit}, pictures as large as model.max_pixels"
        return row_sizes.made_up(model_config, config.model, config.method, said)
    encoder = Encoder(processor, config.model.answer_style, stop_ids(config.model))
    if config.dataset.streaming:  # those of the first buffer stand for all
        _, questions = stream.count(config.dataset, 1)
    else:
        questions = training_questions(config.dataset, config.seed).train
    rows = fit(encoder, encoder.rows(questions, config.method.algorithm), limit, policy).rows
    if not rows:
        raise DataError(f"no row of {', '.join(sets)} has at most method.max_row_tokens={limit} tokens")
    prompts = [
        row
        for spec in chosen_sets(config.eval, config.dataset).values()
        if _here(spec, "test")
        for row in prompts_of(encoder, spec, config.eval, limit, policy)[1].rows
    ]
    said = f"{len(rows):,} of {', '.join(sets)}, the longest {max(row.length for row in rows):,} tokens"
    family, image_token = model_config.model_type, encoder.image_token_id
    return row_sizes.of_rows(rows, prompts, config.method, family, image_token, config.seed, said)


def _here(spec: QuestionSet, split: str) -> bool:
    try:
        return bool(source(spec).files(spec, split))
    except DataError:
        return False


def show(config: Config, needs: Needs) -> None:
    """Print the plan: the parts of the model, a step, the evaluation, GPUs that are common, several GPUs, a verdict."""
    from vlmft.models.memory import gb
    from vlmft.models.needs import types

    asked = config.hardware.gpu_memory
    gpu = None if asked is None else asked * 1e9
    now, shape, (loaded, _) = needs.training(config, gpu), needs.shape(config), types(config)
    print(f"model     {config.model.name}, {config.method.name}, weights in {_form(config, loaded)}")
    print(f"rows      {needs.rows.said}")
    parts = [[name, _millions(p.parameters), _millions(p.trainable), gb(p.bytes)] for name, p in shape.parts.items()]
    whole = [_millions(shape.parameters), _millions(shape.trainable), gb(sum(p.bytes for p in shape.parts.values()))]
    _table(["part", "millions of weights", "trained", "memory"], [*parts, ["together", *whole]])
    print(
        f"step      micro-batch {now.micro_batch}: {now.batch.tokens:,} tokens, {now.batch.visual:,} of pictures"
        f"{'' if gpu or config.hardware.micro_batch != 'auto' else ' (the smallest, as no GPU is named)'}"
    )
    without, checkpointed = (needs.step(config, now.micro_batch, on).need for on in (False, True))
    names = ("weights", "gradients", "states", "passing", "activations", "total")
    labels = ("weights", "gradients", "optimiser states", "copies and newest gradient", "activations", "together")
    lines = [
        [label, gb(getattr(without, name)), gb(getattr(checkpointed, name))]
        for label, name in zip(labels, names, strict=True)
    ]
    chosen = ["no checkpointing", "gradient checkpointing"]
    chosen[now.checkpointing] += " (used)"
    _table(["training", *chosen], lines)
    if shape.counted_as_adamw:
        print(f"optimiser {config.method.trainer['optim']} is counted as AdamW")
    answers = needs.evaluation(config)
    print(
        f"evaluate  {gb(answers.weights)} weights, {gb(answers.cache)} keys and values of {answers.questions} "
        f"questions of {answers.tokens:,} tokens: {gb(answers.total)}"
    )
    _table(["GPU", "micro-batch", "checkpointing", "training", "", "evaluation", ""], _sizes(config, needs, asked))
    _table(["GPUs", "ZeRO-2", "ZeRO-3", "ZeRO-3, offload to the host"], _sharded(config, needs, now))
    for line in [] if gpu is None else _advice(config, needs, gpu, now):
        print(line)


def _sizes(config: Config, needs: Needs, asked: float | None) -> Iterable[list[str]]:
    from vlmft.models.memory import gb
    from vlmft.models.needs import verdict

    answers = needs.evaluation(config).total
    for size in sorted({float(size) for size in SIZES} | ({asked} if asked else set())):
        found = needs.training(config, size * 1e9)
        yield [
            f"{size:.4g} GB{' (this one)' if size == asked else ''}",
            str(found.micro_batch),
            "on" if found.checkpointing else "off",
            gb(found.need.total), verdict(found.need.total, size * 1e9),
            gb(answers), verdict(answers, size * 1e9),
        ]  # fmt: skip


def _sharded(config: Config, needs: Needs, now: Training) -> Iterable[list[str]]:
    from vlmft.models.memory import gb
    from vlmft.models.needs import RANKS, STRATEGIES

    for ranks in RANKS:
        yield [f"{ranks}", *(f"{gb(needs.on_each(config, how, ranks, now))} each" for how in STRATEGIES)]


def _advice(config: Config, needs: Needs, gpu: float, now: Training) -> Iterable[str]:
    """The verdict on the GPU that is asked about, and what to type where it is not that the run fits."""
    from vlmft.models.memory import gb
    from vlmft.models.needs import DOES_NOT_FIT, FITS, RANKS, verdict

    said = verdict(now.need.total, gpu)
    yield now.need.line(gpu)
    yield f"verdict   training {said} on {gb(gpu)}"
    if said != FITS:
        overrides = needs.cheaper(config, gpu)
        enough = [n for n in RANKS if verdict(needs.on_each(config, "zero3", n, now), gpu) == FITS]
        if overrides:
            yield f"fits with {' '.join(overrides)}"
        elif enough:
            yield f"needs     {enough[0]} GPUs with ZeRO-3"
        elif verdict(needs.on_each(config, "zero3_offload", RANKS[-1], now), gpu) == FITS:
            yield "needs     ZeRO-3 with offload to the host's memory"
        else:
            yield f"needs     more than {RANKS[-1]} GPUs with ZeRO-3, or larger ones"
    if verdict(needs.evaluation(config).total, gpu) == DOES_NOT_FIT:
        yield f"evaluate  {_smaller_batches(config, needs, gpu)}"


def _smaller_batches(config: Config, needs: Needs, gpu: float) -> str:
    """How many questions may be answered together on such a GPU, for an evaluation that does not fit as it is."""
    from vlmft.models.needs import FITS, TIGHT, verdict

    settings = config.eval.generation
    fewer = [settings.batch_size // 2**n for n in range(1, settings.batch_size.bit_length())]
    said = {}
    for count in fewer:
        smaller = replace(config.eval, generation=replace(settings, batch_size=count))
        said[count] = verdict(needs.evaluation(replace(config, eval=smaller)).total, gpu)
    for wanted, words in ((FITS, "fits"), (TIGHT, "is tight")):
        if best := max((count for count in fewer if said[count] == wanted), default=0):
            return f"{words} with eval.generation.batch_size={best}"
    return "does not fit with one question at a time either"


def _form(config: Config, loaded: str) -> str:
    quantization = config.method.quantization or {}
    few = next((bits for bits in (4, 8) if quantization.get(f"load_in_{bits}bit")), None)
    return f"{few} bits" if few else loaded


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f}"


def _table(headings: list[str], rows: Iterable[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(width=max(140, Console().width)).print(table)
    print()


def main(folder: Path) -> int:
    """Print the plan for the config in `folder`. The exit code; what the user can put right is left in a file there."""
    from vlmft.models.load import load_config
    from vlmft.models.needs import Needs

    logging.getLogger().addHandler(logging.NullHandler())  # what libraries say of themselves is no part of a plan
    logging.captureWarnings(True)
    config = read_config(folder / "config.yaml")
    try:
        model_config = load_config(config.model)
        show(config, Needs(model_config, row_sizes(config, model_config)))
    except DataError as error:
        (folder / _PROBLEM).write_text(str(error), encoding="utf-8")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
