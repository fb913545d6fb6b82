"""The first steps of a run on its largest rows, by the trainer of a real one: what they need, and what they reach."""

from __future__ import annotations

import math
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from transformers import TrainerCallback, TrainerState
from trl import SFTConfig

from vlmft.chat.encode import Encoder, Row
from vlmft.chat.packing import groups, own_tokens
from vlmft.errors import DataError
from vlmft.hardware import Decisions
from vlmft.models.load import part_of
from vlmft.schema import Config
from vlmft.training import fine_tuning, init_from
from vlmft.training.callbacks import Moved
from vlmft.training.epochs import Epochs
from vlmft.training.streamed import Stream

STEPS = 5


def rehearse(
    config: Config, *, model: Any, encoder: Encoder, rows: Sequence[Row], decisions: Decisions, run: Path,
    callbacks: Sequence[TrainerCallback], stream: Stream | None = None,
) -> tuple[Any, dict[str, Any]]:  # fmt: skip
    """Train `model` for a few steps on the largest of `rows`; nothing is saved, and no validation row is looked at.

    Returns the model as evaluation would have it, and what was measured: losses, gradients, memory, seconds, and from
    these the forecast of the whole run. Raises NonFinite, DataError where a weight that is trained gets no gradient,
    and RuntimeError where something that should have moved did not.
    """
    full = fine_tuning.arguments(config.method, decisions, run, config.seed, config.debug)
    epochs = fine_tuning.plan(config.method, decisions, rows, encoder, config.seed, model.config.model_type, stream)
    steps = full.max_steps if full.max_steps > 0 else math.ceil(full.num_train_epochs * epochs.steps)
    chosen = largest(rows, encoder.image_token_id, epochs.most, STEPS * config.method.batch_size)
    tried = Epochs(
        chosen, encoder.image_token_id, batch_size=epochs.batch_size, micro_batches=epochs.micro_batches,
        most=epochs.most, max_tokens=epochs.max_tokens, seed=config.seed,
    )  # fmt: skip
    watch, images = Watch(), any(row.images for row in chosen)
    trainer = fine_tuning.trainer_of(
        config, model=model, encoder=encoder, epochs=tried, validation=[],
        args=_arguments(config, decisions, run), callbacks=[*callbacks, watch],
    )  # fmt: skip
    moved = Moved(trainer.model, images)
    trainer.train()
    gradients = reached(trainer.model, watch.reached, images)
    moved.check(trainer.model, STEPS)
    seconds = statistics.median(watch.seconds[1:])  # the first step also warms up
    known = min(epochs.steps, -(-len(rows) // epochs.batch_size))  # of a stream, those of its first rows
    share = min(1.0, _tokens_per_step(epochs, known) / _tokens_per_step(tried, STEPS))
    dtype = fine_tuning.final_dtype(config.method, decisions)
    merged = decisions.load_dtype if init_from.on_another_base(config) else None
    final, checkpoint = saved_bytes(trainer, run, dtype=dtype, merged=merged)
    most = most_checkpoints(full, steps, epochs.steps)
    facts = {
        "loss": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "gradients": gradients,
        "memory": peak_memory(decisions.device),
        "step_seconds": seconds,
        "questions_per_second": tried.questions(STEPS) / STEPS / seconds,
        "steps": steps,
        "seconds": steps * seconds * share,
        "most_seconds": steps * seconds,
        "validated": full.eval_strategy.value != "no",  # which takes time of its own
        "final_bytes": final,
        "checkpoint_bytes": checkpoint,
        "checkpoints": most,
        "disk_bytes": final + most * checkpoint,
    }
    trained = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)  # autocast is for training
    if dtype is not None:
        trained.to(getattr(torch, dtype))
    return trained.eval(), facts


def largest(rows: Sequence[Row], image_token_id: int | None, most: int, count: int) -> list[Row]:
    """`count` of the rows, those about the pictures that cost most tokens for a question where `most` share a row.

    All rows where there are not so many; training goes through them again.
    """
    if len(rows) <= count:
        return list(rows)
    together = groups(rows, image_token_id) if most > 1 else [([number], 0) for number in range(len(rows))]

    def cost(group: tuple[list[int], int]) -> float:
        numbers, prefix = group
        packs = -(-len(numbers) // most)
        return (packs * prefix + sum(own_tokens(rows[number], prefix) for number in numbers)) / len(numbers)

    order = [number for numbers, _ in sorted(together, key=cost, reverse=True) for number in numbers]
    return [rows[number] for number in order[:count]]


class Watch(TrainerCallback):
    """Seconds of each step, and which weights a finite gradient other than zero has come to so far."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.reached: set[str] = set()
        self._since = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._since = _now()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        began = _now()
        for name, weight in model.named_parameters():
            if weight.grad is not None and 0 < torch.linalg.vector_norm(weight.grad, float("inf")).item() < math.inf:
                self.reached.add(name)
        self._since += _now() - began  # a real run does not look

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds.append(_now() - self._since)
        self._since = _now()


def reached(model: Any, names: set[str], images: bool) -> dict[str, int]:
    """How many trained weights there are, how many are among `names`, and how many of the rest are routed experts'.

    An expert that no token was sent to gets no gradient; neither does what reads pictures, without `images`. Raises
    DataError for any other weight without one, and RuntimeError where a frozen one has one.
    """
    frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    if wrongly := sorted(names & frozen):
        raise RuntimeError(f"{len(wrongly)} frozen weights got a gradient, such as {wrongly[:3]}")
    trained = {name for name, _ in model.named_parameters()} - frozen
    trained = {name for name in trained if images or part_of(name) == "llm"}
    idle = {name for name in trained - names if ".experts." in name}
    if without := sorted(trained - names - idle):
        raise DataError(
            f"{len(without)} of {len(trained)} trained weights got no gradient other than zero in {STEPS} steps, such "
            f"as {without[:3]}: nothing that these rows teach depends on them. Freeze them (model.freeze), or name "
            "other modules in method.peft.target_modules."
        )
    return {"trained": len(trained), "reached": len(trained & names), "idle_experts": len(idle)}


def peak_memory(device: str) -> dict[str, int]:
    """Bytes at the peak so far: on a GPU `allocated`, `reserved` and what the `device` has, else of the `process`."""
    if device == "cuda":
        return {
            "allocated": torch.cuda.max_memory_allocated(),
            "reserved": torch.cuda.max_memory_reserved(),
            "device": torch.cuda.mem_get_info()[1],
        }
    unit = 1 if sys.platform == "darwin" else 1024
    return {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}


def saved_bytes(trainer: Any, scratch: Path, dtype: str | None, merged: str | None) -> tuple[int, int]:
    """Bytes of `final/` and of a checkpoint: weights, optimiser states, and the processor that lies beside them.

    `dtype` is what the weights of `final/` are turned into, if anything, and `merged` the one of a base that an adapter
    is merged into there. The trainer has done a step.
    """
    model = trainer.model
    named = get_peft_model_state_dict(model) if isinstance(model, PeftModel) else model.state_dict()
    weights = list({weight.data_ptr(): weight for weight in named.values()}.values())  # tied ones are saved once
    states = [value for state in trainer.optimizer.state_dict()["state"].values() for value in state.values()]
    folder = scratch / "processor"
    trainer.processing_class.save_pretrained(folder)
    beside = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    turned = sum(
        weight.numel() * (getattr(torch, dtype).itemsize if dtype and weight.is_floating_point() else weight.itemsize)
        for weight in weights
    )
    if merged:
        adapter, everything = model.get_nb_trainable_parameters()  # which counts quantised weights rightly
        turned = (everything - adapter) * getattr(torch, merged).itemsize
    optimizer = sum(value.nbytes for value in states if isinstance(value, torch.Tensor))
    return turned + beside, sum(weight.nbytes for weight in weights) + optimizer + beside


def most_checkpoints(args: SFTConfig, steps: int, steps_per_epoch: int) -> int:
    """The most checkpoints that lie side by side in a run: an older one goes only when the next is whole."""
    state = TrainerState()
    state.compute_steps(args, steps)
    by = {"no": 0, "epoch": steps_per_epoch, "steps": state.save_steps, "best": state.eval_steps}
    strategy = args.save_strategy.value
    if strategy == "best" and args.eval_strategy.value == "epoch":
        strategy = "epoch"
    every = by[strategy]
    saves = math.ceil(steps / every) if every else 0
    limit = args.save_total_limit or 0
    if limit <= 0:
        return saves
    return min(saves, max(limit, 2 if args.metric_for_best_model else 1) + 1)  # the best one stays beside the newest


def _arguments(config: Config, decisions: Decisions, run: Path) -> SFTConfig:
    """Those of the run, but for a few steps of which every one is logged, and without anything between them."""
    settings: dict[str, Any] = dict(config.method.trainer) | {
        "max_steps": STEPS, "logging_strategy": "steps", "logging_steps": 1, "save_strategy": "no",
        "eval_strategy": "no", "eval_on_start": False, "load_best_model_at_end": False,
        "warmup_steps": 0,  # steps at a rate of about zero would move nothing
    }  # fmt: skip
    return fine_tuning.arguments(replace(config.method, trainer=settings), decisions, run, config.seed, debug=False)


def _tokens_per_step(epochs: Epochs, steps: int) -> float:
    """Tokens of the sequences of a step, over the first `steps`."""
    items = range(steps * epochs.micro_batches)
    return sum(pack.tokens for item in items for pack in epochs[item]) / steps


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
