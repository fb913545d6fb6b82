"""Evaluation speed: one question at a time, stock batched generate at its best, vlmft with shared pictures.

    python benchmarks/evaluation.py [--json] [--model glm41v|qwen3vl|glm45v] [--images 8]

Greedy answers to a SLAKE-shaped set (11 questions an image, 324 image tokens) by a twin that was trained for a moment.
CPU seconds of one thread, in turns, medians of the rounds; the share of texts that differ is counted.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", DS_ACCELERATOR="cpu",
                  HF_HUB_OFFLINE="1")  # fmt: skip
sys.path.insert(0, str(Path(__file__).parent))

import sets
import torch
from packing import arguments
from transformers import PrinterCallback
from transformers.utils import logging as transformers_logging

from vlmft.chat.encode import Encoder
from vlmft.evaluation.generate import answer_all
from vlmft.models.load import load_model, load_processor
from vlmft.schema import Generation, Packing
from vlmft.training.epochs import Epochs
from vlmft.training.sft import VqaTrainer

TRAINING_STEPS, NEW_TOKENS = 60, 32


def trained(model: Any, encoder: Encoder, questions: list[Any], folder: str) -> Any:
    """The twin after a few packed steps: its answers are words that end."""
    rows = [row for question in questions for row in encoder.train_rows(question)]
    epochs = Epochs(rows, encoder.image_token_id, batch_size=16, micro_batches=1, most=16, max_tokens=4096, seed=0)
    more = {"dataset_kwargs": {"skip_prepare_dataset": True}}
    settings = arguments(folder, 1, TRAINING_STEPS, "cpu", **more)
    settings.learning_rate = 3e-3
    trainer = VqaTrainer(encoder=encoder, epochs=epochs, validation=[], model=model, args=settings)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="glm41v", help="glm41v, glm45v or qwen3vl (twins)")
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--dtype", default="float32", help="float32 or bfloat16 (where a few texts may differ)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        spec = sets.tiny(options.model, cache, 512 * 512)
        model = load_model(spec, "float32")  # trained in float32, whatever it answers in
        encoder = Encoder(load_processor(spec), spec.answer_style, model.generation_config.eos_token_id)
        questions = sets.slake_shaped(cache / "pictures", options.images)
        model = trained(model, encoder, questions, folder).to(getattr(torch, options.dtype))
        rows = [encoder.prompt_row(question) for question in questions]

        def answer(size: int, packing: Packing) -> list[str]:
            settings = Generation(max_new_tokens=NEW_TOKENS, batch_size=size, packing=packing)
            said = {number: reply["raw"] for numbers, replies in answer_all(model, encoder, rows, settings)
                    for number, reply in zip(numbers, replies, strict=True)}  # fmt: skip
            return [said[number] for number in range(len(rows))]

        ways: dict[str, Callable[[], list[str]]] = {
            "one at a time": lambda: answer(1, Packing.none),
            **{f"batches of {size}": lambda size=size: answer(size, Packing.none) for size in (8, 16, 32)},  # type: ignore[misc]
            "vlmft": lambda: answer(32, Packing.image),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        texts: dict[str, list[str]] = {}
        ways["vlmft"]()  # pictures into the cache
        for _ in range(options.rounds):
            for name, way in ways.items():
                started = time.process_time()
                texts[name] = way()
                seconds[name].append(time.process_time() - started)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    batched = min((name for name in median if name.startswith("batches")), key=lambda name: median[name])
    found = {
        "questions_per_second": {name: len(rows) / value for name, value in median.items()},
        "eval_ratio_single": median["one at a time"] / median["vlmft"],
        "eval_ratio_batched": median[batched] / median["vlmft"],
        "best_batched": batched,
        "texts_differ": sum(a != b for a, b in zip(texts["one at a time"], texts["vlmft"], strict=True)) / len(rows),
        "distinct_texts": len(set(texts["vlmft"])),
    }
    if options.json:
        print(json.dumps({"model": options.model, "slake_shaped": found}))
        return
    print(f"slake_shaped, {len(rows)} questions, {found['distinct_texts']} distinct texts")
    for name, value in median.items():
        print(
            f"  {name:15} {len(rows) / value:7.1f} questions/s  {median['one at a time'] / value:6.2f} x one at a time"
        )
    print(f"  {found['eval_ratio_batched']:.2f} x {batched}; texts that differ: {100 * found['texts_differ']:.1f} %")


if __name__ == "__main__":
    main()
