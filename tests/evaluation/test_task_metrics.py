"""Scores of letters, label lists, boxes, numbers and reports against literal values and the libraries' own metrics."""

from __future__ import annotations

import random
from typing import Any

import pytest

from vlmft.data.question import (
    COUNTING,
    DETECTION,
    INSTANCE_DETECTION,
    MULTI_LABEL,
    MULTIPLE_CHOICE,
    REGRESSION,
    REPORT,
    TASKS,
    VQA,
)
from vlmft.evaluation.answers import parse
from vlmft.evaluation.task_metrics import HEADLINE, LOWER_IS_BETTER, Outcome, balanced, gold_letter, outcome, over_all

OPTIONS = ["X-ray", "Magnetic resonance imaging", "Ultrasound"]
ENGLISH = "The lungs are clear. No effusion or pneumothorax is seen."
CHINESE = "双肺纹理清晰,心影不大,未见明显异常。"
NUMBERS = (COUNTING, REGRESSION)


def record(gold: str, raw: str = "", **more: Any) -> dict[str, Any]:
    return {"id": "row-7", "gold": gold, "raw": raw, "finish_reason": "stop", "facts": {}, **more}


def said(task: str, raw: str | None, gold: str, **more: Any) -> Outcome:
    """The outcome of an answer; None is one that was cut."""
    return outcome(task, raw, "ok" if raw is not None else "truncated", record(gold, raw or "", **more))


def pooled(outcomes: list[Outcome], metric: str) -> float:
    pairs = [found.values[metric] for found in outcomes]
    return sum(above for above, _ in pairs) / sum(below for _, below in pairs)


@pytest.mark.parametrize(
    ("task", "gold", "parsed", "options"),
    [
        (MULTIPLE_CHOICE, "B", "B", OPTIONS),
        (MULTIPLE_CHOICE, "Magnetic resonance imaging", "B", OPTIONS),
        (MULTI_LABEL, "Effusion; Edema", "effusion; edema", []),
        (MULTI_LABEL, "pleural thickening", "pleural thickening", []),
        (DETECTION, "[[10, 20, 50, 60], [70, 20, 90, 60]]", "2 boxes", []),
        (DETECTION, "[[10, 20, 50, 60]]", "1 box", []),
        (INSTANCE_DETECTION, '{"caries": [[1, 2, 5, 6]], "crown": [[7, 2, 9, 6], [1, 2, 5, 6]]}', "3 boxes", []),
        (COUNTING, "1000000", "1000000", []),
        (REGRESSION, "-3.25", "-3.25", []),
        (REPORT, ENGLISH, ENGLISH, []),
        (REPORT, CHINESE, CHINESE, []),
    ],
)
def test_the_gold_itself_is_a_perfect_answer(task: str, gold: str, parsed: str, options: list[str]) -> None:
    row = record(gold, raw=gold, options=options)
    answer = parse(gold, finish_reason="stop", answer_type="open")
    found = outcome(task, answer.text, answer.status, row)
    assert found == Outcome(parsed, "ok", True, found.values)
    for metric in found.values:
        assert pooled([found], metric) == pytest.approx(0.0 if metric in LOWER_IS_BETTER else 1.0)
    assert all(value == pytest.approx(1.0) for value in over_all(task, [(answer.text, row)] * 2).values())


@pytest.mark.parametrize(
    ("task", "gold", "values"),
    [
        (MULTIPLE_CHOICE, "B", {"accuracy": (0, 1)}),
        (MULTI_LABEL, "effusion; edema", {"f1_micro": (0, 2), "f1_samples": (0, 1)}),
        (MULTI_LABEL, "", {"f1_micro": (0, 0), "f1_samples": (0, 1)}),
        (DETECTION, "[[10, 20, 50, 60]]", {"f1@0.5": (0, 1), "f1@0.3": (0, 1)}),
        (DETECTION, "[]", {"f1@0.5": (0, 0), "f1@0.3": (0, 0)}),
        (INSTANCE_DETECTION, '{"a": [[1, 2, 5, 6]], "b": [[1, 2, 5, 6]]}', {"f1@0.5": (0, 2), "f1@0.3": (0, 2)}),
        (COUNTING, "35", {"mae": (0, 0), "parse_rate": (0, 1)}),
        (REPORT, ENGLISH, {"rouge_l": (0, 1)}),
    ],
)
def test_no_answer_is_wrong_and_stays_in_the_count(task: str, gold: str, values: dict[str, Any]) -> None:
    assert said(task, None, gold) == Outcome(None, "truncated", False, values)


