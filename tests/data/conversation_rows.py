"""Rows in the conversation form, written and read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vlmft.data.question import BadRow, Question
from vlmft.data.sources import conversations
from vlmft.schema import QuestionSet


def row(question: str = "<image>\nIs it big?", answer: Any = "yes", **keys: Any) -> dict[str, Any]:
    said = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": "a", "image": "a.png", "conversations": said, **keys}


def talk(*said: str, **keys: Any) -> dict[str, Any]:
    turns = [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(said)]
    return {"image": "a.png", "conversations": turns, **keys}


def read(folder: Path, rows: Any, **keys: Any) -> list[Question | BadRow]:
    text = rows if isinstance(rows, str) else json.dumps(rows)
    (folder / "train.json").write_text(text, encoding="utf-8")
    return list(conversations.read(QuestionSet(name="s", format="conversations", path=str(folder), **keys), "train"))


def question(folder: Path, row: dict[str, Any], **keys: Any) -> Question:
    (got,) = read(folder, [row], **keys)
    assert isinstance(got, Question), got
    return got


def reason(folder: Path, row: Any, **keys: Any) -> str:
    (got,) = read(folder, [row], **keys)
    assert isinstance(got, BadRow), got
    assert got.file == str(folder / "train.json") and got.row == 1
    return got.reason


ASKED = [{"role": "user", "content": "<image>\nWhere?"}]
YES, NO = ({"role": "assistant", "content": f"<answer>{text}</answer>"} for text in ("liver", "lung"))
