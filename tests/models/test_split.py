"""A model split over devices gives what it gives on one, to whatever asks it; and where it is split, if at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.models.pretended_devices import Placed, pretended, split
from tests.models.test_adapters import write_adapter
from vlmft.chat.collate import collate, for_model
from vlmft.chat.encode import Encoder, Row
from vlmft.data.load import load
from vlmft.data.question import Question
from vlmft.errors import DataError
from vlmft.evaluation import likelihood
from vlmft.evaluation.generate import answer_all
from vlmft.models.adapters import changes, load_adapter
from vlmft.models.base import Base
from vlmft.models.load import load_model, load_processor
from vlmft.models.split import is_split, line, of_quantizer
from vlmft.schema import Config, Device, Generation, Model, Packing
from vlmft.use import trained

Composed = Callable[..., Config]


def where(model: Any, vision: Sequence[str] = ("model.visual",)) -> dict[str, str]:
    """The first layer and what comes before on one device, the others and the head on another."""
    text = "model.language_model"
    layers = [f"{text}.layers.{number}" for number in range(len(model.model.language_model.layers))]
    before = [*vision, f"{text}.embed_tokens", f"{text}.rotary_emb", layers[0]]
    return dict.fromkeys(before, "maia:0") | dict.fromkeys([*layers[1:], f"{text}.norm", "lm_head"], "maia:1")


@pytest.fixture
def questions(composed: Composed) -> list[Question]:
    return load(composed("dataset=demo_ct").dataset, "test", limit=8).questions


def encoder_of(config: Config) -> Encoder:
    return Encoder(load_processor(config.model), config.model.answer_style, {0, 7, 9})


def said(model: Any, encoder: Encoder, rows: Sequence[Row], **settings: Any) -> dict[int, str]:
    answers = answer_all(model, encoder, rows, Generation(max_new_tokens=6, **settings))
    return {n: reply["raw"] for numbers, replies in answers for n, reply in zip(numbers, replies, strict=True)}


def chosen(model: Any, encoder: Encoder, rows: Sequence[Row], **settings: Any) -> dict[int, Any]:
    options = [("yes", "no")] * len(rows)
    answers = likelihood.choose(model, encoder, rows, options, Generation(**settings))
    return {n: reply["likelihood"] for numbers, replies in answers for n, reply in zip(numbers, replies, strict=True)}


def test_devices_do_not_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    with pretended(monkeypatch):
        one, other = torch.ones(2, 3).to("maia:0"), torch.arange(6, device="maia:1").reshape(2, 3)
        assert (one + 1).device == torch.device("maia:0") and (one + other.to(one.device)).sum() == 21
        for mixed in (lambda: one + other, lambda: one[other[0, :2]], lambda: one @ torch.ones(3)):
            with pytest.raises(RuntimeError, match="of tensors on maia:0"):
                mixed()
        assert one[torch.tensor([1, 0])].device == one.device and isinstance(one, Placed)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["glm41v", "qwen3vl", "glm45v", "llama32_vision"])
def test_a_split_model_says_the_same(
    family: str, composed: Composed, questions: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = composed(f"model=tiny_{family}")
    encoder, model = encoder_of(config), load_model(config.model, "float32").eval()
    rows = list(encoder.prompts(questions))
    kinds = [(kind, packing) for kind in (said, chosen) for packing in Packing]
    expected = [kind(model, encoder, rows, packing=packing) for kind, packing in kinds]
    vision = ["model.vision_model", "model.multi_modal_projector"] if family == "llama32_vision" else ["model.visual"]
    with pretended(monkeypatch):
        model = split(model, where(model, vision))
        assert model.device == torch.device("maia:0") and model.lm_head.weight.device == torch.device("maia:1")
        assert [kind(model, encoder, rows, packing=packing) for kind, packing in kinds] == expected


@pytest.mark.slow
def test_an_adapter_goes_on_and_off_a_split_model(
    composed: Composed, questions: list[Question], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = composed("model=tiny_glm41v")
    encoder, folder = encoder_of(config), write_adapter(config.model, tmp_path)
    rows = list(encoder.prompts(questions))
    prompt = for_model(encoder, collate(encoder, rows[:1], "left"), "cpu", torch.float32)
    bare = said(load_model(config.model, "float32").eval(), encoder, rows)
    trained = said(load_adapter(load_model(config.model, "float32"), folder), encoder, rows)
    merged = said(load_adapter(load_model(config.model, "float32"), folder).merge_and_unload(), encoder, rows)
    base = load_model(config.model, "float32").eval()
    with pretended(monkeypatch):
        adapted = load_adapter(split(base, where(base)), folder)
        places = {str(weight.device) for name, weight in adapted.named_parameters() if "lora_" in name}
        assert places == {"maia:0", "maia:1"}
        assert is_split(adapted) and said(adapted, encoder, rows) == trained != bare
        assert changes(adapted, {key: value.to("maia:0") for key, value in prompt.items()}, pad_token_id=0)
        adapted.delete_adapter(adapted.active_adapter)
        base = adapted.unload()
        assert said(base, encoder, rows) == bare
        assert said(load_adapter(base, folder).merge_and_unload(safe_merge=True), encoder, rows) == merged


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Two GPUs, to whom asks about them alone; what `from_pretrained` is told is kept, and loads to the CPU."""
    told: dict[str, Any] = {}
    load_it = transformers.AutoModelForImageTextToText.from_pretrained

    def loaded(*args: Any, device_map: Any = None, **kwargs: Any) -> Any:
        told["device_map"] = device_map
        model, report = load_it(*args, device_map=device_map and {"model": "cpu", "lm_head": "cpu"}, **kwargs)
        model.hf_device_map = told.get("found", {"model.visual": 0, "model.language_model": 1, "lm_head": 1})
        return model, report

    monkeypatch.setattr(transformers.AutoModelForImageTextToText, "from_pretrained", loaded)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (20e9 + number * 4e9, 24e9))
    return told


