"""What an answer says: yes or no, a number, labels; what is not read, and why not."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from vlmft.evaluation.answer_kinds import (
    AMBIGUOUS,
    OFF_VOCAB,
    OK,
    REFUSAL,
    labels,
    number,
    parse_yes_no,
    yes_no,
    yes_no_gold,
)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        *(
            (text, "yes")
            for text in ("yes", "Yes.", "YES", "Yes, because it is.", "**Yes**", '"yes"', "(yes)", "- Yes")
        ),
        *((text, "no") for text in ("no", "No.", "No effusion is seen.", "no, it is normal", "`no`", "No - it is not")),
        *((text, "no") for text in ("The answer is no.", "answer: No", "Final answer: no", "the final answer is: no")),
        *((text, "yes") for text in ("**Answer:** Yes", "The answer is yes, as", "ANSWER IS YES", "Answer：yes")),
        *((text, "yes") for text in ("是", "是的", "有", "包含", "可以", "是的。", " 有 ")),
        *((text, "no") for text in ("否", "不是", "没有", "不包含", "不可以", "不", "没有。")),
    ],
)
def test_a_leading_word_answers(text: str, word: str) -> None:
    assert yes_no(text) == word
    assert parse_yes_no(text).status == OK


@pytest.mark.parametrize(
    ("text", "status"),
    [
        *(
            (text, OFF_VOCAB)
            for text in ("normal", "Normal lungs", "the lungs are normal", "not sure", "none", "nodule")
        ),
        *((text, OFF_VOCAB) for text in ("non-contrast CT", "know", "yesterday", "nope", "Not so", "")),
        *((text, OFF_VOCAB) for text in ("不正常", "有没有", "肺", "The answer is not")),
        *(
            (text, REFUSAL)
            for text in ("I cannot determine this.", "I cannot say yes or no", "无法确定", "I don't know")
        ),
        *(
            (text, AMBIGUOUS)
            for text in ("yes and no", "Yes or no", "yes/no", "no or yes", "yes and/or no", "yes & no")
        ),
        *((text, AMBIGUOUS) for text in ("Yes, and no.", "yes no", "No. Yes.", "yes or", "The answer is yes or no")),
        *((text, AMBIGUOUS) for text in ("there is no effusion", "I think yes", "no-contrast", "It is a no")),
    ],
)
def test_anything_else_does_not(text: str, status: str) -> None:
    assert yes_no(text) is None
    assert parse_yes_no(text).status == status


def test_a_gold_is_yes_or_no_only_as_a_whole() -> None:
    assert [yes_no_gold(gold) for gold in ("Yes", "no ", "YES.", "没有")] == ["yes", "no", "yes", "no"]
    assert [yes_no_gold(gold) for gold in ("No finding", "Not sure", "Left", "", "yes and no")] == [None] * 5


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(
            (text, 35.0)
            for text in ("35", "35%", "35 ％", "T2 signal at 35%", "３５", "35.", "35.0", "**35**", "+35", "$35$")
        ),
        *(
            (text, 12.0)
            for text in ("about 12 mm", "12mm", "约12毫米", "12岁", "12-mm nodule", "12 (12.0) mm", "12 cm²")
        ),
        *((text, -5.5) for text in ("-5.5", "−5.5 mm", "a change of -5.5", "–5.5", "-5.50")),
        *((text, 1000.0) for text in ("1,000", "1000", "1,000.0 cells", "L2-3: 1,000", "1e3")),
        *((text, 0.5) for text in ("0.5", ".5", "COVID-19 index 0.5", "is 0.5.")),
        *((text, 3.0) for text in ("3", "three", "Three.", "三", "There are 3 lesions.", "3 kg/m2", "T1/T2: 3")),
        *((text, 0.0) for text in ("0", "zero", "None", "-0", "零")),
        *((text, 20.0) for text in ("twenty", "20")),
    ],
)
def test_the_only_number_is_read(text: str, value: float) -> None:
    assert (number(text).value, number(text).status) == (value, OK)


@pytest.mark.parametrize(
    ("text", "status"),
    [
        *(
            (text, AMBIGUOUS)
            for text in ("3 of 5", "between 3 and 5", "2 x 3 cm", "2x3cm", "10-20", "3/5", "5 mm-10 mm")
        ),
        *((text, AMBIGUOUS) for text in ("1,5", "1,00", "1,0000", "5 and -5", "9" * 400)),
        *(
            (text, OFF_VOCAB)
            for text in ("T2", "L2-3", "COVID-19", "3D", "2nd", "many", "", "10²", "No.5", "two or so")
        ),
        *((text, REFUSAL) for text in ("无法确定", "The size cannot be measured.", "I can't tell")),
    ],
)
def test_anything_else_is_no_number(text: str, status: str) -> None:
    assert (number(text).value, number(text).status) == (None, status)


@pytest.mark.parametrize(
    ("text", "listed"),
    [
        ("Edema; Pleural  Effusion", ["edema", "pleural effusion"]),
        ("edema, mass；nodule，mass\n- Edema.\r\n“cyst”", ["edema", "mass", "nodule", "cyst"]),
        ("肺炎、结节", ["肺炎", "结节"]),
        ("rib and spine", ["rib and spine"]),
        ('["Edema, left", "mass"]', ["edema, left", "mass"]),
        ("['Edema']", ["edema"]),
        ('```json\n["a", "b"]\n```', ["a", "b"]),
        ("[]", []),
        ("; ,\n.", []),
        ("", []),
        ("mass (benign); (cyst)", ["mass (benign)", "cyst"]),
        ("HER2+; HER2-; 35%", ["her2+", "her2-", "35%"]),
        ("Ｅdema", ["edema"]),
        ("[1, 2]", ["1", "2"]),
    ],
)
def test_labels_are_divided_by_semicolons_commas_and_lines(text: str, listed: list[str]) -> None:
    assert labels(text) == listed


PIECES = ["A", "b", "C ", "answer", " is ", "option ", ": ", ") ", "(", ", ", "or ", "and ", "CT", "X-ray", "I", "选"]
PIECES += ["答案", "[", "]", "{", "}", '"a"', "'a'", '"bbox_2d"', '"label"', "1", "2.5", "-", "1,000"]
PIECES += ["10, 20, 30, 40", "1e9", "%", "T2", "mm", "\n", " ", "\\", "\x00", "\u0301", "²", "\ud800", "```json"]
PIECES += ["none", "cannot ", "tell", "无法", "确定"]
REPEATED = [
    "answer ",
    "A ",
    "A: X-ray ",
    "B or ",
    "((",
    "[",
    "{",
    "[1,",
    "[1] ",
    "1",
    "1,",
    "-",
    "T2-",
    "mm",
    " ",
    "\n",
]
REPEATED += ["'", "{'a':", "no a ", "cannot ", "不能", "*", "\u0301\u0316", "1e", "```", "1+", "not "]


def texts_of_pieces() -> Iterator[str]:
    """Random strings of the pieces that matter to a reader."""
    draw = random.Random(0)
    for _ in range(8_000):
        yield "".join(draw.choices(PIECES, k=draw.randrange(12)))


def check_a_value_is_there_exactly_where_the_status_is_ok(reader: Callable[[str], Any]) -> None:
    for text in texts_of_pieces():
        read = reader(text)
        assert read.status in (OK, AMBIGUOUS, OFF_VOCAB, REFUSAL), text
        assert (read.value is not None) == (read.status == OK), text


def check_time_is_linear(reader: Callable[[str], Any]) -> None:
    for piece in REPEATED:
        began = time.perf_counter()
        for text in (piece * 5_000, "[" + piece * 5_000 + "]", "answer" + piece * 5_000 + "1"):
            reader(text)
        assert time.perf_counter() - began < 3, piece


def test_no_text_breaks_a_reader() -> None:
    check_a_value_is_there_exactly_where_the_status_is_ok(number)
    for text in texts_of_pieces():
        assert all(labels(text)), text
        said = parse_yes_no(text)
        assert (said.text in ("yes", "no")) == (said.status == OK), text


@pytest.mark.parametrize("reader", [number, labels, parse_yes_no])
def test_degenerate_text_is_read_in_linear_time(reader: Callable[[str], Any]) -> None:
    check_time_is_linear(reader)
