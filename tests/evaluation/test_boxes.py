"""The boxes of an answer, alone or by class: the forms that are read, and what is none of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.evaluation.test_answer_kinds import (
    check_a_value_is_there_exactly_where_the_status_is_ok,
    check_time_is_linear,
)
from vlmft.evaluation.answer_kinds import AMBIGUOUS, OFF_VOCAB, OK, REFUSAL
from vlmft.evaluation.boxes import boxes, instances

TWO = [(10.0, 20.0, 30.0, 40.0), (50.0, 60.0, 70.0, 80.0)]


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


@pytest.mark.parametrize("reader", [boxes, instances])
def test_no_text_breaks_a_reader(reader: Callable[[str], Any]) -> None:
    check_a_value_is_there_exactly_where_the_status_is_ok(reader)


@pytest.mark.parametrize("reader", [boxes, instances])
def test_degenerate_text_is_read_in_linear_time(reader: Callable[[str], Any]) -> None:
    check_time_is_linear(reader)
