"""The answers of FLARE 2025 in the one form that vlmft's scorers read, and the options of its questions."""

from __future__ import annotations

import ast
import json
import math
import re
from typing import Any

from vlmft.data import images
from vlmft.data.question import COUNTING, DETECTION, MULTI_LABEL, MULTIPLE_CHOICE, REGRESSION, REPORT, VQA
from vlmft.data.sources import Unusable, one_line
from vlmft.errors import DataError
from vlmft.evaluation.answer_kinds import number
from vlmft.evaluation.boxes import Box, boxes, instances
from vlmft.evaluation.choices import choice_gold

PIXELS, THOUSANDTHS = "pixels", "0-1000"
OPTIONS = re.compile(r"\b(?:options|choices)\s*:", re.IGNORECASE)
HEADING = re.compile(r"(?<![\w.-])\(?(?P<letter>[A-Z])\s?(?:[:)]|\.(?=\s))\s*")


class Defect(Unusable):
    """Why a row as it was published is no question."""


def said(value: Any) -> bool:
    """Whether there is an answer at all."""
    return value is not None and str(value).strip() != ""


def options_of(asked: str) -> tuple[str, ...]:
    """The texts behind A, B, … of "Options: A: … B: …" or "…? A. …, B. …"; none where there are not two."""
    start = max((match.end() for match in OPTIONS.finditer(asked)), default=0)
    headings: list[re.Match[str]] = []
    for match in HEADING.finditer(asked, start):
        if match["letter"] == "A" and len(headings) == 1 and not start:
            headings = [match]  # "Vitamin A: …? A. Yes B. No"
        elif match["letter"] == chr(ord("A") + len(headings)):
            headings.append(match)
    if len(headings) < 2:
        return ()
    ends = [*(match.start() for match in headings[1:]), len(asked)]
    texts = [asked[match.end() : end] for match, end in zip(headings, ends, strict=True)]
    texts[-1] = texts[-1].split("\n")[0]  # a line below the last option is an instruction
    return tuple(" ".join(text.split()).rstrip(" ,;") for text in texts)


def choice(value: Any, options: tuple[str, ...]) -> tuple[str, str]:
    """The task and the answer of a classification: words are words where the question lists no options.

    Raises Defect for an answer that is none of the options.
    """
    answer = one_line(value[0] if isinstance(value, list) and len(value) == 1 else value)
    if not answer:
        raise Defect(f"the Answer is {value!r}; it should be a letter or words")
    if not options and not re.fullmatch(r"(?:[A-Za-z](?:\W+|$))+", answer):
        return VQA, answer
    try:
        choice_gold(answer, options)
    except ValueError as error:
        named = f"letters up to {chr(ord('A') + len(options) - 1)}" if options else "one letter"
        raise Defect(f"the Answer {answer!r} is not one of the options ({named}, or an option's text)") from error
    return MULTIPLE_CHOICE, answer


def _labels(value: Any) -> str:
    found = _literal(value) if str(value).strip().startswith("[") else value
    pieces = found if isinstance(found, list) else re.split("[;,]", one_line(found))
    labels = list(dict.fromkeys(filter(None, map(one_line, pieces))))
    if not labels:
        raise Defect(f"the Answer {value!r} holds no label")
    return "; ".join(labels)


def _number(value: Any) -> str:
    text = one_line(int(value) if isinstance(value, float) and value.is_integer() else value)
    if number(text).value is None:
        raise Defect(f"the Answer is {value!r}; it should be one number")
    return text


def _report(value: Any) -> str:
    if not isinstance(value, str):
        raise Defect(f"the Answer is {value!r}; it should be a text")
    return value.strip()


def plain(task: str, value: Any) -> str:
    """Labels between "; ", a number, or a report. Raises Defect where the answer is no such thing."""
    return {MULTI_LABEL: _labels, COUNTING: _number, REGRESSION: _number, REPORT: _report}[task](value)


def located(task: str, value: Any, space: str, picture: str) -> str:
    """The boxes, alone or by class, as JSON in the space that is asked for.

    Raises Defect where the answer holds none or one that cannot be, Unusable where a picture's size is needed but
    cannot be had.
    """
    if task == DETECTION:
        read = boxes(value if isinstance(value, str) else json.dumps(value)).value
        if read is None:
            raise Defect(f"the Answer {value!r} is no list of boxes such as [[10, 20, 50, 60]]")
        return json.dumps([_box(box, space, picture) for box in read])
    found = _literal(value)
    of_class = {name: boxes(json.dumps(part)).value for name, part in found.items()} if isinstance(found, dict) else {}
    if not isinstance(found, dict) or instances(json.dumps(found)).value is None:
        raise Defect(f'the Answer {value!r} is no object of boxes by class such as {{"caries": [[10, 20, 50, 60]]}}')
    by_class = {name: [_box(box, space, picture) for box in of or []] for name, of in of_class.items()}
    return json.dumps(by_class, ensure_ascii=False)


def _literal(value: Any) -> Any:
    """What a text says as JSON or as a Python literal of the same kinds, else None; what is no text as it is."""
    if not isinstance(value, str):
        return value
    for reader in (json.loads, ast.literal_eval):
        try:
            return json.loads(json.dumps(reader(value.strip())))
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            continue
    return None


def _box(box: Box, space: str, picture: str) -> list[float]:
    """The box in whole thousandths of its picture's sides, or in pixels as it was published."""
    shown = [int(x) if x.is_integer() else x for x in box]
    x1, y1, x2, y2 = box
    if not (0 <= x1 < x2 and 0 <= y1 < y2):
        raise Defect(f"the box {shown} has no inside or begins outside the picture; it should be x1 < x2, y1 < y2")
    try:
        width, height = images.size(picture)
    except DataError as error:
        if space == PIXELS:
            return shown
        raise Unusable(f"{error}; its size is needed for boxes from 0 to 1000") from error
    if x2 > width or y2 > height:
        raise Defect(f"the box {shown} goes beyond its picture of {width} x {height} pixels")
    if space == PIXELS:
        return shown
    (left, right), (top, bottom) = _thousandths(x1, x2, width), _thousandths(y1, y2, height)
    return [left, top, right, bottom]


def _thousandths(low: float, high: float, side: int) -> tuple[int, int]:
    first, last = 1000 * low / side, 1000 * high / side
    if round(first) < round(last):
        return round(first), round(last)
    return math.floor(first), math.ceil(last)  # a box this thin would lose its inside
