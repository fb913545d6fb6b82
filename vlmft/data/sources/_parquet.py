"""The Hub's parquet form, which several sets have: columns image (struct of bytes and path), question, answer.

These files hold neither ids nor answer types nor image names. An id is the row's place in the split, an answer is
closed where it is yes or no, and an image is written as it is under the digest of its bytes.
Papers differ for that rule: VQA-RAD's test split has 251 closed and 200 open questions by it, 272 and 179 as published.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmft.data.question import BadRow, Question, Turn
from vlmft.data.sources import Unusable, image_root, one_line, set_name, type_of
from vlmft.errors import DataError
from vlmft.files import cache_folder

if TYPE_CHECKING:
    from vlmft.schema import QuestionSet

SUFFIX = ".parquet"
COLUMNS = ("image", "question", "answer")
BATCH = 32  # rows in memory at a time; PathVQA has 785 MB
VALIDATION = ("validation", "valid", "val", "dev")
SHARD = re.compile(r"(?P<split>[a-z]+)(?:-(?P<number>\d+)-of-(?P<total>\d+)(?:-[0-9a-f]+)?)?")
NUMBER = re.compile(r"\d+")
STARTS = {
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG": ".png",
    b"GIF8": ".gif",
    b"BM": ".bmp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
}


def files(place: Path, split: str) -> list[Path]:
    """The shards of a split anywhere below `place`, in order; none if there are none.

    They are told by name: train-00000-of-00002-<hash>.parquet, train.parquet, or train/0000.parquet.
    DataError if a shard is not there, is there twice, or if there is more than one set of them.
    """
    names = VALIDATION if split in VALIDATION else (split,)
    found: dict[tuple[Path, str, int | None], dict[int, Path]] = {}
    for path in sorted(place.rglob("*.parquet")):
        name, number, total = _shard(path)
        if name in names and path.is_file():
            shards = found.setdefault((path.parent, name, total), {})
            if other := shards.get(number):
                raise DataError(f"{path} and {other.name} are the same part of the split {split}; keep one of them.")
            shards[number] = path
    if len(found) > 1:
        several = ", ".join(str(next(iter(shards.values()))) for shards in found.values())
        raise DataError(f"{place} holds the split {split} more than once ({several}); keep one of them.")
    for (folder, name, total), shards in found.items():
        count = total or max(shards) + 1
        if missing := [n for n in range(count) if n not in shards]:
            lost = ", ".join(f"{name}-{n:05}-of-{total:05}" if total else f"{n:04}.parquet" for n in missing)
            raise DataError(f"{folder} lacks {len(missing)} of the {count} parquet files of the split {split}: {lost}.")
        return [shards[n] for n in sorted(shards)]
    return []


def read(spec: QuestionSet, split: str, paths: Sequence[Path]) -> Iterator[Question | BadRow]:
    """Every row of a split's shards. The images go to `spec.image_root`, by default to a folder of vlmft's cache."""
    root = Path(os.path.abspath(image_root(spec, cache_folder() / "images")))
    before = 0
    for path in paths:
        number = -1
        for number, row in enumerate(rows(path, COLUMNS)):
            try:
                yield _question(spec, f"{split}_{before + number}", row, root)
            except Unusable as error:
                yield BadRow(str(path), number, str(error))
        before += number + 1


def _shard(path: Path) -> tuple[str, int, int | None]:
    """The name of the split, the number of the shard, and how many there are if the name says so."""
    if NUMBER.fullmatch(path.stem):
        return path.parent.name, int(path.stem), None
    parts = SHARD.fullmatch(path.stem)
    if not parts:
        return "", 0, None
    return parts["split"], int(parts["number"] or 0), int(parts["total"] or 1)


def is_parquet(file: Path) -> bool:
    return file.suffix == SUFFIX


def rows(path: Path, columns: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Every row of a file, with those columns or with all; DataError for a column or a file that cannot be read."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if missing := [column for column in columns if column not in names]:
                raise DataError(f"{path} has no column {', '.join(missing)}; it has {', '.join(names)}.")
            for batch in file.iter_batches(BATCH, columns=list(columns) or None):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as parquet: {error}. It may be cut short; fetch it again.") from error


def ids(path: Path) -> list[Any]:
    """What each row has under "id", None where it has none; nothing else is read of it."""
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        if "id" not in file.schema_arrow.names:
            return [None] * file.metadata.num_rows
    return [row["id"] for row in rows(path, ["id"])]


def _question(spec: QuestionSet, id: str, row: dict[str, Any], root: Path) -> Question:
    question, answer = one_line(row["question"]), one_line(row["answer"])
    for key, value in (("question", question), ("answer", answer)):
        if not value:
            raise Unusable(f"{key!r} is missing or empty")
    image = row["image"]
    content = image.get("bytes") if isinstance(image, dict) else None
    if not content:
        raise Unusable("'image' holds no bytes")
    return Question(
        id=id,
        set=set_name(spec),
        images=(kept(root, content),),
        turns=(Turn(question, answer),),
        answer_type=type_of(answer),
    )


def kept(root: Path, content: bytes) -> str:
    """The file of an image below `root`, written if it is not there whole; the same for the same bytes."""
    digest = hashlib.sha256(content).hexdigest()[:32]
    path = root / digest[:2] / f"{digest}{_extension(content)}"
    if not path.is_file() or path.stat().st_size != len(content):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return str(path)


def _extension(content: bytes) -> str:
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return ".webp"
    return next((extension for start, extension in STARTS.items() if content.startswith(start)), ".img")
