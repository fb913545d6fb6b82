"""Which option an answer names: by its letter or its text, and where by neither."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.evaluation.test_answer_kinds import (
    check_a_value_is_there_exactly_where_the_status_is_ok,
    check_time_is_linear,
)
from vlmft.data.question import CLOSED, MULTIPLE_CHOICE
from vlmft.evaluation.answer_kinds import AMBIGUOUS, OFF_VOCAB, OK, REFUSAL
from vlmft.evaluation.answers import UNCLOSED_THINK, parse
from vlmft.evaluation.choices import choice, choice_gold

OPTIONS = ["X-ray", "Magnetic resonance imaging", "Ultrasound", "CT"]


@pytest.mark.parametrize(
    ("raw", "value", "status"),
    [  # where scorers in use differ from each other
        ("The answer is B because A is excluded.", "B", OK),
        ("I cannot determine which it is.", None, REFUSAL),
        ("<answer>B", "B", OK),
        (r"\boxed{\text{B}}", "B", OK),
        ("<think>A seems right, but B fits", None, UNCLOSED_THINK),
        ("<think>maybe A</think><answer>B</answer>", "B", OK),
        ("B or C", None, AMBIGUOUS),
        ("b", "B", OK),
        ("<|begin_of_box|>B<|end_of_box|>", "B", OK),
    ],
)
def test_a_completion_names_a_letter(raw: str, value: str | None, status: str) -> None:
    answer = parse(raw, finish_reason="stop", answer_type=CLOSED, task=MULTIPLE_CHOICE)
    if answer.text is None:
        assert (value, answer.status) == (None, status)
    else:
        read = choice(answer.text, OPTIONS)
        assert (read.value, read.status) == (value, status)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        *((text, "B") for text in ("B", "b", "(B)", "B.", "**B**", "[b]", " B\n", "“B”", "Ｂ", "（Ｂ）", "B. B")),
        *(
            (text, "B")
            for text in ("B: Magnetic resonance", "B) it is", "B. It is", "b) it is", "(B) is right", "- B: it")
        ),
        *((text, "B") for text in ("B, because of A", "B because of A", "B - it is", "B\nA is excluded", "B、是")),
        *((text, "B") for text in ("B Magnetic resonance imaging", "B: magnetic-resonance.", "B. CT is not used here")),
        *((text, "C") for text in ("Answer: C", "the correct option is (C)", "The best choice would be C.", "答案是C")),
        *((text, "C") for text in ("answer is **C**", "It must be option C, I think", "选C", "the answer is option c")),
        *((text, "C") for text in ("Option A is wrong. The answer is C", "option B isn't right; option C", "应选C。")),
        *((text, "A") for text in ("The answer is A.", "the answer is a", "Answer: A\nIt is", "The answer is A X-ray")),
        *((text, "A") for text in ("A", "A X-ray", "Option A is correct", "answer: A since it is")),
        *((text, "D") for text in ("CT", "ct.", "The answer is CT.", "the final answer is: `CT`", "答案是CT", "D: CT")),
        *((text, "A") for text in ("x-ray", "X-RAY.", "(x-ray)", "Answer: X-ray")),
        ("Options: A: X-ray B: Magnetic resonance imaging C: Ultrasound D: CT Answer: B", "B"),
        ("A: X-ray\nB: Magnetic resonance imaging\nC: Ultrasound\nD: CT\nThe answer is D", "D"),
    ],
)
def test_a_letter_is_read_where_an_answer_stands(text: str, letter: str) -> None:
    assert (choice(text, OPTIONS).value, choice(text, OPTIONS).status) == (letter, OK)


@pytest.mark.parametrize(
    ("text", "status"),
    [
        *((text, AMBIGUOUS) for text in ("B or C", "A and B", "A B", "B/C", "B, C", "A\nB", "both B and C", "B or")),
        *(
            (text, AMBIGUOUS)
            for text in ("The answer is B or C", "Answer: B, C", "answer: A or B", "答案是B和C", "B, or C")
        ),
        *(
            (text, AMBIGUOUS)
            for text in ("The answer is B or possibly CT", "option B, though the answer may be option C")
        ),
        *(
            (text, AMBIGUOUS)
            for text in ("B: Ultrasound", "B Ultrasound", "A Ultrasound", "The answer is B: Ultrasound")
        ),
        *(
            (text, AMBIGUOUS)
            for text in ("B: CT, as seen", "A: X-ray B: Magnetic resonance imaging", "A: X-ray B: Magn")
        ),
        *(
            (text, AMBIGUOUS)
            for text in ("I think B", "The answer is not B", "B seems right", "A: X-ray B:", "A X-ray\nD CT")
        ),
        *(
            (text, OFF_VOCAB)
            for text in ("A mass is seen", "The answer is A mass", "the answer is a mass", "A small mass")
        ),
        *(
            (text, OFF_VOCAB)
            for text in ("E", "T", "The answer is E", "E: PET", "", "PET", "resonance", "a, b-mode scan")
        ),
        *(
            (text, OFF_VOCAB)
            for text in ("The answer is X-rays", "The answer is C-arm", "T2", "I, too", "The option I like")
        ),
        *((text, REFUSAL) for text in ("I'm unable to tell from this.", "It cannot be determined from the image.")),
        *((text, REFUSAL) for text in ("无法判断", "不知道", "I cannot determine if it is B or C", "I do not know.")),
    ],
)
def test_anything_else_is_no_letter(text: str, status: str) -> None:
    assert (choice(text, OPTIONS).value, choice(text, OPTIONS).status) == (None, status)


def test_the_text_of_an_option_decides() -> None:
    assert choice("E. coli", ["S. aureus", "E. coli"]).value == "B"
    assert choice("A and B", ["left", "right", "A and B"]).value == "C"
    assert choice("1.5", ["15", "1.5", "-1.5"]).value == "B"
    assert choice("-1.5", ["15", "1.5", "-1.5"]).value == "C"
    assert choice("> 5 cm", ["< 5 cm", "> 5 cm"]).value == "B"
    assert choice("B: Left lung, upper lobe", ["Left lung", "Left lung, upper lobe"]).value == "B"
    assert choice("A: Left lung, upper lobe", ["Left lung", "Left lung, upper lobe"]).status == AMBIGUOUS
    assert choice("both", ["both", "Both"]).status == AMBIGUOUS
    assert choice("B", ["B", "A"]).value == "B"  # a letter is a letter first
    assert choice("cannot be determined", ["yes", "Cannot be determined."]).value == "B"


def test_without_options_any_letter_counts() -> None:
    assert [choice(text, []).value for text in ("q", "Answer: Q", "Q: it is", "Q or R", "A mass")] == ["Q"] * 3 + [
        None
    ] * 2


def test_a_gold_names_an_option() -> None:
    assert [choice_gold(gold, OPTIONS) for gold in ("B", "d", " C ", "ultrasound", "D: CT")] == [
        "B",
        "D",
        "C",
        "C",
        "D",
    ]
    assert choice_gold("D", []) == "D"
    for gold in ("T", "A B", "PET", ""):
        with pytest.raises(ValueError, match=r"neither the letter nor the text .*A: X-ray; B: Magn") as error:
            choice_gold(gold, OPTIONS)
        assert repr(gold) in str(error.value)


@pytest.mark.parametrize("options", [OPTIONS, []], ids=["options", "no options"])
def test_no_text_breaks_a_reader(options: Sequence[str]) -> None:
    check_a_value_is_there_exactly_where_the_status_is_ok(lambda text: choice(text, options))


@pytest.mark.parametrize("options", [OPTIONS, []], ids=["options", "no options"])
def test_degenerate_text_is_read_in_linear_time(options: Sequence[str]) -> None:
    check_time_is_linear(lambda text: choice(text, options))
