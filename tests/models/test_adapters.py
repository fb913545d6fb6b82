"""Adapters: what does not fit is refused, and the base under them stays as it was."""

from __future__ import annotations

import copy
import json
import weakref
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from vlmft.errors import DataError
from vlmft.models import load
from vlmft.models.adapters import WEIGHTS, changes, load_adapter
from vlmft.models.base import Base
from vlmft.models.load import load_model
from vlmft.schema import Config, Model

PROMPT = {"input_ids": torch.arange(10, 20)[None], "attention_mask": torch.ones(1, 10, dtype=torch.int64)}


@cache
def read(path: str) -> Any:
    return load_model(Model(path=path), "float32")


def fresh(spec: Model) -> Any:
    """As `load_model` gives it, in less time."""
    return copy.deepcopy(read(load.source(spec)))


def write_adapter(spec: Model, folder: Path, seed: int = 0, **settings: Any) -> Path:
    """An adapter that does something, whatever it is begun with."""
    chosen = {"target_modules": spec.lora_targets, "r": 2, "task_type": "CAUSAL_LM"} | settings
    model = get_peft_model(fresh(spec), LoraConfig(**chosen))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad or "lora_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def wearing(base: Base, adapter: Path | None, spec: Model) -> Any:
    return base.wearing(adapter, spec, "float32", None, "cpu")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(**PROMPT).logits
    return found


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Weak references to the models that were loaded; when one is, those before must be gone."""
    models: list[Any] = []

    def watched(spec: Model, *_: Any) -> Any:
        assert not any(model() for model in models), "two models at once"
        model = fresh(spec)
        models.append(weakref.ref(model))
        return model

    monkeypatch.setattr(load, "load_model", watched)
    return models


@pytest.mark.parametrize(
    ("settings", "times"),
    [
        ({}, 1),
        ({"r": 4, "use_rslora": True}, 1),
        ({"target_modules": ["q_proj", "v_proj"], "use_dora": True}, 1),
        ({"modules_to_save": ["lm_head"]}, 1),
        ({"trainable_token_indices": [11, 12]}, 1),
        ({"bias": "lora_only"}, 2),
        ({"init_lora_weights": "olora"}, 2),
    ],
    ids=str,
)
def test_an_adapter_leaves_no_trace(
    settings: dict[str, Any], times: int, tiny: Model, tmp_path: Path, loaded: list[Any]
) -> None:
    """Those that write into the base's own weights cost another loading; no other does."""
    adapter, plain = write_adapter(tiny, tmp_path / "a", **settings), write_adapter(tiny, tmp_path / "b", seed=1)
    with wearing(Base(), plain, tiny) as model:
        alone = logits(model)
    loaded.clear()
    base = Base()
    with wearing(base, None, tiny) as model:
        before = {name: weight.clone() for name, weight in model.state_dict().items()}
        modules = {name: type(module) for name, module in model.named_modules()}
        bare = logits(model)
    with wearing(base, adapter, tiny) as model:
        assert not torch.equal(logits(model), bare)
    del model
    with wearing(base, plain, tiny) as model:
        assert torch.equal(logits(model), alone)
    with wearing(base, None, tiny) as model:
        after = model.state_dict()
        assert list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before)
        assert modules == {name: type(module) for name, module in model.named_modules()}
        assert torch.equal(logits(model), bare)
    assert len(loaded) == times


def test_adapters_of_routed_experts_come_off_again(
    composed: Callable[..., Config], tmp_path: Path, loaded: list[Any]
) -> None:
    spec = composed("model=tiny_glm45v").model
    experts = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    adapter = write_adapter(spec, tmp_path / "a", target_parameters=experts)
    loaded.clear()
    base = Base()
    with wearing(base, None, spec) as model:
        before = {name: weight.clone() for name, weight in model.state_dict().items()}
        bare = logits(model)
    for _ in range(2):
        with wearing(base, adapter, spec) as model:
            assert not torch.equal(logits(model), bare)
    with wearing(base, None, spec) as model:
        assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
        assert torch.equal(logits(model), bare)
    assert len(loaded) == 1


def test_another_base_is_loaded_when_the_one_before_is_gone(
    tiny: Model, composed: Callable[..., Config], loaded: list[Any]
) -> None:
    base = Base()
    for spec in (tiny, composed("model=tiny_qwen3vl").model, tiny):
        with wearing(base, None, spec) as model:
            assert not model.training
        del model
    assert len(loaded) == 3


def test_after_an_adapter_that_failed_the_base_is_loaded_anew(tiny: Model, tmp_path: Path, loaded: list[Any]) -> None:
    good, broken = write_adapter(tiny, tmp_path / "good"), write_adapter(tiny, tmp_path / "broken")
    weights = load_file(broken / WEIGHTS[0])
    weights.pop(next(iter(weights)))
    save_file(weights, broken / WEIGHTS[0])
    with wearing(Base(), good, tiny) as model:
        alone = logits(model)
    del model
    loaded.clear()
    base = Base()
    with pytest.raises(DataError, match="does not fit"), wearing(base, broken, tiny):
        pass
    with wearing(base, good, tiny) as model:
        assert torch.equal(logits(model), alone)
    assert len(loaded) == 2


@pytest.mark.parametrize("alive", [True, False])
def test_whether_an_adapter_changes_what_is_said(alive: bool, tiny: Model, tmp_path: Path) -> None:
    folder = write_adapter(tiny, tmp_path)
    if not alive:  # B is not zero, and yet nothing comes of it
        weights = load_file(folder / WEIGHTS[0])
        save_file({name: 0 * weight if "lora_A" in name else weight for name, weight in weights.items()},
                  folder / WEIGHTS[0])  # fmt: skip
    assert changes(load_adapter(fresh(tiny), folder), PROMPT, pad_token_id=0) is alive


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("file", r"holds no adapter_model\.safetensors"),
        ("missing", r"1 adapter weights missing \['base_model.*q_proj.*lora_A"),
        ("unknown", r"1 unknown \['base_model.*layers\.77"),
        ("shape", r"does not fit the model: .*size mismatch"),
        ("modules", r"does not fit the model: No modules were targeted"),
        ("whole module", r"does not fit the model: 1 adapter weight missing, .*lm_head"),
        ("type", r"of type IA3; it should be LORA"),
        ("config", r"adapter_config\.json cannot be read"),
    ],
)
def test_what_does_not_fit_is_named(damage: str, said: str, tiny: Model, tmp_path: Path) -> None:
    folder = write_adapter(tiny, tmp_path, modules_to_save=["lm_head"])
    weights, config = load_file(folder / WEIGHTS[0]), json.loads((folder / "adapter_config.json").read_text())
    first = next(name for name in sorted(weights) if "q_proj.lora_A" in name)
    if damage == "missing":
        weights.pop(first)
    elif damage == "unknown":
        weights[first.replace("layers.0", "layers.77")] = torch.ones(2)
    elif damage == "shape":
        weights[first] = weights[first][:, :-1].clone()
    elif damage == "modules":
        config["target_modules"] = ["nowhere"]
    elif damage == "whole module":
        weights = {name: weight for name, weight in weights.items() if "lm_head" not in name}
    elif damage == "type":
        config = {"peft_type": "IA3", "target_modules": ["q_proj"], "feedforward_modules": []}
    elif damage == "config":
        config["peft_type"] = "NOTHING"
    save_file(weights, folder / WEIGHTS[0])
    (folder / "adapter_config.json").write_text(json.dumps(config))
    if damage == "file":
        (folder / WEIGHTS[0]).unlink()
    with pytest.raises(DataError, match=said):
        load_adapter(fresh(tiny), folder)
