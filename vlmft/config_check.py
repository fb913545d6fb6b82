"""The composed config, checked: wrong keys and types are named with their place and the nearest right one.

Hydra composes and merges; what it cannot see (keys added with `+`, names inside TRL's and PEFT's own settings) is
looked at here. Everything happens before torch is imported.
"""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import ConfigCompositionException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from vlmft import hardware_check, library_keys, method_check, server_check
from vlmft.data import samples, stream
from vlmft.errors import ConfigError, nearest
from vlmft.evaluation.ablations import PASSES, SHUFFLED
from vlmft.evaluation.protocols import PROTOCOLS
from vlmft.schema import Backend, Closed, Config, Eval, Packing, QuestionSet, Task

GROUPS = ("model", "dataset", "method", "hardware", "eval", "experiment")
_OF_A_MIXTURE = {"name", "max_rows", "max_test_rows", "percent", "bad_rows"}  # these hold for each member
LOG_LEVELS = ("debug", "info", "warning", "error")
_DEBUG_TRAIN_ROWS = 32
_DEBUG_TEST_ROWS, _DEBUG_SHUFFLED_ROWS = 8, 24  # whole images, of which a shuffled pass needs two


def check(cfg: DictConfig) -> Config:
    """The composed config as typed objects; with `samples=true` its sets are then the drawn ones.

    Raises ConfigError listing everything that is wrong with it, and DataError where a sample cannot be drawn.
    """
    problems = [*_unknown_keys(cfg, "")]
    try:
        config: Config = OmegaConf.to_object(cfg)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise ConfigError("\n".join([*problems, _first_line(error)])) from error
    method = config.method
    problems += library_keys.check(library_keys.TRAINERS[method.algorithm], method.trainer, "method.trainer")
    problems += library_keys.check("LoraConfig", method.peft or {}, "method.peft")
    problems += library_keys.check("BitsAndBytesConfig", method.quantization or {}, "method.quantization")
    method.quantization = method.quantization or None
    problems += (wrong := list(_wrong_values(config)))
    for name, stage in config.stages.items():
        own = _wrong_values(dataclasses.replace(config, dataset=stage, stages={}))
        problems += [f"stages.{name}: {problem}" for problem in own if problem not in wrong]
    if problems:
        raise ConfigError("\n".join(problems))
    if config.samples:
        samples.take_place(config)
    if config.eval.backend is Backend.server:
        config.model.name = config.eval.served_model or ""  # it is that model's scores that reports show
    return _debug(config) if config.debug else config


def _wrong_values(config: Config) -> Iterable[str]:
    """Values of the right type that cannot be meant."""
    yield from hardware_check.problems(config)
    yield from method_check.problems(config)
    yield from server_check.problems(config)
    if config.method.max_questions_per_row < 1:
        yield f"method.max_questions_per_row={config.method.max_questions_per_row} should be at least 1"
    if config.method.packing is Packing.image and config.method.trainer.get("router_aux_loss_coef"):
        yield "method.trainer.router_aux_loss_coef: TRL cannot compute it on packed rows; set method.packing=none"
    for part, rate in vars(config.method.learning_rates).items():
        if rate is not None and getattr(config.model.freeze, part):
            yield f"method.learning_rates.{part}={rate:g}: model.freeze.{part}=true leaves nothing there to learn"
        elif rate is not None and not 0 < rate < math.inf:
            yield f"method.learning_rates.{part}={rate:g} should be above 0; to stop its learning: model.freeze.{part}"
    if config.stages and config.dataset.name:
        yield (
            f"stages and dataset={config.dataset.name}: the stages {', '.join(config.stages)} are what is trained on; "
            "leave dataset=… out, or add it as a stage, +dataset@stages.NAME=…"
        )
    yield from stream.problems(config.dataset)
    if config.dataset.sets:
        for field in dataclasses.fields(QuestionSet):
            if field.name not in _OF_A_MIXTURE and getattr(config.dataset, field.name) != _default(field):
                yield (
                    f"dataset.{field.name} belongs to one set: say it of a member, "
                    f"dataset.sets.{next(iter(config.dataset.sets))}.{field.name}=…"
                )
    for protocol in config.eval.protocols:
        if protocol not in PROTOCOLS:
            yield f"eval.protocols: there is no {protocol}.{nearest(protocol, PROTOCOLS)}"
    if not config.eval.protocols:
        yield f"eval.protocols is empty; choose from {', '.join(PROTOCOLS)}"
    for name in config.eval.ablations:
        if name not in PASSES:
            yield f"eval.ablations: there is no {name}.{nearest(name, PASSES)}"
    yield from _wrong_split(config)
    if not isinstance(config.eval.debug_matches, int) or config.eval.debug_matches < 0:
        yield f"eval.debug_matches={config.eval.debug_matches} should be a number of comparisons, or true"
    tokens = config.eval.generation.max_new_tokens
    if tokens != "auto" and not (isinstance(tokens, int) and tokens > 0):
        yield f"eval.generation.max_new_tokens={tokens} should be a number of tokens, or auto"
    if config.eval.generation.batch_size < 1:
        yield f"eval.generation.batch_size={config.eval.generation.batch_size} should be at least 1"
    if config.log_level not in LOG_LEVELS:
        yield f"log_level: there is no {config.log_level}.{nearest(config.log_level, LOG_LEVELS)}"


