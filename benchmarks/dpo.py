"""Speed of DPO: stock TRL DPOTrainer, which asks the reference in every step, and vlmft's pairs on a shared prompt.

    python benchmarks/dpo.py [--json] [--pairs 16] [--width 256] [--layers 3] [--device cuda]

LoRA as conf/method/dpo.yaml has it, on a random GLM-4.1V of middle size and 512x512 pictures with short answers. Once
each pair has a picture of its own, once four share one. A training over the pairs, and a sweep over three betas, from
the questions to the trained adapters; both load the model once, which is left out. In turns, CPU seconds
of one thread (on a GPU: seconds), medians of the rounds.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import logging
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", DS_ACCELERATOR="cpu",
                  HF_HUB_OFFLINE="1")  # fmt: skip
sys.path.insert(0, str(Path(__file__).parent))

import datasets
import middle_sized
import sets
import torch
from omegaconf import OmegaConf
from packing import clock_of
from transformers import PrinterCallback
from transformers.utils import logging as transformers_logging
from trl import DPOConfig, DPOTrainer

from vlmft.chat.encode import Encoder
from vlmft.data.question import Question, Turn
from vlmft.hardware import decide
from vlmft.models.adapters import lora_config
from vlmft.models.load import load_model, load_processor
from vlmft.schema import Algorithm, Config, Device, Hardware, Method
from vlmft.training import fine_tuning
from vlmft.training.reference import with_reference

METHOD = Path(__file__).resolve().parents[1] / "conf" / "method" / "dpo.yaml"
BETAS = (0.1, 0.05, 0.5)
TOGETHER = 4  # pairs about one picture, where they share it


@dataclass
class Task:
    """What both ways are given: the same model, processor and settings."""

    config: Config
    model: Any
    processor: Any
    folder: str

    def encoder(self) -> Encoder:
        """A new one, as each run has its own."""
        return Encoder(self.processor, self.config.model.answer_style, self.model.generation_config.eos_token_id)

    def at(self, **settings: Any) -> Config:
        """The config with these settings of the trainer."""
        method = self.config.method
        return replace(self.config, method=replace(method, trainer=method.trainer | settings))


def pairs(questions: Sequence[Question]) -> list[Question]:
    """Each question with the answer of another one as the rejected one."""
    answers = list(dict.fromkeys(question.answer for question in questions))
    return [replace(q, rejected=Turn(q.text, answers[(answers.index(q.answer) + 1) % len(answers)])) for q in questions]


def stock(task: Task, config: Config, model: Any, questions: Sequence[Question]) -> Any:
    """TRL's own trainer and collator, on texts written already, with pictures by path, decoded by `datasets`."""
    encoder, processor = task.encoder(), task.processor
    end = encoder.tokenizer.decode([encoder.end_id])
    rows = []
    for q in questions:
        said = [{"role": "user", "content": [*[{"type": "image"}] * len(q.images), {"type": "text", "text": q.text}]}]
        asked = processor.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        chosen, rejected = q.answer + end, q.rejected.answer + end  # type: ignore[union-attr]
        rows.append({"prompt": asked, "chosen": chosen, "rejected": rejected, "images": list(q.images)})
    data = datasets.Dataset.from_list(rows).cast_column("images", datasets.List(datasets.Image()))
    decisions = decide(config.model, config.method, config.hardware)
    args = DPOConfig(
        **config.method.trainer, output_dir=task.folder, per_device_train_batch_size=config.method.batch_size,
        bf16=decisions.bf16, use_cpu=decisions.device == "cpu", seed=config.seed, max_length=None, report_to="none",
        remove_unused_columns=False, disable_tqdm=True,
    )  # fmt: skip
    lora = lora_config(config.method, config.model)
    return DPOTrainer(model=model, args=args, train_dataset=data, processing_class=processor, peft_config=lora)


def ours(task: Task, config: Config, model: Any, questions: Sequence[Question]) -> Any:
    """As `vlmft.worker` does it: rows, what the reference says of them, the plan, the trainer."""
    encoder = task.encoder()
    decisions = decide(config.model, config.method, config.hardware)
    rows = list(encoder.rows(questions, Algorithm.dpo))
    rows = with_reference(config, model, rows, encoder, decisions, Path(task.folder), lambda done: None)
    return fine_tuning.trainer_of(
        config, model=model, encoder=encoder, validation=[], callbacks=[],
        epochs=fine_tuning.plan(config.method, decisions, rows, encoder, config.seed, model.config.model_type),
        args=fine_tuning.arguments(config.method, decisions, Path(task.folder), config.seed, debug=False),
    )  # fmt: skip


WAYS = {"trl": stock, "vlmft": ours}


def measure(task: Task, questions: Sequence[Question], rounds: int) -> dict[str, Any]:
    """Seconds of the first training and of all that a sweep over beta has, of each way; each round with no cache."""
    now = clock_of(task.config.hardware.device.value)
    taken: dict[str, list[list[float]]] = {name: [] for name in WAYS}
    for number in range(-1, rounds):
        spent: dict[str, list[float]] = {name: [] for name in WAYS}
        with tempfile.TemporaryDirectory() as cache:
            os.environ["VLMFT_CACHE"] = cache
            for beta in BETAS if number >= 0 else BETAS[:1]:  # the round before the first one warms up
                for name, way in WAYS.items():
                    model = copy.deepcopy(task.model)
                    started = now()
                    trainer = way(task, task.at(beta=beta), model, questions)
                    trainer.remove_callback(PrinterCallback)
                    trainer.train()
                    spent[name].append(now() - started)
                    del model, trainer
        if number >= 0:
            for name in WAYS:
                taken[name].append(spent[name])
    first = {name: [seconds[0] for seconds in rounds_of] for name, rounds_of in taken.items()}
    sweep = {name: [sum(seconds) for seconds in rounds_of] for name, rounds_of in taken.items()}
    return {
        "pair_ratio": ratio(first),
        "beta_sweep_ratio": ratio(sweep),
        "seconds": {name: {"pairs": summary(first[name]), "sweep": summary(sweep[name])} for name in WAYS},
    }