def test_an_answer_that_its_task_cannot_read_has_the_readers_status() -> None:
    assert said(MULTIPLE_CHOICE, "B or C", "B", options=OPTIONS) == Outcome(
        None, "ambiguous", False, {"accuracy": (0.0, 1.0)}
    )
    assert said(COUNTING, "several cells", "3").status == "off_vocab"
    assert said(DETECTION, "in the upper left", "[[1, 2, 5, 6]]").status == "off_vocab"


@pytest.mark.parametrize(("raw", "right"), [("B", 1.0), ("(b)", 1.0), ("magnetic resonance imaging", 1.0), ("C", 0.0)])
def test_letters(raw: str, right: float) -> None:
    found = said(MULTIPLE_CHOICE, raw, "B", options=OPTIONS)
    assert (found.correct, found.values) == (bool(right), {"accuracy": (right, 1.0)})


@pytest.mark.parametrize(
    ("raw", "gold", "micro", "samples", "correct"),
    [
        ("Edema, effusion", "effusion; edema", (4, 4), 1.0, True),  # a set: neither order nor case counts
        ("edema; edema", "edema", (2, 2), 1.0, True),
        ("edema", "effusion; edema", (2, 3), 2 / 3, False),
        ("edema; effusion; mass", "effusion; edema", (4, 5), 0.8, False),
        ("pleural effusion", "pleural thickening", (0, 2), 0.0, False),  # no half a point for "pleural"
        ("edema", "", (0, 1), 0.0, False),
        (";", "", (0, 0), 1.0, True),
    ],
)
def test_labels(raw: str, gold: str, micro: tuple[float, float], samples: float, correct: bool) -> None:
    found = said(MULTI_LABEL, raw, gold)
    assert found.values["f1_micro"] == micro
    assert found.values["f1_samples"] == pytest.approx((samples, 1.0))
    assert found.correct is correct


def test_labels_agree_with_scikit_learn() -> None:
    from sklearn.metrics import f1_score
    from sklearn.preprocessing import MultiLabelBinarizer

    chance = random.Random(0)
    names = ["mass", "edema", "pleural effusion", "nodule"]
    golds, answers = ([chance.sample(names, chance.randint(0, 4)) for _ in range(60)] for _ in range(2))
    found = [
        said(MULTI_LABEL, "; ".join(answer) or ";", ", ".join(gold))
        for gold, answer in zip(golds, answers, strict=True)
    ]
    binarizer = MultiLabelBinarizer(classes=names)
    matrices = binarizer.fit_transform(golds), binarizer.transform(answers)
    for metric, average in (("f1_micro", "micro"), ("f1_samples", "samples")):
        assert pooled(found, metric) == pytest.approx(f1_score(*matrices, average=average, zero_division=1.0))


TWO = "[[0, 0, 10, 10], [20, 0, 30, 10]]"


@pytest.mark.parametrize(
    ("raw", "gold", "half", "third", "correct"),
    [
        ("[[20, 0, 30, 10], [0, 0, 10, 10]]", TWO, (4, 4), (4, 4), True),
        ("[[0, 0, 10, 10]]", TWO, (2, 3), (2, 3), False),
        ("[[0, 0, 10, 10], [0, 0, 10, 10]]", "[[0, 0, 10, 10]]", (2, 3), (2, 3), False),  # said twice: a false positive
        ("[]", TWO, (0, 2), (0, 2), False),
        ("[]", "[]", (0, 0), (0, 0), True),
        ("[[0, 0, 10, 10]]", "[]", (0, 1), (0, 1), False),
        ("[[0, 0, 10, 5]]", "[[0, 0, 10, 10]]", (0, 2), (2, 2), False),  # IoU is 0.5, and more is asked for
        ("[[0, 0, 10, 5.1]]", "[[0, 0, 10, 10]]", (2, 2), (2, 2), True),
        ("[[0, 0, 10, 4]]", "[[0, 0, 10, 10]]", (0, 2), (2, 2), False),
        ("[[10, 10, 0, 0]]", "[[0, 0, 10, 10]]", (0, 2), (0, 2), False),  # corners the wrong way round
        ("[[0, 10, 10, 0]]", "[[0, 0, 10, 10]]", (0, 2), (0, 2), False),
        ("[[0, 0, 10, 10], [5, 5, 5, 9]]", "[[0, 0, 10, 10]]", (2, 3), (2, 3), False),  # no width
        # the first said box overlaps both golds by more than 0.3, the second only the first: 2 pairs, not greedily 1
        ("[[0, 0, 20, 10], [0, 0, 8, 10]]", "[[0, 0, 10, 10], [10, 0, 20, 10]]", (2, 4), (4, 4), False),
    ],
)
def test_boxes(raw: str, gold: str, half: tuple[int, int], third: tuple[int, int], correct: bool) -> None:
    found = said(DETECTION, raw, gold)
    assert (found.values, found.correct) == ({"f1@0.5": half, "f1@0.3": third}, correct)


