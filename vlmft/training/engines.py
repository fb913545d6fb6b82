"""Several processes that train one model: DDP, FSDP2 or DeepSpeed's ZeRO, by way of accelerate.

`hardware.fsdp` and `hardware.deepspeed` go to accelerate as they are. What stands here is what these libraries leave to
whoever calls them: the group of the processes, what has to be there before a model is loaded, and that what runs is
what was asked for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
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
    if not dist.is_initialized():
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


@contextmanager
def mean_gradients() -> Iterator[None]:
    """What TRL gathers of FSDP's shards inside, the head of the language model, has gradients that are means over the
    processes, as FSDP's own are. Without this each keeps for its shard what its own rows say alone."""
    from torch.distributed.tensor import DTensor, Partial

    gather = DTensor.full_tensor

    def gathered(self: DTensor, *, grad_placements: Any = None) -> torch.Tensor:
        summed = gather(self, grad_placements=grad_placements or [Partial()] * self.device_mesh.ndim)
        return _Mean.apply(summed, self.device_mesh.size())  # type: ignore[no-any-return]

    DTensor.full_tensor = gathered  # type: ignore[method-assign]
    try:
        yield
    finally:
        DTensor.full_tensor = gather  # type: ignore[method-assign]


class _Mean(torch.autograd.Function):
    """The same values, with a gradient that is divided."""

    @staticmethod
    def forward(context: Any, values: torch.Tensor, count: int) -> torch.Tensor:
        context.count = count
        return values.view_as(values)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient / context.count, None


def let_go() -> None:
    """From here on models are loaded whole again."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()


def on_the_host(hardware: Hardware) -> bool:
    """Whether the optimiser is to be DeepSpeed's own for the host's memory."""
    zero = hardware.deepspeed.get("zero_optimization") or {}
    device = (zero.get("offload_optimizer") or {}).get("device", "none")
    return device != "none" and hardware.deepspeed.get("zero_force_ds_cpu_optimizer", True)


def forget_trial_step(optimizer: Any) -> None:
    """DeepSpeed makes the states of its Adam by a step on zeros, and counts it: all steps would be as if one later."""
    for state in optimizer.optimizer.optimizer.state.values():
        state["step"] = 0


def compiled(name: str) -> None:
    """Compile one of DeepSpeed's operators, once for all processes and later runs. Raises DataError where that fails.

    A compiler that was killed leaves a lock behind, for which torch would wait without end: it is taken away where no
    process is at work in the operator's folder.
    """
    import fcntl

    import deepspeed.ops.op_builder as builders
    from torch.utils.cpp_extension import _get_build_directory

    builder = {"cpu_adam": builders.CPUAdamBuilder}[name]()
    folder = Path(_get_build_directory(builder.name, verbose=False))
    with open(folder.parent / f".{name}.vlmft", "w") as alone:  # the lock goes with the process, however it dies
        fcntl.flock(alone, fcntl.LOCK_EX)
        if (folder / "lock").exists() and not _at_work_in(folder):
            (folder / "lock").unlink(missing_ok=True)
        try:
            builder.load(verbose=False)
        except Exception as error:  # of the compiler, of ninja, or of DeepSpeed's own look at the machine
            raise DataError(
                f"DeepSpeed could not compile {name} in {folder}: {' '.join(str(error).split())[:300]}. It needs a C++ "
                "compiler (g++) and ninja; hardware.deepspeed.zero_force_ds_cpu_optimizer=false takes torch's AdamW "
                "in its place, which is slower"
            ) from error


def _at_work_in(folder: Path) -> bool:
    """Whether a process is in the folder, as those are that compile there."""
    import psutil

    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.cwd() == str(folder):
                return True
    return False


def whole(parameter: torch.nn.Parameter) -> torch.Tensor:
    """The values of a parameter that may lie in shards; every process has to ask for it."""
    if hasattr(parameter, "full_tensor"):
        return parameter.full_tensor()
    if not hasattr(parameter, "ds_id") and not hasattr(parameter, "_hp_mapping"):
        return parameter
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    if parameter.requires_grad:  # what is computed with has fewer bits, in which small steps do not show
        values = safe_get_full_fp32_param(parameter)
        if values is not None:
            return values
    if not hasattr(parameter, "ds_id"):
        return parameter
    with deepspeed.zero.GatheredParameters(parameter):
        return parameter.detach().clone()
