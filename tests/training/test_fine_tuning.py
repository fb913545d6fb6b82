"""Training on the tiny GLM-4.1V, in this process: what moves, what is averaged, what stops it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vlmft.chat.encode import Encoder, Row
from vlmft.chat.packing import Pack
from vlmft.data.training_split import training_questions
from vlmft.hardware import Decisions, decide
from vlmft.models.load import freeze, load_model, load_processor, part_of
from vlmft.schema import Config
from vlmft.training import fine_tuning
from vlmft.training.callbacks import Moved, checksums
from vlmft.training.epochs import Epochs
from vlmft.training.sft import VqaTrainer
from vlmft.training.trainer import NonFinite

QUICK = ("method.trainer.max_steps=3", "method.trainer.learning_rate=1e-3", "method.trainer.warmup_steps=0",
         "method.batch_size=4", "dataset.max_rows=40", "hardware=cpu")  # fmt: skip


@pytest.fixture(scope="module")
def config(composed: Callable[..., Config]) -> Callable[..., Config]:
    return lambda *overrides: composed("model=tiny_glm41v", "dataset=demo_ct", *QUICK, *overrides)


def parts(config: Config) -> tuple[Any, Encoder, list[Row]]:
    model = load_model(config.model, "float32")
    encoder = Encoder(load_processor(config.model), config.model.answer_style, {0, 7, 9})
    questions = training_questions(config.dataset, config.seed).train
    return model, encoder, [row for question in questions for row in encoder.train_rows(question)]


def decisions(config: Config) -> Decisions:
    return decide(config.model, config.method, config.hardware)


def train(config: Config, run: Path, **changed: Any) -> dict[str, Any]:
    model, encoder, rows = parts(config)
    given: dict[str, Any] = {"model": model, "encoder": encoder, "rows": rows, "validation": []} | changed
    summary = fine_tuning.train(config, **given, decisions=decisions(config), run=run, callbacks=[])
    fine_tuning.put_in_place(run)
    return summary


@pytest.mark.parametrize("method", ["full", "lora"])
def test_what_should_move_moves(method: str, config: Callable[..., Config], tmp_path: Path) -> None:
    chosen = config(f"method={method}")
    model, encoder, rows = parts(chosen)
    before = checksums(model)
    summary = train(chosen, tmp_path, model=model, encoder=encoder, rows=rows)
    assert summary["steps"] == 3 and summary["questions"] == 12
    assert (tmp_path / "final" / "processor_config.json").is_file()
    after = checksums(model)
    if method == "full":
        assert all(after[name] != before[name] for name in before), "every weight of a full fine-tuning moves"
        assert (tmp_path / "final" / "model.safetensors").is_file()
    else:
        base = {name.replace("base_model.model.", "").replace(".base_layer", ""): v for name, v in after.items()}
        assert all(base[name] == before[name] for name in before), "the base under LoRA does not"
        assert (tmp_path / "final" / "adapter_model.safetensors").is_file()
    assert list((tmp_path / "tensorboard").iterdir())


def test_frozen_parts_stay(config: Callable[..., Config], tmp_path: Path) -> None:
    chosen = config("method=full")
    model, encoder, rows = parts(chosen)
    freeze(model, vision=True, projector=True, llm=False)
    before = checksums(model)
    train(chosen, tmp_path, model=model, encoder=encoder, rows=rows)
    moved = {part_of(name) for name, value in checksums(model).items() if value != before[name]}
    assert moved == {"llm"}


def test_a_weight_that_stays_behind_is_an_error() -> None:
    model = torch.nn.Linear(2, 2)
    watch = Moved(model, images=True)
    with torch.no_grad():
        model.weight.add_(1)
    with pytest.raises(RuntimeError, match=r"1 of 2 trained weights did not move.*bias"):
        watch.check(model, steps=3)
    model.bias.requires_grad_(False)
    watch.check(model, steps=3)
    model.weight.requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"frozen weights changed.*weight"):
        watch.check(model, steps=3)


def test_the_validation_loss_does_not_depend_on_batching(config: Callable[..., Config], tmp_path: Path) -> None:
    """It is the mean over answer tokens of all rows, as one big batch would give it."""
    losses = []
    for size in (1, 3, 16):
        chosen = config("method=full", f"method.trainer.per_device_eval_batch_size={size}")
        model, encoder, rows = parts(chosen)
        trainer = VqaTrainer(
            encoder=encoder, validation=rows[:16], model=model,
            epochs=fine_tuning.plan(chosen.method, decisions(chosen), rows, encoder, 0, model.config.model_type),
            args=fine_tuning.arguments(chosen.method, decisions(chosen), tmp_path, 0, debug=False),
        )  # fmt: skip
        model.train()
        losses.append(trainer.evaluate()["eval_loss"])
        assert model.training, "and training goes on as it was"
    assert losses[0] == pytest.approx(losses[2], abs=1e-5) and losses[1] == pytest.approx(losses[2], abs=1e-5)


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_rows(
    config: Callable[..., Config], tmp_path: Path
) -> None:
    chosen = config("method=full", "method.trainer.learning_rate=1e30", "method.trainer.max_grad_norm=0",
                    "method.trainer.max_steps=6", "method.trainer.save_steps=1")  # fmt: skip
    model, encoder, rows = parts(chosen)
    with pytest.raises(NonFinite, match=r"(loss|gradient norm) is (nan|inf).*at step \d+, questions .*_\d"):
        train(chosen, tmp_path, model=model, encoder=encoder, rows=rows)
    assert not (tmp_path / "final").exists()
    assert fine_tuning.checkpoints.newest(tmp_path) is not None


def test_the_micro_batch_does_not_change_the_step(config: Callable[..., Config], tmp_path: Path) -> None:
    """One batch of 4, and 4 batches of 1 accumulated, are the same optimiser step (plain SGD shows the gradient)."""
    weights = []
    for size in (4, 1):
        chosen = config(
            "method=full", f"hardware.micro_batch={size}", "method.trainer.max_steps=2",
            "method.trainer.optim=sgd", "method.trainer.learning_rate=0.1",
        )  # fmt: skip
        model, encoder, rows = parts(chosen)
        start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        train(chosen, tmp_path / str(size), model=model, encoder=encoder, rows=rows)
        weights.append({name: parameter.detach() - start[name] for name, parameter in model.named_parameters()})
    for name, moved in weights[0].items():
        assert torch.allclose(moved, weights[1][name], rtol=1e-3, atol=1e-6), name


def test_loader_workers_change_nothing(config: Callable[..., Config], tmp_path: Path) -> None:
    weights = []
    for workers in (0, 2):
        chosen = config(
            "method=full", f"method.trainer.dataloader_num_workers={workers}", "method.trainer.max_steps=12"
        )
        model, encoder, rows = parts(chosen)
        train(chosen, tmp_path / str(workers), model=model, encoder=encoder, rows=rows)
        weights.append(checksums(model))
    assert weights[0] == weights[1], "also over the end of an epoch (40 questions are 10 steps)"


def test_packed_and_ordinary_rows_train_alike(
    config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same questions in a step, sharing pictures changes the weights by rounding only."""
    chosen = config(
        "method=full", "method.trainer.optim=sgd", "method.trainer.learning_rate=0.1", "method.batch_size=8"
    )
    weights = []
    for shared in (True, False):
        model, encoder, rows = parts(chosen)
        start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        epochs = fine_tuning.plan(chosen.method, decisions(chosen), rows, encoder, 0, model.config.model_type)
        trainer = VqaTrainer(
            encoder=encoder, epochs=epochs, validation=[], model=model,
            args=fine_tuning.arguments(chosen.method, decisions(chosen), tmp_path, 0, debug=False),
        )  # fmt: skip
        if not shared:
            monkeypatch.setattr(
                Epochs, "__getitem__",
                lambda self, n, of=Epochs.__getitem__: [Pack((row,)) for pack in of(self, n) for row in pack.rows],
            )  # fmt: skip
        trainer.train()
        assert trainer._total_train_tokens > 0
        weights.append({name: parameter.detach() - start[name] for name, parameter in model.named_parameters()})
    for name, moved in weights[0].items():
        assert (moved - weights[1][name]).norm() <= 1e-3 * moved.norm() + 1e-7, name


def test_only_the_newest_checkpoints_stay(config: Callable[..., Config], tmp_path: Path) -> None:
    train(config("method=lora", "method.trainer.save_steps=1", "method.trainer.save_total_limit=2"), tmp_path)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
    assert all(fine_tuning.checkpoints.manifest(path) for path in tmp_path.glob("checkpoint-*"))
    assert not list(tmp_path.glob("**/README.md")) or not (tmp_path / "README.md").exists()
