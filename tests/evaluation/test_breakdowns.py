"""Which groups a set falls into: by a question's first word, by lists of facts, and where a fact is no breakdown."""

from __future__ import annotations

from typing import Any

import pytest

from vlmft.evaluation.breakdowns import groups_of


def record(question: str = "Is it?", answer_type: str = "open", **more: Any) -> dict[str, Any]:
    return {"question": question, "answer_type": answer_type, "facts": {}, **more}


def sizes(records: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    return {fact: {name: len(of) for name, of in groups.items()} for fact, groups in groups_of(records).items()}


def test_the_first_word_and_the_answer_type_are_groups() -> None:
    asked = [record("Where is it?")] * 20 + [record('"where" then?')] * 5 + [record("Is it big?", "closed")] * 30
    assert sizes(asked) == {"first word": {"is": 30, "where": 25}, "answer_type": {"closed": 30, "open": 25}}
    assert groups_of(asked)["answer_type"]["open"] == list(range(25))


@pytest.mark.parametrize("question", ["肺是否正常?", "", "?"])
def test_a_question_without_a_word_of_letters_is_in_no_group_of_first_words(question: str) -> None:
    assert "first word" not in sizes([record(question)] * 30 + [record("?")] * 30)


def test_a_row_is_once_in_the_group_of_each_value_it_lists() -> None:
    facts = [{"type": "POS, PRES"}] * 20 + [{"type": "POS ,POS,"}] * 20 + [{"type": ""}] * 5
    assert sizes([record(facts=of) for of in facts]) == {"type": {"POS": 40, "PRES": 20}}


def test_what_training_has_of_a_row_makes_groups() -> None:
    seen = {"answer_seen": True, "image": True, "alike": False, "question": False, "pair": False}
    rows = [record(train=seen)] * 20 + [record(train={"answer_seen": False, "image": False})] * 20 + [record()] * 20
    assert sizes(rows) == {
        "answer": {"among the training answers": 20, "not among the training answers": 20},
        "image": {"trained on": 20, "not trained on": 20},
    }


@pytest.mark.parametrize(("values", "shown"), [(30, 30), (31, 0)])
def test_a_fact_with_a_value_for_almost_every_row_is_no_breakdown(values: int, shown: int) -> None:
    rows = [record(facts={"organ": f"organ {n % values}"}) for n in range(20 * values)]
    assert len(sizes(rows).get("organ", {})) == shown
