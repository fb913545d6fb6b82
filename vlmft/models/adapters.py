"""LoRA adapters: their configuration, loading them whole, and the proof that they do something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmft.errors import DataError
from vlmft.schema import Method, Model


def lora_config(method: Method, model: Model) -> Any:
    """PEFT's LoraConfig from `method.peft`; the modules are the model's `lora_targets` unless the method names them."""
    from peft import LoraConfig

    settings = dict(method.peft or {})
    settings.setdefault("target_modules", model.lora_targets)
    if settings["target_modules"] is None:
        raise DataError(
            f"model {model.name} names no lora_targets: set model.lora_targets to a pattern over module names, "
            "or method.peft.target_modules"
        )
    return LoraConfig(task_type="CAUSAL_LM", **settings)


def is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def load_adapter(model: Any, folder: Path) -> Any:
    """`model` with the adapter of `folder`, ready to generate.

    Raises DataError where a weight of the adapter is missing or does not fit, or where the adapter changes nothing.
    """
    from peft import PeftConfig, get_peft_model
    from peft.utils import load_peft_weights, set_peft_model_state_dict

    config = PeftConfig.from_pretrained(str(folder))
    config.inference_mode = True
    adapted = get_peft_model(model, config)
    result = set_peft_model_state_dict(adapted, load_peft_weights(str(folder), device="cpu"))
    missing = [key for key in result.missing_keys if "lora_" in key or "modules_to_save" in key]
    if missing or result.unexpected_keys:
        raise DataError(
            f"{folder} does not fit the model: {len(missing)} adapter weights missing {missing[:2]}, "
            f"{len(result.unexpected_keys)} unknown {list(result.unexpected_keys)[:2]}"
        )
    if not any(weight.any() for name, weight in adapted.named_parameters() if "lora_B" in name):
        raise DataError(f"{folder} changes nothing: every lora_B weight is zero, as before training")
    adapted.eval()
    return adapted
