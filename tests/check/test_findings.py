from __future__ import annotations

from vlmft.check.findings import ERROR, KEPT, NOTE, balance, finding, left_out, of_rows
from vlmft.data.picture_check import Seen
from vlmft.data.question import CLOSED, MULTIPLE_CHOICE, OPEN, BadRow, Question, Turn


def ask(id: str, question: str, answer: str, *images: str, kind: str = CLOSED) -> Question:
    return Question(id, "s", images, (Turn(question, answer),), kind)


def test_copies_of_a_picture_count_as_the_same_one() -> None:
    seen = {name: Seen(content, 64, 64, "L") for name, content in (("a", "1"), ("copy", "1"), ("b", "2"))}
    rows = [ask("1", "Big?", "Yes", "a"), ask("2", "big? ", "yes", "copy"), ask("3", "Big?", "yes", "b")]
    (found,) = of_rows(rows, seen)
    assert found.rows == ("s:2: as s:1",) and "repeat" in found.what
    (found,) = of_rows([*rows[:1], ask("4", "Big?", "no", "copy"), rows[2]], seen)
    assert found.rows == ("s:4: 'no', but s:1 says 'yes'",) and "contradict" in found.what


def test_other_options_make_another_question() -> None:
    seen = {"a": Seen("1", 64, 64, "L")}
    rows = [
        Question(str(n), "s", ("a",), (Turn("Which?", "A"),), CLOSED, {}, MULTIPLE_CHOICE, options)
        for n, options in enumerate([("CT", "MRI"), ("MRI", "CT")])
    ]
    assert of_rows(rows, seen) == []


def test_the_policy_decides_whether_a_bad_row_is_an_error() -> None:
    rows = [BadRow("f.json", 1, "no answer"), BadRow("f.json", 2, "no answer", published=True)]
    assert [(found.level, found.count) for found in left_out(rows, drop=False)] == [(ERROR, 1), (NOTE, 1)]
    assert [found.level for found in left_out(rows, drop=True)] == [NOTE, NOTE]


def test_a_finding_keeps_its_count_and_the_first_rows() -> None:
    (found,) = finding(ERROR, "rows", [str(n) for n in range(KEPT + 5)])
    assert found.count == KEPT + 5 and len(found.rows) == KEPT and finding(ERROR, "rows", []) == []


def test_balance_is_of_closed_answers_and_choices() -> None:
    rows = [ask(str(n), "Big?", answer) for n, answer in enumerate(["yes", "Yes ", "no"])]
    rows += [ask("o", "What?", "a mass", kind=OPEN)]
    rows += [Question("c", "s", (), (Turn("Which?", "B"),), CLOSED, {}, MULTIPLE_CHOICE, ("x", "y"))]
    assert balance(rows) == {"closed": {"yes": 2, "no": 1}, "2 options": {"b": 1}}
