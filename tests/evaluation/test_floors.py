"""The floors: their rules on small sets, and the figures they must give on the published ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vlmft.data.question import CLOSED, COUNTING, OPEN, VQA, Question, Turn
from vlmft.evaluation.floors import CONSTANT, QUESTION_ONLY, as_predictions, learnt
from vlmft.evaluation.predictions import record
from vlmft.evaluation.scores import score


def ask(question: str, answer: str = "", answer_type: str = OPEN, task: str = VQA) -> Question:
    return Question("1", "demo", ("/a.jpg",), (Turn(question, answer),), answer_type, task=task)


def question_only(train: list[Question], test: list[Question]) -> list[str]:
    return [note[QUESTION_ONLY] for note in learnt(train, test)]


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


def test_the_constant_is_the_commonest_answer_of_the_type() -> None:
    train = [ask("Is it a mass?", "no", CLOSED), ask("Is it?", "no", CLOSED), ask("Is it a mass?", "yes", CLOSED)]
    train += [ask("What?", "Lung"), ask("Where?", "lung"), ask("Who?", "liver")]
    notes = learnt(train, [ask("Is it a mass?", "yes", CLOSED), ask("Who?", "spleen")])
    assert [(note[CONSTANT], note[QUESTION_ONLY]) for note in notes] == [("no", "no"), ("Lung", "liver")]
    assert [note["answer_seen"] for note in notes] == [True, False]


def test_numbers_have_a_median() -> None:
    train = [ask("How many?", answer, task=COUNTING) for answer in ("3", "10", "4", "none")]
    (count, word) = learnt(train, [ask("How many?", "5", task=COUNTING), ask("What?", "lung")])
    assert count["median"] == 4.0 and "median" not in word


def test_without_training_questions_there_is_no_floor() -> None:
    assert learnt([], [ask("Is it?")]) == [{}]
    bare = record(ask("Is it?", "no", CLOSED), raw="no", tokens=1, finish_reason="stop", think_prefilled=False,
                  generation="g", train={})  # fmt: skip
    assert as_predictions([bare], CONSTANT) == []
    assert score([bare], ["normalized"])["floor"] == {}


def test_a_floor_is_judged_as_an_answer_that_was_said() -> None:
    """Whatever the model's own reply was: cut short, or after an open thought."""
    said = record(ask("Is it?", "no", CLOSED), raw="<think>", tokens=9, finish_reason="length", think_prefilled=True,
                  generation="g", train={CONSTANT: "no", QUESTION_ONLY: "yes"})  # fmt: skip
    result = score([said], ["normalized", "strict"])
    assert {name: floor["strict"]["accuracy"] for name, floor in result["floor"].items()} == {
        CONSTANT: 1.0, QUESTION_ONLY: 0.0
    }  # fmt: skip
    assert result["scores"]["normalized"]["statuses"] == {"unclosed_think": 1}


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
    blank = {"raw": "", "tokens": 0, "finish_reason": "stop", "think_prefilled": False, "generation": "g"}
    notes = learnt(train, test)
    records = [record(question, **blank, train=note) for question, note in zip(test, notes, strict=True)]
    found = score(records, ["normalized"])["floor"][QUESTION_ONLY]["normalized"]
    measured = [100 * found[name] for name in ("accuracy", "closed_accuracy", "open_exact_match")]
    assert measured == pytest.approx(floor, abs=0.2)
