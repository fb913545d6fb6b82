"""DPO: the right reference from every start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.dpo_trainers import fresh, moved, one_step, parts, referred, some_pairs
from vlmft.chat.collate import collate, for_model
from vlmft.chat.encode import IGNORED, Encoder, Row
from vlmft.data.question import Question, Turn
from vlmft.schema import Config
from vlmft.training import fine_tuning, init_from

STARTS = ["base", "adapter", "another adapter", "full"]


@pytest.fixture(scope="module")
def trained(composed: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What a run with LoRA and a full run have trained, far enough from the base to tell them apart."""
    found = {}
    for method in ("lora", "full"):
        folder = tmp_path_factory.mktemp(method) / "final"
        config = composed("model=tiny_glm41v", "dataset=demo", f"method={method}", "hardware=cpu")
        encoder, decisions = parts(config)
        rows = list(encoder.rows([Question("0", "set", (), (Turn("a", "b"),), "open")]))
        model = fresh(config)
        trainer = fine_tuning.trainer_of(
            config, model=model, encoder=encoder, validation=[], callbacks=[],
            epochs=fine_tuning.plan(config.method, decisions, rows, encoder, 0, "glm4v"),
            args=fine_tuning.arguments(config.method, decisions, folder.parent, 0, debug=False),
        )  # fmt: skip
        moved(trainer).save_model(str(folder))
        found[method] = folder
    return found


@pytest.mark.parametrize("start", STARTS)
def test_the_reference_is_what_training_starts_from(
    start: str, trained: dict[str, Path], composed: Callable[..., Config], pictures: list[str], tmp_path: Path
) -> None:
    """As transformers and PEFT load it, answer by answer; and before the first step the policy is the reference."""
    from peft import PeftModel

    folder = None if start == "base" else trained["full" if start == "full" else "lora"]
    more = {"another adapter": ("method.peft.r=4",), "full": ("method=dpo_full",)}.get(start, ("method=dpo",))
    more += ("method=dpo",) * (start == "another adapter")
    config = composed("model=tiny_glm41v", "dataset=demo", "method.batch_size=6", "hardware=cpu", *more,
                      *([f"init_from={folder}"] if folder else []))  # fmt: skip
    questions = some_pairs(pictures)
    rows = referred(config, questions, tmp_path)

    base = fresh(config)
    model: Any = base
    if start == "full":
        model = type(base).from_pretrained(str(folder), dtype="float32")
    elif folder:
        model = PeftModel.from_pretrained(base, str(folder))
    encoder, decisions = parts(config)
    said = [answer_log_probability(model, encoder, side) for row in rows for side in row.branches]
    assert [value for row in rows for value in row.reference] == pytest.approx(said, rel=1e-4, abs=1e-4)
    if folder:
        raw = fresh(config)
        other = [answer_log_probability(raw, encoder, side) for row in rows for side in row.branches]
        assert max(abs(a - b) for a, b in zip(said, other, strict=True)) > 0.5

    policy = init_from.load(config, "float32", tmp_path)
    epochs = fine_tuning.plan(config.method, decisions, rows, encoder, 0, "glm4v")
    args = fine_tuning.arguments(config.method, decisions, tmp_path, 0, debug=False)
    trainer = fine_tuning.trainer_of(
        config, model=policy, encoder=encoder, epochs=epochs, validation=[], args=args, callbacks=[]
    )
    trainer.model.train()
    loss, _, logs = one_step(trainer, 1)
    assert loss == pytest.approx(0.693147, abs=1e-5) and abs(logs["rewards/margins"]) < 1e-5
    assert getattr(trainer, "ref_model", None) is None and "ref" not in getattr(trainer.model, "peft_config", {})


def answer_log_probability(model: Any, encoder: Encoder, row: Row) -> float:
    batch = for_model(encoder, collate(encoder, [row], padding_side="right"), "cpu", torch.float32)
    labels = batch.pop("labels")[0, 1:]
    with torch.no_grad():
        each = torch.log_softmax(model(**batch).logits[0, :-1], dim=-1)
    kept = labels != IGNORED
    return float(each[kept].gather(-1, labels[kept][:, None]).sum())


def test_on_a_base_in_few_bits(composed: Callable[..., Config], pictures: list[str], tmp_path: Path) -> None:
    config = composed("model=tiny_glm41v", "dataset=demo", "method=qlora4", "method.algorithm=dpo", "hardware=cpu",
                      "method.batch_size=6")  # fmt: skip
    rows = referred(config, some_pairs(pictures), tmp_path)
    encoder, decisions = parts(config)
    model = init_from.load(config, "float32", tmp_path)
    trainer = fine_tuning.trainer_of(
        config, model=model, encoder=encoder, validation=[], callbacks=[],
        epochs=fine_tuning.plan(config.method, decisions, rows, encoder, 0, "glm4v"),
        args=fine_tuning.arguments(config.method, decisions, tmp_path, 0, debug=False),
    )  # fmt: skip
    trainer.model.train()
    loss, grads, logs = one_step(trainer, 1)
    assert loss == pytest.approx(0.693147, abs=1e-4) and abs(logs["rewards/margins"]) < 1e-3
    assert any(gradient.abs().max() > 0 for gradient in grads.values())
