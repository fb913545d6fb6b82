"""Rows in FLARE 2025's form, written and read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from vlmft.data.question import BadRow, Question
from vlmft.data.sources import flare25
from vlmft.schema import QuestionSet

LETTERS = "Question: What diagnosis fits? Options: A: Normal bone marrow B: Myelofibrosis, early C: Other."
WIDE = (200, 100)


def spec(folder: Path, **keys: Any) -> QuestionSet:
    return QuestionSet(name="flare", format="flare25", path=str(folder), **keys)


def row(answer: Any = "B", **keys: Any) -> dict[str, Any]:
    made = {"TaskType": "classification", "Modality": "microscopy", "ImageName": "imagesTr/a.png", "Split": "train"}
    return made | {"Question": LETTERS, "Answer": answer} | keys


def write(top: Path, *rows: Any, where: str = "training/Microscopy/bone_marrow", part: str = "train") -> Path:
    place = top / where
    place.mkdir(parents=True, exist_ok=True)
    (place / f"{place.name}_questions_{part}.json").write_text(json.dumps(rows), encoding="utf-8")
    return place


def picture(path: Path, size: tuple[int, int] = WIDE) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)
    return str(path)


def read(top: Path, split: str = "train", **keys: Any) -> list[Question | BadRow]:
    return list(flare25.read(spec(top, **keys), split))


def one(top: Path, *rows: Any, **keys: Any) -> Question:
    write(top, *rows)
    (question,) = read(top, **keys)
    assert isinstance(question, Question), question
    return question


def bad(top: Path, wrong: Any) -> BadRow:
    write(top, row(), wrong)
    good, refused = read(top)
    assert isinstance(good, Question) and isinstance(refused, BadRow)
    assert refused.row == 2 and refused.file.endswith("bone_marrow_questions_train.json")
    return refused
