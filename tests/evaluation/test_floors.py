"""The question-only floor: its rule on small sets, and the figures it must give on the published ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vlmft.data.question import CLOSED, OPEN, Question, Turn
from vlmft.evaluation.floors import question_only, question_only_scores


def ask(question: str, answer: str = "", answer_type: str = OPEN) -> Question:
    return Question("1", "demo", ("/a.jpg",), (Turn(question, answer),), answer_type)


def test_the_narrowest_group_answers() -> None:
    train = [
        ask("Which organ is this?", "Liver"),
        ask("Which organ is that?", "Spleen"),
        ask("Which organ is that?", "Spleen"),
        ask("Is it normal?", "No", CLOSED),
        ask("Is it large?", "Yes", CLOSED),
        ask("Is it dark?", "yes ", CLOSED),
        ask("Is it bright?", "yes", CLOSED),
    ]
    test = [
        ask("which organ is this ?"),  # the same question
        ask("Which organ has a mass?"),  # the same first two words
        ask("Does it shine?", answer_type=CLOSED),  # the same type, in the form seen first
        ask("Point at it", answer_type="boxes"),  # none of them
    ]
    assert question_only(train, test) == ["Liver", "Spleen", "Yes", "Yes"]


def test_of_equals_the_first_seen_wins() -> None:
    train = [ask("Where is it?", "left"), ask("Where is it?", "Right"), ask("Where is it?", "right")]
    assert question_only(train, [ask("Where is it?")]) == ["Right"]
    assert question_only(train[:2], [ask("Where is it?")]) == ["left"]
    assert question_only(train[1::-1], [ask("Where is it?")]) == ["Right"]


def test_scores_of_absent_types_are_none_and_no_train_is_refused() -> None:
    train = [ask("Is it?", "no", CLOSED)]
    assert question_only_scores(train, train) == {"accuracy": 1.0, "closed": 1.0, "open": None}
    with pytest.raises(ValueError, match="no"):
        question_only_scores([], train)


def vqa_rad(folder: Path) -> tuple[list[Question], list[Question]]:
    rows = json.loads((folder / "vqa_rad" / "VQA_RAD Dataset Public.json").read_text(encoding="utf-8"))
    parts: tuple[list[Question], list[Question]] = ([], [])
    for row in rows:
        question = ask(row["question"], str(row["answer"]), row["answer_type"].strip().lower())
        parts[row["phrase_type"].startswith("test_")].append(question)
    return parts


def slake_english(folder: Path) -> tuple[list[Question], list[Question]]:
    train, test = (
        [
            ask(row["question"], row["answer"], row["answer_type"].lower())
            for row in json.loads((folder / "slake" / f"{split}.json").read_text(encoding="utf-8"))
            if row["q_lang"] == "en"
        ]
        for split in ("train", "test")
    )
    return train, test


@pytest.mark.parametrize(
    ("read", "sizes", "floor"),
    [
        (vqa_rad, (1797, 451), (36.4, 52.2, 12.3)),
        (slake_english, (4919, 1061), (54.3, 66.3, 46.5)),
    ],
)
def test_the_published_sets_have_these_floors(real_data: Path, read, sizes, floor) -> None:  # type: ignore[no-untyped-def]
    train, test = read(real_data)
    assert (len(train), len(test)) == sizes
    scores = question_only_scores(train, test)
    measured = [100 * share for share in scores.values() if share is not None]
    assert measured == pytest.approx(floor, abs=0.1)
