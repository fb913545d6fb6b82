"""Which device a run uses, and what follows from it. Importing this file imports no torch."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import asdict, dataclass
from typing import Any

from vlmft.errors import DataError
from vlmft.schema import Device, Dtype, Hardware, Method, Model

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


def free_gpu() -> str | None:
    """The first of the GPUs that nobody uses; None where there is none or all are busy."""
    return next(iter(free_gpus()), None)


def child_environment(device: Device) -> dict[str, str]:
    """Environment of the worker: which GPU it sees, no telemetry, no progress bars of the libraries.

    A CUDA_VISIBLE_DEVICES that is already set (by a user or a scheduler) is respected. Raises DataError where
    `hardware.device=cuda` is asked for and no GPU is free.
    """
    env = dict(os.environ)
    env.update(
        HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_PROGRESS_BARS="1", TOKENIZERS_PARALLELISM="false",
        TRANSFORMERS_NO_ADVISORY_WARNINGS="1", PYTHONUNBUFFERED="1",
    )  # fmt: skip
    if device is Device.cpu:
        env["CUDA_VISIBLE_DEVICES"] = ""
    elif "CUDA_VISIBLE_DEVICES" not in env:
        gpu = free_gpu()
        if gpu is None and device is Device.cuda:
            raise DataError(
                "hardware.device=cuda: nvidia-smi shows no free GPU here; use hardware=cpu to go on without"
            )
        env["CUDA_VISIBLE_DEVICES"] = gpu or ""
    # One process uses one GPU; with several in sight the Trainer would spread each batch over all of them.
    env["CUDA_VISIBLE_DEVICES"] = env["CUDA_VISIBLE_DEVICES"].split(",")[0]
    if not env["CUDA_VISIBLE_DEVICES"]:
        env["DS_ACCELERATOR"] = "cpu"  # else importing DeepSpeed warns that it found no accelerator
    return env


def decide(model: Model, method: Method, hardware: Hardware, ranks: int = 1) -> Decisions:
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
        micro_batch=micro_batch(method.batch_size, hardware.micro_batch, ranks, cuda),
        gradient_checkpointing=bool(method.trainer.get("gradient_checkpointing", cuda)),
    )


def micro_batch(batch_size: int, wanted: Any, ranks: int, cuda: bool) -> int:
    """Questions per forward pass and rank, so that micro-batch x ranks x accumulation is `batch_size` exactly."""
    if batch_size < 1 or batch_size % ranks:
        legal = [max(1, batch_size // ranks) * ranks, (batch_size // ranks + 1) * ranks]
        raise DataError(f"method.batch_size={batch_size} does not divide over {ranks} ranks; nearest: {legal}")
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
