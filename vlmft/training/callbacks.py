"""What is told while training goes on: the status and history files, the progress line, TensorBoard, Weights & Biases;
and the check afterwards that the weights which should have moved did."""

from __future__ import annotations

import logging
import netrc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from vlmft import history
from vlmft.models.load import part_of
from vlmft.schema import Tracking
from vlmft.status import Status
from vlmft.training.engines import whole

logger = logging.getLogger(__name__)


class Progress(TrainerCallback):
    """Writes step, loss, learning rate and time left to `status.json` and the terminal, and to `history.jsonl`.

    The history also has what `memory` gives: of a GPU the bytes that are and were at most in use so far.
    """

    def __init__(self, status: Status, memory: Callable[[], dict[str, int]] | None = None) -> None:
        self.status, self.memory = status, memory or gpu_memory

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        history.go_back(self.status.folder, state.global_step)  # that of the checkpoint, or 0
        self.status.phase("training", total=state.max_steps, done=state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.status.advance(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        values = {key: float(value) for key, value in (logs or {}).items() if key in history.SHOWN}
        self.status.note(state.global_step, **values)
        if values:
            history.append(self.status.folder, state.global_step, {**values, **self.memory()})


def gpu_memory() -> dict[str, int]:
    """Bytes of tensors on this process's GPU, of them at the peak, and of what CUDA holds for them at the peak."""
    if not torch.cuda.is_available():
        return {}
    return {
        "gpu_allocated": torch.cuda.memory_allocated(),
        "gpu_peak_allocated": torch.cuda.max_memory_allocated(),
        "gpu_peak_reserved": torch.cuda.max_memory_reserved(),
    }


class Wandb(TrainerCallback):
    """Logs to Weights & Biases; offline where nobody is logged in, and never an error."""

    def __init__(self, tracking: Tracking, run: Path, config: dict[str, Any]) -> None:
        self.tracking, self.folder, self.config = tracking, run, config
        self.run: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        mode = os.environ.get("WANDB_MODE") or ("online" if _logged_in() else "offline")
        try:
            self.run = self._init(mode)
        except Exception as error:
            logger.warning("wandb     offline, since it could not be reached: %s", error)
            self.run = self._init("offline")

    def _init(self, mode: str) -> Any:
        import wandb

        return wandb.init(
            project=self.tracking.project,
            name=self.tracking.name or self.folder.name,
            group=self.tracking.group,
            id=self.folder.name,
            resume="allow",
            tags=list(self.tracking.tags),
            dir=str(self.folder),
            config=self.config,
            mode=mode,  # type: ignore[arg-type]
            settings=wandb.Settings(silent=True, console="off"),
        )

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if self.run is not None:
            self.run.log(dict(logs or {}), step=state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.run is not None:
            self.run.finish()


def _logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


class Moved(TrainerCallback):
    """Every weight's checksum before the first step (and before a checkpoint is loaded); `check` compares.

    With None for the model they are taken when training begins, of weights that then lie in shards.
    """

    def __init__(self, model: Any, images: bool) -> None:
        self.images = images  # without pictures the vision tower gets no gradient
        self.before = {} if model is None else checksums(model)
        self.first = 0  # the step that training began with, where that was later

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if not self.before:
            self.before, self.first = checksums(model), state.global_step

    def check(self, model: Any, steps: int) -> None:
        """Raise RuntimeError unless every trainable weight changed and every frozen one did not.

        After one or two steps some cannot have moved yet: a warm-up starts at rate zero, and LoRA's A waits for B.
        """
        after = checksums(model)
        changed = {name for name, value in after.items() if value != self.before[name]}
        trainable = {
            name
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and (self.images or _learns_from_text(name, model))
        }
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        if wrongly := sorted(changed & frozen):
            raise RuntimeError(f"{len(wrongly)} frozen weights changed in training, such as {wrongly[:3]}")
        still = sorted(trainable - changed)
        if still and steps - self.first > 2:
            raise RuntimeError(f"{len(still)} of {len(trainable)} trained weights did not move, such as {still[:3]}")


def _learns_from_text(parameter: str, model: Any) -> bool:
    """Whether a parameter gets a gradient where no row shows a picture; layers that attend to pictures get none."""
    config = getattr(model, "config", None)
    crossing = getattr(config and config.get_text_config(), "cross_attention_layers", None) or ()
    return part_of(parameter) == "llm" and not any(f"layers.{number}." in parameter for number in crossing)


def checksums(model: Any) -> dict[str, int]:
    """An exact checksum of each parameter's bits (their sum as integers); one changed element changes it.

    Of vectors it is that of their values: 8-bit layers turn their biases into the type of what they read.
    """
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    found = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            weight = whole(parameter).detach().contiguous()
            weight = weight.double() if weight.ndim == 1 and weight.is_floating_point() else weight
            found[name] = int(weight.view(integers[weight.element_size()]).sum(dtype=torch.int64))
    return found
