"""Questions without their pictures: what changes about a prompt, and what must not."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from vlmft.data.question import Question, Turn
from vlmft.errors import DataError
from vlmft.evaluation.ablations import BLANK, SHUFFLED, without_their_pictures


@pytest.fixture
def questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Question]:
    monkeypatch.setenv("VLMFT_CACHE", str(tmp_path / "cache"))
    for n, size in enumerate([(40, 30), (30, 40), (40, 30), (64, 64)]):
        Image.new("RGB", size, (n, 0, 0)).save(tmp_path / f"{n}.png")

    def ask(id: str, *images: int) -> Question:
        return Question(id, "set", tuple(str(tmp_path / f"{n}.png") for n in images), (Turn("What?", "lung"),), "open")

    return [ask("a", 0), ask("b", 0), ask("c", 1), ask("d", 2), ask("e"), ask("f", 0, 3), ask("g", 1, 2)]


def test_blank_pictures_have_the_size_of_the_question_s_own(questions: list[Question]) -> None:
    shown = without_their_pictures(questions, BLANK)
    assert [question.id for question in shown] == [question.id for question in questions]
    for before, after in zip(questions, shown, strict=True):
        assert len(before.images) == len(after.images) and after.turns == before.turns
        for own, other in zip(before.images, after.images, strict=True):
            assert own != other
            with Image.open(own) as picture, Image.open(other) as blank:
                assert picture.size == blank.size and blank.getcolors() == [(blank.width * blank.height, (128,) * 3)]
    assert shown[0].images == shown[3].images, "one blank picture of each size"


def test_shuffled_pictures_are_another_question_s(questions: list[Question]) -> None:
    shown = without_their_pictures(questions, SHUFFLED)
    for before, after in zip(questions, shown, strict=True):
        assert len(before.images) == len(after.images)
        assert (before.images != after.images) or not before.images
    assert shown[0].images == shown[1].images, "questions about one picture still share one"
    assert {question.images for question in shown} == {question.images for question in questions}
    assert without_their_pictures(questions[::-1], SHUFFLED) == shown[::-1]


def test_one_picture_cannot_be_shuffled(questions: list[Question]) -> None:
    with pytest.raises(DataError, match=r"only one row with 1 image"):
        without_their_pictures(questions[:2], SHUFFLED)
