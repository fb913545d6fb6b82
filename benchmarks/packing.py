"""Training speed: stock TRL SFTTrainer with its vision collator, vlmft's ordinary rows, vlmft's packed rows.

    python benchmarks/packing.py --vqa-rad data/vqa_rad [--json] [--model glm41v|qwen3vl|glm45v]
    python benchmarks/packing.py --device cuda --model glm41v_random|qwen3vl_4b_random

The same model, questions per step (16), LoRA, dtype, image processor and prompt-completion rows; no gradient
checkpointing, no workers. In turns, CPU seconds of one thread (on a GPU: seconds), medians of the rounds.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", DS_ACCELERATOR="cpu",
                  HF_HUB_OFFLINE="1")  # fmt: skip
sys.path.insert(0, str(Path(__file__).parent))

import datasets
import sets
import torch
from transformers import PrinterCallback, TrainerCallback
from transformers.utils import logging
from trl import SFTConfig, SFTTrainer

from vlmft.chat.collate import collate, collate_packs, for_model
from vlmft.chat.encode import IGNORED, Encoder, Row
from vlmft.chat.packing import Pack, attention_mask, groups, position_ids
from vlmft.data.question import Question
from vlmft.models.load import load_model, load_processor
from vlmft.schema import Method
from vlmft.training.epochs import Epochs
from vlmft.training.sft import VqaTrainer

BATCH, WARM = 16, 1


class Clock(TrainerCallback):
    """Seconds after each optimiser step."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now, self.at = now, [0.0]

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.at.append(self.now())


def clock_of(device: str) -> Callable[[], float]:
    """CPU seconds of this process, or on a GPU seconds, once it has done what was asked of it."""

    def of_gpu() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return time.process_time if device == "cpu" else of_gpu


def arguments(folder: str, batch: int, steps: int, device: str, **more: Any) -> SFTConfig:
    return SFTConfig(
        output_dir=folder, max_steps=steps, per_device_train_batch_size=batch, gradient_checkpointing=False,
        bf16=device != "cpu", use_cpu=device == "cpu", learning_rate=1e-4, max_length=None, report_to="none",
        save_strategy="no", logging_strategy="no", disable_tqdm=True, remove_unused_columns=False,
        dataloader_num_workers=0, **more,
    )  # fmt: skip


def stock(
    model: Any, encoder: Encoder, questions: Sequence[Question], folder: str, steps: int, device: str, **given: Any
) -> Any:
    """TRL's own trainer on prompt-completion rows with pictures by path, decoded by `datasets`."""
    from datasets import Dataset, Image, List

    rows = [
        {
            "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": q.text}]}],
            "completion": [{"role": "assistant", "content": [{"type": "text", "text": q.answer}]}],
            "images": list(q.images),
        }
        for q in questions
    ]
    data = Dataset.from_list(rows).cast_column("images", List(Image()))
    return SFTTrainer(
        model=model, args=arguments(folder, BATCH, steps, device), train_dataset=data,
        processing_class=encoder.processor, **given,
    )  # fmt: skip


def ours(
    model: Any, encoder: Encoder, rows: Sequence[Row], most: int, folder: str, steps: int, device: str, **given: Any
) -> Any:
    epochs = Epochs(rows, encoder.image_token_id, batch_size=BATCH, micro_batches=1, most=most, max_tokens=4096, seed=0)
    more = {"dataset_kwargs": {"skip_prepare_dataset": True}}
    return VqaTrainer(
        encoder=encoder, epochs=epochs, validation=[], model=model,
        args=arguments(folder, 1, steps, device, **more), **given,
    )  # fmt: skip


