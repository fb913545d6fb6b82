"""Several processes that train one model: DDP, FSDP2 or DeepSpeed's ZeRO, by way of accelerate.

`hardware.fsdp` and `hardware.deepspeed` go to accelerate as they are. What stands here is what these libraries leave to
whoever calls them: the group of the processes, what has to be there before a model is loaded, and that what runs is
what was asked for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from vlmft import ranks
from vlmft.errors import DataError
from vlmft.hardware import Decisions
from vlmft.schema import Config, Device, Hardware, Strategy

_TIMEOUT = 1800  # seconds, TrainingArguments' own, where `method.trainer.ddp_timeout` says nothing


def join(config: Config) -> None:
    """Make the group of the processes; nothing where this one trains by itself."""
    hardware = config.hardware
    if ranks.count() == 1 and hardware.strategy is Strategy.ddp:
        return
    cuda = hardware.device is not Device.cpu and torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    timeout = timedelta(seconds=config.method.trainer.get("ddp_timeout", _TIMEOUT))
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timeout)
    if hardware.strategy is Strategy.deepspeed:
        import deepspeed

        if not cuda:
            # Of the processes of one CPU, faster; to be compiled first, which is not worth it here.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        # accelerate does so on GPUs only; without it DeepSpeed takes each process for the only one while it loads.
        backend = "nccl" if cuda else "gloo"
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)


@contextmanager
def loading(hardware: Hardware, decisions: Decisions) -> Iterator[None]:
    """A model that is loaded inside is split among the processes as it is read, where they share it by ZeRO-3."""
    if decisions.engine != "zero3":
        yield
        return
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    # What only TrainingArguments know is not needed here.
    settings = {key: value for key, value in hardware.deepspeed.items() if value != "auto"}
    zero = {key: value for key, value in settings["zero_optimization"].items() if value != "auto"}
    known = {"zero_optimization": zero, "bf16": {"enabled": decisions.bf16}, "train_micro_batch_size_per_gpu": 1,
             "gradient_accumulation_steps": 1}  # fmt: skip
    kept = HfDeepSpeedConfig(settings | known)  # transformers looks it up as long as somebody holds it
    yield
    del kept


def arguments(hardware: Hardware) -> dict[str, Any]:
    """What TrainingArguments are told of the engine."""
    if hardware.strategy is Strategy.fsdp:
        return {"fsdp": True, "fsdp_config": dict(hardware.fsdp)}
    if hardware.strategy is Strategy.deepspeed:
        return {"deepspeed": dict(hardware.deepspeed)}
    return {}


def prepare_accelerate(args: Any) -> None:
    """Between the making of TrainingArguments and of a trainer: on a CPU accelerate takes DDP for FSDP without a word,
    unless it believes that the processes are as many GPUs."""
    if args.fsdp and args.use_cpu:
        from accelerate import PartialState
        from accelerate.utils import DistributedType

        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def check(trainer: Any, decisions: Decisions) -> None:
    """Raise DataError unless the trainer's engine is the one that was decided for."""
    kind = trainer.accelerator.distributed_type.value.lower()
    wanted = "deepspeed" if decisions.engine.startswith("zero") else decisions.engine
    runs = {"fsdp": "fsdp", "deepspeed": "deepspeed"}.get(kind, "ddp")
    if runs != wanted or trainer.accelerator.num_processes != decisions.ranks:
        raise DataError(
            f"accelerate runs {kind} on {trainer.accelerator.num_processes} processes, and hardware asks for {wanted} "
            f"on {decisions.ranks}: look at hardware.strategy, and at what the environment says to accelerate"
        )


def let_go() -> None:
    """From here on models are loaded whole again."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()


def on_the_host(hardware: Hardware) -> bool:
    """Whether the optimiser is to be DeepSpeed's own for the host's memory."""
    zero = hardware.deepspeed.get("zero_optimization") or {}
    device = (zero.get("offload_optimizer") or {}).get("device", "none")
    return device != "none" and hardware.deepspeed.get("zero_force_ds_cpu_optimizer", True)


def adam_on_the_host(optimizer: torch.optim.Optimizer) -> Any:
    """DeepSpeedCPUAdam with the groups of parameters and the settings of torch's AdamW."""
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    keys = ("params", "lr", "betas", "eps", "weight_decay")
    groups = [{key: group[key] for key in keys} for group in optimizer.param_groups]
    return DeepSpeedCPUAdam(groups, adamw_mode=True, fp32_optimizer_states=True)


def whole(parameter: torch.nn.Parameter) -> torch.Tensor:
    """The values of a parameter that may lie in shards; every process has to ask for it."""
    if hasattr(parameter, "full_tensor"):
        return parameter.full_tensor()
    if not hasattr(parameter, "ds_id") and not hasattr(parameter, "_hp_mapping"):
        return parameter
    from deepspeed.utils import safe_get_full_fp32_param
    from deepspeed.zero import GatheredParameters

    if parameter.requires_grad:  # what is computed with has fewer bits, in which small steps do not show
        values = safe_get_full_fp32_param(parameter)
        if values is not None:
            return values
    if not hasattr(parameter, "ds_id"):
        return parameter
    with GatheredParameters(parameter):
        return parameter.detach().clone()
