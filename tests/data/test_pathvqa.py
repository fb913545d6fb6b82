from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.data.test_parquet import encoded, row
from tests.data.test_parquet import write as write_parquet
from vlmft.data import images as chat_images
from vlmft.data.load import load
from vlmft.data.question import BadRow, Question
from vlmft.data.sources import pathvqa
from vlmft.errors import DataError
from vlmft.schema import QuestionSet

QA = [
    {"image": "train_0422", "question": "Where are liver stem cells located?", "answer": "in the Canals of Hering"},
    {"image": "train_0422", "question": "What does the amnion extend from ?", "answer": "yes"},
    {"image": "train_0001", "question": "Is it  benign?", "answer": "No"},
]
VQA = [
    {
        "img_id": "train_0422",
        "question_id": 100422000,
        "sent": "Where is it?",
        "label": {"liver": 1},
        "answer_type": "other",
        "question_type": "where",
    },
    {"img_id": "train_0422", "question_id": 100422001, "sent": "Is it?", "label": {"yes": 1}, "answer_type": "yes/no"},
]
LXMERT = [
    {"img_id": "train_0005", "sentf": {"pvqa": []}, "labelf": {"pvqa": []}},  # many published images have no question
    {
        "img_id": "train_0006",
        "sentf": {"pvqa": ["What is there in terminal ducts?", "Is it mild?"]},
        "labelf": {"pvqa": [{"Mild hyperplasia": 1}, {"yes": 1}]},
    },
]


def spec(folder: Path, **keys: Any) -> QuestionSet:
    return QuestionSet(name="pathvqa", format="pathvqa", path=str(folder), **keys)


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(json.dumps(value).encode() if path.suffix == ".json" else pickle.dumps(value, protocol=2))


def read(folder: Path, split: str = "train", **keys: Any) -> list[Question | BadRow]:
    return list(pathvqa.read(spec(folder, **keys), split))


def good(rows: list[Question | BadRow]) -> list[Question]:
    assert not [row for row in rows if isinstance(row, BadRow)]
    return [row for row in rows if isinstance(row, Question)]


def short(rows: list[Question | BadRow]) -> list[tuple[str, str, str, str]]:
    return [(q.id, q.text, q.answer, q.answer_type) for q in good(rows)]


def test_pickled_questions(tmp_path: Path) -> None:
    write(tmp_path / "qas/train/train_qa.pkl", QA)
    rows = read(tmp_path)
    assert short(rows) == [
        ("train_0422_0", "Where are liver stem cells located?", "in the Canals of Hering", "open"),
        ("train_0422_1", "What does the amnion extend from ?", "yes", "closed"),  # the blank is the publisher's
        ("train_0001_0", "Is it benign?", "No", "closed"),
    ]
    assert good(rows)[0].images == (str(tmp_path / "images/train/train_0422.jpg"),)
    assert good(rows)[0].set == "pathvqa" and not good(rows)[0].facts


def test_pickled_questions_with_ids_and_types(tmp_path: Path) -> None:
    write(tmp_path / "qas/train_vqa.pkl", VQA)
    rows = read(tmp_path)
    assert short(rows) == [
        ("100422000", "Where is it?", "liver", "open"),
        ("100422001", "Is it?", "yes", "closed"),
    ]
    assert [q.facts for q in good(rows)] == [{"question_type": "where"}, {}]


@pytest.mark.parametrize("name", ["pvqa_train.json", "qas/train.json", "lxmert/pvqa_train.json"])
def test_lxmert_json_has_an_object_per_image(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, LXMERT)
    assert short(read(tmp_path)) == [
        ("train_0006_0", "What is there in terminal ducts?", "Mild hyperplasia", "open"),
        ("train_0006_1", "Is it mild?", "yes", "closed"),
    ]


def test_json_may_also_be_flat(tmp_path: Path) -> None:
    write(tmp_path / "train.json", VQA)
    assert [q.id for q in good(read(tmp_path))] == ["100422000", "100422001"]


def test_parquet_is_the_hubs_form(tmp_path: Path) -> None:
    write_parquet(tmp_path / "data/validation-00000-of-00002-ab.parquet", row(encoded(), "where?", "liver"))
    write_parquet(tmp_path / "data/validation-00001-of-00002-cd.parquet", row(encoded(), "benign?", "no"))
    rows = read(tmp_path, "validation", image_root=str(tmp_path / "kept"))
    assert short(rows) == [("validation_0", "where?", "liver", "open"), ("validation_1", "benign?", "no", "closed")]
    assert Path(good(rows)[0].images[0]).read_bytes() == encoded()


