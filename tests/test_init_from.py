"""Starting from weights of before: what is refused, and how the run is named. Nothing is trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.earlier_runs import SMALL, Composed, adapter, write
from vlmft.data import leakage
from vlmft.errors import DataError
from vlmft.evaluation.evaluate import TRAINED_ON
from vlmft.files import write_json
from vlmft.identity import run_name
from vlmft.models.load import load_model
from vlmft.training import init_from


@pytest.fixture
def run(composed: Composed, tmp_path: Path) -> Path:
    """A run whose training is done, as far as anyone can see who does not load it."""
    config = composed(*SMALL)
    run = write(config, tmp_path / "outputs" / "earlier")
    adapter(run / "final", config.model.path)
    return run


def test_the_weights_are_part_of_the_name_wherever_they_lie(run: Path, composed: Composed, tmp_path: Path) -> None:
    def name(folder: Path) -> str:
        return run_name(composed(*SMALL, f"init_from={folder}"))

    assert name(run) == name(run / "final") != run_name(composed(*SMALL))
    moved = Path(shutil.copytree(run, tmp_path / "elsewhere" / "moved"))
    shutil.rmtree(moved / "final")
    adapter(moved / "final", "/another/place")
    (moved / "final" / "training_args.bin").write_bytes(b"with paths")
    assert name(moved) == name(run)
    (moved / "final" / "adapter_model.safetensors").write_bytes(b"other weights")
    assert name(moved) != name(run)
    shutil.rmtree(moved / "final")
    adapter(moved / "final", "/another/place", lora_alpha=1)
    assert name(moved) != name(run)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.answer_style=plain",), r"model\.answer_style=think_answer, and here it is plain.*Set model\.answer"),
        (("model.max_pixels=null",), r"earlier was trained with model\.max_pixels=12544, and here it is null"),
        (("model.min_pixels=3136",), r"model\.min_pixels=null, and here it is 3136"),
        (("model=tiny_qwen3vl", "model.answer_style=think_answer", "model.max_pixels=12544"),
         r"earlier was trained from .*/tiny_glm41v, and model=tiny_qwen3vl is .*/tiny_qwen3vl: choose the model"),
    ],
    ids=["style", "most pixels", "fewest pixels", "model"],
)  # fmt: skip
def test_what_belongs_to_a_run_belongs_to_the_next(
    overrides: tuple[str, ...], message: str, run: Path, composed: Composed
) -> None:
    assert init_from.start(composed(*SMALL, f"init_from={run}")) is not None
    with pytest.raises(DataError, match=message):
        init_from.start(composed(*SMALL, f"init_from={run}", *overrides))


def test_what_cannot_be_started_from(run: Path, composed: Composed, tmp_path: Path) -> None:
    shutil.rmtree(run / "final")
    foreign = adapter(tmp_path / "foreign", "other/base")
    model = tmp_path / "model"
    model.mkdir()
    write_json(model / "config.json", {"model_type": "qwen3_vl"})
    twin = Path(composed(*SMALL).model.path)
    load_model(composed(*SMALL).model, "float32")  # which writes it
    assert json.loads((twin / "config.json").read_text())["model_type"] == "glm4v"
    for folder, message in (
        (run, r"earlier has no final/: its training is not done, or it holds only scores"),
        (tmp_path, r"is no run directory with a trained model in final/, no adapter folder \(adapter_config.json\)"),
        (foreign, r"foreign was trained on other/base, and model=tiny_glm41v is .*tiny_glm41v: set model\.path"),
        (model, r"model is a model of type qwen3_vl, and model=tiny_glm41v is of type glm4v"),
    ):
        with pytest.raises(DataError, match=rf"init_from: .*{message}"):
            init_from.start(composed(*SMALL, f"init_from={folder}"))


def test_an_adapter_goes_on_only_as_it_was(composed: Composed, tmp_path: Path) -> None:
    from peft import LoraConfig

    config = composed(*SMALL)
    for targets, said in (
        ("null", config.model.lora_targets),
        ("[v_proj,q_proj]", ["q_proj", "v_proj"]),
        ("all-linear", "all-linear"),
    ):
        overrides = (*SMALL, f"method.peft.target_modules={targets}") if targets != "null" else SMALL
        saved = init_from._with_its_modules(
            LoraConfig(r=8, lora_alpha=16, target_modules=said, task_type="CAUSAL_LM"), config.model
        )
        folder = adapter(tmp_path / f"{len(targets)}", config.model.path)
        saved.base_model_name_or_path = config.model.path
        saved.save_pretrained(str(folder))
        same = composed(*overrides, f"init_from={folder}", "method.peft.lora_dropout=0.1")
        assert init_from.adapter_to_go_on(same) == folder and not init_from.on_another_base(same)
        for change in ("method.peft.r=4", "method.peft.lora_alpha=8", "method.peft.target_modules=[o_proj]",
                       "method.peft.use_rslora=true"):  # fmt: skip
            other = composed(*overrides, change, f"init_from={folder}")
            assert init_from.adapter_to_go_on(other) is None and init_from.on_another_base(other), change
        full = composed(*SMALL, "method=full", f"init_from={folder}")
        assert init_from.adapter_to_go_on(full) is None and not init_from.on_another_base(full)


def test_what_was_seen_before_counts_as_trained_on(run: Path, composed: Composed) -> None:
    own, seen = ({"set": name, "images": [], "ids": [], "questions": [], "pairs": []} for name in ("own", "seen"))
    config = composed(*SMALL, f"init_from={run}")
    assert init_from.with_earlier_rows(config, [own]) == [own], "nothing is known of the run before"
    leakage.write(run / TRAINED_ON, [seen, own])
    assert init_from.with_earlier_rows(config, [own]) == [seen, own]
    assert init_from.with_earlier_rows(composed(*SMALL), [own]) == [own]
