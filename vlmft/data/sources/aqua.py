"""AQUA (https://github.com/noagarcia/ArtVQA): questions about SemArt's paintings, many about what no picture tells.

    train.json, val.json, test.json    [{"image": …, "question": …, "answer": …, "need_external_knowledge": true}, …]
    semart_{train,val,test}.csv        TAB-separated, latin-1: IMAGE_FILE DESCRIPTION AUTHOR … TYPE SCHOOL TIMEFRAME
    Images/                            SemArt's paintings, beside its tables

`dataset.knowledge` is the folder of SemArt's three tables or of the one semart.csv that they are often merged into, or
the path of a table. A question that needs knowledge is then followed by its painting's description.
"""

from __future__ import annotations

import csv
import html
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmft.data.question import BadRow, Question, Turn
from vlmft.data.sources import (
    Unusable,
    _json_rows,
    folder,
    image_path,
    image_root,
    one_line,
    read_rows,
    refuse_unknown_split,
    set_name,
    type_of,
)
from vlmft.errors import DataError

if TYPE_CHECKING:
    from vlmft.schema import QuestionSet

KEYS = ("knowledge", "max_knowledge_words")
NAMES = {"train": "train.json", "validation": "val.json", "test": "test.json"}
TABLES, MERGED = ("semart_train.csv", "semart_val.csv", "semart_test.csv"), "semart.csv"
IMAGES = "Images"
OVERRIDE = "paths.aqua"
NEEDED = "need_external_knowledge"
COLUMNS = ("image_file", "description")
FACTS = ("school", "type", "timeframe")  # SemArt's columns with few values

Painting = dict[str, str]  # a row of SemArt, by column


def splits(spec: QuestionSet) -> list[str]:
    """The publisher's splits, which share no painting, and those named in `spec.splits`."""
    return list(NAMES | dict(spec.splits))


def files(spec: QuestionSet, split: str) -> list[Path]:
    """The split's file of questions, then the tables of `spec.knowledge`, which are part of the rows.

    DataError if one of them is not there or the split is unknown.
    """
    refuse_unknown_split(spec, split, splits(spec))
    place = folder(spec, "AQUA's train.json, val.json and test.json", OVERRIDE)
    path = place / Path((NAMES | dict(spec.splits))[split]).expanduser()
    if not path.is_file():
        raise DataError(
            f"{set_name(spec)}: looked for the {split} split in {path}, where there is no file. Get it from "
            f"https://github.com/noagarcia/ArtVQA (folder AQUA), or say where it lies with {OVERRIDE}=FOLDER."
        )
    return [path, *_tables(spec)]


def read(spec: QuestionSet, split: str) -> Iterator[Question | BadRow]:
    """Every row of the split: a question, or why it is none."""
    yield from _read(spec, split, read_rows)


def stream(spec: QuestionSet, split: str) -> Iterator[Question | BadRow]:
    """As `read`, holding a few rows at a time, and what SemArt says of the paintings."""
    yield from _read(spec, split, _json_rows.rows)


def _read(
    spec: QuestionSet, split: str, rows: Callable[[Path], Iterable[tuple[int, Any]]]
) -> Iterator[Question | BadRow]:
    path, *tables = files(spec, split)
    root = _images(spec, path.parent)
    paintings = _paintings(tables)
    asked: Counter[str] = Counter()
    for number, row in rows(path):
        name = one_line(row.get("image")) if isinstance(row, dict) else ""
        asked[name] += 1  # bad rows too, so that putting one right renames no other
        try:
            yield _question(spec, row, f"{name}#{asked[name]}", root, paintings)
        except Unusable as error:
            yield BadRow(str(path), number, str(error))


def _question(
    spec: QuestionSet, row: Any, id: str, root: Path, paintings: dict[str, Painting | Unusable] | None
) -> Question:
    if not isinstance(row, dict):
        raise Unusable(f"expected an object with 'image', 'question', 'answer' and {NEEDED!r}")
    texts = {key: one_line(html.unescape(one_line(row.get(key)))) for key in ("image", "question", "answer")}
    for key, value in texts.items():
        if not value:
            raise Unusable(f"{key!r} is missing or empty")
    needed = row.get(NEEDED)
    if not isinstance(needed, bool):
        raise Unusable(f"{NEEDED!r} is {needed!r}; it should be true or false")
    name, question = texts["image"], texts["question"]
    facts = {NEEDED: "true" if needed else "false"}
    if paintings is not None:
        painting = paintings.get(name, {})
        if isinstance(painting, Unusable) and needed:
            raise painting
        if isinstance(painting, dict):
            facts |= {column: painting[column] for column in FACTS if painting.get(column)}
            if needed and (known := painting.get("description")):
                question = f"{question}\nAbout the painting: {_shortened(known, spec.max_knowledge_words)}"
            elif needed:
                # Kept, since the publisher asks it: it counts in the score, and can be told from the others.
                facts["knowledge_missing"] = "true"
    return Question(
        id=id,
        set=set_name(spec),
        images=(image_path(spec, root, name),),
        turns=(Turn(question, texts["answer"]),),
        answer_type=type_of(texts["answer"]),
        facts=facts,
    )


