"""Three small sets that vlmft draws itself, so that everything can be tried without data: CT, X-ray, pathology.

On first use a set is written in the conversation form, with real image files, below `dataset.path`; from there on
it is read like anyone's. The sets share neither questions nor looks, so a model trained on one fails on another.
Facts are dealt evenly, so that the question alone gives its answer away less than half of the time.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmft.data.question import BadRow, Question
from vlmft.data.sources import _demo_pictures as pictures
from vlmft.data.sources import conversations, refuse_unknown_split
from vlmft.errors import DataError
from vlmft.files import whole_folder
from vlmft.schema import QuestionSet

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

VERSION = "v1"  # of what is drawn and asked; raise it with every change to that
IMAGES = {"train": 400, "test": 40}
ASKED = (5, 8)  # questions an image, drawn from those that apply to it

QUARTERS, COUNTS = tuple(pictures.QUARTERS), pictures.COUNTS
LEVELS, FILMS = tuple(pictures.LEVELS), tuple(pictures.FILMS)
STAINS, INKS = tuple(pictures.STAINS), tuple(pictures.INKS)

Facts = dict[str, str]


@dataclass(frozen=True)
class Ask:
    """A question about one factor: open, or yes/no where values count as `yes` or where "{}" names a value."""

    text: str
    factor: str
    yes: tuple[str, ...] = ()
    only: tuple[str, ...] = ()  # asked for these values only

    def put(self, facts: Facts, values: tuple[str, ...], rng: random.Random) -> tuple[str, str, str]:
        """Question, answer and answer type for an image with these facts."""
        truth = facts[self.factor]
        if "{}" in self.text:
            named = truth if rng.random() < 0.5 else rng.choice([value for value in values if value != truth])
            return self.text.format(named), "yes" if named == truth else "no", "CLOSED"
        if self.yes:
            return self.text, "yes" if truth in self.yes else "no", "CLOSED"
        return self.text, truth, "OPEN"


@dataclass(frozen=True)
class Demo:
    """One set: its factors with their values (repeated where more frequent), what is asked, and how it is drawn."""

    modality: str
    factors: dict[str, tuple[str, ...]]
    asks: tuple[Ask, ...]
    draw: Callable[[Facts, random.Random], Picture]


def splits(spec: QuestionSet) -> list[str]:
    """Train and test, with different images."""
    return list(IMAGES)


def files(spec: QuestionSet, split: str) -> list[Path]:
    """The split's annotation file, drawn first if need be; DataError for an unknown set or split or a bad folder."""
    refuse_unknown_split(spec, split, splits(spec))
    return conversations.files(_as_conversations(spec), split)


def read(spec: QuestionSet, split: str) -> Iterator[Question | BadRow]:
    """Every row of the split."""
    refuse_unknown_split(spec, split, splits(spec))
    return conversations.read(_as_conversations(spec), split)


def _as_conversations(spec: QuestionSet) -> QuestionSet:
    if spec.name not in SETS:
        raise DataError(f"dataset.name is {spec.name!r}; the format demo draws {', '.join(SETS)}.")
    if not spec.path:
        raise DataError(f"{spec.name}: no path is set. Say where the drawn images may lie with paths.demo=FOLDER.")
    parent = Path(os.path.abspath(Path(spec.path).expanduser()))
    folder = parent / f"{spec.name}-{VERSION}"
    if not folder.is_dir():
        try:
            _write(spec.name, folder)
        except OSError as error:
            raise DataError(
                f"{spec.name}: cannot draw into {parent}: {error}. Choose another folder with paths.demo=FOLDER."
            ) from error
    return QuestionSet(name=spec.name, format="conversations", path=str(folder))


def _write(name: str, folder: Path) -> None:
    """Draw the set: nobody sees half of it."""
    with whole_folder(folder) as fresh:
        (fresh / "images").mkdir()
        for split, count in IMAGES.items():
            rows = _draw_split(SETS[name], random.Random(f"{name} {VERSION} {split}"), split, count, fresh / "images")
            (fresh / f"{split}.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")


