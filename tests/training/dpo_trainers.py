"""Pairs to prefer, and a trainer of them as far as its first step."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import torch

from vlmft.chat.encode import Encoder
from vlmft.data.question import Question, Turn
from vlmft.hardware import Decisions, decide
from vlmft.models.load import load_model, load_processor
from vlmft.schema import Algorithm, Config
from vlmft.training import fine_tuning, init_from
from vlmft.training.callbacks import checksums
from vlmft.training.reference import with_reference

WORDS = "is there a lesion in the left lung how many which organ side red blue large small".split()  # noqa: SIM905


def some_pairs(pictures: list[str], *, images: bool = True) -> list[Question]:
    """Pairs about one picture, about two, with a turn before, with thoughts, and with answers of unequal length."""
    chance = random.Random(7)

    def said(least: int = 1) -> str:
        return " ".join(chance.choice(WORDS) for _ in range(chance.randint(least, 6)))

    shown = [(pictures[0],)] * 3 + [(pictures[1], pictures[2])] * 2 + [(pictures[2],)] if images else [()] * 4
    found = []
    for number, paths in enumerate(shown):
        turns = (Turn(said(), said(), said()),) * (number == 1) + (Turn(said(3), said(), said()),)
        wrong = Turn(turns[-1].question, said() + " not", said())
        found.append(Question(str(number), "set", paths, turns, "open", rejected=wrong))
    return found


def parts(config: Config) -> tuple[Encoder, Decisions]:
    encoder = Encoder(load_processor(config.model), config.model.answer_style, [7])
    return encoder, decide(config.model, config.method, config.hardware)


LOADED: dict[str, Any] = {}  # loading takes longer than most tests


def fresh(config: Config) -> Any:
    """The config's model as it is loaded."""
    if config.model.path not in LOADED:
        LOADED[config.model.path] = load_model(config.model, "float32")
    return copy.deepcopy(LOADED[config.model.path])


def referred(config: Config, questions: list[Question], folder: Path) -> list[Any]:
    encoder, decisions = parts(config)
    rows = list(encoder.rows(questions, Algorithm.dpo))
    starts = config.init_from or config.method.quantization
    model = init_from.load(config, decisions.load_dtype, folder) if starts else fresh(config)
    before = checksums(model)
    found = with_reference(config, model, rows, encoder, decisions, folder, lambda done: None)
    assert checksums(model) == before and not hasattr(model, "peft_config")
    return found


def ours(config: Config, rows: list[Any], folder: Path) -> Any:
    encoder, decisions = parts(config)
    model = fresh(config)
    epochs = fine_tuning.plan(config.method, decisions, rows, encoder, 0, model.config.model_type)
    args = fine_tuning.arguments(config.method, decisions, folder, 0, debug=False)
    return fine_tuning.trainer_of(
        config, model=model, encoder=encoder, epochs=epochs, validation=[], args=args, callbacks=[]
    )


def moved(trainer: Any) -> Any:
    """The trainer's model away from where it started, by the same steps whoever trains it."""
    trainer.model.train()
    chance = torch.Generator().manual_seed(3)
    for _, weight in sorted((n.replace("base_model.model.", ""), w) for n, w in trainer.model.named_parameters()):
        if weight.requires_grad:
            weight.data += 0.03 * torch.randn(weight.shape, generator=chance)
    return trainer


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def one_step(trainer: Any, micro_batches: int) -> tuple[float, dict[str, torch.Tensor], dict[str, float]]:
    """Loss, gradients and metrics of the first optimiser step."""
    batches = [trainer.data_collator([trainer.train_dataset[number]]) for number in range(micro_batches)]
    count = trainer._get_num_items_in_batch(batches, torch.device("cpu"))
    total = 0.0
    for batch in batches:
        batch.pop("questions")
        loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch), num_items_in_batch=count)
        loss.backward()
        total += loss.item()
    logs: dict[str, float] = {}
    trainer.log(logs)
    return total, gradients(trainer.model), logs
