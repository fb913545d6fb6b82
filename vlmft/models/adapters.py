"""LoRA adapters: their configuration, loading them whole, and the proof that they do something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmft.errors import DataError
from vlmft.files import read_json
from vlmft.schema import Method, Model

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")  # PEFT reads the first of them that is there
_ADDED = ("lora_", "modules_to_save", "trainable_tokens")  # what names a weight that an adapter adds


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
    return (folder / CONFIG).is_file()


def said(folder: Path) -> dict[str, Any]:
    """What an adapter's file says of it; DataError where it is no JSON."""
    file = folder / CONFIG
    try:
        found: dict[str, Any] = read_json(file)
    except ValueError as error:
        raise DataError(f"{file} is no JSON: {error}") from error
    return found


def load_adapter(model: Any, folder: Path) -> Any:
    """`model` with the LoRA adapter of `folder` around it, ready to generate.

    Raises DataError where a weight of the adapter is missing, unknown or of another shape, where it is for other
    modules than the model's, or where it changes nothing.
    """
    from peft import LoraConfig, PeftConfig, get_peft_model

    if not any((folder / name).is_file() for name in WEIGHTS):
        raise DataError(f"{folder} holds no {WEIGHTS[0]}: it is not a whole adapter")
    try:
        config: Any = PeftConfig.from_pretrained(str(folder))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder / CONFIG} cannot be read as PEFT's: {error}") from error
    if not isinstance(config, LoraConfig):
        raise DataError(f"{folder} is an adapter of type {config.peft_type.value}; it should be LORA")
    config.inference_mode = True
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:  # for modules that the model does not have
        raise DataError(f"{folder} does not fit the model: {_in_one_line(error)}") from error
    load_weights(adapted, folder)
    adapted.eval()
    return adapted


def load_weights(adapted: Any, folder: Path) -> None:
    """Put the weights of the adapter in `folder` into the one around `adapted`. Raises DataError as `load_adapter`."""
    from peft.utils import load_peft_weights, set_peft_model_state_dict

    try:
        result = set_peft_model_state_dict(adapted, load_peft_weights(str(folder), device="cpu"))
    except KeyError as error:  # of a module that was trained whole
        raise DataError(f"{folder} does not fit the model: 1 adapter weight missing, {error}") from error
    except RuntimeError as error:  # of other shapes
        raise DataError(f"{folder} does not fit the model: {_in_one_line(error)}") from error
    # PEFT itself passes over both.
    missing = [key for key in result.missing_keys if any(part in key for part in _ADDED)]
    if missing or result.unexpected_keys:
        raise DataError(
            f"{folder} does not fit the model: {len(missing)} adapter weights missing {missing[:2]}, "
            f"{len(result.unexpected_keys)} unknown {list(result.unexpected_keys)[:2]}"
        )
    if not any(weight.any() for name, weight in adapted.named_parameters() if "lora_B" in name):
        raise DataError(f"{folder} changes nothing: every lora_B weight is zero, as before training")


def changes(model: Any, prompt: dict[str, Any], **settings: Any) -> bool:
    """Whether the adapter that `model` wears changes the logits of what is said first after a prompt.

    `prompt` is a batch as the model takes it, and `settings` go to its `generate`.
    """
    import torch

    def logits() -> Any:
        # Stock generate asks for the last logits alone, where the model can give them alone.
        return model.generate(
            **prompt, **settings, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
        ).logits[0]

    with torch.inference_mode():
        with model.disable_adapter():
            without = logits()
        return not torch.equal(logits(), without)


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
