"""The estimate beside a real training on the CPU: weights, gradients and what the optimiser keeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from vlmft import worker
from vlmft.chat.encode import Encoder
from vlmft.data.training_split import training_questions
from vlmft.evaluation import results
from vlmft.hardware import Decisions, decide
from vlmft.models.load import load_model, load_processor
from vlmft.models.memory import resting
from vlmft.models.shape import shape_of
from vlmft.schema import Config
from vlmft.training import fine_tuning
from vlmft.training.peak_memory import MeasuredPeak, compared


class Held(TrainerCallback):
    """Bytes of weights, gradients and states after an update, before the gradients are let go."""

    bytes = 0

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        weights = list(kwargs["model"].parameters())
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        states = [value for kept in kwargs["optimizer"].state.values() for value in kept.values()]
        self.bytes = sum(tensor.nbytes for tensor in (*weights, *gradients, *states))


@pytest.mark.parametrize(
    ("model", "method"), [("tiny_glm41v", "lora"), ("tiny_glm41v", "full"), ("tiny_qwen3vl", "full")]
)
def test_a_step_holds_what_is_estimated(
    model: str, method: str, composed: Callable[..., Config], tmp_path: Path
) -> None:
    config = composed(
        f"model={model}", "dataset=demo_ct", f"method={method}", "method.trainer.max_steps=3", "method.batch_size=4",
        "dataset.max_rows=24", "hardware=cpu",
    )  # fmt: skip
    loaded = load_model(config.model, "float32")
    encoder = Encoder(load_processor(config.model), config.model.answer_style, {0, 7, 9})
    rows = [row for q in training_questions(config.dataset, 0).train for row in encoder.train_rows(q)]
    need = resting(shape_of(loaded.config, config.model, config.method, "float32"), 4)
    estimated, held, told = need.weights + need.gradients + need.states, Held(), []
    peak = MeasuredPeak(estimated, told.append, measure=lambda: held.bytes)
    fine_tuning.train(
        config, model=loaded, encoder=encoder, rows=rows, validation=[], run=tmp_path, callbacks=[held, peak],
        decisions=decide(config.model, config.method, config.hardware),
    )  # fmt: skip
    (found,) = told
    assert found["measured_bytes"] > 10**6 and found["estimated_bytes"] == estimated
    assert abs(found["error"]) < 0.15


def test_the_peak_is_told_once_and_of_the_second_step() -> None:
    told: list[dict[str, Any]] = []
    measured = iter([120, 999])
    peak = MeasuredPeak(90, told.append, measure=lambda: next(measured))
    peak.on_train_begin(None, None, None)
    peak.on_step_end(None, None, None)
    assert not told, "the optimiser has made its states only now"
    peak.on_step_end(None, None, None)
    peak.on_step_end(None, None, None)
    peak.on_train_end(None, None, None)
    assert told == [{"estimated_bytes": 90, "measured_bytes": 120, "error": -0.25}]
    short = MeasuredPeak(90, told.append, measure=lambda: 90)
    short.on_train_end(None, None, None)
    assert len(told) == 1, "nothing was trained"
    short.on_step_end(None, None, None)
    short.on_train_end(None, None, None)
    assert told[1]["error"] == 0
    assert compared(1, 0)["error"] is None


def test_on_a_gpu_the_estimate_is_said_at_the_start_and_compared_later(
    composed: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = composed("model=tiny_glm41v", "dataset=demo_ct", "dataset.max_rows=24", "method.batch_size=4")
    encoder = Encoder(load_processor(config.model), config.model.answer_style, {0, 7, 9})
    rows = list(encoder.rows(training_questions(config.dataset, 0).train))
    ready: Any = SimpleNamespace(
        rows=SimpleNamespace(rows=rows), encoder=encoder, decisions=Decisions("cuda", "bfloat16", True, 2, False)
    )
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10**9, 2 * 10**9))
    with caplog.at_level("INFO", logger="vlmft.worker"):
        (callback,) = worker._memory(config, ready, tmp_path)
    assert "weights" in caplog.text and "of 2.0 GB" in caplog.text
    callback.measure = lambda: callback.estimated * 2
    callback.on_step_end(None, None, None)
    callback.on_train_end(None, None, None)
    assert results.read(tmp_path)["memory"]["error"] == -0.5
    ready.decisions = Decisions("cpu", "float32", False, 2, False)
    assert worker._memory(config, ready, tmp_path) == []
