"""Verdicts under each protocol, record by record, and what no protocol may ever reward."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from vlmft.evaluation.protocols import PROTOCOLS, judge
from vlmft.evaluation.scores import score, values


def record(raw: str, gold: str, answer_type: str = "open", **more: Any) -> dict[str, Any]:
    row = {"id": "1", "set": "demo", "images": ["/a.jpg"], "question": "?", "gold": gold, "answer_type": answer_type}
    return {**row, "raw": raw, "finish_reason": "stop", **more}


def worth(values: Mapping[str, tuple[float, float]], metric: str) -> float | None:
    return values[metric][0] / values[metric][1] if metric in values else None


@pytest.mark.parametrize(
    ("row", "normalized", "strict"),
    [  # parsed, status, correct, F1 of an open one
        (record("Yes.", "Yes", "closed"), ("yes", "ok", True, None), ("Yes.", "ok", False, None)),
        (record("yes", "Yes", "closed"), ("yes", "ok", True, None), ("yes", "ok", False, None)),
        (record("Yes\n", "Yes ", "closed"), ("yes", "ok", True, None), ("Yes", "ok", True, None)),
        (record("No, none", "yes", "closed"), ("no", "ok", False, None), ("No, none", "ok", False, None)),
        (record("是", "有", "closed"), ("yes", "ok", True, None), ("是", "ok", False, None)),
        (
            record("the lungs are normal", "no", "closed"),
            (None, "off_vocab", False, None),
            ("the lungs are normal", "ok", False, None),
        ),
        (record("yes and no", "no", "closed"), (None, "ambiguous", False, None), ("yes and no", "ok", False, None)),
        (record("the left", "Left", "closed"), ("the left", "ok", True, None), ("the left", "ok", False, None)),
        (record("no", "No finding", "closed"), ("no", "ok", False, None), ("no", "ok", False, None)),
        (record("Yes, it is", "yes"), ("Yes, it is", "ok", False, 0.5), ("Yes, it is", "ok", False, 0.5)),
        (record("<answer>MRI</answer>", "MRI"), ("MRI", "ok", True, 1.0), ("MRI", "ok", True, 1.0)),
        (
            record("right, left lung", "Left Lung, Right"),
            ("right, left lung", "ok", True, 1.0),
            ("right, left lung", "ok", False, 1.0),
        ),
        (record("the", "A"), ("the", "ok", False, 0.0), ("the", "ok", False, 0.0)),
        (record("", "a"), (None, "empty", False, 0.0), (None, "empty", False, 0.0)),
        (
            record("spleen", "spleen", finish_reason="length"),
            (None, "truncated", False, 0.0),
            (None, "truncated", False, 0.0),
        ),
        (
            record("spleen", "spleen", think_prefilled=True),
            (None, "unclosed_think", False, 0.0),
            (None, "unclosed_think", False, 0.0),
        ),
    ],
)
def test_verdicts(row: dict[str, Any], normalized: tuple[Any, ...], strict: tuple[Any, ...]) -> None:
    for protocol, wanted in (("normalized", normalized), ("strict", strict)):
        got = judge(row, protocol)
        assert (got.parsed, got.status, got.correct) == wanted[:3]
        assert worth(got.values, "open_f1") == (None if wanted[3] is None else pytest.approx(wanted[3]))
        kind = "closed_accuracy" if row["answer_type"] == "closed" else "open_exact_match"
        assert worth(got.values, "accuracy") == worth(got.values, kind) == float(wanted[2])


def test_closed_is_counted_by_the_sets_own_types_and_by_the_yes_no_rule() -> None:
    rows = [
        record("left", "Left", "closed"),  # closed for the set, not a yes or no
        record("Yes, it is", "yes", "open"),  # open for the set, but yes by the rule
        record("no", "no", "closed"),
    ]
    found = values(rows, "normalized")
    assert (found["closed_accuracy"], found["yes_no_accuracy"], found["open_exact_match"]) == (1.0, 1.0, 0.0)
    counts = score(rows, ["normalized"])["scores"]["normalized"]["metrics"]
    assert [counts[name]["n"] for name in ("closed_accuracy", "yes_no_accuracy", "open_exact_match")] == [2, 2, 1]


def test_synonyms_are_a_second_column() -> None:
    rows = [record("CT scan", "Computed Tomography"), record("MRI", "MRI"), record("left", "right")]
    found = values(rows, "normalized")
    assert (found["accuracy"], found["accuracy_terms"]) == (1 / 3, 2 / 3)
    assert "accuracy_terms" not in values(rows, "strict")


def test_squad_counts_all_questions() -> None:
    rows = [record("Yes, it is", "yes", "closed"), record("left lung", "lung")]
    found = values(rows, "squad")
    assert found["accuracy"] == 0.0 and found["f1"] == pytest.approx((0.5 + 2 / 3) / 2)


def test_llavamed_is_recall_with_its_price_beside_it() -> None:
    rows = [record("it is the left lung", "left lung"), record("No effusion", "no", "closed"), record("", "liver")]
    found = values(rows, "llavamed")
    assert found["open_recall"] == 0.5 and found["open_precision"] == pytest.approx(0.25)
    assert found["open_answer_words"] == 2.0 and found["closed_accuracy"] == 1.0
    assert found["overall"] == pytest.approx(2 / 3)
    assert score(rows, ["llavamed"])["scores"]["llavamed"]["headline"] == "overall"


def test_other_tasks_have_their_own_metrics_in_every_protocol_but_strict() -> None:
    rows = [
        record("B", "B", task="multiple_choice", options=["liver", "lung"], id="1"),
        record("lung", "B", task="multiple_choice", options=["liver", "lung"], id="2"),
        record("the answer is B", "A", task="multiple_choice", options=["liver", "lung"], id="3"),
    ]
    assert values(rows, "normalized")["accuracy"] == values(rows, "flare")["accuracy"] == pytest.approx(2 / 3)
    assert values(rows, "strict")["accuracy"] == pytest.approx(1 / 3)
    flare = score(rows, ["flare"])["scores"]["flare"]
    assert flare["headline"] == "balanced_accuracy"
    assert flare["metrics"]["balanced_accuracy"]["value"] == 0.5  # both B right, the one A not
    assert flare["metrics"]["constant_letter"]["value"] == pytest.approx(2 / 3)


def test_what_cannot_be_judged_is_named() -> None:
    with pytest.raises(ValueError, match=r"'squat'.*normalized, strict"):
        judge(record("a", "a"), "squat")
    with pytest.raises(ValueError, match="'CLOSED '"):
        judge(record("a", "a", "CLOSED "), "strict")
    with pytest.raises(ValueError, match="'poem'"):
        judge(record("a", "a", task="poem"), "strict")
    without = record("a", "a")
    del without["finish_reason"]
    with pytest.raises(KeyError):
        judge(without, "strict")


def real_golds(real_data: Path, name: str) -> list[tuple[str, str]]:
    """(gold, answer type) of the test questions of a real set."""
    if name == "vqa_rad":
        rows = json.loads((real_data / "vqa_rad" / "VQA_RAD Dataset Public.json").read_text(encoding="utf-8"))
        test = [row for row in rows if row["phrase_type"].startswith("test_")]
    else:
        rows = json.loads((real_data / "slake" / "test.json").read_text(encoding="utf-8"))
        test = [row for row in rows if row["q_lang"] == name.removeprefix("slake_")]
    return [(str(row["answer"]), row["answer_type"].strip().lower()) for row in test]


SIZES = {"vqa_rad": (451, 272), "slake_en": (1_061, 416), "slake_zh": (1_033, 420)}


@pytest.mark.parametrize("name", SIZES)
def test_a_constant_answer_scores_its_share_and_a_phrase_nothing(real_data: Path, name: str) -> None:
    golds = real_golds(real_data, name)
    closed = [gold.strip().casefold() for gold, kind in golds if kind == "closed"]
    assert (len(golds), len(closed)) == SIZES[name]

    def closed_accuracy(answer: str) -> float | None:
        return values([record(answer, gold, kind) for gold, kind in golds], "normalized")["closed_accuracy"]

    families = {
        "no": {"no", "否", "不是", "没有", "不包含", "不包括", "不存在", "不可以", "不"},
        "yes": {"yes", "是", "是的", "有", "包含", "包括", "存在", "可以"},
    }
    for word, family in families.items():
        assert closed_accuracy(word) == sum(gold in family for gold in closed) / len(closed)
    for phrase in ("the lungs are normal", "yes and no", "I cannot determine", "there is no effusion"):
        assert closed_accuracy(phrase) == 0.0


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_perfect_answers_are_perfect_under_every_protocol(real_data: Path, name: str, protocol: str) -> None:
    rows = [record(gold, gold, kind) for gold, kind in real_golds(real_data, name)]
    found = values(rows, protocol)
    assert found.pop("open_answer_words", 1.0)
    assert set(found.values()) == {1.0}
    assert all(judge(row, protocol).status == "ok" for row in rows)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("task", "gold", "options"),
    [
        ("multiple_choice", "C", ["liver", "lung", "heart"]),
        ("multiple_choice", "Magnetic resonance imaging", ["X-ray", "Magnetic resonance imaging"]),
        ("multi_label", "pleural thickening; effusion", []),
        ("detection", "[[10, 20, 50, 60], [100.5, 20, 150, 60]]", []),
        ("instance_detection", '{"caries": [[10, 20, 50, 60], [1, 2, 5, 6]], "crown": [[100, 20, 150, 60]]}', []),
        ("counting", "12", []),
        ("regression", "-3.5", []),
        ("report", "The heart is normal in size. No effusion is seen.", []),
        ("report", "心影大小正常，未见胸腔积液。", []),
    ],
)
def test_perfect_answers_of_the_other_tasks(protocol: str, task: str, gold: str, options: list[str]) -> None:
    found = score([record(gold, gold, task=task, options=options)], [protocol])["scores"][protocol]
    assert found["correct"] == 1 and found["statuses"] == {"ok": 1}
    wanted = 0.0 if found["headline"] == "mae" else 1.0
    assert found["metrics"][found["headline"]]["value"] == pytest.approx(wanted)
