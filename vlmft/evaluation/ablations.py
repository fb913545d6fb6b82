"""The same questions without the picture that belongs to them: what a model answers from the words alone.

`blank` shows a grey picture of the same size, `shuffled` the picture of another question of the set. Both keep the
number of images and, for blank, of visual tokens, so nothing else about a prompt changes.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vlmft.data import images
from vlmft.data.question import Question
from vlmft.errors import DataError
from vlmft.files import cache_folder

BLANK, SHUFFLED = "blank", "shuffled"
PASSES = (BLANK, SHUFFLED)
GREY = (128, 128, 128)


def shows_other_pictures(name: str) -> bool:
    """Whether predictions named `<set>.<pass>` are of such a pass, and not of a set or of another of its splits."""
    return name.partition(".")[2] in PASSES


def without_their_pictures(questions: Sequence[Question], kind: str) -> list[Question]:
    """The questions with other images, in order; one without images stays as it is.

    Raises DataError where a set has too few pictures to shuffle.
    """
    if kind == BLANK:
        return [replace(question, images=tuple(map(_blank, question.images))) for question in questions]
    shown = _shuffled(questions)
    return [replace(question, images=shown.get(question.images, ())) for question in questions]


def _shuffled(questions: Sequence[Question]) -> dict[tuple[str, ...], tuple[str, ...]]:
    """For each row's images those of another row with as many; seeded, and the same whatever the order of rows."""
    found: dict[tuple[str, ...], tuple[str, ...]] = {}
    by_count: dict[int, set[tuple[str, ...]]] = {}
    for question in questions:
        by_count.setdefault(len(question.images), set()).add(question.images)
    for count, rows in by_count.items():
        if not count:
            continue
        if len(rows) < 2:
            raise DataError(
                f"eval.ablations=[{SHUFFLED}]: {questions[0].set} has only one row with {count} image(s), so there is "
                "no other picture to show; leave the pass out"
            )
        order = sorted(rows)
        random.Random("shuffled").shuffle(order)
        found |= dict(zip(order, [*order[1:], order[0]], strict=True))
    return found


def _blank(image: str) -> str:
    """A grey PNG of the image's size, upright as the image is shown."""
    width, height = images.size(image)
    file = cache_folder() / "blank" / f"{width}x{height}.png"
    if not file.is_file():
        _draw(file, (width, height))
    return str(file)


def _draw(file: Path, size: tuple[int, int]) -> None:
    from PIL import Image

    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    Image.new("RGB", size, GREY).save(temporary, format="PNG")
    os.replace(temporary, file)
