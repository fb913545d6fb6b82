"""Rows read in turn: those that reading the whole gives, in little memory, drawn in an order of the seed's own."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from vlmft.data import load, stream
from vlmft.data.question import BadRow, Question, Turn
from vlmft.data.samples import write_sample
from vlmft.data.sources import _json_rows, read_rows
from vlmft.errors import ConfigError, DataError
from vlmft.schema import BadRows, Config, Dataset, Method

Composed = Callable[..., Config]


def row(n: int, image: str | None = None, **more: Any) -> dict[str, Any]:
    said = [{"from": "human", "value": f"What is {n}?"}, {"from": "gpt", "value": f"answer {n}"}]
    return {"id": n, "image": image, "conversations": said, **more}


def dataset(folder: Path, *rows: Any, name: str = "train.json", **keys: Any) -> Dataset:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / name).write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in rows))
    return Dataset(name="c", format="conversations", path=str(folder), streaming=True, **keys)


def ids(chunks: Any) -> list[str]:
    return [question.id for chunk, _ in chunks for _, question in chunk]


@pytest.mark.parametrize("window", [1, 3, 50, 2**20])
@pytest.mark.parametrize(
    "text",
    [
        '[{"a": "[1, {]\\\\\\"é"}, {"b": [[], {}]}, 123, -1.5e3, "x", null, true]', "[1234567, 12 , 3]", "[]", " [ ] ",
        '[\n {"a": 1}\n]\n',
        '{"a": 1}\n\n{"b": "\u2028"}\r\nnot json\n[1]\n{"c": 2}', '{"a": 1}',
        '\ufeff[{"a": "ü"}]', '\ufeff{"a": "ü"}\n{}',
    ],
)  # fmt: skip
def test_rows_in_turn_are_the_rows_of_the_whole(
    text: str, window: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "rows.json"
    file.write_text(text, encoding="utf-8", newline="")
    monkeypatch.setattr(_json_rows, "_WINDOW", window)
    whole, turn = ([(n, str(one)) for n, one in rows] for rows in (read_rows(file), _json_rows.rows(file)))
    assert whole == turn


@pytest.mark.parametrize("window", [2, 2**20])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"a": 1}, {"a": 2}', "ends without ']'"), ('[{"a": 1} {"a": 2}]', "after row 1, found '{'"),
        ('[{"a": 1}, {"a": ?}, {"a": 3}]', "row 2: Expecting value"), ('[{"a": 1}] {"b"', "follows the array"),
        ('[{"a": "x}]', "row 1: Unterminated string"), ("id,image\n1,a.png", "begins with 'i"),
    ],
)  # fmt: skip
def test_a_file_that_breaks_off_or_is_something_else_is_told(
    text: str, said: str, window: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows.json").write_text(text)
    monkeypatch.setattr(_json_rows, "_WINDOW", window)
    with pytest.raises(DataError, match=r"neither a JSON array nor JSON lines") as error:
        list(_json_rows.rows(tmp_path / "rows.json"))
    assert said in str(error.value)


def test_a_defect_early_in_a_long_file_is_found_without_reading_on(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('[{"a": ?}' + ', {"a": 1}' * 500_000)
    tracemalloc.start()
    with pytest.raises(DataError, match="row 1"):
        list(_json_rows.rows(tmp_path / "rows.json"))
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


@pytest.mark.parametrize("kind", ["array", "lines", "parquet"])
def test_conversations_are_streamed_as_they_are_read(kind: str, tmp_path: Path) -> None:
    rows: list[Any] = [row(n, f"{n // 3}.png", modality="CT") for n in range(100)]
    if kind == "array":
        spec = dataset(tmp_path, json.dumps([*rows[:50], {"id": 7}, *rows[50:]]))
    elif kind == "lines":
        spec = dataset(tmp_path, *rows[:50], '{"id": 7}', *rows[50:])
    else:
        table = pyarrow.Table.from_pylist([*rows[:50], row(7) | {"conversations": []}, *rows[50:]])
        parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=30)
        spec = replace(dataset(tmp_path), splits={"train": "rows.parquet"})
    whole, turn = (list(reads(spec, "train")) for reads in (load.source(spec).read, load.source(spec).stream))
    assert len(turn) == 101 and [str(one) for one in turn if isinstance(one, BadRow)]
    assert [one for one in whole if isinstance(one, BadRow)] == [one for one in turn if isinstance(one, BadRow)]
    plain = [[replace(one, id="") for one in found if isinstance(one, Question)] for found in (whole, turn)]
    assert plain[0] == plain[1] and plain[0][0].facts == {"modality": "CT"}
    assert [one.id for one in turn if isinstance(one, Question)][:3] == ["0", "1", "2"]


def test_pictures_within_parquet_rows_are_shown(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6), (9, 9, 9)).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    table = pyarrow.Table.from_pylist([row(1) | {"image": {"bytes": content, "path": "a.png"}}])
    parquet.write_table(table, tmp_path / "train.parquet")
    spec = replace(dataset(tmp_path / "set"), path=str(tmp_path), splits={"train": "train.parquet"})
    ((chunk, _),) = stream.usable(spec, stream.missing, stream.Tally())
    assert Path(chunk[0][1].images[0]).read_bytes() == content
    assert load.load(spec, "train").questions[0].images == chunk[0][1].images


@pytest.mark.parametrize("kind", ["pmc_vqa", "pmc_vqa_v2", "aqua"])
def test_other_formats_are_streamed_as_they_are_read(kind: str, tmp_path: Path) -> None:
    folder = write_sample(kind, tmp_path / kind)
    splits = {"train": "train_2.csv"} if kind == "pmc_vqa_v2" else {}
    spec = Dataset(name="s", format=kind.removesuffix("_v2"), path=str(folder), splits=splits)
    module = load.source(spec)
    assert list(module.stream(spec, "train")) == list(module.read(spec, "train")) != []


def test_a_long_file_is_not_held(tmp_path: Path) -> None:
    said = "word " * 1000
    (tmp_path / "train.json").write_text(json.dumps([row(n, note=said) for n in range(3000)]))
    spec = replace(dataset(tmp_path / "other"), path=str(tmp_path), buffer_size=100)
    size = (tmp_path / "train.json").stat().st_size
    tracemalloc.start()
    tally, first = stream.count(spec, None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tally.usable, len(first)) == (3000, 100)
    assert peak < size / 2, f"{peak / 1e6:.1f} MB for a file of {size / 1e6:.1f} MB"


def test_bad_rows_stop_or_are_left_out(tmp_path: Path) -> None:
    Image.new("RGB", (30, 30)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    spec = dataset(tmp_path, row(0, "a.png"), "not json", row(2, "gone.png"), row(3), row(4, "b.png"), buffer_size=2)
    tally, _ = stream.count(spec, None)
    assert (tally.usable, tally.bad) == (3, 2), "a picture that is there is not opened"
    with pytest.raises(DataError, match=r"2 of the first 5 rows cannot be used(.|\n)*row 2: not JSON(.|\n)*gone.png"):
        tally.refuse(spec)
    dropping = replace(spec, bad_rows=BadRows.drop)
    tally = stream.Tally()
    assert ids(stream.usable(dropping, stream.Looking(), tally)) == ["0", "3"]
    assert (tally.usable, tally.bad) == (2, 3), "b.png cannot be decoded"
    assert "b.png cannot be read as an image" in str(tally.first[-1])
    tally.refuse(dropping)
    with pytest.raises(DataError, match=r"no usable rows.*gone\.png"):
        stream.count(dataset(tmp_path, row(1, "gone.png"), "not json", bad_rows=BadRows.drop), None)


def test_the_first_rows_and_those_of_the_filters(tmp_path: Path) -> None:
    rows = [row(n, modality="CT" if n % 2 else "X-ray") for n in range(20)]
    spec = dataset(tmp_path, *rows, modalities=["ct"], max_rows=4, buffer_size=3)
    chunks = list(stream.usable(spec, stream.missing, tally := stream.Tally()))
    assert ids(chunks) == ["1", "3", "5", "7"] and tally.usable == 4
    assert [number for chunk, _ in chunks for number, _ in chunk] == [1, 3, 5, 7], "numbers are of the file"
    assert stream.count(replace(spec, max_rows=None), most=5)[0].usable == 6, "to the end of the buffer"
    with pytest.raises(DataError, match=r"no usable rows.*left by dataset.tasks=\[\], dataset.modalities=\['mri'\]"):
        stream.count(replace(spec, modalities=["mri"]), None)


def test_steps_say_how_far_training_can_come() -> None:
    spec = Dataset(buffer_size=50)
    assert stream.reach(spec, Method()) is None
    assert stream.reach(spec, Method(batch_size=8, max_questions_per_row=4, trainer={"max_steps": 10})) == 134


def questions(*sizes: int) -> list[stream.Numbered]:
    """So many questions about each of so many pictures, numbered."""
    pictures = [image for image, size in enumerate(sizes) for _ in range(size)]
    return [
        (n, Question(str(n), "s", (f"{image}.png",), (Turn("?", "a"),), "open")) for n, image in enumerate(pictures)
    ]


def test_the_order_is_of_the_seed_and_the_epoch() -> None:
    made = questions(*[1, 5, 3] * 100)

    def numbers(*settings: int) -> list[int]:
        return [number for number, _ in stream.drawn(iter(made), *settings)]

    order = numbers(4, 50, 0, 0)
    assert sorted(order) == list(range(900)) != order and order == numbers(4, 50, 0, 0)
    assert order != numbers(4, 50, 1, 0) and order != numbers(4, 50, 0, 1)
    assert all(number < place + 50 + 4 for place, number in enumerate(order)), "nothing comes before it was read"
    assert numbers(4, 1, 0, 0) == list(range(900)), "a buffer of one row is the file's own order"


def test_questions_about_a_picture_stay_together() -> None:
    made = questions(*[10] * 30)
    order = [question.images[0] for _, question in stream.drawn(iter(made), 4, 60, 0, 0)]
    runs = Counter(len(list(run)) for _, run in groupby(order))
    assert set(runs) <= {2, 4, 6, 8, 10} and runs[4] > 10, "units of 4, 4 and 2 questions"
    assert order[:100] != sorted(order[:100])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("dataset.percent=50", "dataset.max_rows=N takes the first N rows"),
        ("dataset.weight=2", "within a mixture"),
        ("dataset.validation=0.1", "name a split or a file"),
        ("dataset.buffer_size=0", "at least 1"),
        ("dataset=slake", "slake is read whole; aqua, conversations, pmc_vqa can be streamed"),
        ("dataset=demo", "a mixture is drawn from all of its rows"),
    ],
)
def test_what_cannot_be_streamed_is_refused_with_the_reason(override: str, said: str, composed: Composed) -> None:
    chosen = () if override.startswith("dataset=") else ("dataset=conversations",)
    with pytest.raises(ConfigError) as error:
        composed("model=tiny_glm41v", *chosen, override, "dataset.streaming=true")
    assert said in str(error.value)


def test_a_split_may_validate_a_stream(composed: Composed) -> None:
    config = composed("dataset=conversations", "dataset.streaming=true", "dataset.validation=validation")
    assert config.dataset.streaming
