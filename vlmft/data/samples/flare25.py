"""A drawn sample of FLARE 2025 (MLLM-2D) in the publisher's layout: every kind of question, answered by the picture."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

Drawn = tuple["list[Picture]", str, Any]  # the pictures of a row, its question, its answer
COLORS = {"crimson": (190, 40, 60), "ochre": (200, 150, 40), "teal": (30, 140, 140), "violet": (120, 70, 170)}
FIRST = {"train": 0, "val": 10_000, "test": 20_000}  # number of a picture: no name is in two splits
CORNERS = {"upper left": (4, 4), "upper right": (44, 4), "lower left": (4, 44), "lower right": (44, 44)}


class _Collection(NamedTuple):
    category: str
    task_type: str  # as its publisher spells it
    modality: str
    held_out: str  # the split whose answers a model can be scored on
    draw: Callable[[random.Random, int], Drawn]  # of the n-th row: what is asked about comes up equally often


def write_flare25(folder: Path, rows_per_collection: int = 48, seed: int = 0) -> None:
    """Write training, validation-public, validation-hidden and testing below `folder`.

    A collection has `rows_per_collection` training rows, a third as many held-out ones (at least 4), and as many in
    testing, whose answers are empty. The same numbers write the same files.
    """
    for name, collection in COLLECTIONS.items():
        held_out = max(4, rows_per_collection // 3)
        for split, images, part, rows in (
            ("training", "imagesTr", "train", rows_per_collection),
            (collection.held_out, "imagesVal", "val", held_out),
            ("testing", "imagesTs", "test", held_out),
        ):
            rng = random.Random(f"flare25 {name} {split} {seed}")
            _write_split(folder / split / collection.category / name, name, collection, images, part, rows, rng)


def _write_split(
    place: Path, name: str, collection: _Collection, images: str, part: str, count: int, rng: random.Random
) -> None:
    (place / images).mkdir(parents=True)
    rows = []
    order = list(range(count))
    rng.shuffle(order)
    for number, nth in enumerate(order, FIRST[part]):
        pictures, question, answer = collection.draw(rng, nth)
        files = [f"{images}/{name}_{number:05}{f'-{n}' * (len(pictures) > 1)}.png" for n in range(1, len(pictures) + 1)]
        for picture, file in zip(pictures, files, strict=True):
            _stained(picture, rng).save(place / file)
        if name == "bone_marrow":
            files = [file.split("/")[1] for file in files]  # some of the published names lack their folder
        rows.append(
            {
                "TaskType": collection.task_type,
                "Modality": collection.modality,
                "ImageName": files[0] if len(files) == 1 else files,
                "Question": question,
                "Answer": "" if part == "test" else answer,
                "Split": part,
            }
        )
    hidden = collection.held_out == "validation-hidden" and part == "val"
    if hidden:
        _write_rows(place / f"{name}_questions_{part}.json", [row | {"Answer": ""} for row in rows])
    _write_rows(place / f"{name}_questions_{part}{'_withGT' * hidden}.json", rows)


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _canvas(size: tuple[int, int], ground: tuple[int, ...]) -> tuple[Picture, Any]:
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", size, ground)
    return picture, ImageDraw.Draw(picture)


def _stained(picture: Picture, rng: random.Random) -> Picture:
    """The picture with faint blotches of its own: of so few shapes some would else be drawn twice."""
    from PIL import Image

    blotches = Image.frombytes("L", (8, 8), rng.randbytes(64)).resize(picture.size, Image.Resampling.BICUBIC)
    return Image.blend(picture, blotches.convert("RGB"), 0.2)


def _choices(*texts: str) -> str:
    return " ".join(f"{chr(ord('A') + place)}: {text}" for place, text in enumerate(texts))


def _retino(rng: random.Random, nth: int) -> Drawn:
    """A disc whose color is the grade."""
    picture, pen = _canvas((64, 64), (16, 10, 10))
    colors = list(COLORS)
    pen.ellipse((6, 6, 58, 58), COLORS[colors[nth % 4]])
    x, y = rng.randint(20, 38), rng.randint(20, 38)
    pen.ellipse((x, y, x + 6, y + 6), (240, 220, 160))
    return [picture], f"Question: Which color has the fundus? Options: {_choices(*colors)}", "ABCD"[nth % 4]


def _neojaundice(rng: random.Random, nth: int) -> Drawn:
    """Three photographs of one skin, yellow or not."""
    skin = (225, 190, 60) if nth % 2 else (225, 170, 150)
    pictures = []
    for _ in range(3):
        picture, pen = _canvas((56, 56), tuple(part + rng.randint(-12, 12) for part in skin))
        pen.line((0, rng.randint(10, 46), 56, rng.randint(10, 46)), (150, 110, 90), 3)
        pictures.append(picture)
    return pictures, "Does this require treatment? A. No, B. Yes", "B" if nth % 2 else "A"


def _busi_det(rng: random.Random, nth: int) -> Drawn:
    """A dark lesion in one of the corners of a wider picture; its box in pixels, as a text."""
    picture, pen = _canvas((96, 72), (150, 150, 150))
    left, top = (8 + 48 * (nth % 2) + rng.randint(-4, 4), 6 + 36 * (nth // 2 % 2) + rng.randint(-4, 4))
    box = [left, top, left + rng.randint(26, 34), top + rng.randint(18, 26)]
    pen.ellipse(box, (20, 20, 20))
    return [picture], "Question: Locate the lesion in this ultrasound picture.", json.dumps([box])


def _bone_marrow(rng: random.Random, nth: int) -> Drawn:
    """Few or many cells in a stain."""
    picture, pen = _canvas((64, 64), (235, 215, 225))
    for _ in range(3 if nth % 2 else 18):
        x, y = rng.randint(4, 54), rng.randint(4, 54)
        pen.ellipse((x, y, x + 7, y + 7), (90, 40, 130))
    options = _choices("Normal bone marrow", "Aplastic anemia")
    question = f"Question: What diagnosis best fits the cellular pattern? Options: {options}"
    return [picture], question, "B" if nth % 2 else "A"


def _boneresorption(rng: random.Random, nth: int) -> Drawn:
    """A bar whose length is the share of bone that is lost, a number and no text."""
    lost = 10 * (1 + nth % 6)
    picture, pen = _canvas((64, 64), (40, 40, 40))
    shift = rng.randint(0, 20)
    pen.rectangle((10 + shift, 60 - lost * 0.8, 24 + shift, 60), (230, 230, 230))
    return [picture], "Question: How much bone is lost, in percent?", lost


def _periapical(rng: random.Random, nth: int) -> Drawn:
    """One or two of three marks."""
    marks = {"caries": (0, 0, 0), "filling": (255, 255, 255), "crown": (230, 190, 70)}
    names = [name for place, name in enumerate(marks) if (nth % 6 + 1) >> place & 1]
    picture, pen = _canvas((64, 64), (120, 120, 120))
    for place, name in enumerate(marks):
        if name in names:
            y = 6 + 18 * place + rng.randint(-2, 2)
            pen.rectangle((14, y, 50, y + 12), marks[name])
    return [picture], "Question: Which findings does the tooth have? Separate them by ;", ";".join(names)


def _chromosome(rng: random.Random, nth: int) -> Drawn:
    """Two kinds of bars, each with its boxes."""
    picture, pen = _canvas((80, 80), (240, 240, 240))
    found: dict[str, list[list[int]]] = {}
    for place in range(1 + nth % 2):
        for name, color, x in (("long", (30, 30, 30), 6), ("short", (200, 60, 60), 46)):
            top = 4 + 38 * place + rng.randint(0, 4)
            box = [x, top, x + 24, top + (32 if name == "long" else 16)]
            pen.rectangle(box, color)
            found.setdefault(name, []).append(box)
    return [picture], "Question: Locate every chromosome by its kind.", json.dumps(found)


def _cells(rng: random.Random, nth: int) -> Drawn:
    """Cells on a grid, to be counted."""
    picture, pen = _canvas((64, 64), (20, 20, 40))
    count = 1 + nth % 6
    for place in rng.sample(range(9), count):
        x, y = 6 + 19 * (place % 3), 6 + 19 * (place // 3)
        pen.ellipse((x, y, x + 13, y + 13), (90, 220, 120))
    return [picture], "Question: How many cells are there?", str(count)


def _iu_xray(rng: random.Random, nth: int) -> Drawn:
    """A shadow in one of four places, reported in two sentences."""
    place = list(CORNERS)[nth % 4]
    x, y = (side + rng.randint(-2, 2) for side in CORNERS[place])
    picture, pen = _canvas((64, 64), (60, 60, 60))
    pen.ellipse((x, y, x + 15, y + 15), (240, 240, 240))
    return [picture], "Question: Write a report.", f"There is an opacity in the {place} zone. The heart is normal."


_PUBLIC, _HIDDEN = "validation-public", "validation-hidden"
COLLECTIONS = {
    "retino": _Collection("Retinography", "classification", "Fundus Photography", _PUBLIC, _retino),
    "neojaundice": _Collection("Clinical", "Classification", "Digital Camera", _PUBLIC, _neojaundice),
    "BUSI-det": _Collection("Ultrasound", "Detection", "ultrasound", _PUBLIC, _busi_det),
    "neurips22cell": _Collection("Microscopy", "cell counting", "microscopy", _PUBLIC, _cells),
    "IU_XRay": _Collection("Xray", "Report_Generation", "X-ray", _PUBLIC, _iu_xray),
    "bone_marrow": _Collection("Microscopy", "classification", "microscopy", _HIDDEN, _bone_marrow),
    "boneresorption": _Collection("Xray", "Regression", "X-ray", _HIDDEN, _boneresorption),
    "periapical": _Collection("Xray", "Multi-label Classification", "X-ray", _HIDDEN, _periapical),
    "chromosome": _Collection("Microscopy", "instance_detection", "microscopy", _HIDDEN, _chromosome),
}
