from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from vlmft.data.question import BadRow, Question
from vlmft.data.sources import _parquet
from vlmft.errors import DataError
from vlmft.schema import QuestionSet


def encoded(format: str = "PNG", mode: str = "RGB", color: Any = (200, 30, 30)) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (8, 6), color).save(buffer, format)
    return buffer.getvalue()


def row(content: bytes | None, question: str | None = "is it big?", answer: str | None = "yes") -> dict[str, Any]:
    return {"image": {"bytes": content, "path": "a.jpg"}, "question": question, "answer": answer}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    text = pyarrow.string()
    schema = pyarrow.schema([("image", image), ("question", text), ("answer", text)])
    parquet.write_table(pyarrow.Table.from_pylist(list(rows), schema=schema), path)
    return path


def read(images: Path, *paths: Path, split: str = "train") -> list[Question | BadRow]:
    return list(_parquet.read(QuestionSet(name="s", image_root=str(images)), split, paths))


@pytest.mark.parametrize(
    ("names", "split"),
    [
        (["data/train-00000-of-00002-9ab3.parquet", "data/train-00001-of-00002-0c1d.parquet"], "train"),
        (["train.parquet"], "train"),
        (["default/test/0000.parquet", "default/test/0001.parquet"], "test"),
        (["data/val-00000-of-00001.parquet"], "validation"),
        (["valid.parquet"], "validation"),
        (["dev/0000.parquet"], "validation"),
    ],
)
def test_shards_are_told_by_their_names(tmp_path: Path, names: list[str], split: str) -> None:
    others = ["data/other-00000-of-00001.parquet", "more/0000.parquet", "training.parquet", "train.parquet.lock"]
    for name in [*reversed(names), *others]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [str(path.relative_to(tmp_path)) for path in _parquet.files(tmp_path, split)] == names
    assert _parquet.files(tmp_path, "nothing") == []


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["train-00001-of-00003-ab.parquet"], r"lacks 2 of the 3 .* train-00000-of-00003, train-00002-of-00003"),
        (["train/0000.parquet", "train/0002.parquet"], r"lacks 1 of the 3 .* 0001\.parquet"),
        (["train-00000-of-00001-ab.parquet", "train-00000-of-00001-cd.parquet"], "are the same part"),
        (["data/train-00000-of-00001-ab.parquet", "default/train/0000.parquet"], "more than once"),
    ],
)
def test_shards_that_are_missing_or_too_many_are_named(tmp_path: Path, names: list[str], words: str) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=words):
        _parquet.files(tmp_path, "train")


def test_ids_count_rows_over_the_shards_and_bad_rows_too(tmp_path: Path) -> None:
    a = write(tmp_path / "a.parquet", row(encoded()), row(None), row(encoded()))
    empty = write(tmp_path / "b.parquet")
    c = write(tmp_path / "c.parquet", row(encoded(), answer=" Mild\toedema "))
    first, bad, third, last = read(tmp_path / "images", a, empty, c)
    assert isinstance(bad, BadRow) and (bad.file, bad.row) == (str(a), 1)
    assert isinstance(first, Question) and isinstance(third, Question) and isinstance(last, Question)
    assert [first.id, third.id, last.id] == ["train_0", "train_2", "train_3"]
    assert (last.answer, last.set, last.facts) == ("Mild oedema", "s", {})


def test_yes_and_no_in_any_case_are_closed_and_nothing_else(tmp_path: Path) -> None:
    answers = ["yes", "No", "YES", " no ", "yes, mild", "none"]
    rows = read(tmp_path, write(tmp_path / "a.parquet", *(row(encoded(), answer=answer) for answer in answers)))
    assert [q.answer_type for q in rows if isinstance(q, Question)] == ["closed"] * 4 + ["open"] * 2


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (row(None), "'image' holds no bytes"),
        (row(b""), "'image' holds no bytes"),
        ({"image": None, "question": "q", "answer": "a"}, "'image' holds no bytes"),
        (row(b"x", question=" "), "'question' is missing or empty"),
        (row(b"x", question=None), "'question' is missing or empty"),
        (row(b"x", answer=None), "'answer' is missing or empty"),
    ],
)
def test_bad_rows_say_why(tmp_path: Path, bad: dict[str, Any], words: str) -> None:
    (found,) = read(tmp_path / "images", write(tmp_path / "a.parquet", bad))
    assert isinstance(found, BadRow) and found.reason == words


def test_images_are_kept_byte_for_byte_once_each_with_their_own_extension(tmp_path: Path) -> None:
    formats = {"JPEG": ".jpg", "PNG": ".png", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif", "WEBP": ".webp"}
    contents = [*(encoded(format) for format in formats), b"something else"]
    rows = read(tmp_path / "images", write(tmp_path / "a.parquet", *(row(content) for content in contents * 2)))
    paths = [Path(q.images[0]) for q in rows if isinstance(q, Question)]
    assert paths[: len(contents)] == paths[len(contents) :]
    assert [path.suffix for path in paths[: len(contents)]] == [*formats.values(), ".img"]
    assert [path.read_bytes() for path in paths] == contents * 2
    assert {path for path in (tmp_path / "images").rglob("*") if path.is_file()} == set(paths)  # no temporary ones


def test_a_kept_image_is_written_again_only_if_it_is_cut_short(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", row(encoded()))
    (question,) = read(tmp_path / "images", file)
    assert isinstance(question, Question)
    image = Path(question.images[0])
    os.utime(image, (1, 1))
    assert read(tmp_path / "images", file) == [question] and image.stat().st_mtime == 1
    image.write_bytes(b"half")
    assert read(tmp_path / "images", file) == [question] and image.read_bytes() == encoded()


def test_images_go_to_the_cache_where_no_folder_is_named(tmp_path: Path, cache: Path) -> None:
    file = write(tmp_path / "a.parquet", row(encoded()))
    (question,) = _parquet.read(QuestionSet(name="s"), "train", [file])
    assert isinstance(question, Question)
    image = Path(question.images[0])
    assert image.parents[1] == cache / "images" and image.stem.startswith(image.parent.name) and len(image.stem) == 32


def test_rows_are_streamed_over_more_than_one_batch(tmp_path: Path) -> None:
    pictures = [encoded(color=(n, 0, 0)) for n in range(2 * _parquet.BATCH + 3)]
    file = write(tmp_path / "a.parquet", *(row(picture, f"is it {n}?") for n, picture in enumerate(pictures)))
    rows = _parquet.read(QuestionSet(name="s", image_root=str(tmp_path / "images")), "train", [file])
    first = next(rows)
    assert len(list((tmp_path / "images").rglob("*.png"))) == 1  # nothing is read ahead of who asks
    got = [first, *rows]
    assert [(q.id, q.text) for q in got if isinstance(q, Question)] == [
        (f"train_{n}", f"is it {n}?") for n in range(len(pictures))
    ]
    assert len(list((tmp_path / "images").rglob("*.png"))) == len(pictures)


def test_a_file_that_is_damaged_or_of_another_form_is_refused(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.parquet", row(encoded())).read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[:-20])
    with pytest.raises(DataError, match=r"cut\.parquet cannot be read as parquet"):
        read(tmp_path / "images", tmp_path / "cut.parquet")
    parquet.write_table(pyarrow.table({"image": [b"x"], "question": ["q"]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match=r"other\.parquet has no column answer; it has image, question"):
        read(tmp_path / "images", tmp_path / "other.parquet")


def test_the_formats_are_imported_without_pyarrow() -> None:
    code = "import sys; from vlmft.data.sources import pathvqa, slake, vqa_rad; sys.exit('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
