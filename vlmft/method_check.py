"""What of `method` belongs together: validation, the best checkpoint and early stopping; few bits and LoRA."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vlmft.schema import Algorithm, Config, Method, Packing, Task

_TRAINS = (Task.train, Task.dry_run)


def problems(config: Config) -> Iterable[str]:
    """A message for each setting that another one contradicts, or that lacks one."""
    yield from _values(config.method)
    if config.method.algorithm is Algorithm.dpo and config.dataset.streaming:
        yield "dataset.streaming: pairs are read whole, as what the reference says of each is kept; leave it out"
    if config.task in _TRAINS:
        if config.method.packing is Packing.image and config.model.attention not in ("sdpa", "eager"):
            yield (
                f"model.attention={config.model.attention} would not keep the questions of a packed row apart: take "
                "sdpa, or set method.packing=none"
            )
        yield from _quantized(config.method)
        yield from _validation(config)


def _values(method: Method) -> Iterable[str]:
    patience, threshold = method.early_stopping.patience, method.early_stopping.threshold
    if patience is not None and not (0 < patience < 1 or (patience >= 1 and patience % 1 == 0)):
        yield (
            f"method.early_stopping.patience={patience:g} should be a whole number of evaluations, or below 1 a "
            "share of all steps; null never stops"
        )
    if not threshold >= 0:
        yield f"method.early_stopping.threshold={threshold:g} should be 0 or more: what the loss has to fall by"
    metric = method.trainer.get("metric_for_best_model") or "eval_loss"
    if metric not in ("loss", "eval_loss"):
        yield f"method.trainer.metric_for_best_model={metric}: validation yields eval_loss, and nothing else"
    if method.trainer.get("greater_is_better"):
        yield "method.trainer.greater_is_better=true: the best model is the one with the smallest eval_loss"
    few = method.quantization or {}
    bits = [key for key in ("load_in_4bit", "load_in_8bit") if few.get(key)]
    if few and len(bits) != 1:
        yield f"method.quantization asks for {' and '.join(bits) or 'neither load_in_4bit nor load_in_8bit'}; name one"


def _quantized(method: Method) -> Iterable[str]:
    if method.quantization and method.peft is None:
        yield (
            f"method.quantization with method={method.name}: weights in few bits cannot be trained themselves; "
            "method=lora8 and qlora4 train LoRA on them"
        )


def _validation(config: Config) -> Iterable[str]:
    trainer = config.method.trainer
    strategy = trainer.get("eval_strategy") or "no"
    best = bool(trainer.get("load_best_model_at_end"))
    early = config.method.early_stopping.patience is not None
    if early and not best:
        yield (
            "method.early_stopping.patience ends training some evaluations after the best one: add "
            "method.trainer.load_best_model_at_end=true, which keeps that"
        )
    if best and strategy == "no":
        yield (
            "method.trainer.load_best_model_at_end=true chooses by validation while training: add "
            "method.trainer.eval_strategy=steps and eval_steps=<as save_steps>"
        )
    elif best:
        yield from _saved_as_validated(trainer, strategy)
    if (early or best or strategy != "no") and config.dataset.name and not config.dataset.validation:
        wanted = "early_stopping" if early else "trainer.load_best_model_at_end" if best else "trainer.eval_strategy"
        yield (
            f"method.{wanted} needs rows to validate on: set dataset.validation to a split that is no test split, a "
            "file, or a fraction of the training images such as 0.1"
        )


def _saved_as_validated(trainer: dict[str, Any], strategy: str) -> Iterable[str]:
    """The best model can only be kept where it is saved whenever there is a validation."""
    saved = trainer.get("save_strategy") or "steps"
    every = trainer.get("eval_steps") or trainer.get("logging_steps") or 10  # and 500: SFTConfig's own
    if saved == "best" or (saved == strategy == "epoch"):
        return
    if saved == strategy == "steps" and every == (trainer.get("save_steps") or 500):
        return
    said, right = f"every {every} steps", f"save_strategy=steps and save_steps={every}"
    if strategy == "epoch":
        said, right = "at the end of each epoch", "save_strategy=epoch"
    yield (
        f"method.trainer.load_best_model_at_end=true: validation is {said}, and checkpoints are not saved with it, so "
        f"the best one could be lost; set method.trainer.{right} (or save_strategy=best)"
    )
