"""Reading, formatting and tokenising a large set, and the same row by row as TRL does it.

    python benchmarks/encoding.py [--rows 227000] [--json] [--model glm41v|qwen3vl|glm45v]

PMC-VQA in its published CSV form (version 1), without pictures, from the file to the rows that training batches are
made of: seconds, and the most memory held. Beside it, on a sample and in turns, `datasets.map` over one row at a time
with the tokenizer's chat template. One thread; ratios are of CPU seconds, medians of the rounds.
"""

from __future__ import annotations

import argparse
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
from memory import peak_mb
from transformers.utils import logging

from vlmft.chat.encode import IGNORED, Encoder, Row
from vlmft.chat.over_long import fit
from vlmft.data.load import load
from vlmft.data.question import Question
from vlmft.models.load import load_processor, stop_ids
from vlmft.schema import Images, Method, OverLong

PIXELS = 512 * 512  # of no picture here; the twin wants a limit


def ours(encoder: Encoder, questions: Sequence[Question]) -> list[Row]:
    """As `vlmft.worker` encodes training rows."""
    return fit(encoder, encoder.rows(questions), Method().max_row_tokens, OverLong.refuse).rows


def row_by_row(tokenizer: Any, questions: Sequence[Question]) -> Any:
    """As SFTTrainer prepares prompt-completion rows: prompt, and prompt with completion, each through the template."""

    def tokenised(example: dict[str, Any]) -> dict[str, Any]:
        before = tokenizer.apply_chat_template(example["prompt"], add_generation_prompt=True)["input_ids"]
        whole = tokenizer.apply_chat_template(example["prompt"] + example["completion"])["input_ids"]
        same = next((n for n, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(before))
        return {"input_ids": whole, "completion_mask": [0] * same + [1] * (len(whole) - same)}

    rows = [
        {
            "prompt": [{"role": "user", "content": question.text}],
            "completion": [{"role": "assistant", "content": question.answer}],
        }
        for question in questions
    ]
    return datasets.Dataset.from_list(rows).map(tokenised, remove_columns=["prompt", "completion"])


def whole_set(encoder: Encoder, spec: Any) -> tuple[dict[str, Any], list[Question]]:
    """What reading and encoding the set takes, and its questions."""
    before, wall, cpu = peak_mb() / 1e3, time.perf_counter(), time.process_time()
    questions = load(spec, "train").questions
    read = time.perf_counter()
    rows = ours(encoder, questions)
    done = time.perf_counter()
    return {
        "rows": len(rows),
        "tokens_per_row": statistics.fmean(len(row.input_ids) for row in rows),
        "seconds": done - wall,
        "read_seconds": read - wall,
        "encode_seconds": done - read,
        "cpu_seconds": time.process_time() - cpu,
        "rows_per_second": len(rows) / (done - wall),
        "peak_gb": peak_mb() / 1e3,
        "libraries_gb": before,
    }, questions


def sampled(encoder: Encoder, questions: Sequence[Question], rounds: int) -> dict[str, float]:
    """Rows per CPU second of both ways, which have to show the model the same prompts."""
    for row, theirs in zip(ours(encoder, questions), row_by_row(encoder.tokenizer, questions), strict=True):
        shown = row.labels.count(IGNORED)
        if row.input_ids[:shown] != theirs["input_ids"][:shown] or theirs["completion_mask"][:shown] != [0] * shown:
            raise SystemExit(f"the two ways show the model different prompts for question {row.question}")
    ways: dict[str, Callable[[], Any]] = {
        "vlmft": lambda: ours(encoder, questions),
        "row by row": lambda: row_by_row(encoder.tokenizer, questions),
    }
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.process_time()
            way()
            speeds[name].append(len(questions) / (time.process_time() - started))
    return {name: statistics.median(values) for name, values in speeds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=227_000)
    parser.add_argument("--model", default="glm41v", help="glm41v, glm45v or qwen3vl: the twin whose tokenizer it is")
    parser.add_argument("--sample", type=int, default=3000, help="rows that both ways encode")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args()
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        model = sets.tiny(options.model, cache, PIXELS)
        encoder = Encoder(load_processor(model), model.answer_style, stop_ids(model))
        encoder.tokenizer.chat_template = encoder.processor.chat_template
        spec = sets.pmc_vqa(cache / "pmc_vqa", options.rows)
        spec.images = Images.ignore
        found, questions = whole_set(encoder, spec)
        speeds = sampled(encoder, questions[: options.sample], options.rounds)
    found |= {"rows_per_cpu_second": speeds, "encode_ratio": speeds["vlmft"] / speeds["row by row"]}
    if options.json:
        print(json.dumps({"model": options.model, "pmc_vqa": found}))
        return
    print(f"pmc_vqa, {found['rows']} rows without pictures, {found['tokens_per_row']:.0f} tokens a row")
    print(f"  reading                 {found['read_seconds']:7.1f} s")
    print(f"  formatting, tokenising  {found['encode_seconds']:7.1f} s")
    print(
        f"  together                {found['seconds']:7.1f} s ({found['cpu_seconds']:.1f} of one CPU), "
        f"{found['rows_per_second']:.0f} rows/s"
    )
    print(f"  memory at most          {found['peak_gb']:7.2f} GB ({found['libraries_gb']:.2f} before the first row)")
    for name, speed in speeds.items():
        print(f"  {name:12} {speed:7.0f} rows per CPU second  {speed / speeds['row by row']:5.2f} x row by row")


if __name__ == "__main__":
    main()
