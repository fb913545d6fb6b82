"""A model too large for one GPU, layer by layer on all that are in sight (`hardware.split_model=auto`)."""

from __future__ import annotations

from typing import Any

from vlmft.errors import DataError

# How the quantisers of transformers begin to say that the GPUs have too little room.
_QUANTIZED_OUTSIDE = "Some modules are dispatched on the CPU or the disk"


def loading() -> dict[str, Any]:
    """What `from_pretrained` has to be told: nothing on a machine without GPU, where there is nothing to split over."""
    import torch

    return {"device_map": "auto"} if torch.cuda.is_available() else {}


def devices(model: Any) -> list[Any]:
    """What the model is split over, in order; nothing where it lies in one place."""
    found = sorted(set((getattr(model, "hf_device_map", None) or {}).values()), key=str)
    return found if len(found) > 1 else []


def is_split(model: Any) -> bool:
    """Whether its layers lie on several devices; below an adapter too."""
    return bool(devices(model.get_base_model() if hasattr(model, "get_base_model") else model))


def to_gpu(model: Any) -> None:
    """Put the model on the GPU, unless it is split over several."""
    if not is_split(model):
        model.to("cuda")


def line(model: Any) -> str:
    """Where a model that was to be split lies, in words."""
    import torch

    if not torch.cuda.is_available():
        return "split     no GPU in sight: the model is on the CPU"
    if found := devices(model):
        return f"split     over the GPUs {', '.join(map(str, found))}"
    return "split     one GPU in sight: the model is on it"


def refuse_outside(model: Any, path: str) -> None:
    """DataError where a part of the model found no room on a GPU, and would be fetched from elsewhere at each token."""
    import torch

    placed = getattr(model, "hf_device_map", None) or {}
    outside = [name for name, device in placed.items() if str(device) in ("cpu", "disk")]
    if outside and torch.cuda.is_available():
        raise no_room(path, f"there is none for {len(outside)} parts of it, such as {outside[0] or 'the whole'}")


def of_quantizer(error: ValueError, path: str) -> Exception:
    """The error itself, or `no_room` in its place where that is what it says."""
    return no_room(path, "it is quantised, and so cannot do without") if _QUANTIZED_OUTSIDE in str(error) else error


def no_room(path: str, why: str) -> DataError:
    """The error of a model that the GPUs in sight have too little memory for."""
    import torch

    free = [torch.cuda.mem_get_info(number)[0] / 1e9 for number in range(torch.cuda.device_count())]
    return DataError(
        f"hardware.split_model=auto: {path} needs more memory than is free on the {len(free)} GPUs in sight "
        f"({', '.join(f'{size:.0f} GB' for size in free)}); {why}. Show it more GPUs "
        "(CUDA_VISIBLE_DEVICES), or take a model in fewer bits"
    )
