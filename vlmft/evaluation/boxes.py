"""The boxes of an answer: lists of four numbers, alone or by class, as models of several families write them."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from vlmft.evaluation.answer_kinds import FENCE, OK, REFUSES, Read, label, why_unread

Box = tuple[float, float, float, float]  # x1, y1, x2, y2, as they were said

_BRACKET = re.compile(r"[\[\](){}]")
_LITERAL = re.compile(  # what a Python literal of boxes is made of; other text is kept from Python's parser
    r"(?:'[^'\\\n]*+'|\"[^\"\\\n]*+\"|-?[0-9][0-9.]*+(?:e[-+]?[0-9]++)?|[\[\](){},:\s])*+"
)
_DEEPEST = 8  # far beyond any list of boxes, far below what the parsers cannot hold
_DECIMAL = r"[-+]?[0-9]++(?:\.[0-9]*+)?"
_FOUR = re.compile(rf"[\[(]\s*+({_DECIMAL})" + rf"(?:\s*+[,;]\s*+|\s++)({_DECIMAL})" * 3 + r"\s*+[\])]")
_BOX_KEYS = ("bbox_2d", "bbox", "box", "box_2d", "boxes", "bboxes")
_LABEL_KEYS = ("label", "class", "category", "name")
_NOTHING = re.compile(
    r"\W*+(?:(?:none|nothing)\W*+|(?:there\s(?:is|are)\s)?no\s\w[^0-9]*+|(?:无|没有|未见|未发现)[^0-9]*+)",
    re.IGNORECASE,
)


def boxes(text: str) -> Read[list[Box]]:
    """The boxes of `text` as they are said, even where they have no inside (x1 >= x2); [] where it says there are none.

    Read as JSON or a Python literal (a list of fours, a four, objects with "bbox_2d", "bbox" or "box"), else as
    bracketed groups of four numbers anywhere. `ambiguous`: numbers, but not in fours. `off_vocab`: no numbers.
    """
    bare = re.search("[0-9]", text) and not _BRACKET.search(text)  # "10, 20, 50, 60"
    found = _structures(f"[{text}]" if bare else text)
    read = [_boxes(structure) for structure in found]
    groups = [_four([float(x) for x in match.groups()]) for match in _FOUR.finditer(text)]
    fours = [box for box in groups if box]
    if read and None not in read:
        known = [box for these in read for box in these or []]
        return Read(known if len(known) >= len(fours) else fours, OK)  # "[1, 2, 3, 4] and (5 6 7 8)"
    halves = any(these is None and _FOUR.search(str(part)) for part, these in zip(found, read, strict=True))
    if fours and len(fours) == len(groups) and not halves:
        return Read(fours, OK)
    return _no_boxes(text, [])


def instances(text: str) -> Read[dict[str, list[Box]]]:
    """The boxes of `text` by class, each class named as in `labels`; {} where it says there are none.

    Read as JSON or a Python literal, also inside prose: an object {class: boxes}, or a list of objects with "label" and
    "bbox_2d". Statuses as of `boxes`, `ambiguous` also where a class has anything but boxes.
    """
    by_class: dict[str, list[Box]] = {}
    found = _structures(text)
    pairs = [_labelled(structure) for structure in found]
    if not found or None in pairs:
        return _no_boxes(text, {})
    for name, these in (pair for of in pairs for pair in of or []):
        by_class.setdefault(name, []).extend(these)
    return Read(by_class, OK)


def _no_boxes(text: str, nothing: Any) -> Read[Any]:
    if _NOTHING.fullmatch(text) and not REFUSES.search(text):
        return Read(nothing, OK)
    return Read(None, why_unread(text, said=re.search("[0-9]", text) is not None))


def _boxes(value: Any) -> list[Box] | None:
    """The boxes that a parsed structure holds; None where it holds anything else."""
    if isinstance(value, dict):
        inner = [value[key] for key in _BOX_KEYS if key in value]
        return _boxes(inner[0]) if inner else None
    if not isinstance(value, list | tuple):
        return None
    box = _four(value)
    if box:
        return [box]
    parts = [_boxes(part) for part in value]
    return None if None in parts else [box for part in parts for box in part or []]


def _four(value: Sequence[Any]) -> Box | None:
    if len(value) != 4 or not all(type(x) in (int, float) and abs(x) < 1e9 for x in value):
        return None
    return (float(value[0]), float(value[1]), float(value[2]), float(value[3]))


def _labelled(value: Any) -> list[tuple[str, list[Box]]] | None:
    """(class, boxes) of a parsed structure; None where it holds anything else."""
    if isinstance(value, list | tuple):
        parts = [_labelled(part) for part in value]
        return None if None in parts else [pair for part in parts for pair in part or []]
    if not isinstance(value, dict):
        return None
    name = next((value[key] for key in _LABEL_KEYS if isinstance(value.get(key), str)), None)
    pairs = []
    for key, part in [(name, value)] if name is not None else value.items():
        cls, of = label(str(key)), _boxes(part)
        if not cls or of is None:
            return None
        pairs.append((cls, of))
    return pairs


def _structures(text: str) -> list[Any]:
    """What `text` holds as JSON or a Python literal: the whole, else each outermost bracketed part that can be read."""
    whole = _structure(text)
    if whole is not None:
        return [whole]
    return [found for part in _outermost(text) if (found := _structure(part)) is not None]


def _outermost(text: str) -> Iterable[str]:
    depth = start = 0
    for bracket in _BRACKET.finditer(text):
        if bracket[0] in "[({":
            start = start if depth else bracket.start()
            depth += 1
        elif depth:
            depth -= 1
            if not depth:
                yield text[start : bracket.end()]


def _structure(text: str) -> list[Any] | dict[Any, Any] | tuple[Any, ...] | None:
    depth = deepest = 0
    for bracket in _BRACKET.finditer(text):
        depth += 1 if bracket[0] in "[({" else -1
        deepest = max(deepest, depth)
    if not 0 < deepest <= _DEEPEST:
        return None
    plain = FENCE.sub("", text).strip()
    for reader in (json.loads, ast.literal_eval) if _LITERAL.fullmatch(plain) else (json.loads,):
        try:
            found = reader(plain)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        return found if isinstance(found, list | dict | tuple) else None
    return None
