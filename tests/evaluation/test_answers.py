"""The extraction rule, case by case: what is an answer, what is not, and why not."""

from __future__ import annotations

import random

import pytest

from vlmft.data.question import CLOSED, MULTIPLE_CHOICE, OPEN, TASKS
from vlmft.evaluation.answer_kinds import OK
from vlmft.evaluation.answers import EMPTY, TRUNCATED, UNCLOSED_THINK, parse

STATUSES = {OK, EMPTY, UNCLOSED_THINK, TRUNCATED}


@pytest.mark.parametrize(
    ("raw", "answer"),
    [
        # plain text, and what tokenizers leave around it
        ("left lung", "left lung"),
        ("  Left lung.\n", "Left lung."),
        ("Yes<|im_end|>", "Yes"),
        ("Yes<|endoftext|><|endoftext|><|user|>", "Yes"),
        ("pneumonia<｜end▁of▁sentence｜>", "pneumonia"),
        ("pneumonia</s>", "pneumonia"),
        ("<bos>pneumonia<end_of_turn>\n<eos>", "pneumonia"),
        ("a <5 cm and >3 cm mass", "a <5 cm and >3 cm mass"),
        # thoughts
        ("<think>maybe the liver</think>spleen", "spleen"),
        ("<THINK>maybe</Think> spleen", "spleen"),
        ("<thinking>maybe</thinking>spleen", "spleen"),
        ("the liver, I think</think>\n\nspleen", "spleen"),  # the template had opened the thought
        ("<think>a</think>liver<think>b</think>spleen", "spleen"),
        ("<think></think>spleen", "spleen"),
        ("<think>maybe A</think><answer>B</answer>", "B"),
        ("<think><answer>liver</answer></think><answer>spleen</answer>", "spleen"),
        ("<think><answer>liver</answer></think>spleen", "spleen"),
        # answer tags
        ("<answer>B", "B"),
        ("<Answer> spleen </ANSWER>", "spleen"),
        ("It is here: <answer>spleen</answer> as shown", "spleen"),
        ("<answer>liver</answer> no: <answer>spleen</answer>", "spleen"),
        ("<answer>liver</answer> no: <answer>spleen", "spleen"),
        ("<answer><answer>spleen</answer></answer>", "spleen"),
        ("<answer>spleen\nand liver</answer>", "spleen\nand liver"),
        ("<answer>spleen</answer><|im_end|>", "spleen"),
        # boxes
        (r"\boxed{\text{B}}", "B"),
        (r"So $\boxed{T2}$.", "T2"),
        (r"\boxed{liver} or rather \boxed{spleen}", "spleen"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\text{left }\textbf{lung}}", "left lung"),
        (r"\boxed{\boxed{B}}", "B"),
        (r"\boxed{\text{grade \textbf{2} of {4}}}", "grade 2 of {4}"),
        (r"\boxed{spleen} and then \boxed{liv", "spleen"),
        (r"{ \boxed {spleen}", "spleen"),
        (r"\boxed{spleen", r"\boxed{spleen"),
        (r"\boxed{liver}<answer>spleen</answer>", "spleen"),
        (r"<answer>\boxed{\text{spleen}}</answer>", "spleen"),
        ("<|begin_of_box|>spleen<|end_of_box|>", "spleen"),
        ("The organ is <|begin_of_box|>the spleen<|end_of_box|>.", "the spleen"),
        ("<|begin_of_box|>{liver}<|end_of_box|>, <|begin_of_box|>spleen<|end_of_box|>", "spleen"),
        ("<|begin_of_box|>spleen", "spleen"),
        ("<answer><|begin_of_box|>B<|end_of_box|></answer>", "B"),
    ],
)
def test_a_finished_completion_gives_its_answer(raw: str, answer: str) -> None:
    for kind in (CLOSED, OPEN):
        got = parse(raw, finish_reason="stop", answer_type=kind)
        assert (got.text, got.status) == (answer, OK)


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        ("", EMPTY),
        (" \n\t", EMPTY),
        ("<|im_end|>", EMPTY),
        ("<answer></answer>", EMPTY),
        ("spleen <answer> ", EMPTY),
        (r"\boxed{}", EMPTY),
        ("<think>spleen</think>", EMPTY),
        ("<|begin_of_box|><|end_of_box|>", EMPTY),
        ("<think>A seems right, but B fits", UNCLOSED_THINK),
        ("<Think>A seems right <answer>B</answer>", UNCLOSED_THINK),
        ("<think>a</think>liver<think>wait", UNCLOSED_THINK),
    ],
)
def test_no_answer_is_said_to_be_none(raw: str, status: str) -> None:
    got = parse(raw, finish_reason="stop", answer_type=OPEN)
    assert (got.text, got.status) == (None, status)


def test_a_prefilled_thought_must_be_closed() -> None:
    for raw in ("spleen", "<answer>spleen</answer>", "", "spleen</thin"):
        assert parse(raw, finish_reason="stop", answer_type=OPEN, think_prefilled=True).status == UNCLOSED_THINK
    assert parse("hm</think>spleen", finish_reason="stop", answer_type=OPEN, think_prefilled=True).text == "spleen"


