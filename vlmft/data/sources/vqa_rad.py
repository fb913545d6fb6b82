"""VQA-RAD as published on OSF (https://osf.io/89kps/): one JSON file for both splits, beside its images.

Where there is no such file, the Hub's parquet form is read (flaviagiammarino/vqa-rad): 1,793 and 451 rows (exact
duplicates taken out), in lower case, without answer types, facts and ids; `_parquet` says how these are made up for.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmft.data.question import BadRow, Question, Turn
from vlmft.data.sources import (
    Unusable,
    _parquet,
    folder,
    image_path,
    image_root,
    one_line,
    read_rows,
    refuse_unknown_split,
    set_name,
    stated_type,
)
from vlmft.errors import DataError

if TYPE_CHECKING:
    from vlmft.schema import QuestionSet

ROWS = "VQA_RAD Dataset Public.json"
IMAGES = "VQA_RAD Image Folder"
HUB = "flaviagiammarino/vqa-rad"
OVERRIDE = "paths.vqa_rad"
TEST = "test_"  # a test question's phrase_type starts with this; nothing else tells the splits apart
FACTS = {"image_organ": "organ", "question_type": "question_type", "phrase_type": "phrase_type"}


def splits(spec: QuestionSet) -> list[str]:
    """The publisher's two splits (by question: 202 of the 203 test images are training images too)."""
    return ["train", "test"]


def files(spec: QuestionSet, split: str) -> list[Path]:
    """The one annotation file, or the split's parquet files; DataError if neither is there or the split is unknown."""
    refuse_unknown_split(spec, split, splits(spec))
    place = folder(spec, f"{ROWS!r} and the folder {IMAGES!r}, or the parquet files of the Hub's {HUB}", OVERRIDE)
    if (place / ROWS).is_file():
        return [place / ROWS]
    if shards := _parquet.files(place, split):
        return shards
    raise DataError(
        f"{set_name(spec)}: looked in {place}, where there is no file {ROWS!r}. Get it with {IMAGES!r} "
        f"from https://osf.io/89kps/, or say where the two lie with {OVERRIDE}=FOLDER. "
        f"There are no parquet files of the {split} split either, as the Hub's {HUB} has them."
    )


def read(spec: QuestionSet, split: str) -> Iterator[Question | BadRow]:
    """Every row of the split: a question, or why it is none."""
    path, *others = files(spec, split)
    if path.name != ROWS:
        yield from _parquet.read(spec, split, [path, *others])
        return
    root = image_root(spec, path.parent / IMAGES)
    seen: set[str] = set()
    for number, row in read_rows(path):
        if not isinstance(row, dict) or "phrase_type" not in row:
            # Without a phrase_type the row belongs to no split; it is reported with both.
            yield BadRow(str(path), number, "not an object with a 'phrase_type', so neither train nor test")
        elif _text(row, "phrase_type").startswith(TEST) is (split == "test"):
            try:
                yield _question(spec, row, root, seen)
            except Unusable as error:
                yield BadRow(str(path), number, str(error))


def _question(spec: QuestionSet, row: dict[str, Any], root: Path, seen: set[str]) -> Question:
    id, question, answer = (_text(row, key) for key in ("qid", "question", "answer"))
    for key, value in (("qid", id), ("question", question), ("answer", answer)):
        if not value:
            raise Unusable(f"{key!r} is missing or empty")
    if id in seen:
        raise Unusable(f"qid {id} was used by an earlier row")
    seen.add(id)
    answer_type = stated_type(row)
    name = _text(row, "image_name")
    if not name:
        raise Unusable("'image_name' is missing or empty")
    facts = {ours: _text(row, theirs) for theirs, ours in FACTS.items()}
    return Question(
        id=id,
        set=set_name(spec),
        images=(image_path(spec, root, name),),
        turns=(Turn(question, answer),),
        answer_type=answer_type,
        facts={key: value for key, value in facts.items() if value},
    )


def _text(row: dict[str, Any], key: str) -> str:
    """The value on one line (some hold tabs) without outer blanks; numbers as text, "NULL" (none) as ""."""
    text = one_line(row.get(key))
    return "" if text == "NULL" else text