@pytest.mark.parametrize(
    ("raw", "half", "correct"),
    [
        ('{"Crown": [[20, 0, 30, 10]], "caries": [[0, 0, 10, 10]]}', (4, 4), True),
        ('{"crown": [[0, 0, 10, 10]], "caries": [[20, 0, 30, 10]]}', (0, 4), False),  # right boxes, wrong classes
        ('{"crown": [[20, 0, 30, 10]], "caries": [[0, 0, 10, 5]]}', (4, 4), True),  # here an IoU of 0.5 is enough
        ('{"crown": [[20, 0, 30, 10]], "caries": [[0, 0, 10, 10]], "mass": [[1, 1, 2, 2]]}', (4, 5), False),
        ('{"crown": [[20, 0, 30, 10]], "caries": [[0, 0, 10, 10]], "mass": []}', (4, 4), True),
        ("{}", (0, 2), False),
    ],
)
def test_boxes_by_class(raw: str, half: tuple[int, int], correct: bool) -> None:
    found = said(INSTANCE_DETECTION, raw, '{"caries": [[0, 0, 10, 10]], "crown": [[20, 0, 30, 10]]}')
    assert (found.values["f1@0.5"], found.correct) == (half, correct)


@pytest.mark.parametrize(
    ("task", "answer", "gold"),
    [
        (DETECTION, "[[125, 250, 500, 750]]", "[[50, 50, 200, 150]]"),
        (INSTANCE_DETECTION, '{"mass": [[125, 250, 500, 750]]}', '{"mass": [[50, 50, 200, 150]]}'),
    ],
)
@pytest.mark.parametrize(
    ("raw", "more", "correct"),
    [
        ("<|begin_of_box|>{}<|end_of_box|>", {"image_size": [400, 200]}, True),
        ("{}", {"image_size": [400, 200]}, False),  # without its tokens a box is in the gold's space
        ("<|begin_of_box|>{}<|end_of_box|>", {}, False),
        ("<|begin_of_box|>{}<|end_of_box|>", {"image_size": [400, 200], "facts": {"box_space": "0-1000"}}, False),
    ],
)
def test_boxes_of_glm_are_scaled_to_pixels(
    task: str, answer: str, gold: str, raw: str, more: dict[str, Any], correct: bool
) -> None:
    row = record(gold, raw.replace("{}", answer), **more)
    assert outcome(task, answer, "ok", row).correct is correct


@pytest.mark.parametrize("task", NUMBERS)
@pytest.mark.parametrize(
    ("raw", "gold", "error", "correct"),
    [
        ("35", "35", 0, True),
        ("about 32 cells", "35", 3, False),
        ("0.3", "0.30000000001", 1e-11, True),
        ("0", "0", 0, True),
    ],
)
def test_numbers(task: str, raw: str, gold: str, error: float, correct: bool) -> None:
    found = said(task, raw, gold, train={"median": 99})
    pair = pytest.approx((error, 1.0), abs=1e-12)
    assert (found.values, found.correct) == ({"mae": pair, "parse_rate": (1.0, 1.0), "mae_imputed": pair}, correct)


def test_a_number_that_was_not_read_is_the_training_median_in_mae_imputed_alone() -> None:
    found = [said(COUNTING, None, "35", train={"median": 28}), said(COUNTING, "36", "35", train={"median": 28})]
    assert found[0].values == {"mae": (0.0, 0.0), "parse_rate": (0.0, 1.0), "mae_imputed": (7, 1.0)}
    assert [pooled(found, metric) for metric in ("mae", "parse_rate", "mae_imputed")] == [1.0, 0.5, 4.0]
    assert said(COUNTING, None, "3", train={"median": 0}).values["mae_imputed"] == (3, 1.0)


def test_a_number_beyond_all_bounds_does_not_make_the_error_infinite() -> None:
    found = said(REGRESSION, "9" * 400, "35")
    assert found == Outcome(None, found.status, False, {"mae": (0.0, 0.0), "parse_rate": (0.0, 1.0)})


@pytest.mark.parametrize(
    ("task", "gold", "wanted"),
    [
        (COUNTING, "many", "the gold answer 'many' is not a number"),
        (DETECTION, "upper left", "the gold answer 'upper left' is not a list of boxes"),
        (INSTANCE_DETECTION, "caries", "the gold answer 'caries' is not boxes by class"),
        (MULTIPLE_CHOICE, "T", "T"),
    ],
)
def test_a_gold_that_cannot_be_read_is_an_error_that_names_the_record(task: str, gold: str, wanted: str) -> None:
    for answer in ("B", None):
        with pytest.raises(ValueError, match=f"Record 'row-7': .*{wanted}"):
            said(task, answer, gold, options=OPTIONS)