def _shortened(text: str, most: int) -> str:
    words = text.split(" ")
    return text if len(words) <= most else f"{' '.join(words[:most])} …"


def _semart(spec: QuestionSet) -> Path | None:
    return Path(os.path.abspath(Path(spec.knowledge).expanduser())) if spec.knowledge else None


def _images(spec: QuestionSet, place: Path) -> Path:
    """The folder of paintings: `spec.image_root`, or Images below the set or beside SemArt's tables."""
    if spec.image_root:
        # SemArt is another set's folder, so a path from where the command runs is as good as one from the questions.
        below = image_root(spec, place)
        return below if below.is_dir() else Path(os.path.abspath(Path(spec.image_root).expanduser()))
    semart = _semart(spec)
    beside = (semart.parent if semart.is_file() else semart) / IMAGES if semart else place / IMAGES
    return beside if beside.is_dir() and not (place / IMAGES).is_dir() else place / IMAGES


def _tables(spec: QuestionSet) -> list[Path]:
    """SemArt's files, none without `spec.knowledge`. DataError naming what was looked for."""
    semart, name = _semart(spec), set_name(spec)
    if semart is None:
        return []
    if spec.max_knowledge_words < 1:
        raise DataError(
            f"{name}: dataset.max_knowledge_words={spec.max_knowledge_words} leaves nothing of a description; it "
            "should be at least 1. dataset.knowledge=null asks without descriptions."
        )
    if semart.is_file():
        return [semart]
    three = [semart / table for table in TABLES]
    missing = [table.name for table in three if not table.is_file()]
    if not missing:
        return three
    if (semart / MERGED).is_file():
        return [semart / MERGED]
    raise DataError(
        f"{name}: looked for SemArt's descriptions in {semart}, where there is no {', '.join(missing)}, and no "
        f"{MERGED} in their place. Get SemArt from https://researchdata.aston.ac.uk/id/eprint/380, say where it lies "
        "with paths.semart=FOLDER (or dataset.knowledge=FILE), or ask without descriptions: dataset.knowledge=null."
    )


def _paintings(tables: list[Path]) -> dict[str, Painting | Unusable] | None:
    """What SemArt says of each painting, or why that cannot be read; None without tables."""
    if not tables:
        return None
    found: dict[str, Painting | Unusable] = {}
    for path in tables:
        content = path.read_bytes()
        try:
            text = content.decode("utf-8-sig")  # as merged files are often saved; letters of latin-1 are no UTF-8
        except UnicodeDecodeError:
            text = content.decode("latin-1")
        # Line by line, so that a quote that is not closed spoils its own line only; at \n alone, as in latin-1 the
        # character 0x85 would end a line too.
        first, *lines = text.split("\n")
        header = [name.strip().lower() for name in _fields(first)]
        if lacking := [column.upper() for column in COLUMNS if column not in header]:
            raise DataError(
                f"{path}: the first line names no column {', '.join(lacking)}. Expected SemArt's TAB-separated table, "
                f"with IMAGE_FILE and DESCRIPTION in any case; found {first[:200]!r}."
            )
        for number, line in enumerate(lines, 2):
            fields = _fields(line)
            row = dict(zip(header, (one_line(html.unescape(field)) for field in fields), strict=False))
            name = row.get("image_file", "")
            where = f"its painting's description, {path} line {number},"
            if name and len(fields) != len(header):
                found[name] = Unusable(f"{where} has {len(fields)} columns; expected {len(header)}")
            elif name and found.get(name, row) != row:
                found[name] = Unusable(f"{where} differs from an earlier one of {name}; keep one of them")
            elif name:
                found[name] = row
    return found


def _fields(line: str) -> list[str]:
    return next(csv.reader([line.replace("\r", " ")], delimiter="\t"), [])
