"""Names that TRL, PEFT and bitsandbytes know and vlmft decides, each with its reason; and names that are no more.

A refused one would either clash with what vlmft passes or have no effect.
"""

from __future__ import annotations

from vlmft.library_keys.source import Kind

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