@pytest.mark.parametrize("below", ["", "pvqa/"])
def test_the_first_form_that_is_there_is_read(tmp_path: Path, below: str) -> None:
    # From the last to the first, so that each has to win over all that were there before.
    write_parquet(tmp_path / "data/test.parquet", row(encoded()))
    names = ["lxmert/test.json", "pvqa_test.json", "qas/test_vqa.pkl", "qas/test/test_qa.pkl"]
    for name in names:
        write(tmp_path / below / name, [])
        assert pathvqa.files(spec(tmp_path), "test") == [tmp_path / below / name]
    assert pathvqa.splits(spec(tmp_path)) == ["train", "validation", "test"]


def test_validation_is_the_publishers_val_one_folder_down_too(tmp_path: Path) -> None:
    write(tmp_path / "pvqa/qas/val/val_qa.pkl", [QA[0] | {"image": "val_0001"}])
    (tmp_path / "pvqa/images/val").mkdir(parents=True)
    (question,) = good(read(tmp_path, "validation"))
    assert (question.id, question.images) == ("val_0001_0", (str(tmp_path / "pvqa/images/val/val_0001.jpg"),))


def test_published_duplicates_are_kept_with_ids_of_their_own(tmp_path: Path) -> None:
    write(tmp_path / "qas/train/train_qa.pkl", [QA[0], QA[2], QA[0], QA[0] | {"image": "train_0422.jpg"}])
    ids = [q.id for q in good(read(tmp_path))]
    assert ids == ["train_0422_0", "train_0001_0", "train_0422_1", "train_0422_2"]


def test_question_ids_that_repeat_or_are_missing_are_replaced(tmp_path: Path) -> None:
    own = [7, 7, None, "train_0422_0", 8]
    write(tmp_path / "train.json", [VQA[0] | {"question_id": id} for id in own])
    ids = [q.id for q in good(read(tmp_path))]
    assert ids == ["train_0422_0", "train_0422_1", "train_0422_2", "train_0422_3", "8"]


def test_of_several_answers_the_one_with_the_highest_score_is_taken(tmp_path: Path) -> None:
    labels = [{"liver": 0.3, "lung": 1}, {"b": 0.6, "a": 0.6, "c": 0.1}]
    write(tmp_path / "qas/train_vqa.pkl", [VQA[0] | {"label": label} for label in labels])
    assert [q.answer for q in good(read(tmp_path))] == ["lung", "b"]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (VQA[0] | {"label": {}}, "the answer ('label', 'answer') is missing or empty"),
        (VQA[0] | {"label": "liver"}, "'label' is 'liver'"),
        (VQA[0] | {"label": {"liver": None}}, "an object of answers and their scores"),
        (VQA[0] | {"sent": " "}, "the question ('sent', 'question') is missing or empty"),
        (VQA[0] | {"img_id": None}, "the image ('img_id', 'image') is missing or empty"),
        (VQA[0] | {"img_id": "../../../x"}, "lies outside the image folder"),
        (QA[0] | {"answer": None}, "the answer ('label', 'answer') is missing or empty"),
        ("text", "not an object"),
        (LXMERT[1] | {"labelf": {"pvqa": [{"yes": 1}]}}, "'train_0006' has 2 questions in sentf, 1 answers in labelf"),
        (LXMERT[1] | {"labelf": {}}, "should each hold a list under 'pvqa'"),
    ],
)
def test_bad_rows_say_why(tmp_path: Path, bad: Any, words: str) -> None:
    write(tmp_path / "train.json", [VQA[0], bad])
    first, second = read(tmp_path)
    assert isinstance(first, Question) and isinstance(second, BadRow)
    assert second.row == 2 and words in second.reason


def test_a_bad_question_of_an_image_is_told_from_its_good_ones(tmp_path: Path) -> None:
    labels = {"pvqa": [{"": 1}, {"yes": 1}]}
    write(tmp_path / "train.json", [LXMERT[1] | {"labelf": labels}])
    bad, fine = read(tmp_path)
    assert isinstance(bad, BadRow) and bad.row == "1, question 1"
    assert isinstance(fine, Question) and fine.id == "train_0006_1"


