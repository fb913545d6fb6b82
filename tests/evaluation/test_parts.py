"""Predictions while they grow, in the parts of several processes; and how questions are shared out among these."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vlmft import ranks
from vlmft.chat.encode import Row
from vlmft.errors import DataError
from vlmft.evaluation import parts
from vlmft.evaluation.batches import share
from vlmft.evaluation.parts import Parts
from vlmft.evaluation.predictions import as_line, generation_of, partial_file, read_predictions


def row(length: int, picture: str = "") -> Row:
    return Row("q", [0] * length, [], ((picture, None),) if picture else ())


def shares(rows: list[Row], count: int, todo: list[int] | None = None, times: list[int] | None = None) -> list[Any]:
    todo = list(range(len(rows))) if todo is None else todo
    return [share(rows, todo, times or [1] * len(todo), process, count) for process in range(count)]


def test_questions_about_a_picture_stay_together_and_the_work_is_even() -> None:
    rows = [row(10, name) for name in "abcabdaeba"]
    found = shares(rows, 3)
    assert sorted(number for part in found for number in part) == list(range(10))
    assert all(part == sorted(part) for part in found)
    pictures = [{rows[number].images for number in part} for part in found]
    assert not pictures[0] & pictures[1] and not pictures[1] & pictures[2] and not pictures[0] & pictures[2]
    assert [len(part) for part in found] == [4, 3, 3]
    assert shares(rows, 1) == [list(range(10))]


def test_work_is_counted_in_tokens_and_in_how_often_a_row_is_read() -> None:
    assert shares([row(90), row(30), row(30), row(30)], 2) == [[0], [1, 2, 3]]
    assert shares([row(30)] * 4, 2, times=[1, 1, 1, 3]) == [[3], [0, 1, 2]]
    assert shares([row(30)] * 4, 2, todo=[1, 3]) == [[1], [3]]
    assert shares([row(30, "a"), row(20, "a")], 3) == [[0, 1], [], []], "more processes than pictures"


def record(id: int, generation: str = "g") -> dict[str, Any]:
    return {"id": str(id), "generation": generation}


def of_rank(monkeypatch: pytest.MonkeyPatch, rank: int, file: Path) -> Parts:
    """The parts as the process of that number sees them, which meets nobody."""
    monkeypatch.setattr(ranks, "number", lambda: rank)
    monkeypatch.setattr(ranks, "meet", lambda: None)
    return Parts(file, "g")


def test_what_all_left_is_gathered_by_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "predictions_s[1].blank.jsonl"
    first, third = of_rank(monkeypatch, 0, file), of_rank(monkeypatch, 3, file)
    assert first.own == partial_file(file, "g") and third.own.name == ".predictions_s[1].blank.g.rank3.jsonl"
    first.own.write_text(as_line(record(1)) + as_line(record(9)) + as_line(record(2, "other")))
    third.own.write_text(as_line(record(3)) + as_line(record(1)) + '{"id": "cut')
    other = tmp_path / ".predictions_s1.g.rank1.jsonl"
    other.write_text("")
    monkeypatch.setattr(ranks, "number", lambda: 0)
    assert first.gather(["1", "2", "3", "4"]) == {"1", "3"}
    assert [r["id"] for r in read_predictions(first.own)] == ["1", "3"]
    assert sorted(tmp_path.iterdir()) == sorted([first.own, other])
    assert first.lines() == 2
    third.own.write_text(as_line(record(4)) + '{"id"')
    with open(first.own, "a") as own:
        own.write(as_line(record(2)))
    assert first.lines() == 4 and first.lines() == 4
    third.own.write_text(as_line(record(4)))
    found = first.put_together(["4", "3", "2", "1"])
    assert [r["id"] for r in found] == ["4", "3", "2", "1"] and found == read_predictions(file)
    assert generation_of(file) == "g" and sorted(tmp_path.iterdir()) == sorted([file, other])
    monkeypatch.setattr(ranks, "number", lambda: 3)
    assert third.put_together(["4", "3", "2", "1"]) == found, "the others read it"


def test_an_answer_that_cannot_be_seen_is_waited_for_and_then_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "predictions_s.jsonl"
    first = of_rank(monkeypatch, 0, file)
    first.own.write_text(as_line(record(1)))
    monkeypatch.setattr(ranks, "count", lambda: 2)
    waited = []

    def shown(seconds: float) -> None:
        waited.append(seconds)
        partial_file(file, "g", 1).write_text(as_line(record(2)))

    monkeypatch.setattr(parts.time, "sleep", shown)
    assert len(first.put_together(["1", "2"])) == 2 and len(waited) == 1
    monkeypatch.setattr(parts, "_PATIENCE", -1)
    again = of_rank(monkeypatch, 0, tmp_path / "predictions_t.jsonl")
    with pytest.raises(DataError, match=r"predictions_t.jsonl: of 2 questions 2 have no answer in .*, such as 5; 2"):
        again.put_together(["6", "5"])
