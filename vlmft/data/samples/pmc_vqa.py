"""PMC-VQA: four-option questions about drawn figures, in the columns of either version."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from vlmft.data.samples import dealt
from vlmft.data.sources._demo_pictures import COUNTS, QUARTERS, finish
from vlmft.data.sources.demo import SETS

FIGURES = {"train": 30, "test": 12}
CLEAN = 8  # figures of test_clean.csv, which are the first of test.csv
HEADERS = {
    1: ("Figure_path", "Question", "Answer", "Choice A", "Choice B", "Choice C", "Choice D", "Answer_label"),
    2: ("index", "Figure_path", "Caption", "Question", "Choice A", "Choice B", "Choice C", "Choice D", "Answer",
        "split"),
}  # fmt: skip
MODALITIES = {"demo_ct": "Computed tomography", "demo_xray": "X-ray", "demo_path": "Histology"}
# By factor: the question, and its options; those that no picture shows are there to be wrong.
ASKED = {
    "organ": ("Which organ does the slice show?", ("Brain", "Lungs", "Liver", "Kidneys")),
    "lesion": ("In which quarter of the image is the lesion located?", tuple(each.capitalize() for each in QUARTERS)),
    "part": ("Which part of the body is shown?", ("Chest", "Hand", "Knee", "Hip")),
    "screws": ("How many screws are visible in the image?", tuple(each.capitalize() for each in COUNTS)),
    "stain": ("Which stain was used?", ("H&E", "PAS", "Giemsa", "Masson's trichrome")),
    "cells": ("What kind of cells fill the field?", ("Glandular", "Spindle", "Fat", "Nerve")),
}


class _Row(NamedTuple):
    figure: str
    question: str
    options: list[str]
    right: int


def write_pmc_vqa(folder: Path, seed: int = 0, *, version: int = 1) -> None:
    """Write train.csv, test.csv, test_clean.csv and images, or (version 2) train_2.csv, test_2.csv and figures."""
    pictures = folder / ("images" if version == 1 else "figures")
    pictures.mkdir(parents=True, exist_ok=True)
    first = 0
    for split, count in FIGURES.items():
        rng = random.Random(f"pmc_vqa {seed} {version} {split}")
        rows = list(_rows(split, count, version, pictures, rng))
        if version == 1:
            _write(folder / f"{split}.csv", 1, [_version_1(row) for row in rows])
            if split == "test":
                figures = list(dict.fromkeys(row.figure for row in rows))[:CLEAN]
                _write(folder / "test_clean.csv", 1, [_version_1(row) for row in rows if row.figure in figures])
        else:
            _write(folder / f"{split}_2.csv", 2, [_version_2(row, n, split) for n, row in enumerate(rows, first)])
        first += len(rows)


def _rows(split: str, count: int, version: int, folder: Path, rng: random.Random) -> Iterator[_Row]:
    """Three questions about each figure; the figures of each demo set take turns."""
    # Every slice has a lesion, as the question where it lies has no option for none.
    factors = {name: SETS[name].factors for name in MODALITIES}
    factors["demo_ct"] = factors["demo_ct"] | {"lesion": tuple(QUARTERS)}
    decks = {name: dealt(values, count // len(factors), rng) for name, values in factors.items()}
    for number in range(count):
        name = list(factors)[number % len(factors)]
        facts = decks[name].pop()
        paper = f"PMC{9_000_000 + number + (0 if split == 'train' else 1000)}"
        figure = f"{paper}_F1.jpg" if version == 1 else f"{paper}_Fig1_{number % 4}.jpg"
        finish(SETS[name].draw(facts, rng), rng).save(folder / figure, quality=95)
        right = MODALITIES[name]
        wrong = [other for other in ("MRI", "Ultrasound", *MODALITIES.values()) if other != right]
        yield _row(figure, "What is the imaging modality of the figure?", [right, *rng.sample(wrong, 3)], right, rng)
        for factor, (question, options) in ASKED.items():
            if factor in facts:
                yield _row(figure, question, list(options), facts[factor], rng)


def _row(figure: str, question: str, options: list[str], answer: str, rng: random.Random) -> _Row:
    rng.shuffle(options)
    right = next(n for n, option in enumerate(options) if option.lower() == answer.lower())
    return _Row(figure, question, options, right)


def _version_1(row: _Row) -> list[str]:
    """As published: blanks around the texts, each option behind its letter, the answer as text and as letter."""
    labelled = [f" {letter}:{option} " for letter, option in zip("ABCD", row.options, strict=True)]
    return [row.figure, f" {row.question} ", row.options[row.right], *labelled, "ABCD"[row.right]]


def _version_2(row: _Row, index: int, split: str) -> list[str]:
    labelled = [f" {letter}: {option} " for letter, option in zip("ABCD", row.options, strict=True)]
    caption = f'A drawn figure, "{row.figure}", of its kind.'
    return [str(index), row.figure, caption, f" {row.question} ", *labelled, "ABCD"[row.right], split]


def _write(file: Path, version: int, rows: list[list[str]]) -> None:
    with open(file, "w", encoding="utf-8", newline="") as opened:
        csv.writer(opened, lineterminator="\n").writerows([HEADERS[version], *rows])
