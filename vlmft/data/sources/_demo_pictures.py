"""What the demo sets look like: one drawing function a set, from the facts of an image to its picture.

Facts are large and have places of their own: spots, screws and mitoses lie inside one 28x28 quarter each, which is
one visual token of the tiny models this is made for.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from PIL.ImageDraw import ImageDraw as Pen

SIZE = 56
SCALE = 4  # drawn larger and reduced, for soft edges; all coordinates below are on this larger canvas

QUARTERS = {
    "upper left": (56, 56),
    "upper right": (168, 56),
    "lower left": (56, 168),
    "lower right": (168, 168),
}
COUNTS = ("none", "one", "two", "three")
INKS = {"yellow": (250, 225, 30), "green": (0, 140, 50), "red": (210, 20, 15)}
LEVELS = {"non-contrast": 45, "arterial": 105, "venous": 170}  # grey of soft tissue
FILMS = {  # air, flesh, bone
    "overexposed": (0, 40, 115),
    "well exposed": (25, 80, 170),
    "underexposed": (95, 135, 185),
}
STAINS = {  # ground, cell bodies, nuclei
    "H&E": ((246, 214, 226), (232, 160, 190), (92, 52, 140)),
    "PAS": ((226, 120, 186), (190, 40, 130), (70, 30, 90)),
    "Giemsa": ((206, 216, 244), (140, 160, 226), (40, 40, 150)),
}


def _canvas(mode: str, ground: int | tuple[int, ...]) -> tuple[Picture, Pen]:
    from PIL import Image

    picture = Image.new(mode, (SIZE * SCALE, SIZE * SCALE), ground)
    return picture, _pen(picture)


def _pen(picture: Picture) -> Pen:
    from PIL import ImageDraw

    return ImageDraw.Draw(picture)


def finish(picture: Picture, rng: random.Random) -> Picture:
    """The picture at its final size, as RGB, with a little noise (Pillow's own noise cannot be seeded)."""
    from PIL import Image

    noise = Image.frombytes("L", (SIZE, SIZE), rng.randbytes(SIZE * SIZE)).convert("RGB")
    return Image.blend(picture.convert("RGB").reduce(SCALE), noise, 0.07)


def _oval(pen: Pen, x: float, y: float, rx: float, ry: float, fill: Any, edge: Any = None, width: int = 0) -> None:
    pen.ellipse((x - rx, y - ry, x + rx, y + ry), fill, edge, width)


def _shift(rng: random.Random, by: float) -> tuple[float, float]:
    return rng.uniform(-by, by), rng.uniform(-by, by)


def draw_ct(facts: Mapping[str, str], rng: random.Random) -> Picture:
    """An axial slice: grey organs in a body ring; a lesion is a hot spot, as in a PET overlay."""
    grey = LEVELS[facts["phase"]] + rng.randint(-8, 8)
    picture, pen = _canvas("L", rng.randint(0, 10))
    dx, dy = _shift(rng, 5)
    x, y = 112 + dx, 106 + dy
    if facts["organ"] == "brain":
        _oval(pen, x, y, 80, 96, grey, 235, 13)
        pen.line((x, y - 84, x, y + 84), grey // 2, 5)
        for side in (-1, 1):
            pen.polygon([(x + side * a, y + b) for a, b in ((5, -4), (26, -40), (20, -6), (30, 38))], 12)
    else:
        _oval(pen, x, y, 104, 88, grey * 2 // 3, 175, 7)
        if facts["organ"] == "lungs":
            for side in (-1, 1):
                _oval(pen, x + side * 52, y, 40, 66, 8)
            _oval(pen, x + 10, y - 8, 26, 34, grey + 25)
        elif facts["organ"] == "liver":
            pen.pieslice((x - 96, y - 80, x + 92, y + 78), 85, 300, grey + 30)
            _oval(pen, x + 52, y - 12, 30, 38, grey // 3)
        else:
            for side in (-1, 1):
                _oval(pen, x + side * 60, y + 14, 27, 44, grey + 75)
                _oval(pen, x + side * 42, y + 14, 13, 18, grey // 2)
        _oval(pen, x, y + 54, 20, 17, 235)
        _oval(pen, x, y + 62, 7, 6, 30)
    if facts["table"] == "yes":
        pen.arc((-40, 60, 264, 216), 35, 145, 240, 10)
    if facts["lesion"] in QUARTERS:
        picture = picture.convert("RGB")
        pen = _pen(picture)
        (a, b), (dx, dy) = QUARTERS[facts["lesion"]], _shift(rng, 6)
        dx, dy = dx + (18 if a < 112 else -18), dy + (18 if b < 112 else -18)  # towards the body's middle
        for size, color in ((29, (190, 20, 20)), (24, (245, 110, 10)), (14, (255, 225, 90))):
            _oval(pen, a + dx, b + dy, size, size, color)
    return picture


def draw_xray(facts: Mapping[str, str], rng: random.Random) -> Picture:
    """A film: pale bones in faint flesh; screws are white, a fracture is a black jagged gap."""
    air, flesh, bone = (level + rng.randint(-6, 6) for level in FILMS[facts["exposure"]])
    picture, pen = _canvas("L", air)
    dx, dy = _shift(rng, 6)
    x, y = 112 + dx, 112 + dy
    if facts["part"] == "chest":
        pen.rounded_rectangle((x - 96, y - 84, x + 96, y + 130), 60, flesh)
        for side in (-1, 1):
            _oval(pen, x + side * 48, y + 6, 36, 74, air)
            for rib in range(5):
                middle, top = x + side * 48, y - 76 + 32 * rib
                pen.arc((middle - 44, top, middle + 44, top + 54), 180, 360, bone, 8)
        pen.line((x, y - 90, x, y + 130), bone, 16)
        _oval(pen, x + 18, y + 44, 34, 32, (flesh + bone) // 2)
    elif facts["part"] == "hand":
        pen.rounded_rectangle((x - 52, y + 6, x + 52, y + 130), 26, flesh)
        for angle in (-52, -22, -4, 14, 32):
            sin, cos = math.sin(math.radians(angle)), math.cos(math.radians(angle))
            reach = 78 if angle == -52 else 122
            pen.line((x, y + 60, x + sin * (reach + 6), y + 60 - cos * (reach + 6) * 1.2), flesh, 26)
            for start, end in ((0.25, 0.52), (0.58, 0.76), (0.82, 1)):
                tip = [(x + sin * reach * at, y + 60 - cos * reach * 1.2 * at) for at in (start, end)]
                pen.line(tip, bone, 12)
        _oval(pen, x, y + 66, 26, 16, bone)
    else:
        pen.rounded_rectangle((x - 62, -20, x + 62, 244), 40, flesh)
        for end in (-1, 1):
            pen.line((x, y + end * 40, x, y + end * 140), bone, 38)
            pen.rounded_rectangle((x - 46, y + end * 26 - 20, x + 46, y + end * 26 + 20), 18, bone)
        pen.line((x + 44, y + 50, x + 44, y + 140), bone, 12)
    if facts["fracture"] == "yes":
        level = 164 + rng.uniform(-5, 5)
        pen.line([(24 + 22 * n, level + (7 if n % 2 else -7)) for n in range(9)], 0, 28)
    for a, b in rng.sample(list(QUARTERS.values()), COUNTS.index(facts["screws"])):
        dx, dy = _shift(rng, 8)
        pen.line((a + dx - 28, b + dy + 4, a + dx + 32, b + dy - 4), 255, 19)
        pen.line((a + dx - 29, b + dy - 23, a + dx - 26, b + dy + 27), 255, 17)
    return picture


def draw_path(facts: Mapping[str, str], rng: random.Random) -> Picture:
    """A stained tile: glands, fibres or fat; a mitosis is a black star, ink a band of color along the top."""
    ground, body, nucleus = (tuple(c + rng.randint(-7, 7) for c in color) for color in STAINS[facts["stain"]])
    picture, pen = _canvas("RGB", ground)
    kind = facts["cells"]
    step = {"glandular": 56, "spindle": 28, "fat": 56}[kind]
    turn = rng.uniform(-0.15, 0.15)
    for row in range(-1, 224 // step + 2):
        for column in range(-1, 224 // step + 2):
            dx, dy = _shift(rng, step / 10)
            x, y = (column + 0.5 * (row % 2)) * step + dx, (row + 0.5) * step + dy
            if kind == "glandular":
                _oval(pen, x, y, 26, 26, body)
                for n in range(8):
                    _oval(pen, x + 19 * math.cos(n * 0.785), y + 19 * math.sin(n * 0.785), 6, 6, nucleus)
                _oval(pen, x, y, 10, 10, (250, 246, 250))
            elif kind == "spindle":
                pen.line((x - 24, y - 12 + 24 * turn, x + 24, y + 12 - 24 * turn), body, 12)
                pen.line((x - 12, y - 6 + 12 * turn, x + 12, y + 6 - 12 * turn), nucleus, 7)
            else:
                _oval(pen, x, y, 28, 28, (252, 250, 252), body, 5)
                _oval(pen, x + 22, y + 14, 6, 4, nucleus)
    for a, b in rng.sample(list(QUARTERS.values()), COUNTS.index(facts["mitoses"])):
        dx, dy = _shift(rng, 8)
        turn = rng.uniform(0, 1)
        for n in range(9):
            sin, cos = math.sin(turn + n * 0.698), math.cos(turn + n * 0.698)
            pen.line((a + dx, b + dy, a + dx + 33 * sin, b + dy + 27 * cos), (20, 8, 26), 9)
        _oval(pen, a + dx, b + dy, 23, 19, (20, 8, 26))
    if facts["ink"] in INKS:
        pen.rectangle((0, 0, 224, rng.uniform(26, 38)), INKS[facts["ink"]])
    return picture