def ratio(seconds: dict[str, list[float]]) -> float:
    return statistics.median(seconds["trl"]) / statistics.median(seconds["vlmft"])


def summary(values: list[float]) -> list[float]:
    """Median, least and most."""
    return [statistics.median(values), min(values), max(values)]


def difference(task: Task, questions: Sequence[Question]) -> float:
    """The relative difference of the loss of the first step, from LoRA weights that are away from their start.

    At their start the policy is the reference, and the loss log 2, whatever is read.
    """
    losses = {}
    with tempfile.TemporaryDirectory() as cache:
        os.environ["VLMFT_CACHE"] = cache
        config = task.at(beta=5.0, max_steps=1, logging_strategy="steps", logging_steps=1)
        for name, way in WAYS.items():
            trainer = way(task, config, copy.deepcopy(task.model), questions[: task.config.method.batch_size])
            trainer.remove_callback(PrinterCallback)
            chance = torch.Generator().manual_seed(0)
            for _, weight in sorted(trainer.model.named_parameters()):
                if weight.requires_grad:
                    weight.data += (0.1 * torch.randn(weight.shape, generator=chance)).to(weight)
            trainer.train()
            losses[name] = trainer.state.log_history[0]["loss"]
    if abs(losses["trl"] - 0.6931) < 1e-3:
        raise SystemExit(f"the loss of {losses['trl']:.4f} is that of an untrained adapter: it would show nothing")
    return float(abs(losses["trl"] - losses["vlmft"]) / abs(losses["trl"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=16, help="pairs of a training, a multiple of four")
    parser.add_argument("--batch", type=int, default=8, help="pairs per optimiser step")
    parser.add_argument("--side", type=int, default=280, help="of a picture in pixels, after the processor")
    parser.add_argument("--width", type=int, default=256, help="of the language model, a multiple of 256")
    parser.add_argument("--layers", type=int, default=3, help="of the language model; the vision tower has half of it")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args()
    if options.pairs % TOGETHER or options.width % (middle_sized.WIDTHS):
        parser.error(f"--pairs is a multiple of {TOGETHER}, --width of {middle_sized.WIDTHS}")
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        task = prepared(options, cache)
        alone = pairs(sets.slake_shaped(cache / "pictures", options.pairs, 1))
        shared = pairs(sets.slake_shaped(cache / "pictures", options.pairs // TOGETHER, TOGETHER))
        found = {"alone": measure(task, alone, options.rounds), "shared": measure(task, shared, options.rounds)}
        differ = max(difference(task, alone), difference(task, shared))
        tokens = task.encoder().visual_tokens([(alone[0].images[0], None)])[0]
    result = {
        "device": options.device, "pairs": options.pairs, "batch_size": options.batch, "image_tokens": tokens,
        **{name: found["alone"][name] for name in ("pair_ratio", "beta_sweep_ratio")},
        **{f"shared_{name}": found["shared"][name] for name in ("pair_ratio", "beta_sweep_ratio")},
        "loss_difference": differ,
        "seconds": {name: of["seconds"] for name, of in found.items()},
    }  # fmt: skip
    gc.unfreeze()
    print(json.dumps(result)) if options.json else table(result)


def prepared(options: argparse.Namespace, cache: Path) -> Task:
    """The method, model and processor of the options."""
    told: Any = OmegaConf.to_container(OmegaConf.load(METHOD))
    method = Method(**told | {"algorithm": Algorithm.dpo, "batch_size": options.batch})
    method.trainer |= {"save_strategy": "no", "logging_strategy": "no", "gradient_checkpointing": False}
    config = Config(
        model=middle_sized.model(cache, options.side**2, options.width, options.layers),
        method=method,
        hardware=Hardware(device=Device(options.device), micro_batch=options.batch),
    )
    model = load_model(config.model, decide(config.model, method, config.hardware).load_dtype).to(options.device)
    gc.freeze()  # the libraries' own objects are not looked through each time that a trainer collects garbage
    return Task(config, model, load_processor(config.model), str(cache / "run"))


def table(found: dict[str, Any]) -> None:
    print(f"{found['pairs']} pairs, {found['image_tokens']} image tokens, {found['batch_size']} pairs per step")
    for form, said, prefix in (("alone", "a picture each", ""), ("shared", f"{TOGETHER} to a picture", "shared_")):
        for kind, ratio_of in (("pairs", "pair_ratio"), ("sweep", "beta_sweep_ratio")):
            of = {name: found["seconds"][form][name][kind] for name in WAYS}
            told = "  ".join(f"{name} {m:6.2f} s ({low:.2f} to {high:.2f})" for name, (m, low, high) in of.items())
            what = "training" if kind == "pairs" else "3 betas"
            print(f"  {said:14} {what:8}  {told}  {found[prefix + ratio_of]:5.2f} x")
    print(f"  relative difference of the loss: {found['loss_difference']:.1e}")


if __name__ == "__main__":
    main()
