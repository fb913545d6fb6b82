"""What is asked of a model on a test set, as far as it can be said without one."""

from __future__ import annotations

import pytest

from vlmft.data.question import CLOSED, MULTIPLE_CHOICE, OPEN, VQA, Question, Turn
from vlmft.errors import DataError
from vlmft.evaluation.evaluate import options_of


def ask(answer: str, answer_type: str = CLOSED, task: str = VQA, options: tuple[str, ...] = ()) -> Question:
    return Question("1", "s", (), (Turn("What is it?", answer),), answer_type, {}, task, options)


TRAIN = [ask(" Yes"), ask("yes"), ask("Yes "), ask("no"), ask("Left"), ask("lung", OPEN), ask("A", CLOSED, "counting")]


def test_a_closed_question_has_the_closed_training_answers_each_in_its_commonest_form() -> None:
    assert options_of([ask("no"), ask("never seen")], TRAIN) == [["Yes", "no", "Left"]] * 2


def test_an_open_question_and_another_task_are_generated() -> None:
    asked = [ask("lung", OPEN), ask("3", CLOSED, "counting"), ask("[[1, 2, 3, 4]]", OPEN, "detection")]
    assert options_of(asked, TRAIN) == [[], [], []]
    assert options_of(asked, []) == [[], [], []]


@pytest.mark.parametrize(
    ("answer", "found"),
    [("B", ["A", "B", "C"]), (" A ", ["A", "B", "C"]), ("MRI", ["CT", "MRI", "X-ray"]), ("D", ["CT", "MRI", "X-ray"])],
)
@pytest.mark.parametrize("answer_type", [CLOSED, OPEN])
def test_a_multiple_choice_question_has_its_own_options(answer: str, found: list[str], answer_type: str) -> None:
    asked = ask(answer, answer_type, MULTIPLE_CHOICE, ("CT", "MRI", "X-ray"))
    assert options_of([asked], []) == [found]


def test_a_multiple_choice_question_without_options_is_generated() -> None:
    assert options_of([ask("B", CLOSED, MULTIPLE_CHOICE)], TRAIN) == [[]]


@pytest.mark.parametrize("train", [[], [ask("lung", OPEN)]])
def test_closed_questions_without_closed_training_answers_are_refused(train: list[Question]) -> None:
    with pytest.raises(DataError, match=r"eval\.closed=likelihood: s has no training questions"):
        options_of([ask("lung", OPEN), ask("yes")], train)
