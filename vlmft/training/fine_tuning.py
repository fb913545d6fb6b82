"""A run's training, on TRL's trainers, with the rows that chat/encode.py made."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.utils.tensorboard import SummaryWriter
from transformers import PrinterCallback, TrainerCallback
from transformers.integrations import TensorBoardCallback
from trl import DPOConfig, SFTConfig

from vlmft import history, ranks
from vlmft.chat.encode import Encoder, Row
from vlmft.chat.packing import proven, questions_per_row
from vlmft.hardware import Decisions
from vlmft.models.adapters import load_weights, lora_config
from vlmft.models.quantized import elements
from vlmft.schema import Algorithm, Config, Hardware, Method, Packing
from vlmft.training import checkpoints, early_stopping, engines, init_from
from vlmft.training.callbacks import Moved
from vlmft.training.dpo import PairTrainer
from vlmft.training.epochs import Epochs
from vlmft.training.leaving import SaveAndLeave
from vlmft.training.sft import VqaTrainer
from vlmft.training.streamed import Stream, Streamed
from vlmft.training.trainer import Planned

logger = logging.getLogger(__name__)

_WORKERS = 4  # processes that make batches while a GPU computes; on a CPU they would only take its cores


def arguments(
    method: Method, decisions: Decisions, run: Path, seed: int, debug: bool, hardware: Hardware | None = None
) -> SFTConfig | DPOConfig:
    """TRL's arguments: the method's own names, plus what vlmft decides, and the engine of several processes."""
    settings: dict[str, Any] = dict(method.trainer)
    settings.pop("gradient_checkpointing", None)
    settings.setdefault("per_device_eval_batch_size", decisions.micro_batch)
    if decisions.device == "cuda" and settings.setdefault("dataloader_num_workers", _WORKERS):
        settings.setdefault("dataloader_persistent_workers", True)
    # TRL takes the model's own: a mean over micro-batches, with which a step would depend on how it is cut up.
    settings.setdefault("router_aux_loss_coef", 0.0)
    if debug:
        settings.update(max_steps=2, logging_steps=1, save_strategy="no", eval_strategy="no")
        settings.pop("load_best_model_at_end", None)
    if method.algorithm is Algorithm.sft:
        settings["dataset_kwargs"] = {"skip_prepare_dataset": True}
    return (DPOConfig if method.algorithm is Algorithm.dpo else SFTConfig)(
        **settings,
        output_dir=str(run),
        per_device_train_batch_size=1,  # planned micro-batches
        gradient_accumulation_steps=method.batch_size // (decisions.micro_batch * decisions.ranks),
        gradient_checkpointing=decisions.gradient_checkpointing,
        bf16=decisions.bf16,
        use_cpu=decisions.device == "cpu",
        seed=seed,
        data_seed=seed,
        max_length=None,  # image tokens are never cut
        remove_unused_columns=False,
        report_to="none",  # callbacks of ours write TensorBoard and W&B, into the run's own folder
        disable_tqdm=True,
        logging_nan_inf_filter=False,
        **(engines.arguments(hardware) if hardware else {}),
    )


def plan(
    method: Method, decisions: Decisions, rows: Sequence[Row], encoder: Encoder, seed: int, family: str,
    stream: Stream | None = None,
) -> Epochs:  # fmt: skip
    """The epochs of a run, of the `rows` or of a `stream`; says how many questions share a sequence, or why none do."""
    most = questions_per_row(method, family)
    if method.packing is Packing.image and not proven(method, family):
        logger.info("packing   none: packed rows are not proven equal to ordinary ones for %s", family)
    settings: dict[str, int] = {
        "batch_size": method.batch_size, "micro_batches": method.batch_size // decisions.micro_batch,
        "most": most, "max_tokens": method.max_row_tokens, "seed": seed,
    }  # fmt: skip
    epochs = Streamed(stream, encoder, **settings) if stream else Epochs(rows, encoder.image_token_id, **settings)
    if most > 1:
        logger.info("packing   %.1f questions share a row and its pictures, on average", epochs.questions_per_pack())
    return epochs


def train(
    config: Config,
    *,
    model: Any,
    encoder: Encoder,
    rows: Sequence[Row],
    validation: Sequence[Row],
    decisions: Decisions,
    run: Path,
    callbacks: Sequence[TrainerCallback],
    stream: Stream | None = None,
) -> dict[str, Any]:
    """Train `model` on `rows`, resuming from the newest whole checkpoint of `run`, and save it for `put_in_place`.

    Of a `stream`, the rows are its first ones, and all that it holds are trained on. Returns steps, questions, seconds,
    questions_per_second and loss, over all attempts of this run. Raises NonFinite, and RuntimeError where something
    that should have moved did not.
    """
    checkpoint = checkpoints.newest(run)
    early = config.method.early_stopping
    callbacks = [*callbacks, SaveAndLeave()]
    if early.patience is not None and not config.debug:
        callbacks = [*callbacks, early_stopping.StopEarly(early)]
    if ranks.first():
        callbacks = [*callbacks, TensorBoardCallback(SummaryWriter(str(run / "tensorboard")))]
    so_far = checkpoints.manifest(checkpoint) if checkpoint else None
    over = so_far["step"] >= so_far["total"] if so_far else False
    epochs = plan(config.method, decisions, rows, encoder, config.seed, model.config.model_type, stream)
    trainer = trainer_of(
        config, model=model, encoder=encoder, epochs=epochs, validation=validation,
        args=arguments(
            config.method, decisions, run, config.seed, config.debug, None if over else config.hardware
        ),
        callbacks=callbacks,
    )  # fmt: skip
    if not over:
        engines.check(trainer, decisions)
    in_shards = decisions.engine != "ddp" and not over
    moved = Moved(None if in_shards else trainer.model, images=any(row.images for row in rows))
    trainer.add_callback(moved)
    if checkpoint and so_far:
        trainer.earlier_seconds = so_far["seconds"]
    if checkpoint and over:
        trainer.take_over(checkpoint)  # there is nothing to do together any more
    else:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    moved.check(trainer.model, trainer.state.global_step)
    save_final(trainer, config, decisions, run)
    if stopped := early_stopping.told(early, trainer.state):
        logger.info("training  %s", stopped)
    return summary(trainer, epochs.questions(trainer.state.global_step)) | ({"stopped": stopped} if stopped else {})


def trainer_of(
    config: Config, *, model: Any, encoder: Encoder, epochs: Epochs, validation: Sequence[Row],
    args: SFTConfig | DPOConfig, callbacks: Sequence[TrainerCallback],
) -> Planned:  # fmt: skip
    """The trainer of `model`, with LoRA around it where the method has it, as far as `init_from` has trained it.

    Says how many weights are trained. Raises DataError where an adapter to go on from does not fit.
    """
    engines.prepare_accelerate(args)
    kind = PairTrainer if config.method.algorithm is Algorithm.dpo else VqaTrainer
    trainer = kind(
        encoder=encoder,
        epochs=epochs,
        validation=validation,
        rates=config.method.learning_rates,
        model=model,
        args=args,
        peft_config=lora_config(config.method, config.model) if config.method.peft is not None else None,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.on_the_host = args.deepspeed is not None and engines.on_the_host(config.hardware)
    if config.method.quantization:
        # TRL trains LoRA on a base in few bits in bfloat16, where small updates are lost, and a resume in float32.
        for weight in trainer.model.parameters():
            weight.data = weight.data.float() if weight.requires_grad else weight.data
    if adapter := init_from.adapter_to_go_on(config):
        load_weights(trainer.model, adapter)
    logger.info("%s", describe(trainer.model))
    return trainer


def final_dtype(method: Method, decisions: Decisions) -> str | None:
    """What the weights of `final/` are turned into; None where they are saved as they were trained."""
    return "bfloat16" if decisions.bf16 and method.peft is None else None


def describe(model: Any) -> str:
    """How many weights are trained, and which parts of a mixture of experts LoRA leaves alone, in words."""
    trained = sum(elements(parameter) for parameter in model.parameters() if parameter.requires_grad)
    everything = sum(elements(parameter) for parameter in model.parameters())
    said = f"training {trained:,} of {everything:,} weights ({100 * trained / everything:.2f} %)"
    experts = [(name, p) for name, p in model.named_parameters() if ".experts." in name]
    if isinstance(model, PeftModel) and experts and not any("lora_" in name for name, _ in experts):
        untouched = sum(elements(parameter) for _, parameter in experts)
        said += (
            f"; the {untouched:,} of the routed experts have no adapter "
            "(method.peft.target_parameters=[mlp.experts.gate_up_proj,mlp.experts.down_proj] gives them one)"
        )
    return said


def save_final(trainer: Planned, config: Config, decisions: Decisions, run: Path) -> None:
    """Write the trained model (or adapter) and processor, not yet under their name; LoRA on another base than `model`
    is merged into it. Weights in shards are gathered, for which every process is needed."""
    weights = trainer.gathered()
    if not ranks.first():
        return
    fresh, dtype = run / ".final", final_dtype(config.method, decisions)
    shutil.rmtree(fresh, ignore_errors=True)
    if init_from.on_another_base(config):
        engines.let_go()
        trainer.model = init_from.whole(config, trainer.model, decisions.load_dtype, run, weights)
        weights = None
    if dtype is not None and weights is None:
        trainer.model.to(getattr(torch, dtype))
    elif dtype is not None and weights is not None:
        weights = {name: value.to(getattr(torch, dtype)) for name, value in weights.items()}
    trainer.save_whole(str(fresh), weights)


def put_in_place(run: Path) -> None:
    """What was trained becomes `final/`, whole and on disk."""
    checkpoints.flush(run / ".final")
    os.replace(run / ".final", run / "final")


def summary(trainer: Planned, questions: int) -> dict[str, Any]:
    """The `train` part of result.json: steps, questions and seconds over all attempts, and the last logged loss (of
    DPO also reward accuracy and margin).

    A run too short to log one gets the mean of its steps, which is logged at the end.
    """
    state, seconds = trainer.state, trainer.seconds()
    losses = [entry[key] for key in ("train_loss", "loss") for entry in state.log_history if key in entry]
    rewards = {name: [entry[name] for entry in state.log_history if name in entry] for name in history.REWARDS}
    return {
        "steps": state.global_step,
        "questions": questions,
        "seconds": seconds,
        "questions_per_second": questions / seconds if seconds else None,
        "loss": losses[-1] if losses else None,
        **{name: values[-1] for name, values in rewards.items() if values},
    }
