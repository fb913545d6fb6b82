"""A file of rows streamed through shuffling and encoding, as training reads it, and the same rows read whole.

    python benchmarks/streaming.py [--rows 500000] [--json] [--model glm41v|qwen3vl|glm45v]

JSON lines in the conversation form, 5 questions about each of 200 pictures in turn. Rows per CPU second of the pass
before training (every row and picture looked at, digests written) and of an epoch, and by how much the peak of memory
is higher than after a first buffer of rows; beside it, by how much more reading and encoding a part of the file whole
raises it. Nothing is trained.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", DS_ACCELERATOR="cpu",
                  HF_HUB_OFFLINE="1")  # fmt: skip
sys.path.insert(0, str(Path(__file__).parent))

import sets
from memory import peak_mb
from transformers.utils import logging

from vlmft.chat.encode import Encoder
from vlmft.chat.over_long import fit
from vlmft.data.load import load
from vlmft.models.load import load_processor, stop_ids
from vlmft.schema import Dataset, Method, OverLong
from vlmft.training.streamed import Streamed, read_through

PIXELS, PICTURES, QUESTIONS = 112 * 112, 200, 5


def written(folder: Path, rows: int) -> Dataset:
    """A set of so many rows."""
    from PIL import Image

    folder.mkdir()
    for n in range(PICTURES):
        Image.effect_noise((64, 64), 40 + n % 50).save(folder / f"{n}.png")
    with (folder / "train.json").open("w", encoding="utf-8") as file:
        for n in range(rows):
            asked = f"Is number {n} in the left lobe of picture {n // QUESTIONS}, or is it larger than number {n + 7}?"
            said = {"human": f"<image>\n{asked}", "gpt": f"Number {n} is larger."}
            turns = [{"from": speaker, "value": text} for speaker, text in said.items()]
            row = {"id": n, "image": f"{n // QUESTIONS % PICTURES}.png", "conversations": turns, "modality": "MR"}
            file.write(json.dumps(row) + "\n")
    return Dataset(name="streamed", format="conversations", path=str(folder), streaming=True)


def streamed(encoder: Encoder, dataset: Dataset, run: Path, rounds: int) -> dict[str, Any]:
    """The pass before training and epochs through every micro-batch: rows per CPU second."""
    method = Method()
    run.mkdir()
    began = time.process_time()
    found = read_through(dataset, method, encoder, run, run / "trained_on.jsonl")
    read = time.process_time() - began
    plan = Streamed(
        found, encoder, batch_size=method.batch_size, micro_batches=1, most=method.max_questions_per_row,
        max_tokens=method.max_row_tokens, seed=0,
    )  # fmt: skip
    speeds, rows = [], 0
    for epoch in range(rounds):
        began = time.process_time()
        rows = sum(len(pack.rows) for step in range(plan.steps) for pack in plan[epoch * plan.steps + step])
        speeds.append(rows / (time.process_time() - began))
    return {"rows": rows, "read_speed": rows / read, "speed": statistics.median(speeds)}


def whole(encoder: Encoder, dataset: Dataset, rows: int) -> float:
    """Megabytes that so many rows take when they are read and encoded together."""
    file = Path(str(dataset.path)) / "part.json"
    with (file.parent / "train.json").open(encoding="utf-8") as lines:
        file.write_text("".join(_first(lines, rows)), encoding="utf-8")
    before = peak_mb()
    dataset.splits["train"] = file.name
    questions = load(dataset, "train").questions
    encoded = fit(encoder, encoder.rows(questions), Method().max_row_tokens, OverLong.refuse)
    assert len(questions) == len(encoded.rows) == rows
    return peak_mb() - before


def _first(lines: Iterable[str], count: int) -> Iterator[str]:
    return (line for _, line in zip(range(count), lines, strict=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--whole", type=int, default=50_000, help="rows that are also read whole")
    parser.add_argument("--model", default="glm41v", help="glm41v, glm45v or qwen3vl: the twin whose processor it is")
    parser.add_argument("--rounds", type=int, default=1, help="epochs, of whose speeds the median is told")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["VLMFT_CACHE"] = str(Path(folder) / "cache")
        model = sets.tiny(options.model, Path(folder), PIXELS)
        encoder = Encoder(load_processor(model), model.answer_style, stop_ids(model))
        dataset = written(Path(folder) / "set", options.rows)
        streamed(encoder, replace(dataset, max_rows=dataset.buffer_size), Path(folder) / "first buffer", rounds=1)
        before = peak_mb()
        found = streamed(encoder, dataset, Path(folder) / "run", options.rounds) | {"growth_mb": peak_mb() - before}
        part = min(options.whole, options.rows)
        found |= {"whole_rows": part, "whole_mb": whole(encoder, dataset, part)}
    per_row = found["growth_mb"] / found["rows"], found["whole_mb"] / found["whole_rows"]
    found["memory_ratio"] = per_row[1] / max(per_row[0], 1e-9)
    if options.json:
        print(json.dumps({"model": options.model, "streamed": found}))
        return
    print(f"{found['rows']:,} rows of JSON lines, buffer of {dataset.buffer_size:,}")
    print(f"  looked at before training  {found['read_speed']:9,.0f} rows per CPU second")
    print(f"  drawn and encoded          {found['speed']:9,.0f} rows per CPU second")
    print(f"  memory beyond the first    {found['growth_mb']:9.1f} MB, {1e3 * per_row[0]:.3f} KB a row")
    print(f"  read whole, {found['whole_rows']:,} rows    {found['whole_mb']:9.1f} MB, {1e3 * per_row[1]:.3f} KB a row")


if __name__ == "__main__":
    main()
