"""The keys of `method.trainer`, `method.peft` and `method.quantization`: which exist, and which are ours.

They are TRL's, PEFT's and bitsandbytes' names, so the installed versions decide what is legal
(source.py); nothing here imports those libraries.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from vlmft.library_keys.source import HOMES, Field, Kind, fields_of
from vlmft.library_keys.values import mismatch, nearest, nested_class
from vlmft.schema import Algorithm

_BATCH = (
    "method.batch_size is questions per optimiser step over all ranks; "
    "hardware.micro_batch is how many of them go through at once"
)
_HARDWARE = "hardware= says what a run runs on"
_PACKING = "TRL's packing is another thing; method.packing is ours"
_LENGTH = "image tokens are never cut; see method.max_row_tokens and dataset.over_long"
_LOSS_MASK = "the loss is on the answers, as model.answer_style writes them"
_ROWS = "vlmft reads and encodes the rows itself; see dataset="
_TEMPLATE = "the model's own tokenizer and chat template are used"
_TRACKING = "see tracking.*"
_RESUME = "a started run always resumes from its own newest checkpoint, and must see the rows it has not seen"
_HUB = "vlmft does not push to the Hub; upload the run's `final` folder"
_LOG_LEVEL = "see log_level= at the top level"
_REFERENCE = "the reference is the model that training starts from; what it says of the pairs is computed once and kept"
_TASK = "see task="
_SEED = "see seed= at the top level"
_DTYPE = "see model.dtype"
_VALIDATION = "validation is vlmft's own loop and yields eval_loss, a mean over answer tokens"

# Names that the libraries know and vlmft decides. Each is refused with its reason, since here it would
# either clash with what vlmft passes or have no effect.
_REFUSED_TRAINER: dict[str, str] = {
    "per_device_train_batch_size": _BATCH,
    "gradient_accumulation_steps": _BATCH,
    "auto_find_batch_size": "it would change the batch in mid-run; see hardware.micro_batch",
    "accelerator_config": _BATCH,
    "output_dir": "a run's folder follows from its configuration",
    "packing": _PACKING,
    "packing_strategy": _PACKING,
    "eval_packing": _PACKING,
    "padding_free": _PACKING,
    "pad_to_multiple_of": "rows are padded to the longest that goes through with them",
    "max_length": _LENGTH,
    "truncation_mode": _LENGTH,
    "seed": _SEED,
    "data_seed": _SEED,
    "shuffle_dataset": "rows are shuffled at every epoch, by seed=",
    "resume_from_checkpoint": _RESUME,
    "ignore_data_skip": _RESUME,
    "restore_callback_states_from_checkpoint": _RESUME,
    "save_only_model": "a checkpoint without optimiser state cannot be resumed from",
    "use_cpu": "hardware=cpu does that",
    "deepspeed": _HARDWARE,
    "fsdp": _HARDWARE,
    "fsdp_config": _HARDWARE,
    "parallelism_config": _HARDWARE,
    "ddp_backend": _HARDWARE,
    "local_rank": _HARDWARE,
    "activation_checkpointing": "use its other name, gradient_checkpointing; unset, the device decides",
    "bf16": _DTYPE,
    "fp16": _DTYPE,
    "bf16_full_eval": _DTYPE,
    "fp16_full_eval": _DTYPE,
    "completion_only_loss": _LOSS_MASK,
    "assistant_only_loss": _LOSS_MASK,
    "dataset_text_field": _ROWS,
    "dataset_kwargs": _ROWS,
    "dataset_num_proc": _ROWS,
    "remove_unused_columns": _ROWS,
    "label_names": _ROWS,
    "length_column_name": _ROWS,
    "eos_token": _TEMPLATE,
    "pad_token": _TEMPLATE,
    "chat_template_path": _TEMPLATE,
    "model_init_kwargs": "see model.*",
    "trust_remote_code": "see model.trust_remote_code",
    "report_to": _TRACKING,
    "run_name": _TRACKING,
    "project": "see tracking.project",
    "trackio_space_id": _TRACKING,
    "trackio_bucket_id": _TRACKING,
    "trackio_static_space_id": _TRACKING,
    "disable_tqdm": "vlmft prints its own progress lines",
    "log_level": _LOG_LEVEL,
    "log_level_replica": _LOG_LEVEL,
    "logging_nan_inf_filter": "a loss that is not a number stops the run, and is never shown as another",
    "prediction_loss_only": _VALIDATION,
    "eval_do_concat_batches": _VALIDATION,
    "eval_use_gather_object": _VALIDATION,
    "eval_accumulation_steps": _VALIDATION,
    "include_for_metrics": _VALIDATION,
    "batch_eval_metrics": _VALIDATION,
    "do_train": _TASK,
    "do_eval": _TASK,
    "do_predict": _TASK,
    "push_to_hub": _HUB,
    "hub_token": _HUB,
    "hub_private_repo": _HUB,
    "hub_model_id": _HUB,
    "hub_strategy": _HUB,
    "hub_always_push": _HUB,
    "hub_revision": _HUB,
}
_REFUSED_DPO: dict[str, str] = {
    "precompute_ref_log_probs": _REFERENCE,
    "precompute_ref_batch_size": _REFERENCE,
    "sync_ref_model": _REFERENCE,
    "ref_model_mixup_alpha": _REFERENCE,
    "ref_model_sync_steps": _REFERENCE,
    "ld_alpha": "what the reference says is kept for whole answers, not by token",
}
_REFUSED_PEFT: dict[str, str] = {
    "task_type": "the model's architecture says it",
    "peft_type": "method.peft is LoRA",
    "inference_mode": "task= says whether the adapter is trained or only used",
    "auto_mapping": "PEFT fills it in",
    "peft_version": "PEFT fills it in",
    "base_model_name_or_path": "see model.path",
    "revision": "see model.revision",
    "runtime_config": "PEFT takes an object here that YAML cannot express",
}
REFUSED: dict[Kind, dict[str, str]] = {
    "SFTConfig": _REFUSED_TRAINER,
    "DPOConfig": _REFUSED_TRAINER | _REFUSED_DPO,
    "LoraConfig": _REFUSED_PEFT,
    "BitsAndBytesConfig": {},
}

# What `method.trainer` is passed to.
TRAINERS: dict[Algorithm, Kind] = {Algorithm.sft: "SFTConfig", Algorithm.dpo: "DPOConfig"}

# Names of older versions, or of no version, that many recipes carry.
GONE: dict[str, str] = {
    "batch_size": _BATCH,
    "warmup_ratio": "warmup_steps takes a share of all steps as well, such as 0.03",
    "evaluation_strategy": "it is called eval_strategy",
    "group_by_length": "it is train_sampling_strategy: group_by_length",
    "max_seq_length": _LENGTH,
    "max_prompt_length": _LENGTH,
    "no_cuda": "hardware=cpu does that",
    "overwrite_output_dir": "force=true starts a run anew",
    "logging_dir": _TRACKING,
}

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
    package = _PACKAGES[kind]
    said = f"{kind} of {package} {importlib.metadata.version(package)} has no such key"
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
