"""What of `hardware` belongs together: processes, engine and their settings, and what goes with the method."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vlmft import slurm
from vlmft.errors import DataError, nearest
from vlmft.hardware import micro_batch
from vlmft.schema import Config, Hardware, SplitModel, Strategy, Task

# DeepSpeed passes over names at the top level that it does not know.
_DEEPSPEED = (
    "zero_optimization", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "bf16", "gradient_clipping",
    "gradient_accumulation_steps", "train_micro_batch_size_per_gpu", "train_batch_size", "prescale_gradients",
    "gradient_predivide_factor", "communication_data_type", "seq_parallel_communication_data_type", "steps_per_print",
    "wall_clock_breakdown", "memory_breakdown", "dump_state", "comms_logger", "flops_profiler", "aio", "timers",
    "data_types", "activation_checkpointing", "sparse_gradients", "disable_allgather", "checkpoint", "autotuning",
)  # fmt: skip
_DEEPSPEED_REFUSED = {
    "optimizer": "method.trainer.optim, learning_rate and their like say it",
    "scheduler": "method.trainer.lr_scheduler_type and warmup_steps say it",
    "fp16": "see model.dtype",
    "amp": "see model.dtype",
}
_DEEPSPEED_OURS = {  # by method.batch_size, hardware.micro_batch and the number of processes
    "gradient_accumulation_steps", "train_micro_batch_size_per_gpu", "train_batch_size",
}  # fmt: skip
# transformers passes over names that it does not know.
_FSDP = (
    "version", "reshard_after_forward", "state_dict_type", "transformer_layer_cls_to_wrap", "auto_wrap_policy",
    "min_num_params", "cpu_offload", "cpu_ram_efficient_loading", "activation_checkpointing",
)  # fmt: skip


def problems(config: Config) -> Iterable[str]:
    """A message for each setting that another one contradicts, or that cannot be meant."""
    hardware = config.hardware
    yield from _processes(config)
    yield from _without_effect(hardware)
    if hardware.strategy is Strategy.deepspeed:
        yield from _deepspeed(hardware.deepspeed)
    if hardware.strategy is Strategy.fsdp:
        yield from _fsdp(hardware.fsdp)
    yield from slurm.problems(hardware)
    if hardware.split_model is SplitModel.auto and config.task is Task.eval and _many(hardware):
        yield "hardware.split_model=auto is one process over all GPUs in sight; leave out hardware.processes and nodes"
    if config.task is Task.dry_run and (_many(hardware) or hardware.strategy is not Strategy.ddp):
        yield (
            "task=dry_run tries a run out by one process: say hardware=auto; for several, task=plan says what each of "
            "them needs"
        )


def _processes(config: Config) -> Iterable[str]:
    hardware = config.hardware
    count = hardware.processes
    if count != "auto" and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
        yield f"hardware.processes={count} should be a number from 1 up, or auto (one for each free GPU)"
        return
    if hardware.nodes < 1:
        yield f"hardware.nodes={hardware.nodes} should be a number of machines from 1 up"
        return
    try:
        ranks = hardware.nodes * (1 if count == "auto" else count)
        micro_batch(config.method.batch_size, hardware.micro_batch, ranks=ranks, cuda=False)
    except DataError as error:
        yield str(error)
    if hardware.strategy is Strategy.fsdp and count == 1 and hardware.nodes == 1:
        yield (
            "hardware.strategy=fsdp shares a model between processes: hardware.processes should be 2 or more; on one "
            "GPU, hardware=zero3_offload keeps in the host's memory what does not fit"
        )


def _without_effect(hardware: Hardware) -> Iterable[str]:
    for strategy, settings in ((Strategy.deepspeed, hardware.deepspeed), (Strategy.fsdp, hardware.fsdp)):
        if settings and hardware.strategy is not strategy:
            yield (
                f"hardware.{strategy.value} has no effect with hardware.strategy={hardware.strategy.value}; "
                "leave it out"
            )


def _deepspeed(settings: dict[str, Any]) -> Iterable[str]:
    zero: dict[str, Any] = settings.get("zero_optimization") or {}
    stage = zero.get("stage")
    if stage not in (1, 2, 3):
        yield f"hardware.deepspeed.zero_optimization.stage={stage} should be 1, 2 or 3; hardware=ddp shares nothing"
    for key, value in settings.items():
        if key in _DEEPSPEED_REFUSED:
            yield f"hardware.deepspeed.{key}: {_DEEPSPEED_REFUSED[key]}"
        elif key not in _DEEPSPEED:
            yield f"hardware.deepspeed.{key}: there is no such key.{nearest(key, _DEEPSPEED)}"
        elif key in _DEEPSPEED_OURS and value != "auto":
            yield f"hardware.deepspeed.{key}={value} should be auto: method.batch_size and hardware.micro_batch say it"
    if stage == 3 and not zero.get("stage3_gather_16bit_weights_on_model_save"):
        yield (
            "hardware.deepspeed.zero_optimization.stage3_gather_16bit_weights_on_model_save should be true: what a run "
            "leaves behind are whole weights"
        )


def _fsdp(settings: dict[str, Any]) -> Iterable[str]:
    for key in settings:
        if key not in _FSDP:
            yield f"hardware.fsdp.{key}: there is no such key.{nearest(key, _FSDP)}"
    if settings.get("version", 2) != 2:
        yield f"hardware.fsdp.version={settings['version']} should be 2: the first one goes out of transformers"
    if settings.get("state_dict_type", "FULL_STATE_DICT") != "FULL_STATE_DICT":
        yield (
            f"hardware.fsdp.state_dict_type={settings['state_dict_type']} should be FULL_STATE_DICT: what a run leaves "
            "behind are whole weights"
        )


def _many(hardware: Hardware) -> bool:
    return hardware.processes not in (1, "auto") or hardware.nodes > 1
