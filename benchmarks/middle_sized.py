"""A random model between a twin and a real one: small enough for a CPU, but its layers are what takes the time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import sets
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from vlmft.models.load import load_processor
from vlmft.schema import Model

_HEAD = 64  # width of an attention head
WIDTHS = 4 * _HEAD  # of which a width is a multiple: four heads share their keys


def model(cache: Path, pixels: int, width: int, layers: int) -> Model:
    """A checkpoint below `cache` with the GLM-4.1V twin's processor and vocabulary.

    As in the 9B model, about a quarter of the work on a picture is the vision tower's.
    """
    twin = sets.tiny("glm41v", cache / "twin", pixels)
    processor = load_processor(twin)
    config = AutoConfig.from_pretrained(twin.path)
    rope = {**config.text_config.rope_parameters, "mrope_section": [_HEAD // 16, _HEAD // 16, _HEAD // 8]}
    config.text_config.update({
        "hidden_size": width, "num_hidden_layers": layers, "intermediate_size": 3 * width, "rope_parameters": rope,
        "num_attention_heads": width // _HEAD, "num_key_value_heads": width // WIDTHS,
    })  # fmt: skip
    config.vision_config.update({
        "hidden_size": width // 2, "num_heads": width // _HEAD, "intermediate_size": width, "out_hidden_size": width,
        "depth": max(1, layers // 2),
    })  # fmt: skip
    torch.manual_seed(0)
    made = AutoModelForImageTextToText.from_config(config)
    made.generation_config.eos_token_id = config.text_config.eos_token_id
    folder = cache / "model"
    made.save_pretrained(folder)
    processor.save_pretrained(folder)
    return replace(twin, path=str(folder), tiny=None)
