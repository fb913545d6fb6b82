"""Rows in PMC-VQA's two forms, written and read back."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from vlmft.data.question import BadRow, Question
from vlmft.data.sources import pmc_vqa
from vlmft.schema import QuestionSet

HEADER_1 = ["Figure_path", "Question", "Answer", "Choice A", "Choice B", "Choice C", "Choice D", "Answer_label"]
HEADER_2 = ["index", "Figure_path", "Caption", "Question", "Choice A", "Choice B", "Choice C", "Choice D", "Answer",
            "split"]  # fmt: skip
V1 = {
    "Figure_path": "PMC1_F1.jpg",
    "Question": " Which organ is shown? ",
    "Answer": "Liver",
    "Choice A": " A:Lung ",
    "Choice B": " B:Liver ",
    "Choice C": " C:Heart ",
    "Choice D": " D:Spleen ",
    "Answer_label": "B",
}
V2 = {
    "index": "62",
    "Figure_path": "PMC8253867_Fig2_41.jpg",
    "Caption": 'A "cell",\r\nseen twice',
    "Question": " Which cell? ",
    "Choice A": " A: Blast ",
    "Choice B": " B: Mast ",
    "Choice C": " C: Fat ",
    "Choice D": " D: Nerve",
    "Answer": "C",
    "split": "train",
}
CHOICES = ("Lung", "Liver", "Heart", "Spleen")


def spec(folder: Path, **keys: Any) -> QuestionSet:
    return QuestionSet(name="pmc_vqa", format="pmc_vqa", path=str(folder), **keys)


def write(file: Path, *rows: dict[str, str] | list[str], header: list[str] | None = None) -> None:
    """A CSV file as published: CRLF, marks where they are needed. A row is a list, or V1's or V2's keys."""
    named = header or (HEADER_2 if rows and "index" in rows[0] else HEADER_1)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as opened:
        lines = csv.writer(opened)
        lines.writerow(named)
        lines.writerows(list(row.values()) if isinstance(row, dict) else row for row in rows)


def read(folder: Path, *rows: dict[str, str] | list[str], **keys: Any) -> list[Question | BadRow]:
    write(folder / "train.csv", *rows)
    return list(pmc_vqa.read(spec(folder, **keys), "train"))


def one(folder: Path, row: dict[str, str], **keys: Any) -> Question:
    (question,) = read(folder, row, **keys)
    assert isinstance(question, Question), question
    return question


def defect(folder: Path, row: dict[str, str]) -> str:
    """Why the row is left out, whatever bad_rows says."""
    (bad,) = read(folder, row)
    assert isinstance(bad, BadRow) and bad.published
    return bad.reason
