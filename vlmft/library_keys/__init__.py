"""The keys of `method.trainer`, `method.peft` and `method.quantization`: which exist, and which are ours (refused.py).

They are TRL's, PEFT's and bitsandbytes' names, so the installed versions decide what is legal
(source.py); nothing here imports those libraries.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from vlmft.library_keys.refused import GONE, REFUSED
from vlmft.library_keys.source import HOMES, Field, Kind, fields_of
from vlmft.library_keys.values import mismatch, nearest, nested_class
from vlmft.schema import Algorithm

# What `method.trainer` is passed to.
TRAINERS: dict[Algorithm, Kind] = {Algorithm.sft: "SFTConfig", Algorithm.dpo: "DPOConfig"}

_PACKAGES = {kind: home.partition(".")[0] for kind, home in HOMES.items()}


@cache
def fields(kind: Kind) -> dict[str, Field]:
    """Return every key that the installed class `kind` takes, by name.

    Raises LookupError where the library is not installed or its source is laid out in a way not known here.
    """
    return fields_of(HOMES[kind], kind)


def check(kind: Kind, values: Mapping[str, Any], where: str) -> list[str]:
    """Return one message for each wrong key or value in `values`, which stand at `where` in the config.

    Empty where all is well. Raises LookupError as `fields` does.
    """
    if not values:
        return []
    messages = []
    legal = fields(kind)
    refused = REFUSED[kind]
    for key, value in values.items():
        place = f"{where}.{key}"
        if key in refused:
            messages.append(f"{place} is not set here: {refused[key]}")
        elif key not in legal:
            messages.append(f"{place}: {_unknown(kind, str(key), legal)}")
        else:
            messages += _wrong_value(legal[key], value, place)
    return messages


def weights_fields(kind: Kind, values: Mapping[str, Any] | None = None) -> frozenset[str]:
    """Return the fields of SFTConfig or DPOConfig that decide the trained weights, by identity_trainer_fields.yaml.

    Fields that do so only under a condition are left out where `values` (of `method.trainer`) do not meet it;
    without `values` they are all in. A field that the list does not know counts as deciding. Raises
    LookupError as `fields` does.
    """
    groups = identity_groups()
    inert = set(groups["does_not"])
    if values is not None:
        by_metric = values.get("lr_scheduler_type") in ("reduce_lr_on_plateau", "greedy")
        if not (values.get("load_best_model_at_end") or by_metric):
            inert |= set(groups["decides_if_a_metric_steers"])
        if values.get("eval_strategy") != "steps" or values.get("eval_steps"):
            inert |= set(groups["decides_if_eval_steps_is_unset"])
    return frozenset(fields(kind)) - inert


@cache
def identity_groups() -> dict[str, list[str]]:
    """Return the groups of identity_trainer_fields.yaml: group name -> field names."""
    text = (Path(__file__).parents[1] / "identity_trainer_fields.yaml").read_text(encoding="utf-8")
    groups: dict[str, list[str]] = yaml.safe_load(text)
    return groups


def _wrong_value(field: Field, value: Any, place: str) -> list[str]:
    problem = mismatch(field, value)
    if problem is not None:
        return [f"{place}: {problem}"]
    nested = nested_class(field) if isinstance(value, Mapping) else None
    if nested is None:
        return []
    messages = []
    legal = fields_of(nested.module, nested.node.name)
    for key, inner in value.items():
        if key in legal:
            messages += _wrong_value(legal[key], inner, f"{place}.{key}")
        else:
            messages.append(f"{place}.{key}: {nested.node.name} has no such key{nearest(str(key), legal)}")
    return messages


def _unknown(kind: Kind, key: str, legal: Mapping[str, Field]) -> str:
    from importlib.metadata import version  # a twentieth of a start

    package = _PACKAGES[kind]
    said = f"{kind} of {package} {version(package)} has no such key"
    if key in GONE and kind in ("SFTConfig", "DPOConfig"):
        return f"{said}; {GONE[key]}"
    allowed = nearest(key, [name for name in legal if name not in REFUSED[kind]])
    if allowed:
        return said + allowed
    other: Kind = "SFTConfig" if kind == "DPOConfig" else "DPOConfig"
    if kind in TRAINERS.values() and key in fields(other):
        return f"{said}; it is {other}'s, of method={'lora' if kind == 'DPOConfig' else 'dpo'}"
    ours = nearest(key, REFUSED[kind])
    return f"{said}{ours}, which vlmft decides itself" if ours else said
