"""Bases in few bits by bitsandbytes: what is quantised, and whether this machine can."""

from __future__ import annotations

import logging
import math
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from vlmft.errors import DataError

# Patterns of module names. Of itself bitsandbytes passes over the head alone, and takes the patch embedding too where
# that is computed as a linear layer.
_KEPT_WHOLE = ["lm_head", ".*merger", ".*deepstack_merger_list", ".*multi_modal_projector", ".*patch_embed"]


def settings(quantization: dict[str, Any]) -> Any:
    """The BitsAndBytesConfig of `method.quantization`: every linear layer but those that head, projector and patches
    go through, unless `llm_int8_skip_modules` says otherwise.

    Raises DataError where bitsandbytes is not installed, or cannot compute on the device it would load to.
    """
    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise DataError(
            "method.quantization: bitsandbytes is not installed; pip install 'vlmft[quantized]' (on Linux), or choose "
            "method=lora, which trains on the model in bfloat16"
        )
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns at every 8-bit product
    chosen = BitsAndBytesConfig(**{"llm_int8_skip_modules": _KEPT_WHOLE, **quantization})
    _try_out(chosen)
    return chosen


def _try_out(chosen: Any) -> None:
    """Raise DataError unless a small layer can be quantised and used where the model will be."""
    import bitsandbytes as bnb
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if chosen.load_in_4bit:
            layer: Any = bnb.nn.Linear4bit(
                64, 64, bias=False, compute_dtype=chosen.bnb_4bit_compute_dtype,
                compress_statistics=chosen.bnb_4bit_use_double_quant, quant_type=chosen.bnb_4bit_quant_type,
            )  # fmt: skip
        else:
            layer = bnb.nn.Linear8bitLt(64, 64, bias=False, has_fp16_weights=False, threshold=chosen.llm_int8_threshold)
        layer.to(device)(torch.ones(2, 64, device=device))
    except (RuntimeError, ImportError, OSError) as error:
        raise DataError(
            f"method.quantization: bitsandbytes {version('bitsandbytes')} cannot compute on {_named(device)} "
            f"({' '.join(str(error).split())[:300]}); choose method=lora, or install a bitsandbytes for torch "
            f"{torch.__version__}"
        ) from error


def _named(device: str) -> str:
    import torch

    if device == "cpu":
        return "this CPU"
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()} (compute capability {major}.{minor})"


def same_in_training_and_evaluation(model: Any) -> None:
    """Keep the weights of 4-bit layers as they are, whatever a layer is used for.

    On a CPU with AVX512 bitsandbytes repacks them at the first evaluation, with scales of less precision; training then
    goes on through a product that passes no gradient. Biases it turns into the type it computes in at their first use.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
            if module.bias is not None:
                module.bias.data = module.bias.data.to(module.compute_dtype)


def elements(weight: Any) -> int:
    """How many numbers a parameter stands for: two of 4 bits lie in one element, and of ZeRO's it may have a share."""
    if hasattr(weight, "ds_numel"):
        return int(weight.ds_numel)
    state = getattr(weight, "quant_state", None)
    return int(weight.numel()) if state is None else math.prod(state.shape)
