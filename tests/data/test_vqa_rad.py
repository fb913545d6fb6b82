from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.data.test_parquet import encoded, row, write
from vlmft.data.load import load
from vlmft.data.question import BadRow, Question
from vlmft.data.sources import vqa_rad
from vlmft.errors import DataError
from vlmft.schema import QuestionSet

ROW = {
    "qid": 7,
    "phrase_type": "freeform",
    "image_name": "synpic1.jpg",
    "image_organ": "HEAD",
    "question": "Is it big?",
    "question_type": "SIZE",
    "answer": "Yes",
    "answer_type": "CLOSED",
}


def read(folder: Path, *rows: Any, split: str = "train") -> list[Question | BadRow]:
    (folder / vqa_rad.ROWS).write_text(json.dumps(list(rows)))
    return list(vqa_rad.read(QuestionSet(name="vqa_rad", format="vqa_rad", path=str(folder)), split))


@pytest.fixture(scope="module")
def published(real_data: Path) -> dict[str, list[Question]]:
    spec = QuestionSet(name="vqa_rad", format="vqa_rad", path=str(real_data / "vqa_rad"))
    got = {split: list(vqa_rad.read(spec, split)) for split in vqa_rad.splits(spec)}
    assert not [row for rows in got.values() for row in rows if isinstance(row, BadRow)]
    return {split: [row for row in rows if isinstance(row, Question)] for split, rows in got.items()}


def test_published_counts(published: dict[str, list[Question]]) -> None:
    types = {split: Counter(q.answer_type for q in rows) for split, rows in published.items()}
    assert types == {"train": {"closed": 1027, "open": 770}, "test": {"closed": 272, "open": 179}}
    images = {split: {q.images[0] for q in rows} for split, rows in published.items()}
    assert (len(images["train"]), len(images["test"]), len(images["train"] | images["test"])) == (313, 203, 314)
    assert all(os.path.isfile(image) for image in images["train"] | images["test"])


def test_published_dirt(published: dict[str, list[Question]]) -> None:
    rows = {q.id: q for part in published.values() for q in part}
    assert len(rows) == 2248
    assert rows["0"].text == "Are regions of the brain infarcted?"
    assert {id: rows[id].answer for id in ("1511", "2234")} == {"1511": "4", "2234": "12"}
    assert rows["2156"].answer_type == rows["2157"].answer_type == "closed"
    assert rows["2036"].turns and rows["2037"].turns  # without the key question_rephrase
    assert rows["369"].answer == "Heart lungs" and rows["2239"].answer == "superficial to the patient's skin"
    texts = [text for q in rows.values() for text in (q.text, q.answer, *q.facts.values())]
    assert not [text for text in texts if "\t" in text or text != text.strip() or text == "NULL"]


def test_published_facts_and_splits(published: dict[str, list[Question]]) -> None:
    kinds = {split: {q.facts["phrase_type"] for q in rows} for split, rows in published.items()}
    assert kinds == {"train": {"freeform", "para"}, "test": {"test_freeform", "test_para"}}
    assert {q.facts["organ"] for q in published["train"]} == {"CHEST", "ABD", "HEAD"}
    assert published["train"][0].facts == {"organ": "HEAD", "question_type": "PRES", "phrase_type": "freeform"}


def test_row(tmp_path: Path) -> None:
    test = ROW | {"qid": 8, "phrase_type": "test_para", "image_organ": "NULL", "answer": 4, "answer_type": "OPEN "}
    (train,) = read(tmp_path, ROW, test)
    (held,) = read(tmp_path, ROW, test, split="test")
    assert isinstance(train, Question) and isinstance(held, Question)
    assert train.images == (str(tmp_path / "VQA_RAD Image Folder" / "synpic1.jpg"),)
    assert (train.id, train.answer, train.answer_type) == ("7", "Yes", "closed")
    assert (held.id, held.answer, held.answer_type) == ("8", "4", "open")
    assert held.facts == {"question_type": "SIZE", "phrase_type": "test_para"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"answer": " \t"}, "'answer' is missing or empty"),
        ({"answer": None}, "'answer' is missing or empty"),
        ({"question": "NULL"}, "'question' is missing or empty"),
        ({"image_name": ""}, "'image_name' is missing or empty"),
        ({"answer_type": "YES"}, "answer_type is 'YES'"),
        ({"image_name": "../x.jpg"}, "lies outside the image folder"),
    ],
)
def test_bad_rows_say_why(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    (bad,) = read(tmp_path, ROW | change)
    assert isinstance(bad, BadRow) and bad.row == 1 and words in bad.reason


def test_repeated_qid_and_row_without_a_split_are_bad(tmp_path: Path) -> None:
    first, second, third = read(tmp_path, ROW, ROW, {"qid": 9})
    assert isinstance(first, Question) and isinstance(second, BadRow) and isinstance(third, BadRow)
    assert "qid 7" in second.reason and "phrase_type" in third.reason


def test_missing_file_names_place_and_override(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"VQA_RAD Dataset Public\.json.*paths\.vqa_rad="):
        vqa_rad.files(QuestionSet(name="vqa_rad", path=str(tmp_path)), "train")
    with pytest.raises(DataError, match=r"no parquet files of the test split .*flaviagiammarino/vqa-rad"):
        vqa_rad.files(QuestionSet(name="vqa_rad", path=str(tmp_path)), "test")
    with pytest.raises(DataError, match=r"nowhere, which is no folder.*parquet files of the Hub.*paths\.vqa_rad="):
        vqa_rad.files(QuestionSet(name="vqa_rad", path=str(tmp_path / "nowhere")), "train")
    with pytest.raises(DataError, match="no split 'validation'; there are train, test"):
        vqa_rad.files(QuestionSet(name="vqa_rad", path=str(tmp_path)), "validation")


def test_the_hubs_parquet_is_read_where_the_publishers_file_is_not(tmp_path: Path) -> None:
    spec = QuestionSet(name="vqa_rad", format="vqa_rad", path=str(tmp_path))
    train = write(tmp_path / "data/train-00000-of-00001-eda9.parquet", row(encoded(), "is it big?", "yes"))
    write(tmp_path / "data/test-00000-of-00001-e5bc.parquet", row(encoded(), "where is it?", "left lung"))
    assert vqa_rad.files(spec, "train") == [train]
    (question,) = load(spec, "train").questions
    (held,) = load(spec, "test").questions
    assert (question.id, question.set, question.answer, question.answer_type) == ("train_0", "vqa_rad", "yes", "closed")
    assert (held.id, held.answer_type) == ("test_0", "open")
    assert question.images == held.images  # the split is by question, and the same bytes are one file
    (published,) = read(tmp_path, ROW)
    assert isinstance(published, Question) and published.id == "7"


def test_the_hubs_form_has_other_answer_types_than_the_publisher(
    tmp_path: Path, published: dict[str, list[Question]]
) -> None:
    rows = (row(encoded(), q.text.lower(), q.answer.lower()) for q in published["test"])
    write(tmp_path / "test.parquet", *rows)
    loaded = load(QuestionSet(name="vqa_rad", format="vqa_rad", path=str(tmp_path)), "test")
    assert Counter(q.answer_type for q in loaded.questions) == {"closed": 251, "open": 200}