def test_the_option_reaches_the_loader(tiny: Model, gpus: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with Base().wearing(None, tiny, "float32", None, "cuda", True) as model:  # which .to("cuda") would fail here
        assert gpus == {"device_map": "auto"} and is_split(model) and not model.training
    assert "split     over the GPUs 0, 1" in caplog.messages
    model = trained.placed(tiny, "float32", trained.hardware_of(Device.auto, True))
    assert gpus == {"device_map": "auto"} and is_split(model)
    load_model(tiny, "float32")
    assert gpus == {"device_map": None}
    gpus["found"] = {"": 0}
    assert line(load_model(tiny, "float32", None, True)) == "split     one GPU in sight: the model is on it"


@pytest.mark.parametrize("found", [{"model": 0, "lm_head": "cpu"}, {"model": "disk", "lm_head": 0}, {"": "cpu"}])
def test_a_model_that_gpus_have_no_room_for_is_refused(tiny: Model, gpus: dict[str, Any], found: Any) -> None:
    gpus["found"] = found
    with pytest.raises(DataError, match=r"tiny_glm41v needs more memory than is free on the 2 GPUs in sight \(20 GB"):
        load_model(tiny, "float32", None, True)


def test_what_a_quantiser_says_of_too_little_room_is_told_plainly(gpus: dict[str, Any]) -> None:
    found = of_quantizer(ValueError("Some modules are dispatched on the CPU or the disk. Make sure …"), "big")
    assert isinstance(found, DataError) and "split_model=auto: big needs more memory" in str(found)
    other = ValueError("another")
    assert of_quantizer(other, "big") is other


def test_without_a_gpu_nothing_is_split(tiny: Model, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with Base().wearing(None, tiny, "float32", None, "cpu", True) as model:
        assert not is_split(model) and model.device.type == "cpu"
    assert "split     no GPU in sight: the model is on the CPU" in caplog.messages


def test_commands_show_the_process_all_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ) | {"CUDA_VISIBLE_DEVICES": "3,5", "RANK": "1"})
    trained.use_device(trained.hardware_of(Device.auto, True))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,5" and "RANK" not in os.environ
    trained.use_device(trained.hardware_of(Device.auto, False))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