def _draw_split(demo: Demo, rng: random.Random, split: str, count: int, folder: Path) -> list[dict[str, Any]]:
    decks = {}
    for factor, values in demo.factors.items():
        decks[factor] = [values[i % len(values)] for i in range(count)]
        rng.shuffle(decks[factor])
    rows = []
    for number in range(count):
        facts = {factor: deck[number] for factor, deck in decks.items()}
        image = f"{split}_{number:03}.png"
        pictures.finish(demo.draw(facts, rng), rng).save(folder / image)
        asks = [ask for ask in demo.asks if not ask.only or facts[ask.factor] in ask.only]
        for n, ask in enumerate(rng.sample(asks, min(rng.randint(*ASKED), len(asks))), 1):
            question, answer, answer_type = ask.put(facts, demo.factors[ask.factor], rng)
            rows.append(
                {
                    "id": f"{split}_{number:03}_{n}",
                    "image": image,
                    "conversations": [
                        {"from": "human", "value": f"<image>\n{question}"},
                        {"from": "gpt", "value": answer},
                    ],
                    "answer_type": answer_type,
                    "modality": demo.modality,
                    "topic": ask.factor,
                }
            )
    return rows


SETS = {
    "demo_ct": Demo(
        "CT",
        {
            "organ": ("brain", "lungs", "liver", "kidneys"),
            "phase": LEVELS,
            "table": ("yes", "no"),
            "lesion": (*QUARTERS, "none", "none", "none", "none"),
        },
        (
            Ask("Which organ does this slice show?", "organ"),
            Ask("Does this slice show the {}?", "organ"),
            Ask("Which contrast phase was scanned?", "phase"),
            Ask("Is this a {} scan?", "phase"),
            Ask("Is the scanner table visible?", "table", yes=("yes",)),
            Ask("Is there a focal lesion?", "lesion", yes=QUARTERS),
            Ask("Where in the slice does the lesion lie?", "lesion", only=QUARTERS),
            Ask("Is the lesion in the left half?", "lesion", ("upper left", "lower left"), QUARTERS),
            Ask("Is the lesion in the upper half?", "lesion", ("upper left", "upper right"), QUARTERS),
        ),
        pictures.draw_ct,
    ),
    "demo_xray": Demo(
        "X-Ray",
        {
            "part": ("chest", "hand", "knee"),
            "exposure": FILMS,
            "screws": COUNTS,
            "fracture": ("yes", "no"),
        },
        (
            Ask("What part of the body was imaged?", "part"),
            Ask("Is this a radiograph of the {}?", "part"),
            Ask("How is the film exposed?", "exposure"),
            Ask("Is the film {}?", "exposure"),
            Ask("How many screws are in place?", "screws"),
            Ask("Has more than one screw been placed?", "screws", yes=("two", "three")),
            Ask("Is a bone broken?", "fracture", yes=("yes",)),
        ),
        pictures.draw_xray,
    ),
    "demo_path": Demo(
        "Pathology",
        {
            "stain": STAINS,
            "cells": ("glandular", "spindle", "fat"),
            "mitoses": COUNTS,
            "ink": (*INKS, "none", "none", "none"),
        },
        (
            Ask("Which stain was used?", "stain"),
            Ask("Was {} used as the stain?", "stain"),
            Ask("What kind of cells fill the field?", "cells"),
            Ask("Are these {} cells?", "cells"),
            Ask("How many mitotic figures are there?", "mitoses"),
            Ask("Are at least two cells dividing?", "mitoses", yes=("two", "three")),
            Ask("Is the margin inked?", "ink", yes=INKS),
            Ask("What color is the margin ink?", "ink", only=INKS),
        ),
        pictures.draw_path,
    ),
}