@pytest.mark.parametrize(
    ("raw", "gold", "rouge", "correct"),
    [
        ("the  LUNGS are clear.\nNo effusion or pneumothorax is seen.", ENGLISH, 1.0, True),
        ("the lungs are clear", "the lungs are not clear", 8 / 9, False),
        ("左肺清晰", "右肺清晰", 0.75, False),
        ("右肺 clear", "右肺 CLEAR", 1.0, True),
        ("phổi sáng", "phổi mờ", 0.5, False),
    ],
)
def test_reports(raw: str, gold: str, rouge: float, correct: bool) -> None:
    found = said(REPORT, raw, gold)
    assert found.correct is correct
    assert found.values["rouge_l"] == pytest.approx((rouge, 1.0))


def test_rouge_agrees_with_torchmetrics() -> None:
    from torchmetrics.functional.text import rouge_score

    pairs = [
        ("No pleural effusion is seen.", ENGLISH),
        ("Heart size is normal; the lungs are clear.", ENGLISH),
        ("A 3.5 cm mass in the right-upper lobe", "There is a mass of 3.5 cm in the right upper lobe."),
    ]
    for raw, gold in pairs:
        wanted = float(rouge_score(raw, gold, rouge_keys=("rougeL",))["rougeL_fmeasure"])
        assert said(REPORT, raw, gold).values["rouge_l"] == pytest.approx((wanted, 1.0))
        assert 0 < wanted < 1


@pytest.mark.parametrize(("gold", "tokenize"), [(ENGLISH, "13a"), (CHINESE, "zh")])
def test_corpus_scores_of_reports_are_sacrebleus(gold: str, tokenize: str) -> None:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    texts = [gold[: len(gold) // 2], gold, ""]
    found = over_all(REPORT, [(texts[0], record(gold)), (texts[1], record(gold)), (None, record(gold))])
    assert found == {
        "bleu": pytest.approx(BLEU(tokenize=tokenize).corpus_score(texts, [[gold] * 3]).score / 100),
        "chrf": pytest.approx(CHRF().corpus_score(texts, [[gold] * 3]).score / 100),
    }
    assert 0.2 < found["bleu"] < 0.9 and 0.2 < found["chrf"] < 0.9


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_balanced_accuracy_agrees_with_scikit_learn() -> None:
    from sklearn.metrics import balanced_accuracy_score

    chance = random.Random(0)
    golds = chance.choices("ABCD", (60, 25, 10, 5), k=200)
    answers = chance.choices(("A", "B", "C", "D", None), k=200)
    wanted = balanced_accuracy_score(golds, [answer or "?" for answer in answers])
    assert balanced(golds, answers) == pytest.approx(wanted)
    assert balanced("AAAB", "AAAA") == 0.5
    with pytest.raises(ValueError, match="no predictions"):
        balanced([], [])
    with pytest.raises(ValueError, match="shorter"):
        balanced(["A", "A"], ["A"])


def test_a_constant_letter_is_the_floor_of_multiple_choice() -> None:
    rows = [
        ("B", record("B", options=OPTIONS)),
        ("ultrasound", record("C", options=OPTIONS)),
        (None, record(OPTIONS[1], options=OPTIONS)),
        ("B or C", record("C", options=OPTIONS)),
        ("A", record("B", options=OPTIONS)),
    ]
    assert over_all(MULTIPLE_CHOICE, rows) == {
        "constant_letter": 0.6,
        "balanced_accuracy": pytest.approx((1 / 3 + 1 / 2) / 2),
    }
    assert [gold_letter(row) for _, row in rows] == ["B", "C", "B", "C", "B"]
    assert over_all(COUNTING, [("3", record("3"))]) == {}
    with pytest.raises(ValueError, match="no predictions"):
        over_all(MULTIPLE_CHOICE, [])


def test_every_task_but_short_answers_has_a_headline_metric() -> None:
    golds = {MULTIPLE_CHOICE: "A", DETECTION: "[]", INSTANCE_DETECTION: "{}", COUNTING: "1", REGRESSION: "1"}
    assert set(HEADLINE) == set(TASKS) - {VQA}
    for task, metric in HEADLINE.items():
        assert metric in said(task, None, golds.get(task, "")).values
    with pytest.raises(ValueError, match=r"The task 'vqa' is not scored here\. These are: multiple_choice, "):
        said(VQA, "left", "left")
