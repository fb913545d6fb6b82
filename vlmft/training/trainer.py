"""What SFT and DPO have in common: planned micro-batches, whole checkpoints, losses that are numbers."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import Trainer, TrainerState
from transformers.trainer_utils import rotate_checkpoints

from vlmft import ranks
from vlmft.chat.collate import collate_packs, for_model
from vlmft.chat.encode import Encoder, Row
from vlmft.chat.packing import Pack, attention_mask, pack, position_ids
from vlmft.schema import LearningRates
from vlmft.training import checkpoints, engines
from vlmft.training.epochs import Epochs, InOrder, alone, unlabelled, with_picture
from vlmft.training.optimizer import set_learning_rates

NO_ROW = -1  # in the place of a validation row


class NonFinite(Exception):
    """A loss or gradient that is not a number: training cannot go on, and the weights have not been touched by it."""


@dataclass
class Collator:
    """Makes batches of planned micro-batches, and of validation rows by number."""

    encoder: Encoder
    validation: Sequence[Row]
    shares: bool  # whether the two sequences of a pair share their prompt
    # Of several processes each goes through the vision tower in every step, or they would wait for each other: a batch
    # without pictures has this row with one, without labels.
    picture: Row | None = None

    def __call__(self, items: list[Any]) -> dict[str, Any]:
        if isinstance(items[0], list):
            (packs,) = items
        else:
            packs = [pack([self._validation(item["row"])], int(self.shares)) for item in items]
        if self.picture and not any(row.images for pack in packs for row in pack.rows):
            packs = [*packs, alone(self.picture, self.shares)]
        return self.batch(packs)

    def _validation(self, number: int) -> Row:
        return unlabelled(self.validation[0]) if number == NO_ROW else self.validation[number]

    def batch(self, packs: Sequence[Pack]) -> dict[str, Any]:
        names = [row.question for pack in packs for row in pack.rows]
        return collate_packs(self.encoder, packs) | {"questions": names}


class Planned(Trainer):
    """In front of one of TRL's trainers: it knows which questions are in a step, and saves checkpoints whole.

    Its loss is a mean over answer tokens; a trainer with another one says so in `_count` (of a batch) and in
    `_get_num_items_in_batch` (of a step).
    """

    collator = Collator

    def __init__(
        self, *, encoder: Encoder, epochs: Epochs, validation: Sequence[Row], rates: LearningRates | None = None,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        self.encoder = encoder
        self.rates = rates or LearningRates()
        self._questions: list[str] = []  # of the optimiser step under way
        self._saving = False
        self.on_the_host = False  # whether DeepSpeed keeps the optimiser in the host's memory
        self.earlier_seconds = 0.0  # spent by attempts before this one, up to the checkpoint it resumes from
        self._started = time.monotonic()

        args = kwargs["args"]
        text = kwargs["model"].config.get_text_config()
        if args.router_aux_loss_coef and not hasattr(text, "num_experts"):
            text.num_experts = text.num_local_experts  # TRL asks for the first name, GLM-4.5V has the second
        super().__init__(
            data_collator=self.collator(
                encoder,
                validation,
                shares=epochs.shares,
                picture=(epochs.picture or with_picture(validation)) if ranks.count() > 1 else None,
            ),
            train_dataset=_numbers(len(epochs)),  # TRL takes its own kind only; the plan takes its place below
            # As many batches for each process: what is missing, accelerate would take from the beginning again.
            eval_dataset=_numbers(len(validation), args.per_device_eval_batch_size * ranks.count())
            if validation
            else None,
            processing_class=encoder.processor,
            **kwargs,
        )
        self.train_dataset: Any = epochs
        # GLM-4V and Qwen3-VL say they take no token count, so the Trainer would average over micro-batches, whatever
        # their number of answer tokens; TRL's loss does take it. With it, a step is the same however it is cut up.
        self.model_accepts_loss_kwargs = True

    def seconds(self) -> float:
        """Seconds of training, over all attempts of this run."""
        return self.earlier_seconds + time.monotonic() - self._started

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self._started = time.monotonic()
        return super().train(*args, **kwargs)

    def take_over(self, checkpoint: Path) -> None:
        """Weights and state of a checkpoint of the last step; `train` would do one step more."""
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        self._find_best()
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint:
            self._load_best_model()
        self._started = time.monotonic()

    def _init_training_state(self, *args: Any, **kwargs: Any) -> Any:
        found = super()._init_training_state(*args, **kwargs)
        self._find_best()
        return found

    def _find_best(self) -> None:
        """The best checkpoint lies in the run's folder, wherever that was when its path was written down."""
        if self.state.best_global_step:
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.best_global_step}"
            self.state.best_model_checkpoint = str(folder) if folder.is_dir() else None
            if self.args.load_best_model_at_end and not folder.is_dir():
                raise RuntimeError(f"{folder} has the best validation loss, and is gone; force=true begins again")

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return for_model(self.encoder, super()._prepare_inputs(inputs), self.args.device, torch.float32)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return InOrder(self.train_dataset, lambda: self.state.global_step)

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        found = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        if self.on_the_host and resume_from_checkpoint is None:
            engines.forget_trial_step(self.optimizer)
        return found

    def create_optimizer(self, model: Any = None) -> Any:
        fresh = self.optimizer is None  # type: ignore[has-type]
        optimizer = super().create_optimizer(model)
        if fresh:
            if self.on_the_host:
                engines.compiled("cpu_adam")
            set_learning_rates(optimizer, self.model if model is None else model, self.rates)
        return optimizer

    def _laid_out(self, model: Any, inputs: dict[str, Any], layout: torch.Tensor | None) -> dict[str, Any]:
        """The inputs with positions and mask of packed rows, where they are packed."""
        if layout is None:
            return inputs
        plain = self.accelerator.unwrap_model(model)
        mask = attention_mask(layout)
        if plain.config._attn_implementation == "eager":  # which adds the mask to the scores
            mask = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, torch.finfo(torch.float32).min)
        return inputs | {"position_ids": position_ids(plain, inputs, layout), "attention_mask": mask}

    def _count(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Of how many things the loss of a batch is the mean."""
        return (inputs["labels"][:, 1:] != -100).sum()

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        self._questions += inputs.pop("questions")
        with engines.mean_gradients() if self.is_fsdp_enabled else nullcontext():
            loss = super().training_step(model, inputs, *args, **kwargs)
        if not torch.isfinite(loss):
            self._stop_non_finite(f"the loss is {loss.item()}")
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None and not math.isfinite(norm):
            self._stop_non_finite(f"the gradient norm is {float(norm)}")
        self._questions.clear()
        return norm

    def _stop_non_finite(self, what: str) -> None:
        named = ", ".join(self._questions[-16:])
        raise NonFinite(
            f"{what} at step {self.state.global_step + 1}, questions {named}. The weights are as they were before this "
            "step; lower method.trainer.learning_rate, or look at these rows."
        )

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """Validation loss, a mean over answer tokens (DPO: pairs). TRL's own, over batches, changes with their size."""
        loader = self.get_eval_dataloader(eval_dataset)
        was_training = self.model.training
        self.model.eval()
        total = torch.zeros((), device=self.args.device, dtype=torch.float64)
        count = torch.zeros((), device=self.args.device, dtype=torch.float64)
        for inputs in loader:
            inputs.pop("questions")
            inputs = self._prepare_inputs(inputs)
            count += self._count(inputs)
            with torch.no_grad(), self.compute_loss_context_manager():
                summed = self.compute_loss(self.model, inputs, num_items_in_batch=torch.ones((), device=total.device))
            total += summed.double() / self.accelerator.num_processes
        totals = self.accelerator.reduce(torch.stack([total, count]), reduction="sum")
        metrics = {f"{metric_key_prefix}_loss": (totals[0] / totals[1]).item()}
        self.log(dict(metrics))
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.model.train(was_training)
        return metrics

    def _get_output_dir(self, trial: Any) -> str:
        folder: str = super()._get_output_dir(trial)
        return str(Path(folder) / checkpoints.SAVING) if self._saving else folder

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        self._saving = True
        try:
            Trainer._save_checkpoint(self, model, trial)  # TRL's adds a model card beside the run's files
        finally:
            self._saving = False
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()  # each process writes files of its own
        if self.args.should_save:
            output, step = Path(self.args.output_dir), self.state.global_step
            # Where early stopping has decided, there is no step after this one.
            total = step if self.control.should_training_stop else self.state.max_steps
            checkpoints.put_in_place(output, f"checkpoint-{step}", step, total=total, seconds=self.seconds())
            self._find_best()
            # Only now may an older one go: a kill before must leave the last whole checkpoint.
            rotate_checkpoints(
                output_dir=str(output),
                save_total_limit=limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
            )
        self.accelerator.wait_for_everyone()

    def gathered(self) -> dict[str, torch.Tensor] | None:
        """The weights that are trained, by name, where processes have them in shards; None where each has all."""
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            return None
        if (
            self.is_deepspeed_enabled
            and isinstance(self.model, PeftModel)
            and self.deepspeed.zero_optimization_stage() == 3
        ):
            found = self.deepspeed._zero3_consolidated_16bit_state_dict(exclude_frozen_parameters=True)
        else:
            found = self.accelerator.get_state_dict(self.model_wrapped)
        return dict(found or {})

    def save_whole(self, folder: str, weights: dict[str, torch.Tensor] | None) -> None:
        """Write the model, by `weights` where it has but a part of them, and the processor."""
        self._save(folder, state_dict=weights)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """As `from_pretrained` reads it: names in a checkpoint are the base repository's, not this process's."""
        model = self.model if model is None else model
        if isinstance(model, PeftModel) or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved, report = type(model).from_pretrained(
            resume_from_checkpoint, dtype=model.dtype, output_loading_info=True, local_files_only=True
        )
        if report["missing_keys"] or report["unexpected_keys"] or report["mismatched_keys"]:
            raise RuntimeError(f"{resume_from_checkpoint} does not hold this model: {report}")
        model.load_state_dict(saved.state_dict())

    def _load_best_model(self) -> None:
        if isinstance(self.model, PeftModel) or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            self._load_from_checkpoint(str(self.state.best_model_checkpoint))

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Upstream only warns, and goes on from the base weights."""
        tied = set(getattr(self.model, "_tied_weights_keys", None) or ())
        missing = [key for key in load_result.missing_keys if key not in tied]
        if missing or load_result.unexpected_keys:
            raise RuntimeError(
                f"the checkpoint does not hold this model: {len(missing)} weights missing {missing[:3]}, "
                f"{len(load_result.unexpected_keys)} unknown {list(load_result.unexpected_keys)[:3]}"
            )


def _numbers(count: int, divisor: int = 1) -> Dataset:
    """Row numbers, which the collator looks up, with as many that stand for none as make them divide."""
    return Dataset.from_dict({"row": [*range(count), *[NO_ROW] * (-count % divisor)]})