@pytest.mark.parametrize(
    ("there", "named"),
    [
        ("images/train/a.jpg", "a"),
        ("images/train/a.jpg", "a.jpg"),
        ("images/train/a.jpeg", "a"),
        ("images/train/a.png", "a"),
        ("images/train/a.png", "a.jpg"),
        ("images/train/a.b.jpg", "a.b"),
        ("mine/train/a.jpg", "a"),
        ("mine/a.jpg", "a"),
    ],
)
def test_images_are_found_with_the_extension_they_have(tmp_path: Path, there: str, named: str) -> None:
    write(tmp_path / "train.json", [QA[0] | {"image": named}])
    (tmp_path / there).parent.mkdir(parents=True)
    Image.new("L", (32, 32)).save(tmp_path / there)
    root = "mine" if there.startswith("mine") else None
    (question,) = load(spec(tmp_path, image_root=root), "train").questions
    assert question.images == (str(tmp_path / there),)


def test_an_image_that_is_not_there_is_reported_as_a_jpg(tmp_path: Path) -> None:
    write(tmp_path / "train.json", QA)
    with pytest.raises(DataError, match=r"3 of 3 rows .*\n.*images/train/train_0422\.jpg is not there"):
        load(spec(tmp_path), "train")


def test_each_image_is_looked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "train.json", [QA[0]] * 5)
    looked: list[str] = []
    there = os.path.isfile
    monkeypatch.setattr(os.path, "isfile", lambda path: looked.append(str(path)) or there(path))  # type: ignore[func-returns-value]
    read(tmp_path)
    assert len([path for path in looked if path.endswith("train_0422.jpg")]) == 1


@pytest.mark.parametrize(("mode", "color"), [("CMYK", (0, 255, 255, 0)), ("L", 90), ("RGB", (255, 0, 0))])
def test_pictures_of_every_published_mode_become_rgb(tmp_path: Path, mode: str, color: Any) -> None:
    write(tmp_path / "train.json", [QA[0]])
    (tmp_path / "images/train").mkdir(parents=True)
    Image.new(mode, (16, 16), color).save(tmp_path / "images/train/train_0422.jpg")
    (question,) = load(spec(tmp_path), "train").questions
    picture = chat_images.load((question.images[0], None))
    expected = (90, 90, 90) if mode == "L" else (255, 0, 0)  # no cyan, all magenta and yellow: red, not its inverse
    assert picture.mode == "RGB"
    assert all(abs(got - want) < 8 for got, want in zip(picture.getpixel((8, 8)), expected, strict=True))


class Malicious:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.victim),)


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    write(tmp_path / "qas/train/train_qa.pkl", [*QA, Malicious(tmp_path / "ran")])
    with pytest.raises(DataError, match=r"train_qa\.pkl asks for (posix|nt)\.mkdir"):
        read(tmp_path)
    assert not (tmp_path / "ran").exists()
    pickle.loads((tmp_path / "qas/train/train_qa.pkl").read_bytes())  # so it was the reader that stopped it
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (pickle.dumps(QA, protocol=2)[:-30], "is no pickle that can be read"),
        (b"", "is no pickle that can be read"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is no pickle that can be read"),
        (pickle.dumps({"a": 1}), "holds a dict; expected the list of questions"),
    ],
)
def test_a_damaged_pickle_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    write(tmp_path / "qas/train/train_qa.pkl", [])
    (tmp_path / "qas/train/train_qa.pkl").write_bytes(content)
    with pytest.raises(DataError, match=rf"train_qa\.pkl {words}"):
        read(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "latin1"])
def test_pickles_of_python_2_are_read_in_the_encoding_they_have(tmp_path: Path, encoding: str) -> None:
    # Python 3 cannot write Python 2's texts: SHORT_BINSTRING (U, length, bytes) in a list of one dict.
    def text(value: str) -> bytes:
        return b"U" + bytes([len(value.encode(encoding))]) + value.encode(encoding)

    said = {"image": "train_0001", "question": "Whose nodes?", "answer": "Schüller's"}
    (tmp_path / "qas").mkdir()
    items = b"".join(text(part) for pair in said.items() for part in pair)
    (tmp_path / "qas/train_vqa.pkl").write_bytes(b"\x80\x02](}(" + items + b"ue.")
    assert [q.answer for q in good(read(tmp_path))] == ["Schüller's"]


def test_missing_files_name_place_forms_and_override(tmp_path: Path) -> None:
    write(tmp_path / "qas/train/train_qa.pkl", QA)
    with pytest.raises(DataError, match=r"validation split in .*qas/val/val_qa\.pkl.*pvqa_val\.json.*paths\.pathvqa="):
        pathvqa.files(spec(tmp_path), "validation")
    with pytest.raises(DataError, match=r"nowhere, which is no folder.*pvqa\.zip.*paths\.pathvqa="):
        pathvqa.files(spec(tmp_path / "nowhere"), "train")
    with pytest.raises(DataError, match="no split 'val'; there are train, validation, test"):
        pathvqa.files(spec(tmp_path), "val")
