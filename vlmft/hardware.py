"""Which devices a run uses, and what follows from them. Importing this file imports no torch."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import asdict, dataclass
from typing import Any

from vlmft import ranks
from vlmft.errors import DataError
from vlmft.schema import Device, Dtype, Hardware, Method, Model, SplitModel, Strategy

# A GPU counts as free below this share of its memory; a desktop's picture takes a few hundred MiB.
_FREE_BELOW = 0.10
_CPU_MICRO_BATCH = 16
_CUDA_MICRO_BATCH = 2  # until models/memory.py has looked at the model and the rows


@dataclass(frozen=True)
class Decisions:
    """What the device decides. Written down at the first start of a run; a resume uses the same or refuses."""

    device: str  # cpu, cuda
    load_dtype: str  # of the weights in memory
    bf16: bool  # autocast
    micro_batch: int
    gradient_checkpointing: bool
    ranks: int = 1  # processes that share a step
    engine: str = "ddp"  # how they share the model: ddp, fsdp, zero1, zero2, zero3

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def free_gpus() -> list[str]:
    """The GPUs that nobody uses, as values for CUDA_VISIBLE_DEVICES; empty where there is none or all are busy."""
    return [uuid for uuid, used, total in _gpus() if used < _FREE_BELOW * total]


def gpu_memory() -> float | None:
    """Total memory of the first GPU here in GB of 10^9 bytes, busy or not; None where there is none."""
    return next((total * 2**20 / 1e9 for _, _, total in _gpus()), None)


def _gpus() -> list[tuple[str, float, float]]:
    """Of each GPU its name for CUDA_VISIBLE_DEVICES, and the MiB that are used and there, as nvidia-smi says."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    query = "--query-gpu=uuid,memory.used,memory.total"
    try:
        listed = subprocess.run(
            [command, query, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=20, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    found = []
    for line in listed.strip().splitlines():
        uuid, used, total = (part.strip() for part in line.split(","))
        try:
            found.append((uuid, float(used), float(total)))
        except ValueError:  # [N/A], on boards that share the host's memory or are cut up
            continue
    return found


def gpus_in_sight(device: Device) -> list[str]:
    """The GPUs that runs may use, as values for CUDA_VISIBLE_DEVICES: those that a user or a scheduler has named there,
    else those that nobody uses."""
    if device is Device.cpu:
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return free_gpus() if named is None else [gpu for gpu in named.split(",") if gpu not in ("", "-1")]


def processes(hardware: Hardware) -> int:
    """How many processes work together on this machine: `hardware.processes`, or one for each GPU in sight."""
    if hardware.processes == "auto":
        return max(1, len(gpus_in_sight(hardware.device)))
    return int(hardware.processes)


def engine(hardware: Hardware) -> str:
    """How several processes share a model: ddp, fsdp, or zero with its stage."""
    if hardware.strategy is not Strategy.deepspeed:
        return hardware.strategy.value
    return f"zero{(hardware.deepspeed.get('zero_optimization') or {}).get('stage', 0)}"


# What torchrun and accelerate launch tell the processes that they start, which are not those that vlmft starts.
_OF_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK",
                 "ROLE_NAME", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # fmt: skip
_OF_LAUNCHERS_BEGIN = ("TORCHELASTIC_", "ACCELERATE_", "FSDP_", "PET_")


def child_environment(hardware: Hardware, split: bool = False) -> dict[str, str]:
    """Environment of the worker, or of what starts its processes: which GPUs it sees, no telemetry, no progress bars of
    the libraries.

    As many GPUs as `hardware` has processes here; with `split` all in sight, where `hardware.split_model` asks for it.
    A CUDA_VISIBLE_DEVICES that is already set (by a user or a scheduler) is respected. Raises DataError where there are
    fewer GPUs than processes, or where `hardware.device=cuda` is asked for and no GPU is free.
    """
    env = {
        key: value
        for key, value in os.environ.items()
        if key not in _OF_LAUNCHERS and not key.startswith(_OF_LAUNCHERS_BEGIN)
    }
    env.update(
        HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_PROGRESS_BARS="1", TOKENIZERS_PARALLELISM="false",
        TRANSFORMERS_NO_ADVISORY_WARNINGS="1", PYTHONUNBUFFERED="1",
    )  # fmt: skip
    seen, count = gpus_in_sight(hardware.device), processes(hardware)
    if not seen and hardware.device is Device.cuda and "CUDA_VISIBLE_DEVICES" not in env:
        raise DataError("hardware.device=cuda: nvidia-smi shows no free GPU here; use hardware=cpu to go on without")
    if seen and count > len(seen):
        raise DataError(
            f"hardware.processes={count}: {len(seen)} GPUs are in sight ({', '.join(seen)}), and each process needs "
            "one of its own; ask for fewer, or use hardware.device=cpu"
        )
    if not (split and hardware.split_model is SplitModel.auto):
        # One process uses one GPU; with several in sight the Trainer would spread each batch over all of them.
        seen = seen[:count]
    env["CUDA_VISIBLE_DEVICES"] = ",".join(seen)
    if not seen:
        env["DS_ACCELERATOR"] = "cpu"  # else importing DeepSpeed warns that it found no accelerator
    if count > 1 and "OMP_NUM_THREADS" not in env:
        env["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // count))
    if count > 1:
        env["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # DDP warns at each start that it need not look for unused weights
    return env


def decide(model: Model, method: Method, hardware: Hardware) -> Decisions:
    """Choices for the device the worker sees. DataError where `hardware.micro_batch` does not divide the step."""
    import torch

    cuda = hardware.device is not Device.cpu and torch.cuda.is_available()
    if hardware.device is Device.cuda and not cuda:
        raise DataError("hardware.device=cuda: torch finds no usable GPU here (driver, or CUDA_VISIBLE_DEVICES)")
    has_bf16 = cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    wanted = model.dtype
    if wanted is Dtype.auto:
        bf16 = has_bf16
        # Full fine-tuning keeps float32 master weights; a frozen base in float32 would be cast anew at every use.
        load_dtype = "bfloat16" if bf16 and method.peft is not None else "float32"
    else:
        load_dtype, bf16 = wanted.value, wanted is Dtype.bfloat16
    return Decisions(
        device="cuda" if cuda else "cpu",
        load_dtype=load_dtype,
        bf16=bf16,
        micro_batch=micro_batch(method.batch_size, hardware.micro_batch, ranks.count(), cuda),
        gradient_checkpointing=bool(method.trainer.get("gradient_checkpointing", cuda)),
        ranks=ranks.count(),
        engine=engine(hardware),
    )


def micro_batch(batch_size: int, wanted: Any, ranks: int, cuda: bool) -> int:
    """Questions per forward pass and rank, so that micro-batch x ranks x accumulation is `batch_size` exactly."""
    if batch_size < 1 or batch_size % ranks:
        legal = {max(1, batch_size // ranks) * ranks, max(1, batch_size // ranks + 1) * ranks}
        nearest = " or ".join(map(str, sorted(legal)))
        raise DataError(f"method.batch_size={batch_size} does not divide over {ranks} ranks; nearest: {nearest}")
    per_rank = batch_size // ranks
    possible = divisors(per_rank)
    if wanted == "auto":
        most = _CUDA_MICRO_BATCH if cuda else _CPU_MICRO_BATCH
        return max(n for n in possible if n <= most)
    if not isinstance(wanted, int) or isinstance(wanted, bool) or wanted not in possible:
        raise DataError(
            f"hardware.micro_batch={wanted}: method.batch_size={batch_size} on {ranks} rank(s) can be done in "
            f"micro-batches of {', '.join(map(str, possible))}, or auto"
        )
    return wanted


def divisors(number: int) -> list[int]:
    """What divides the number, in order."""
    return [n for n in range(1, number + 1) if number % n == 0]