def measure(questions: Sequence[Question], spec: Any, model: Any, encoder: Encoder, options: Any) -> dict[str, Any]:
    """Questions per second of each way, over `options.rounds` rounds in turns."""
    from peft import LoraConfig

    cuda = options.device != "cpu"
    rows = [row for question in questions for row in encoder.train_rows(question)]
    ways: dict[str, Callable[..., Any]] = {
        "trl": lambda *a, **k: stock(a[0], encoder, questions, *a[1:], **k),
        "none": lambda *a, **k: ours(a[0], encoder, rows, 1, *a[1:], **k),
    }
    for most in sorted({16, 8, Method().max_questions_per_row}, reverse=True):
        ways[f"packed{most}"] = lambda *a, most=most, **k: ours(a[0], encoder, rows, most, *a[1:], **k)

    now = clock_of(options.device)
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    peaks: dict[str, float] = {}
    for _ in range(options.rounds):
        for name, way in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                clock = Clock(now)
                lora = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=spec.lora_targets)
                if cuda:
                    torch.cuda.reset_peak_memory_stats()
                trainer = way(
                    model if cuda else copy.deepcopy(model), folder, WARM + options.steps, options.device,
                    peft_config=lora, callbacks=[clock],
                )  # fmt: skip
                trainer.remove_callback(PrinterCallback)
                trainer.train()
                seen = BATCH * options.steps
                if isinstance(trainer.train_dataset, Epochs):
                    seen = trainer.train_dataset.questions(WARM + options.steps) - trainer.train_dataset.questions(WARM)
                speeds[name].append(seen / (clock.at[-1] - clock.at[WARM]))
                if cuda:
                    peaks[name] = torch.cuda.max_memory_allocated() / 1e9
                    trainer.model.unload()
                del trainer
    median = {name: statistics.median(values) for name, values in speeds.items()}
    default = f"packed{Method().max_questions_per_row}"
    return {
        "questions_per_second": median,
        "spread": {name: [min(values), max(values)] for name, values in speeds.items()},
        "train_ratio": median["packed16"] / median["trl"],
        "train_ratio_default": median[default] / median["trl"],
        "unpacked_ratio": median["none"] / median["trl"],
    } | ({"peak_gb": peaks} if cuda else {})


def differences(rows: Sequence[Row], model: Any, encoder: Encoder) -> dict[str, float]:
    """The largest relative difference in loss, and in any weight's gradient, between ordinary and packed rows."""
    model = model.float().train()
    found: list[tuple[float, dict[str, torch.Tensor]]] = []
    packs = [Pack(tuple(rows[n] for n in numbers), prefix) for numbers, prefix in groups(rows, encoder.image_token_id)]
    for batch in (collate(encoder, rows, padding_side="right"), collate_packs(encoder, packs)):
        batch = for_model(encoder, batch, model.device, torch.float32)
        labels, layout = batch.pop("labels"), batch.pop("layout", None)
        if layout is not None:
            batch |= {"position_ids": position_ids(model, batch, layout), "attention_mask": attention_mask(layout)}
        model.zero_grad()
        logits = model(**batch).logits[:, :-1].flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=IGNORED)
        loss.backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        found.append((loss.item(), grads))
    (loss_a, grads_a), (loss_b, grads_b) = found
    gradient = max(((grads_a[n] - grads_b[n]).norm() / grads_a[n].norm().clamp(min=1e-8)).item() for n in grads_a)
    return {"loss_difference": abs(loss_a - loss_b) / abs(loss_a), "gradient_difference": gradient}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vqa-rad", type=Path, help="VQA-RAD as published; left out where absent")
    parser.add_argument(
        "--model", default="glm41v", help="glm41v, glm45v, qwen3vl (twins), glm41v_random, qwen3vl_4b_random"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="optimiser steps measured in a round")
    parser.add_argument(
        "--most", type=int, nargs=2, default=[16, 8], help="questions in a row: to compare, and the default"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    options = parser.parse_args()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    result: dict[str, Any] = {"model": options.model, "device": options.device, "batch_size": BATCH}
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        chosen = {"slake_shaped": (sets.slake_shaped(cache / "pictures", 64), 512 * 512)}
        if options.vqa_rad:
            chosen = {"vqa_rad": (sets.vqa_rad(options.vqa_rad), 256 * 28 * 28)} | chosen
        for name, (questions, pixels) in chosen.items():
            if options.model.endswith("_random"):
                spec, model = sets.random_weights(options.model, cache, pixels, options.device)
            else:
                spec = sets.tiny(options.model, cache, pixels)
                model = load_model(spec, "float32" if options.device == "cpu" else "bfloat16").to(options.device)
            encoder = Encoder(load_processor(spec), spec.answer_style, model.generation_config.eos_token_id)
            result[name] = measure(questions, spec, model, encoder, options)
            if not options.model.endswith("_random"):
                some = sorted(questions, key=lambda question: question.images)[:16]
                result[name] |= differences([row for q in some for row in encoder.train_rows(q)], model, encoder)
            if not options.json:
                table(name, result[name])
    if options.json:
        print(json.dumps(result))


def table(name: str, found: dict[str, Any]) -> None:
    print(f"{name}")
    base = found["questions_per_second"]["trl"]
    for way, speed in found["questions_per_second"].items():
        low, high = found["spread"][way]
        print(f"  {way:10} {speed:8.1f} questions/s ({low:.1f} to {high:.1f})  {speed / base:5.2f} x TRL")
    if "loss_difference" in found:
        print(
            f"  relative difference: loss {found['loss_difference']:.1e}, gradient {found['gradient_difference']:.1e}"
        )


if __name__ == "__main__":
    main()
