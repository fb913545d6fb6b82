"""Normalising, matching and F1 against literal values, and the verdicts and scores built on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vlmft.evaluation.metrics import (
    PROTOCOLS,
    SCORER_VERSION,
    Verdict,
    exact_match,
    judge,
    normalize,
    score,
    token_f1,
)


def record(raw: str, gold: str, answer_type: str = "open", **more: Any) -> dict[str, Any]:
    row = {
        "id": "1",
        "set": "demo",
        "images": ["/a.jpg"],
        "question": "?",
        "gold": gold,
        "answer_type": answer_type,
    }
    return {**row, "raw": raw, "finish_reason": "stop", **more}


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Left  Lung.", "left lung"),
        ("a an the", ""),
        ("An apple, a day; the doctor!", "apple day doctor"),
        ("x-ray", "xray"),
        ("x ray", "x ray"),
        ("T2-weighted", "t2weighted"),
        ("0.5", "05"),  # why numbers do not go through it
        ("theatre and anatomy", "theatre and anatomy"),
        ("\tBoth\nlungs ", "both lungs"),
        ("肺。", "肺。"),  # only ASCII punctuation goes
    ],
)
def test_normalize_is_squads(text: str, normal: str) -> None:
    assert normalize(text) == normal


@pytest.mark.parametrize(
    ("pred", "gold"),
    [
        ("The left lung.", "left lung"),
        ("X-RAY", "xray"),
        ("3", "3."),
        ("3.0", "3"),
        ("The 3", "3"),
        ("1,000", "1000"),
        (".5", "0.5"),
        ("35 %", "35%"),
        ("+3", "3"),
        ("-3.50", "-3.5"),
        ("3.4 cm.", "3.4 cm"),
        ("T2-weighted", "T2weighted"),
        ("4th and 5th", "4th and 5th."),
        ("10-20 minutes", "10-20 minutes"),
        ("", ""),
        ("a", "A."),
        ("12345678901234567890123456789012345", "12345678901234567890123456789012345.0"),
    ],
)
def test_these_match(pred: str, gold: str) -> None:
    assert exact_match(pred, gold) and exact_match(gold, pred)
    assert token_f1(pred, gold) == 1.0


@pytest.mark.parametrize(
    ("pred", "gold"),
    [
        ("left lung", "right lung"),
        ("x ray", "x-ray"),
        ("05", "0.5"),
        ("35", "35%"),
        ("-3", "3"),
        ("3 lesions", "3"),
        ("three", "3"),
        ("12", "1,2"),
        ("34 cm", "3.4 cm"),
        ("1020 minutes", "10-20 minutes"),
        ("L23", "L2-3"),
        ("12", "1/2"),
        ("T25", "T2.5"),
        ("the", "A"),
        (".", "A"),
        ("", "left"),
        ("肺", "肝"),
    ],
)
def test_these_do_not(pred: str, gold: str) -> None:
    assert not exact_match(pred, gold) and not exact_match(gold, pred)


@pytest.mark.parametrize(
    ("pred", "gold", "f1"),
    [
        ("left lower lobe", "left lobe", 0.8),
        ("lung lung", "lung", 2 / 3),  # a multiset: the second "lung" is not rewarded
        ("the left lung", "right kidney", 0.0),
        ("0.5 cm", "05 cm", 0.5),
        ("0.5", "05", 0.0),
        ("", "", 1.0),
        ("the", "a", 1.0),
        ("", "lung", 0.0),
        ("lung", "...", 0.0),
        ("左肺", "右肺", 0.5),
        ("右肺,左侧", "右肺, 左侧", 1.0),
        ("CT扫描", "CT", 0.5),  # ct 扫 描 against ct
        ("T1加权", "T2加权", 2 / 3),
    ],
)
def test_token_f1(pred: str, gold: str, f1: float) -> None:
    assert token_f1(pred, gold) == pytest.approx(f1)
    assert token_f1(gold, pred) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("row", "normalized", "strict"),
    [
        (record("Yes.", "Yes", "closed"), Verdict("yes", "ok", True, 1.0), Verdict("Yes.", "ok", False, 1.0)),
        (record("yes", "Yes", "closed"), Verdict("yes", "ok", True, 1.0), Verdict("yes", "ok", False, 1.0)),
        (record("Yes\n", "Yes ", "closed"), Verdict("yes", "ok", True, 1.0), Verdict("Yes", "ok", True, 1.0)),
        (
            record("No, none", "yes", "closed"),
            Verdict("no", "ok", False, 0.0),
            Verdict("No, none", "ok", False, 0.0),
        ),
        (record("是", "有", "closed"), Verdict("yes", "ok", True, 1.0), Verdict("是", "ok", False, 0.0)),
        (
            record("the lungs are normal", "no", "closed"),
            Verdict(None, "off_vocab", False, 0.0),
            Verdict("the lungs are normal", "ok", False, 0.0),
        ),
        (
            record("yes and no", "no", "closed"),
            Verdict(None, "ambiguous", False, 0.0),
            Verdict("yes and no", "ok", False, 0.5),
        ),
        (
            record("the left", "Left", "closed"),
            Verdict("the left", "ok", True, 1.0),
            Verdict("the left", "ok", False, 1.0),
        ),
        (
            record("no", "No finding", "closed"),
            Verdict("no", "ok", False, 2 / 3),
            Verdict("no", "ok", False, 2 / 3),
        ),
        (
            record("Yes, it is", "yes"),
            Verdict("Yes, it is", "ok", False, 0.5),
            Verdict("Yes, it is", "ok", False, 0.5),
        ),
        (
            record("<answer>MRI</answer>", "MRI"),
            Verdict("MRI", "ok", True, 1.0),
            Verdict("MRI", "ok", True, 1.0),
        ),
        (record("the", "A"), Verdict("the", "ok", False, 0.0), Verdict("the", "ok", False, 0.0)),
        (record("", "a"), Verdict(None, "empty", False, 0.0), Verdict(None, "empty", False, 0.0)),
        (
            record("spleen", "spleen", finish_reason="length"),
            Verdict(None, "truncated", False, 0.0),
            Verdict(None, "truncated", False, 0.0),
        ),
        (
            record("spleen", "spleen", think_prefilled=True),
            Verdict(None, "unclosed_think", False, 0.0),
            Verdict(None, "unclosed_think", False, 0.0),
        ),
    ],
)
def test_verdicts(row: dict[str, Any], normalized: Verdict, strict: Verdict) -> None:
    for protocol, wanted in (("normalized", normalized), ("strict", strict)):
        got = judge(row, protocol)
        assert (got.parsed, got.status, got.correct) == (wanted.parsed, wanted.status, wanted.correct)
        assert got.f1 == pytest.approx(wanted.f1)


def test_what_cannot_be_judged_is_named() -> None:
    with pytest.raises(ValueError, match=r"'squad'.*normalized, strict"):
        judge(record("a", "a"), "squad")
    with pytest.raises(ValueError, match="'CLOSED '"):
        judge(record("a", "a", "CLOSED "), "strict")
    without = record("a", "a")
    del without["finish_reason"]
    with pytest.raises(KeyError):
        judge(without, "strict")
    with pytest.raises(ValueError, match="no predictions"):
        score([], ["strict"])
    with pytest.raises(ValueError, match="normalized, strict"):
        score([record("a", "a")], [])


def test_score_has_the_form_of_result_json() -> None:
    rows = [
        record("Yes.", "yes", "closed"),
        record("the lungs are normal", "no", "closed"),
        record("no", "no", "closed"),
        record("left lung", "left lung"),
        record("left lung", "left upper lung"),
    ]
    result = json.loads(json.dumps(score(iter(rows), ["normalized", "strict"])))
    assert result == {
        "n": 5,
        "unparsed_rate": 1 / 5,
        "scores": {
            "normalized": {
                "accuracy": 3 / 5,
                "correct": 3,
                "incorrect": 2,
                "closed": {"n": 3, "accuracy": 2 / 3},
                "open": {"n": 2, "exact_match": 1 / 2, "f1": pytest.approx(0.9)},
            },
            "strict": {
                "accuracy": 2 / 5,
                "correct": 2,
                "incorrect": 3,
                "closed": {"n": 3, "accuracy": 1 / 3},
                "open": {"n": 2, "exact_match": 1 / 2, "f1": pytest.approx(0.9)},
            },
        },
        "scorer_version": SCORER_VERSION,
    }
    assert score(rows, ["strict", "normalized"])["unparsed_rate"] == 0.0  # the first protocol's


def test_a_share_of_no_questions_is_none() -> None:
    only_open = score([record("a lung", "lung")], ["normalized"])["scores"]["normalized"]
    assert only_open["closed"] == {"n": 0, "accuracy": None}
    only_closed = score([record("no", "no", "closed")], ["normalized"])["scores"]["normalized"]
    assert only_closed["open"] == {"n": 0, "exact_match": None, "f1": None}


def test_constant_and_perfect_predictors_on_vqa_rad(real_data: Path) -> None:
    rows = json.loads((real_data / "vqa_rad" / "VQA_RAD Dataset Public.json").read_text(encoding="utf-8"))
    test = [row for row in rows if row["phrase_type"].startswith("test_")]
    golds = [(str(row["answer"]), row["answer_type"].strip().lower()) for row in test]
    closed = [gold for gold, kind in golds if kind == "closed"]
    share_of_no = sum(gold.strip().lower() == "no" for gold in closed) / len(closed)
    assert (len(golds), len(closed), share_of_no) == (451, 272, 133 / 272)

    def accuracy(answer: str) -> Any:
        judged = score([record(answer, gold, kind) for gold, kind in golds], ["normalized"])["scores"]
        return judged["normalized"]["closed"]["accuracy"]

    assert accuracy("no") == share_of_no
    assert accuracy("the lungs are normal") == accuracy("yes and no") == accuracy("I cannot determine") == 0.0

    perfect = score([record(gold, gold, kind) for gold, kind in golds], list(PROTOCOLS))
    assert perfect["unparsed_rate"] == 0.0
    for result in perfect["scores"].values():
        assert result["accuracy"] == result["closed"]["accuracy"] == 1.0
        assert result["open"]["exact_match"] == result["open"]["f1"] == 1.0
