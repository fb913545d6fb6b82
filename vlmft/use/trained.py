"""What a run, an adapter folder or a model folder holds, taken up by a command: its config, its device, its model."""

from __future__ import annotations

import logging
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmft.config_check import composed
from vlmft.data.question import Question
from vlmft.errors import ConfigError, DataError
from vlmft.evaluation.evaluate import chosen_sets, test_questions
from vlmft.evaluation.folders import run_of
from vlmft.evaluation.runs import trained
from vlmft.fetch import make_ready, model_folder
from vlmft.hardware import child_environment, decide
from vlmft.models import adapters
from vlmft.schema import Backend, Config, Device, Hardware, Model, QuestionSet, SplitModel, Task, read_config

if TYPE_CHECKING:
    from vlmft.chat.encode import Encoder


def config_of(folder: Path, model: str | None = None) -> tuple[Path, Config]:
    """The run directory that `folder` is, or would be evaluated in, and its config.

    `model`, an option of conf/model, says of a folder that no run made how it is asked. Raises DataError and
    ConfigError where there is nothing trained, or where `model` is missing or superfluous.
    """
    if folder.name == "final" and (folder.parent / "config.yaml").is_file():
        folder = folder.parent
    if (folder / "config.yaml").is_file():
        if read_config(folder / "config.yaml").task is not Task.eval and not (folder / "final").is_dir():
            raise DataError(
                f"{folder} has no final/: its training is not done. Start its own command again until it is"
            )
        if read_config(folder / "config.yaml").eval.backend is Backend.server:
            raise ConfigError(f"{folder} has what a server answered, and no weights: name a run that has them")
        if model:
            raise ConfigError(f"--model: {folder} is a run and has its own; leave it out")
        return run_of(folder, Config())
    if not adapters.is_adapter(folder) and not (folder / "config.json").is_file():
        raise DataError(
            f"{folder} is no run directory (config.yaml), no adapter folder ({adapters.CONFIG}) and no model folder "
            "(config.json)"
        )
    if not model:
        raise ConfigError(
            f"{folder} is no run, so nothing says how it is asked: name --model, an option of conf/model of its "
            "family, whose answer style and pixel limits it has"
        )
    return run_of(folder, composed([f"model={model}", "task=eval"]))


def hardware_of(device: Device, split_model: bool) -> Hardware:
    """What `--device` and `--split-model` say, as a run's hardware."""
    return Hardware(device=device, split_model=SplitModel.auto if split_model else SplitModel.no)


def use_device(hardware: Hardware) -> None:
    """Show this process one free GPU or none, or all where the model is to be split, and keep the libraries quiet;
    before anything imports torch.

    Raises DataError where a GPU is asked for and none is free.
    """
    try:
        environment = child_environment(hardware, split=True)
    except DataError as error:
        raise DataError("--device cuda: nvidia-smi shows no free GPU here; leave it out to go on without") from error
    for key in os.environ.keys() - environment.keys():  # it is none of the processes that something else started
        del os.environ[key]
    os.environ.update(environment)
    from vlmft.worker import quiet_libraries

    logging.captureWarnings(True)
    logging.getLogger().addHandler(logging.NullHandler())  # else Python prints what nobody handles
    quiet_libraries()


def here(run: Path, config: Config) -> tuple[Model, dict[str, Any] | None, Path | None]:
    """The checkpoint under a run as a folder of this machine, its quantisation, and the adapter's folder, if any.

    Fetches the checkpoint where it is in the Hub alone. Raises DataError where it cannot be had.
    """
    spec, quantization, adapter = trained(config, run)
    make_ready(spec, [])
    folder = model_folder(spec)
    if folder and not spec.tiny:  # by its folder, nothing asks the Hub again
        spec = replace(spec, path=str(folder), revision=None)
    return spec, quantization or None, adapter


def encoder_of(spec: Model) -> Encoder:
    """How the checkpoint is asked: its processor with the run's pixel limits, its template, the run's answer style."""
    from vlmft.chat.encode import Encoder
    from vlmft.models.load import load_processor, stop_ids

    return Encoder(load_processor(spec), spec.answer_style, stop_ids(spec))


def load(run: Path, config: Config, hardware: Hardware) -> tuple[Any, Encoder]:
    """The trained model as evaluation has it, and its encoder. Raises DataError where either cannot be loaded."""
    decisions = decide(config.model, config.method, hardware)
    spec, quantization, adapter = here(run, config)
    encoder = encoder_of(spec)
    model = placed(spec, "bfloat16" if decisions.bf16 else decisions.load_dtype, hardware, quantization)
    return (adapters.load_adapter(model, adapter) if adapter else model), encoder


def placed(spec: Model, dtype: str, hardware: Hardware, quantization: dict[str, Any] | None = None) -> Any:
    """The checkpoint's model, ready to answer, where `hardware` has it: on a GPU, split over all in sight, or here."""
    import torch

    from vlmft.models import split
    from vlmft.models.load import load_model

    split_model = hardware.split_model is SplitModel.auto
    model = load_model(spec, dtype, quantization, split_model)
    if hardware.device is not Device.cpu and torch.cuda.is_available() and not quantization:
        split.to_gpu(model)
    return model.eval()


def seed(number: int) -> None:
    """Draw the same tokens again for the same number."""
    import torch

    torch.manual_seed(number)


def own_sets(config: Config) -> dict[str, QuestionSet]:
    """The sets that a run was trained on, or where it trained nothing, those it was evaluated on."""
    return chosen_sets(replace(config.eval, own=True, sets={}), config.dataset) or dict(config.eval.sets)


def own_questions(config: Config, count: int, seed: int) -> list[Question]:
    """About `count` test questions of the run's own sets, as many of each set, each about other pictures.

    Raises DataError where there is no such set, or where it cannot be read.
    """
    sets = own_sets(config)
    if not sets:
        raise DataError("it was trained on no set that is known here, and evaluated on none")
    chosen = []
    for name, spec in sets.items():
        of_pictures: dict[Any, list[Question]] = {}
        for question in test_questions(spec, config.eval).questions:
            of_pictures.setdefault(question.images or question.id, []).append(question)
        draw = random.Random(f"own questions {name} {seed}")
        groups = list(of_pictures.values())
        drawn = draw.sample(groups, min(len(groups), max(1, count // len(sets))))
        chosen += [draw.choice(group) for group in drawn]
    return chosen
