"""AQUA and SemArt: drawn paintings, asked for what is seen and for what only their descriptions tell."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmft.data.samples import dealt
from vlmft.data.sources._demo_pictures import SCALE, SIZE, finish

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

PAINTINGS = {"train": 26, "val": 6, "test": 10}
HEADER = ("IMAGE_FILE", "DESCRIPTION", "AUTHOR", "TITLE", "TECHNIQUE", "DATE", "TYPE", "SCHOOL", "TIMEFRAME")
GROUNDS = {"blue": (84, 132, 206), "gold": (226, 184, 60), "green": (88, 150, 84)}
TYPES = {
    "boat": "landscape",
    "house": "landscape",
    "man": "portrait",
    "woman": "portrait",
    "jug": "still-life",
    "apples": "still-life",
}
FACTORS = {
    "subject": tuple(TYPES),
    "ground": tuple(GROUNDS),
    "buyer": ("a cardinal", "a merchant", "a widow"),
    "city": ("Siena", "Orléans", "Cefal&#249;"),  # as in SemArt: letters of latin-1, and some as entities
    "school": ("Italian", "French"),
    "timeframe": ("1601-1650", "1651-1700"),
}
PAINTERS = {"Italian": "ROSSI, Andrea", "French": "MOREL, Étienne"}


def write_aqua(folder: Path, seed: int = 0) -> None:
    """Write the questions of AQUA's three splits, SemArt's three tables and its Images into `folder`."""
    (folder / "Images").mkdir(parents=True, exist_ok=True)
    first = 1
    for split, count in PAINTINGS.items():
        rng = random.Random(f"aqua {seed} {split}")
        table, rows = [], []
        for number, facts in enumerate(dealt(FACTORS, count, rng), first):
            name = f"{number:05}-drawn{number % 10}.jpg"
            finish(_draw(facts, rng), rng).save(folder / "Images" / name, quality=95)
            table.append(_described(name, number, facts))
            rows += _asked(name, facts)
        first += count
        (folder / f"{split}.json").write_text(json.dumps(rows), encoding="utf-8")
        with open(folder / f"semart_{split}.csv", "w", encoding="latin-1", newline="") as file:
            csv.writer(file, delimiter="\t", lineterminator="\n").writerows([HEADER, *table])


def _described(name: str, number: int, facts: dict[str, str]) -> tuple[str, ...]:
    title = f"{facts['subject'].capitalize()} {number}"
    text = f'The painting, also called "{title}", was bought by {facts["buyer"]} and is now in {facts["city"]}.'
    return (
        name,
        text,
        PAINTERS[facts["school"]],
        title,
        f"Oil on canvas, {60 + number} x 80 cm",
        facts["timeframe"][:4],
        TYPES[facts["subject"]],
        facts["school"],
        facts["timeframe"],
    )


def _asked(name: str, facts: dict[str, str]) -> list[dict[str, Any]]:
    asked = (
        ("what stand in the middle of the painting", facts["subject"], False),
        ("what color is behind it", facts["ground"], False),
        ("who was the painting bought by", facts["buyer"], True),
        ("where is the painting now", f"in {facts['city']}", True),
    )
    return [{"image": name, "question": q, "answer": a, "need_external_knowledge": known} for q, a, known in asked]


def _draw(facts: dict[str, str], rng: random.Random) -> Picture:
    from PIL import Image, ImageDraw

    side = SIZE * SCALE
    picture = Image.new("RGB", (side, side), GROUNDS[facts["ground"]])
    pen = ImageDraw.Draw(picture)
    x, y = side // 2 + rng.randint(-10, 10), side // 2 + rng.randint(-8, 8)
    subject = facts["subject"]
    if TYPES[subject] == "landscape":
        pen.rectangle((0, y + 48, side, side), (30, 60, 110) if subject == "boat" else (120, 84, 40))
    elif TYPES[subject] == "still-life":
        pen.rectangle((0, y + 36, side, side), (70, 40, 20))
    if subject == "boat":
        pen.polygon([(x - 80, y + 30), (x + 80, y + 30), (x + 46, y + 74), (x - 46, y + 74)], (60, 30, 16))
        pen.polygon([(x - 4, y - 90), (x - 4, y + 20), (x + 70, y + 20)], (250, 248, 240))
    elif subject == "house":
        pen.rectangle((x - 60, y - 20, x + 60, y + 70), (246, 240, 228))
        pen.polygon([(x - 78, y - 20), (x + 78, y - 20), (x, y - 90)], (176, 40, 30))
        pen.rectangle((x - 16, y + 20, x + 16, y + 70), (50, 30, 20))
    elif subject == "jug":
        pen.arc((x + 10, y - 50, x + 90, y + 40), 250, 110, (236, 236, 240), 14)
        pen.ellipse((x - 56, y - 40, x + 56, y + 76), (236, 236, 240))
        pen.rectangle((x - 26, y - 84, x + 26, y), (236, 236, 240))
    elif subject == "apples":
        for dx, dy in ((-56, 30), (0, 44), (56, 30)):
            pen.ellipse((x + dx - 34, y + dy - 34, x + dx + 34, y + dy + 34), (190, 24, 28))
            pen.line((x + dx, y + dy - 28, x + dx + 8, y + dy - 52), (40, 24, 10), 7)
    else:
        if subject == "woman":
            pen.ellipse((x - 58, y - 84, x + 58, y + 70), (84, 44, 16))
        pen.polygon([(x - 90, side), (x - 50, y + 56), (x + 50, y + 56), (x + 90, side)], (36, 26, 40))
        pen.ellipse((x - 36, y - 56, x + 36, y + 44), (240, 204, 172))
        if subject == "man":
            pen.rectangle((x - 66, y - 58, x + 66, y - 42), (16, 14, 18))
            pen.rectangle((x - 40, y - 96, x + 40, y - 50), (16, 14, 18))
    return picture
