from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import ROOT
from vlmft.errors import DataError
from vlmft.models.adapters import load_adapter
from vlmft.models.load import freeze, limit_pixels, load_model, load_processor, part_of
from vlmft.models.tiny import write_tiny
from vlmft.schema import Model


def test_the_twin_is_a_real_checkpoint_of_the_family(tiny: Model) -> None:
    from transformers import Glm4vForConditionalGeneration, Glm4vProcessor

    processor, model = load_processor(tiny), load_model(tiny, "float32")
    assert type(processor) is Glm4vProcessor and type(model) is Glm4vForConditionalGeneration
    assert len(processor.tokenizer) < 1000
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000
    parts = {part_of(name) for name, _ in model.named_parameters()}
    assert parts == {"vision", "projector", "llm"}


def test_the_twin_is_the_same_every_time(tiny: Model, tmp_path: Path) -> None:
    again = write_tiny("glm41v", tmp_path / "again")
    ours, theirs = (load_file(Path(folder) / "model.safetensors") for folder in (tiny.path, again))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="not the tiny twin"):
        write_tiny("glm41v", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_twin_of_an_older_recipe_is_written_anew(tmp_path: Path) -> None:
    folder = write_tiny("glm41v", tmp_path / "twin")
    (folder / "tiny.json").write_text('{"kind": "glm41v", "recipe": 0}')
    (folder / "model.safetensors").unlink()
    assert (write_tiny("glm41v", folder) / "model.safetensors").is_file()


def test_a_checkpoint_that_lacks_a_weight_is_refused(tiny: Model, tmp_path: Path) -> None:
    folder = write_tiny("glm41v", tmp_path / "twin")
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"lacks 1 weights.*lm_head\.weight"):
        load_model(replace(tiny, path=str(folder), tiny=None), "float32")


def test_a_model_that_is_nowhere_is_named_with_what_to_do(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    absent = replace(tiny, path="nobody/nothing", tiny=None, revision="v1")
    with pytest.raises(DataError, match=r"nobody/nothing at revision v1 .*model\.path=.*hf download"):
        load_processor(absent)


def test_pixel_limits_count_as_the_family_counts(tiny: Model) -> None:
    """GLM counts both temporal frames: P pixels an image are 2P of its own."""
    processor = load_processor(replace(tiny, min_pixels=28 * 28, max_pixels=56 * 84))
    (count,) = processor._get_num_multimodal_tokens(image_sizes=[(2000, 3000)]).num_image_tokens
    assert count == 6  # 56x84 in tokens of 28x28
    with pytest.raises(DataError, match="min_pixels"):
        limit_pixels(processor, 10_000, 100)


def test_freezing_by_part(tiny: Model) -> None:
    model = load_model(tiny, "float32")
    freeze(model, vision=True, projector=False, llm=True)
    trained = {part_of(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"projector"}


@pytest.fixture
def adapter(tiny: Model, tmp_path: Path) -> tuple[Any, Path]:
    """A model, and a folder with an adapter for it that has been moved away from zero."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(load_model(tiny, "float32"), LoraConfig(target_modules=tiny.lora_targets, r=2))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1)
    model.save_pretrained(tmp_path / "adapter")
    return load_model(tiny, "float32"), tmp_path / "adapter"


def test_an_adapter_is_alive_after_loading(adapter: tuple[Any, Path]) -> None:
    base, folder = adapter
    ids = torch.arange(10, 20)[None]
    off = base(input_ids=ids).logits
    model = load_adapter(base, folder)
    assert not torch.allclose(off, model(input_ids=ids).logits)
    with model.disable_adapter():
        assert torch.allclose(off, model(input_ids=ids).logits)


@pytest.mark.parametrize("damage", ["missing", "unknown", "zero"])
def test_an_adapter_that_does_not_fit_or_does_nothing_is_refused(adapter: tuple[Any, Path], damage: str) -> None:
    base, folder = adapter
    file = folder / "adapter_model.safetensors"
    weights = load_file(file)
    if damage == "missing":
        weights.pop(next(iter(weights)))
    elif damage == "unknown":
        weights[next(iter(weights)).replace("layers.0", "layers.77")] = torch.ones(2)
    else:
        weights = {name: torch.zeros_like(weight) if "lora_B" in name else weight for name, weight in weights.items()}
    save_file(weights, file)
    with pytest.raises(DataError, match="changes nothing" if damage == "zero" else "does not fit"):
        load_adapter(base, folder)


def test_lora_targets_are_the_language_models_layers_only(tiny: Model) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(load_model(tiny, "float32"), LoraConfig(target_modules=tiny.lora_targets, r=2))
    touched = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if "lora_A" in name}
    assert len(touched) == 2 * 6  # two layers: q, k, v, o, gate_up, down
    assert all("language_model.layers" in name for name in touched)


def test_the_names_of_transformers_are_the_same_in_a_fraction_of_the_time() -> None:
    """Its own `dir` is quadratic, and is asked for each part of a model that is loaded."""
    code = """
import statistics, time, transformers

def measured():
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        names = dir(transformers)
        times.append(time.perf_counter() - begun)
    return names, statistics.median(times)

before, slow = measured()
from vlmft.models.load import list_names_at_once
list_names_at_once()
after, quick = measured()
assert after == before and len(after) > 1000
assert slow > 3 * quick, f"{slow:.4f} s before, {quick:.4f} s now: transformers may do without this"
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
