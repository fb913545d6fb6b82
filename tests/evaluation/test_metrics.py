"""Normalising, matching, F1 and recall against literal values, and against SQuAD's own definitions."""

from __future__ import annotations

import random
import re
import string
from collections import Counter

import pytest

from vlmft.evaluation.metrics import (
    answer_length,
    exact_match,
    normalize,
    recall_llavamed,
    same_parts,
    squad_exact_match,
    squad_f1,
    token_f1,
)


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
        ("肺。", "肺"),
        ("右肺，左侧", "右肺,左侧"),
        ("３５％", "35%"),
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
        ("。", "A"),
        ("10²", "102"),
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
    ("pred", "gold", "same"),
    [
        ("Right, Left Lung", "Left Lung, Right", True),
        ("spinal cord and lung", "Lung, Spinal Cord", True),
        ("the liver; kidney", "Kidney、Liver", True),
        ("肝脏、肺", "肺，肝脏", True),
        ("Lung", "Lung, Spinal Cord", False),
        ("Lung, Spinal Cord, Liver", "Lung, Spinal Cord", False),
        ("Lung, Lung, Spinal Cord", "Lung, Spinal Cord", False),  # saying one twice earns nothing
        ("left lung, right kidney", "right lung, left kidney", False),
        ("000, 1", "1,000", False),  # a comma within a number divides nothing
        ("Lung", "Lung", False),  # one thing is no list: exact_match says the rest
        ("bands", "b, s", False),
    ],
)
def test_lists_are_compared_as_sets(pred: str, gold: str, same: bool) -> None:
    assert same_parts(pred, gold) is same


@pytest.mark.parametrize(
    ("pred", "gold", "recall", "precision"),
    [
        ("the left lower lobe", "left lobe", 1.0, 2 / 3),
        ("left", "left lobe", 0.5, 1.0),
        ("lung lung", "lung", 1.0, 1.0),  # as often as the prediction says it
        ("left left left", "left lobe", 3 / 4, 1.0),
        ("lung", "lung lung left", 0.5, 1.0),
        ("", "lung", 0.0, 0.0),
        ("", "", 1.0, 1.0),
        ("右肺", "右侧肺", 2 / 3, 1.0),
    ],
)
def test_recall_as_llava_med_counts_it(pred: str, gold: str, recall: float, precision: float) -> None:
    assert recall_llavamed(pred, gold) == (pytest.approx(recall), pytest.approx(precision))


def test_length_of_an_answer() -> None:
    assert [answer_length(text) for text in ("the left lung.", "右肺 CT", "")] == [2, 3, 0]


def official_f1(pred: str, gold: str) -> tuple[bool, float]:
    """Exact match and F1 as the SQuAD 2.0 evaluation defines them, written down once more."""

    def plain(text: str) -> str:
        text = "".join(letter for letter in text.lower() if letter not in set(string.punctuation))
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())

    said, wanted = plain(pred).split(), plain(gold).split()
    if not said or not wanted:
        return plain(pred) == plain(gold), float(said == wanted)
    shared = sum((Counter(said) & Counter(wanted)).values())
    if not shared:
        return plain(pred) == plain(gold), 0.0
    precision, recall = shared / len(said), shared / len(wanted)
    return plain(pred) == plain(gold), 2 * precision * recall / (precision + recall)


def test_squad_is_the_official_definition_on_random_pairs() -> None:
    torchmetrics = pytest.importorskip("torchmetrics.text")
    draw = random.Random(5)
    pieces = [
        "the",
        "a",
        "left",
        "Left",
        "lung",
        "lung.",
        "x-ray",
        "T2-weighted",
        "0.5",
        "05",
        ",",
        "An",
        "肺",
        "yes",
        "",
    ]
    exact, f1 = 0.0, 0.0
    pairs = [tuple(" ".join(draw.choices(pieces, k=draw.randrange(5))) for _ in range(2)) for _ in range(5_000)]
    for pred, gold in pairs:
        matches, share = official_f1(pred, gold)
        assert squad_exact_match(pred, gold) is matches, (pred, gold)
        assert squad_f1(pred, gold) == pytest.approx(share), (pred, gold)
        exact, f1 = exact + matches, f1 + share
    oracle = torchmetrics.SQuAD()(
        [{"prediction_text": pred, "id": str(n)} for n, (pred, _) in enumerate(pairs)],
        [{"answers": {"answer_start": [0], "text": [gold]}, "id": str(n)} for n, (_, gold) in enumerate(pairs)],
    )
    assert float(oracle["exact_match"]) == pytest.approx(100 * exact / len(pairs), abs=1e-3)
    assert float(oracle["f1"]) == pytest.approx(100 * f1 / len(pairs), abs=1e-3)
