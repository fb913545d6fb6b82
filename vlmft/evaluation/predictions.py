"""`predictions_<set>.jsonl`: one record per question, the only source of every score.

Predictions made under other settings are never overwritten: they move to `earlier/`, under their generation hash, and
come back when those settings are asked for again. A file under its own name is always whole.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vlmft.data import images
from vlmft.data.question import DETECTION, INSTANCE_DETECTION, Question, Turn
from vlmft.files import write_text


def predictions_file(run: Path, name: str) -> Path:
    """Of a set's test split, of one of its passes without the pictures (`<set>.<pass>`), or of another split of it
    (`<set>.<split>`)."""
    return run / f"predictions_{name}.jsonl"


def predicted_sets(run: Path) -> list[str]:
    """The names that `run` has whole predictions for, in alphabetical order."""
    return sorted(file.name[len("predictions_") : -len(".jsonl")] for file in run.glob("predictions_*.jsonl"))


def partial_file(file: Path, generation: str, rank: int = 0) -> Path:
    """Where the predictions of one process grow until all are whole; the first one's name has no number."""
    return file.with_name(f".{file.stem}.{generation}{f'.rank{rank}' if rank else ''}.jsonl")


def other_parts(file: Path, generation: str) -> list[Path]:
    """The partial files that processes other than the first have left or are writing."""
    return sorted(file.parent.glob(f"{glob.escape(f'.{file.stem}.{generation}')}.rank*.jsonl"))


def restore(file: Path, generation: str) -> None:
    """What `earlier/` has of these settings becomes the first process's partial file."""
    kept = _earlier(file, generation)
    if kept.is_file():
        os.replace(kept, partial_file(file, generation))


def put_in_place(file: Path, partial: Path) -> None:
    """The whole predictions take their name; those of other settings that had it go to `earlier/`."""
    before = generation_of(file)
    if before is not None:
        kept = _earlier(file, before)
        kept.parent.mkdir(exist_ok=True)
        os.replace(file, kept)
    os.replace(partial, file)


def generation_of(file: Path) -> str | None:
    """The generation hash of a file's predictions; None where there are none."""
    if not file.is_file():
        return None
    with open(file, encoding="utf-8") as lines:
        first = lines.readline()
    return str(json.loads(first)["generation"]) if first.endswith("\n") else None


def answer_line(question: Question, generation: str, reply: Mapping[str, Any], note: Any | None) -> str:
    """The line that is kept of the reply to a question; `note` says what training rows have of it, None: not asked.

    Boxes are read in the picture's own size, which the line then has. DataError where that cannot be read.
    """
    known: dict[str, Any] = {} if note is None else {"train": note}
    if question.task in (DETECTION, INSTANCE_DETECTION) and question.images:
        known["image_size"] = images.size(question.images[0])
    return as_line(record(question, generation=generation, **reply, **known))


def record(
    question: Question,
    *,
    raw: str,
    tokens: int,
    finish_reason: str,
    think_prefilled: bool,
    generation: str,
    **more: Any,
) -> dict[str, Any]:
    """What is kept of a reply: all that scoring, reports and a later second look need.

    `history` (the turns before the question) and `thought` (of the gold answer) are there where the row has them.
    `more` may hold `train` (what the training rows have of this question: `floors.learnt`, `leakage.audit`), `shown`
    (other images than its own), `likelihood` (of its options) and `image_size`.
    """
    earlier = [_turn(turn) for turn in question.turns[:-1]]
    thought = question.turns[-1].thought
    return {
        "id": question.id,
        "set": question.set,
        "images": list(question.images),
        **({"history": earlier} if earlier else {}),
        "question": question.text,
        "gold": question.answer,
        **({"thought": thought} if thought else {}),
        "answer_type": question.answer_type,
        "task": question.task,
        "options": list(question.options),
        "facts": dict(question.facts),
        "raw": raw,
        "tokens": tokens,
        "finish_reason": finish_reason,
        "think_prefilled": think_prefilled,
        "generation": generation,
    } | more


def _turn(turn: Turn) -> dict[str, str]:
    said = {"question": turn.question, "answer": turn.answer}
    return said | ({"thought": turn.thought} if turn.thought else {})


def read_predictions(file: Path) -> list[dict[str, Any]]:
    """The records of a file, without a last line that a kill cut short; none where there is no file."""
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8").split("\n")
    whole = lines[:-1]  # what follows the last newline was never finished
    return [json.loads(line) for line in whole if line]


def write_predictions(file: Path, records: Iterable[dict[str, Any]]) -> None:
    write_text(file, "".join(map(as_line, records)))


def as_line(record: dict[str, Any]) -> str:
    """A record as one line, also for readers that take Unicode's own line ends for one."""
    line = json.dumps(record, ensure_ascii=False)
    for end in ("\x85", "\u2028", "\u2029"):
        line = line.replace(end, f"\\u{ord(end):04x}")
    return line + "\n"


def _earlier(file: Path, generation: str) -> Path:
    return file.parent / "earlier" / f"{file.stem}.{generation}.jsonl"