@pytest.mark.parametrize(
    "raw",
    [
        "B. Magn",
        "(B) as",
        "B: ",
        "**B**: Magn",
        "b) Magn",
        "The answer is B because the",
        "Answer: B. The",
        "<answer>B. Magn",
    ],
)
def test_a_letter_that_is_over_stands_although_the_rest_is_cut(raw: str) -> None:
    for kind in (CLOSED, OPEN):
        got = parse(raw, finish_reason="length", answer_type=kind, task=MULTIPLE_CHOICE)
        assert (got.text, got.status) == (raw.removeprefix("<answer>").strip(), OK)
        assert parse(raw, finish_reason="length", answer_type=kind).status == TRUNCATED


@pytest.mark.parametrize(
    "raw",
    ["B", "B or", "B, ", "The answer is B", "The answer is A mass", "Bil", "Magn", "A.P. vi", "", "Yes, the"],
)
def test_a_letter_that_may_go_on_is_cut_off(raw: str) -> None:
    assert parse(raw, finish_reason="length", answer_type=CLOSED, task=MULTIPLE_CHOICE).status == TRUNCATED


@pytest.mark.parametrize(
    ("raw", "kind", "answer", "status"),
    [
        ("The image shows the spleen, which", OPEN, None, TRUNCATED),
        ("spleen", OPEN, None, TRUNCATED),
        ("Yes, there is", OPEN, None, TRUNCATED),
        ("<answer>sple", OPEN, None, TRUNCATED),
        ("<answer>spleen</ans", OPEN, None, TRUNCATED),
        ("", OPEN, None, TRUNCATED),
        ("<think>the spleen", OPEN, None, UNCLOSED_THINK),
        ("<think>no</think>", CLOSED, None, TRUNCATED),
        ("<answer>spleen</answer> because", OPEN, "spleen", OK),
        ("<answer>spleen</answer><answer>spleen</answer><answer>sp", OPEN, "spleen", OK),
        (r"\boxed{spleen}, since the", OPEN, "spleen", OK),
        (r"\boxed{sple", OPEN, None, TRUNCATED),
        ("<answer></answer> because", OPEN, None, EMPTY),
        ("No, the lungs are", CLOSED, "No, the lungs are", OK),
        ("Yes", CLOSED, "Yes", OK),
        ("<answer>yes, as", CLOSED, "yes, as", OK),
        ("The answer is: no, as", CLOSED, "The answer is: no, as", OK),
        ("The lungs are normal and", CLOSED, None, TRUNCATED),
        ("Left, as the", CLOSED, None, TRUNCATED),
        ("Yes or", CLOSED, None, TRUNCATED),
        ("不", CLOSED, None, TRUNCATED),  # may go on as 不正常
    ],
)
def test_the_token_limit_cuts_answers_off(raw: str, kind: str, answer: str | None, status: str) -> None:
    got = parse(raw, finish_reason="length", answer_type=kind)
    assert (got.text, got.status) == (answer, status)


def test_no_text_breaks_the_parser() -> None:
    """Random strings of the pieces that matter: nothing raises, and an answer is there exactly where the
    status is ok."""
    pieces = [
        "<think>",
        "</think>",
        "<THINK>",
        "<answer>",
        "</answer>",
        "<Answer >",
        "\\boxed{",
        "\\text{",
        "{",
        "}",
    ]
    pieces += [
        "<|begin_of_box|>",
        "<|end_of_box|>",
        "<|im_end|>",
        "<|",
        "|>",
        "<",
        "\\",
        "\x00",
        "*",
        " ",
        "\n",
    ]
    pieces += ["yes", "no", "and", "/", "是", "left lung", "0.5"]
    draw = random.Random(0)
    for _ in range(20_000):
        raw = "".join(draw.choices(pieces, k=draw.randrange(12)))
        kind, reason = draw.choice((CLOSED, OPEN)), draw.choice(("stop", "length", ""))
        task = draw.choice(TASKS)
        got = parse(raw, finish_reason=reason, answer_type=kind, think_prefilled=draw.random() < 0.2, task=task)
        assert got.status in STATUSES, raw
        assert (got.text is not None) == (got.status == OK), raw
        assert got.text is None or got.text.strip(), raw


def test_degenerate_text_is_read_in_linear_time() -> None:
    pieces = ("<answer>", "\\boxed{", "<think></think>", "{", " ", "\n", "answer ", "yes and ", "<|begin_of_box|>")
    for piece in pieces:
        parse(piece * 20_000, finish_reason="stop", answer_type=CLOSED)
        parse(piece * 20_000, finish_reason="length", answer_type=CLOSED, task=MULTIPLE_CHOICE)
    nested = "\\boxed{" + "\\text{" * 20_000 + "B" + "}" * 20_001
    assert parse(nested, finish_reason="stop", answer_type=CLOSED).text == "B"
