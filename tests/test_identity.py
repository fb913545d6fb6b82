"""What the name of a run depends on, and what it does not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from vlmft.evaluation.evaluate import wanted
from vlmft.identity import base_name, folder_fingerprint, generation_hash, run_name
from vlmft.schema import Config

Composed = Callable[..., Config]
RUN = ("model=tiny_glm41v", "dataset=demo", "method=lora")


def name(composed: Composed, *overrides: str) -> str:
    return run_name(composed(*RUN, *overrides))


@pytest.mark.parametrize(
    "override",
    [
        "seed=1", "debug=true", "model.answer_style=plain", "model.max_pixels=10000", "model.freeze.vision=true",
        "model.lora_targets=.*q_proj", "model.dtype=float32", "model.attention=eager",
        "dataset=demo_ct", "dataset.max_rows=10", "dataset.validation=0.1",
        "dataset.over_long=drop", "dataset.bad_rows=drop", "dataset.sets.demo_ct.weight=2", "dataset.percent=50",
        "dataset.normalize_terms=true", "dataset.sets.demo_ct.percent=50", "dataset.sets.demo_ct.language=en",
        "method=full", "method.batch_size=8", "method.max_row_tokens=100", "method.peft.r=4",
        "method.trainer.learning_rate=1", "method.trainer.num_train_epochs=1", "method.trainer.max_steps=5",
        "method.learning_rates.vision=1e-5", "method.learning_rates.projector=1e-5",
    ],
)  # fmt: skip
def test_what_decides_the_weights_changes_the_name(override: str, composed: Composed) -> None:
    assert name(composed, override) != name(composed)


@pytest.mark.parametrize(
    "override",
    [
        "label=second", "log_level=debug", "force=true", "hardware=cpu", "hardware.micro_batch=2", "eval=none",
        "eval.max_rows=3", "eval.protocols=[strict]", "eval.generation.max_new_tokens=9", "paths.root=/elsewhere",
        "paths.outputs=/elsewhere", "tracking.wandb=true", "method.trainer.logging_steps=1",
        "method.trainer.save_steps=7", "method.trainer.dataloader_num_workers=2",
        "dataset.max_test_rows=5", "dataset.normalize_terms=false", "eval.closed=likelihood", "eval.ablations=[blank]",
        "eval.debug_matches=3", "method.learning_rates.vision=null", "init_from=null",
    ],
)  # fmt: skip
def test_what_does_not_leaves_it(override: str, composed: Composed) -> None:
    assert name(composed, override) == name(composed)


def test_the_name_is_readable(composed: Composed) -> None:
    model, dataset, method, seed, digits = name(composed, "seed=3").split("-")
    assert (model, dataset, method, seed) == ("tiny_glm41v", "demo", "lora", "s3") and int(digits, 16) >= 0
    assert base_name(composed("model=tiny_glm41v").model).startswith("tiny_glm41v-base-")  # type: ignore[arg-type]


def test_the_rows_count_and_not_where_they_lie(composed: Composed, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    row = {"id": 1, "conversations": [{"from": "human", "value": "Is it?"}, {"from": "gpt", "value": "yes"}]}
    (here / "train.json").write_text(json.dumps([row]))
    (here / "test.json").write_text(json.dumps([row]))
    there = Path(shutil.copytree(here, tmp_path / "there"))

    def of(folder: Path) -> str:
        return name(composed, "dataset=conversations", f"dataset.path={folder}")

    assert of(here) == of(there)
    (there / "test.json").write_text("[]")
    assert of(here) == of(there), "test rows do not decide the weights"
    (there / "train.json").write_text(json.dumps([row, row]))
    assert of(here) != of(there)


def test_the_hash_of_predictions(composed: Composed) -> None:
    def of(run: str = "run", *overrides: str) -> str:
        config = composed("eval=demo", *overrides).eval
        return generation_hash(run, config.sets["demo_ct"], config)

    for same in ("eval.protocols=[strict]", "eval.generation.batch_size=1", "eval.ablations=[blank]",
                 "eval.closed=generate", "eval.debug_matches=3"):  # fmt: skip
        assert of("run", same) == of(), same
    for other in ("eval.max_rows=3", "eval.generation.max_new_tokens=9", "eval.closed=likelihood"):
        assert of("run", other) != of(), other
    assert of("another") != of()


def test_a_pass_without_pictures_has_predictions_of_its_own(composed: Composed) -> None:
    def of(*overrides: str) -> dict[str, str]:
        config = composed("eval=demo", *overrides).eval
        return wanted("run", {"demo_ct": config.sets["demo_ct"]}, config)

    both = of("eval.ablations=[blank,shuffled]")
    assert list(both) == ["demo_ct", "demo_ct.blank", "demo_ct.shuffled"] and len(set(both.values())) == 3
    assert both.items() >= of("eval.ablations=[blank]").items() >= of().items()
    assert not set(of("eval.closed=likelihood", "eval.ablations=[blank]").values()) & set(both.values())


def test_a_model_folder_is_known_by_its_content(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    big = bytearray(2**20)
    (folder / "weights").write_bytes(big)
    before = folder_fingerprint(folder)
    assert folder_fingerprint(Path(shutil.copytree(folder, tmp_path / "moved"))) == before
    big[77_777] = 1
    (folder / "weights").write_bytes(big)
    assert folder_fingerprint(folder) != before
