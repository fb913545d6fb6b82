"""Two sets of answers to the same questions: which records are paired, by which metric, and by which test."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vlmft.evaluation.comparison import compare


def record(id: int, raw: str, gold: str = "lung", **more: Any) -> dict[str, Any]:
    row = {"id": str(id), "set": "s", "images": [f"/{id}.jpg"], "question": "Which organ?", "gold": gold}
    return {**row, "answer_type": "open", "raw": raw, "finish_reason": "stop", **more}


def answers(right: set[int], of: int = 40, **more: Any) -> list[dict[str, Any]]:
    return [record(n, "lung" if n in right else "liver", **more) for n in range(of)]


def test_the_difference_is_second_minus_first_by_the_exact_test() -> None:
    first, second = answers(set(range(20))), answers(set(range(2, 30)))
    found = compare(first, second, "normalized")
    assert (found["metric"], found["n"], found["test"]) == ("accuracy", 40, "exact McNemar")
    assert found["difference"] == pytest.approx(8 / 40)
    # 10 of 12 discordant pairs favour the second: 2 * (66 + 12 + 1) / 2**12
    assert found["p"] == pytest.approx(158 / 4096)
    assert 0 < found["low"] < found["difference"] < found["high"]
    back = compare(second, first, "normalized")
    assert (back["difference"], back["p"]) == (-found["difference"], found["p"])
    assert (back["low"], back["high"]) == pytest.approx((-found["high"], -found["low"]))


def test_records_are_paired_by_id() -> None:
    first, second = answers({0, 1}), answers({0, 1})[::-1]
    assert compare(first, second, "normalized")["difference"] == 0
    assert compare(first, second, "normalized")["p"] == 1
    half = compare(first, second[:25], "normalized")  # ids 39 down to 15
    assert (half["n"], half["difference"]) == (25, 0)
    with pytest.raises(ValueError, match="share no question"):
        compare(first[:5], second[:5], "normalized")


def test_a_share_of_words_is_tested_by_the_bootstrap() -> None:
    first = answers(set())
    second = [record(n, "left lung") for n in range(40)]
    assert compare(first, second, "llavamed")["test"] == "exact McNemar", "recalls of 0 and 1 alone"
    partly = [record(n, "left" if n % 2 else "lung", gold="left lung") for n in range(40)]
    found = compare([row | {"gold": "left lung"} for row in first], partly, "llavamed")
    assert (found["metric"], found["test"]) == ("overall", "paired bootstrap over images")
    assert (found["difference"], found["low"], found["high"]) == (0.5, 0.5, 0.5) and 0 < found["p"] < 0.001


def test_questions_about_one_image_are_no_evidence_of_their_number() -> None:
    first, second = answers(set(range(10))), answers(set(range(30)))
    for rows in (first, second):
        for n, row in enumerate(rows):
            row["images"] = [f"/{n // 10}.jpg"]
    wide, narrow = compare(first, second, "normalized"), compare(answers(set(range(10))), second, "normalized")
    assert wide["high"] - wide["low"] > 1.5 * (narrow["high"] - narrow["low"])


def test_what_cannot_be_measured_is_none_and_not_nan() -> None:
    found = compare(answers({1}, images=["/a.jpg"]), answers({1, 2}, images=["/a.jpg"]), "normalized")
    assert (found["low"], found["high"]) == (None, None) and found["difference"] == pytest.approx(1 / 40)
    unread = [record(n, "many", gold="3", task="counting") for n in range(3)]
    found = compare(unread, unread, "normalized")
    assert (found["metric"], found["difference"], found["p"]) == ("mae", None, 1)
    json.dumps(found, allow_nan=False)


def test_the_metric_is_that_of_most_records_whichever_comes_first() -> None:
    words = record(0, "liver")
    counted = [record(n, "3", gold="4", task="counting") for n in range(1, 6)]
    better = [row | {"raw": "4"} for row in counted]
    for rows, others in (([words, *counted], [words, *better]), ([*counted, words], [*better, words])):
        found = compare(rows, others, "normalized")
        assert (found["metric"], found["difference"], found["n"]) == ("mae", -1, 6)


def test_balanced_accuracy_gives_way_to_accuracy() -> None:
    options = {"task": "multiple_choice", "options": ["CT", "MRI"]}
    first = [record(n, "A", gold="AB"[n % 2], **options) for n in range(20)]
    second = [record(n, "AB"[n % 2], gold="AB"[n % 2], **options) for n in range(20)]
    found = compare(first, second, "flare")
    assert (found["metric"], found["difference"], found["test"]) == ("accuracy", 0.5, "exact McNemar")
