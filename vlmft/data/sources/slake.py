"""SLAKE 1.0 (English and Chinese) as published: one JSON file a split beside the folder imgs, or beside imgs.zip."""

from __future__ import annotations

import os
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmft.data.question import BadRow, Question, Turn
from vlmft.data.sources import (
    Unusable,
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
from vlmft.files import cache_folder, file_digests, whole_folder

if TYPE_CHECKING:
    from vlmft.schema import QuestionSet

LANGUAGES = ("en", "zh")
NAMES = {
    "train": ("train.json",),
    "validation": ("validate.json", "validation.json"),  # in the publisher's zip, and the same file on the Hub
    "test": ("test.json",),
}
IMAGES, ZIP = "imgs", "imgs.zip"
OVERRIDE = "paths.slake"
NO_ANSWER = ("train", "1622")  # "Does the picture contain liver?" was published with the answer ""
FACTS = {
    "q_lang": "language",
    "modality": "modality",
    "content_type": "content_type",
    "location": "location",
}


class NeverAnswered(Unusable):
    """The one row that its publisher left without an answer."""


def splits(spec: QuestionSet) -> list[str]:
    """The publisher's splits: each language's share no image, but those of the two languages do."""
    return list(NAMES)


def files(spec: QuestionSet, split: str) -> list[Path]:
    """The split's one annotation file; DataError if it is not there or the split is unknown."""
    refuse_unknown_split(spec, split, splits(spec))
    place = folder(spec, f"train.json, validate.json, test.json and the folder {IMAGES!r} or {ZIP!r}", OVERRIDE)
    for name in NAMES[split]:
        if (place / name).is_file():
            return [place / name]
    raise DataError(
        f"{set_name(spec)}: looked in {place}, where there is no file {' or '.join(NAMES[split])}. Get it with the "
        f"images from https://www.med-vqa.com/slake/, or say where they lie with {OVERRIDE}=FOLDER."
    )


def read(spec: QuestionSet, split: str) -> Iterator[Question | BadRow]:
    """Every row of the split in `spec.language`, or in both: a question, or why it is none."""
    (path,) = files(spec, split)
    root = image_root(spec, path.parent / IMAGES) if spec.image_root else _images(path.parent)
    seen: set[str] = set()
    for number, row in read_rows(path):
        language = one_line(row.get("q_lang")) if isinstance(row, dict) else ""
        if language not in LANGUAGES:
            # It may be in the language that is asked for, so it is reported with either.
            yield BadRow(str(path), number, "not an object with 'q_lang' en or zh, so in neither language")
        elif spec.language in (None, "", language):
            try:
                yield _question(spec, split, row, root, seen)
            except Unusable as error:
                yield BadRow(str(path), number, str(error), published=isinstance(error, NeverAnswered))


def _question(spec: QuestionSet, split: str, row: dict[str, Any], root: Path, seen: set[str]) -> Question:
    texts = {key: one_line(row.get(key)) for key in ("qid", "question", "img_name", "answer")}
    id = texts["qid"]
    for key, value in texts.items():
        if not value:
            known = key == "answer" and (split, id) == NO_ANSWER
            raise (NeverAnswered if known else Unusable)(f"{key!r} is missing or empty")
    if id in seen:
        raise Unusable(f"qid {id} was used by an earlier row")
    seen.add(id)
    answer_type = stated_type(row)
    facts = {ours: one_line(row.get(theirs)) for theirs, ours in FACTS.items()}
    if base := one_line(row.get("base_type")):
        facts["external_knowledge"] = "yes" if base == "kvqa" else "no"
    return Question(
        id=id,
        set=set_name(spec),
        images=(image_path(spec, root, texts["img_name"]),),
        turns=(Turn(texts["question"], texts["answer"]),),
        answer_type=answer_type,
        facts={key: value for key, value in facts.items() if value},
    )


def _images(place: Path) -> Path:
    """The folder of images, or where vlmft's cache keeps what imgs.zip holds."""
    archive = place / ZIP
    if (place / IMAGES).is_dir() or not archive.is_file():
        return place / IMAGES
    (digest,) = file_digests([archive])
    unpacked = Path(os.path.abspath(cache_folder())) / "unpacked" / digest[:16]
    if not unpacked.is_dir():
        with whole_folder(unpacked) as fresh:
            _unpack(archive, fresh)
    return unpacked / IMAGES if (unpacked / IMAGES).is_dir() else unpacked


def _unpack(archive: Path, place: Path) -> None:
    """What the zip holds, without links. DataError if a member would leave `place` or the zip is damaged."""
    try:
        with zipfile.ZipFile(archive) as file:
            members = [member for member in file.infolist() if not stat.S_ISLNK(member.external_attr >> 16)]
            for member in members:
                if member.filename.startswith("/") or ".." in member.filename.split("/"):
                    raise DataError(f"{archive} holds {member.filename!r}, outside its own folder. Get the zip anew.")
            file.extractall(place, members)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise DataError(f"{archive} cannot be unpacked: {error}. It may be cut short; get it anew.") from error