def _wrong_split(config: Config) -> Iterable[str]:
    """What does not go with another split than test: its answers are for pairs, not for scores."""
    split = config.eval.split
    if split == Eval.split:
        return
    told = f"eval.split={split}"
    right = f"python train.py task=eval runs=[RUN_DIR] {told}"
    if not re.fullmatch(r"\w[\w-]*", split) or split in PASSES:
        yield f"eval.split={split!r} should be the name of a split, such as train"
    elif config.task is not Task.eval:
        yield f"{told} is for task=eval, which has a model answer these rows for vlmft pairs: {right}"
    likely = config.eval.closed is Closed.likelihood
    apart = {"ablations": config.eval.ablations, "closed=likelihood": likely, "baseline": config.eval.baseline}
    for key in (key for key, given in apart.items() if given):
        yield f"{told} does not go with eval.{key}; leave that out: {right}"


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def composed(overrides: Sequence[str], dataset: Mapping[str, Any] | None = None) -> Config:
    """The checked config of a command line, where Hydra's main has not composed one; `dataset` are keys of its dataset.

    Raises ConfigError in the words of train.py.
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException

    # No sweep here, and vlmft's sweeper is found only from the repository's folder.
    own = "hydra/sweeper=basic"
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(Path(__file__).parents[1] / "conf")):
            cfg = compose("config", [*overrides, own])
            for key, value in (dataset or {}).items():
                cfg.dataset[key] = value
            return check(cfg)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error)) from error


def require(config: Config, *groups: str) -> None:
    """Raise ConfigError unless each named group has been chosen."""
    missing = [group for group in groups if not getattr(getattr(config, group), "name", "")]
    if missing:
        lines = [f"{group}=… is missing; there is {', '.join(_options(group))}" for group in missing]
        raise ConfigError("\n".join(lines))


def _unknown_keys(node: Any, place: str) -> Iterable[str]:
    """Keys that are no fields of their node's dataclass: `+` puts them there, and no merge complains."""
    if not isinstance(node, DictConfig) or node._is_none() or node._is_missing():
        return
    kind = OmegaConf.get_type(node)
    legal = [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else None
    for key in node:
        full = place + str(key)
        if legal is not None and key not in legal:
            yield f"{full}: there is no such key.{nearest(str(key), legal)}"
        elif not OmegaConf.is_missing(node, key):
            yield from _unknown_keys(node._get_node(key), f"{full}.")


def _debug(config: Config) -> Config:
    """`debug=true`: few rows, two steps, everything told."""
    config.log_level = "debug"
    for dataset in (config.dataset, *config.stages.values()):
        for spec in (dataset, *dataset.sets.values()):
            spec.max_rows = min(spec.max_rows or _DEBUG_TRAIN_ROWS, _DEBUG_TRAIN_ROWS)
    rows = _DEBUG_SHUFFLED_ROWS if SHUFFLED in config.eval.ablations else _DEBUG_TEST_ROWS
    config.eval.max_rows = min(config.eval.max_rows or rows, rows)
    return config


def explain(error: Exception) -> str:
    """The error in words for whoever typed the command."""
    cause = _omegaconf_cause(error)
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and cause.full_key:
        place = _place(error)
        return f"{cause.full_key}: there is no such key{place}.{nearest(str(cause.key), _siblings(cause))}"
    if cause is not None:
        return f"{cause.full_key or 'config'!s}: {_first_line(cause)}{_place(error)}"
    if isinstance(error, MissingConfigException) and error.options:
        group, _, wanted = str(error.missing_cfg_file).rpartition("/")
        return (
            f"{group}={wanted}: there is no such {group.split('/')[-1]}.{nearest(wanted, error.options)} "
            f"There is {', '.join(error.options)}."
        )
    if isinstance(error, ConfigCompositionException):
        return str(error).replace("'+", "'").strip()
    return str(error)


def _omegaconf_cause(error: BaseException | None) -> OmegaConfBaseException | None:
    while error is not None:
        if isinstance(error, OmegaConfBaseException):
            return error
        error = error.__cause__ or error.__context__
    return None


def _place(error: Exception) -> str:
    """Where a key stands: the override, or the file that Hydra names."""
    if match := re.match(r"In '([^']+)'", str(error)):
        return f" (in conf/{match[1]}.yaml)"
    if match := re.match(r"(?:Could not override|Error merging override) '?([^'\s]+)", str(error)):
        return " (on the command line)" if any(match[1].split("=")[0] in arg for arg in sys.argv[1:]) else ""
    return ""


def _siblings(error: OmegaConfBaseException) -> list[str]:
    """Legal names where the wrong one stood."""
    kind = error.object_type
    names = [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
    if kind is Config:
        names += [group for group in GROUPS if group not in names]
    if not names and isinstance(error.parent_node, DictConfig):
        names = [str(key) for key in error.parent_node]
    return names


def _options(group: str) -> list[str]:
    """The options of a config group; Hydra knows them while it runs."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.object_type import ObjectType

    if not GlobalHydra().is_initialized():
        return []
    return GlobalHydra.instance().config_loader().get_group_options(group, results_filter=ObjectType.CONFIG)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
