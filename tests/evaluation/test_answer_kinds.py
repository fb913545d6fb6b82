"""What an answer says, kind by kind: what is read, what is not, and why not."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from vlmft.data.question import CLOSED, MULTIPLE_CHOICE
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
from vlmft.evaluation.answers import UNCLOSED_THINK, parse
from vlmft.evaluation.boxes import boxes, instances
from vlmft.evaluation.choices import choice, choice_gold

OPTIONS = ["X-ray", "Magnetic resonance imaging", "Ultrasound", "CT"]
TWO = [(10.0, 20.0, 30.0, 40.0), (50.0, 60.0, 70.0, 80.0)]


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


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[[10, 20, 30, 40], [50, 60, 70, 80]]", TWO),
        ("[10, 20, 30, 40] [50, 60, 70, 80]", TWO),
        ("[[10, 20, 30, 40]] and [[50, 60, 70, 80]]", TWO),
        ("Box 1: [10, 20, 30, 40], box 2: (50 60 70 80).", TWO),
        ("[10,20,30,40]\n[50,60,70,80]", TWO),
        ("[[[10, 20, 30, 40]], [[50, 60, 70, 80]]]", TWO),
        ("((10, 20, 30, 40), (50, 60, 70, 80))", TWO),
        ('[{"bbox_2d": [10, 20, 30, 40], "label": "a"}, {"bbox": [50, 60, 70, 80]}]', TWO),
        ('{"boxes": [[10, 20, 30, 40], [50, 60, 70, 80]]}', TWO),
        ("```json\n[{'box': [10, 20, 30, 40]}, {'box': [50, 60, 70, 80]}]\n```", TWO),
        ("[10, 20, 30, 40]", TWO[:1]),
        ("10, 20, 30, 40", TWO[:1]),
        ("See [1]: [10, 20, 30, 40]", TWO[:1]),
        ("[[125, 300, 480, 720]]", [(125.0, 300.0, 480.0, 720.0)]),
        ("[[1.5, -2, 3, 4.25]]", [(1.5, -2.0, 3.0, 4.25)]),
        ("[[30, 40, 10, 20]]", [(30.0, 40.0, 10.0, 20.0)]),  # kept as it is said
        ("[]", []),
        ("none", []),
        ("No lesion is visible.", []),
        ("There is no lesion.", []),
        ("未见病灶", []),
    ],
)
def test_boxes_are_read(text: str, value: list[tuple[float, ...]]) -> None:
    assert (boxes(text).value, boxes(text).status) == (value, OK)


@pytest.mark.parametrize(
    ("text", "status"),
    [
        *((text, AMBIGUOUS) for text in ("[10, 20, 30]", "10", "[[10, 20, 30, 40], [50, 60]]", "[1, 2, 3, 4, 5]")),
        *((text, AMBIGUOUS) for text in ("[1e999, 2, 3, 4]", "(1,2),(3,4)", '["1", "2", "3", "4"]', "[true, 2, 3, 4]")),
        *((text, OFF_VOCAB) for text in ("left lung", "[left]", "", "No.", "[[", "{}", "no")),
        *((text, REFUSAL) for text in ("I cannot determine the box.", "无法确定", "no box: unable to identify one")),
    ],
)
def test_anything_else_is_no_box(text: str, status: str) -> None:
    assert (boxes(text).value, boxes(text).status) == (None, status)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"Caries": [[10, 20, 30, 40]], "cyst": [50, 60, 70, 80]}', {"caries": TWO[:1], "cyst": TWO[1:]}),
        ("{'Caries': [[10, 20, 30, 40], (50, 60, 70, 80)]}", {"caries": TWO}),
        ('{"a": [[10, 20, 30, 40]], "A": [[50, 60, 70, 80]]}', {"a": TWO}),
        ('[{"label": "a", "bbox_2d": [10, 20, 30, 40]}, {"label": "a", "bbox_2d": [50, 60, 70, 80]}]', {"a": TWO}),
        ('Found: ```json\n{"a": [[10, 20, 30, 40]]}\n``` in it.', {"a": TWO[:1]}),
        ('```json\n{"a": [[10, 20, 30, 40]]}\n```', {"a": TWO[:1]}),
        ('{"a": [[10, 20, 30, 40]]}\n{"b": [[50, 60, 70, 80]]}', {"a": TWO[:1], "b": TWO[1:]}),
        ("In [image 1] {0: [[10, 20, 30, 40]]}", {"0": TWO[:1]}),
        ('{"a": []}', {"a": []}),
        ("{}", {}),
        ("[]", {}),
        ("No caries.", {}),
    ],
)
def test_instances_are_read(text: str, value: dict[str, Any]) -> None:
    assert (instances(text).value, instances(text).status) == (value, OK)


@pytest.mark.parametrize(
    ("text", "status"),
    [
        *(
            (text, AMBIGUOUS)
            for text in ("[[10, 20, 30, 40]]", '{"a": [10, 20, 30]}', '{"a": [[10, 20, 30, 40]], "b": "x"}')
        ),
        *(
            (text, AMBIGUOUS)
            for text in ('{"a": [[10, 20, 30, 40]', '{"": [[10, 20, 30, 40]]}', '{"label": "a", "n": 3}')
        ),
        *((text, OFF_VOCAB) for text in ("caries", "", '{"a": "left"}', "{")),
        ("The teeth cannot be identified.", REFUSAL),
    ],
)
def test_anything_else_is_no_instance(text: str, status: str) -> None:
    assert (instances(text).value, instances(text).status) == (None, status)


READERS: list[Callable[[str], Any]] = [lambda text: choice(text, OPTIONS), lambda text: choice(text, []), number, boxes]
READERS += [instances]


def test_no_text_breaks_a_reader() -> None:
    """Random strings of the pieces that matter: nothing raises, and a value is there exactly where the status is ok."""
    pieces = [
        "A",
        "b",
        "C ",
        "answer",
        " is ",
        "option ",
        ": ",
        ") ",
        "(",
        ", ",
        "or ",
        "and ",
        "CT",
        "X-ray",
        "I",
        "选",
        "答案",
    ]
    pieces += [
        "[",
        "]",
        "{",
        "}",
        '"a"',
        "'a'",
        '"bbox_2d"',
        '"label"',
        "1",
        "2.5",
        "-",
        "1,000",
        "10, 20, 30, 40",
        "1e9",
        "%",
    ]
    pieces += [
        "T2",
        "mm",
        "\n",
        " ",
        "\\",
        "\x00",
        "\u0301",
        "²",
        "\ud800",
        "```json",
        "none",
        "cannot ",
        "tell",
        "无法",
        "确定",
    ]
    draw = random.Random(0)
    for _ in range(8_000):
        text = "".join(draw.choices(pieces, k=draw.randrange(12)))
        for reader in READERS:
            read = reader(text)
            assert read.status in (OK, AMBIGUOUS, OFF_VOCAB, REFUSAL), text
            assert (read.value is not None) == (read.status == OK), text
        assert all(labels(text)), text
        said = parse_yes_no(text)
        assert (said.text in ("yes", "no")) == (said.status == OK), text


@pytest.mark.parametrize("reader", [*READERS, labels, parse_yes_no])
def test_degenerate_text_is_read_in_linear_time(reader: Callable[[str], Any]) -> None:
    pieces = [
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
        "'",
    ]
    for piece in [*pieces, "{'a':", "no a ", "cannot ", "不能", "*", "\u0301\u0316", "1e", "```", "1+", "not "]:
        began = time.perf_counter()
        for text in (piece * 5_000, "[" + piece * 5_000 + "]", "answer" + piece * 5_000 + "1"):
            reader(text)
        assert time.perf_counter() - began < 3, piece
