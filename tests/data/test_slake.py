from __future__ import annotations

import json
import stat
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlmft.data.load import load
from vlmft.data.question import BadRow, Question
from vlmft.data.sources import slake
from vlmft.errors import DataError
from vlmft.schema import QuestionSet

ROW = {
    "img_id": 1,
    "img_name": "xmlab1/source.jpg",
    "question": "What modality is used to take this image?",
    "answer": "MRI",
    "q_lang": "en",
    "location": "Abdomen",
    "modality": "MRI",
    "answer_type": "OPEN",
    "base_type": "vqa",
    "content_type": "Modality",
    "triple": ["vhead", "_", "_"],
    "qid": 0,
}
CHINESE = ROW | {"qid": 1, "q_lang": "zh", "question": "这是什么模态?", "answer": "磁共振"}


def spec(folder: Path, **keys: Any) -> QuestionSet:
    return QuestionSet(name="slake", format="slake", path=str(folder), **keys)


def write(folder: Path, *rows: Any, name: str = "train.json", **keys: Any) -> QuestionSet:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(list(rows)))
    return spec(folder, **keys)


def read(folder: Path, *rows: Any, **keys: Any) -> list[Question | BadRow]:
    return list(slake.read(write(folder, *rows, **keys), "train"))


def good(rows: list[Question | BadRow]) -> list[Question]:
    assert not [row for row in rows if isinstance(row, BadRow)]
    return [row for row in rows if isinstance(row, Question)]


@pytest.fixture(scope="module")
def published(real_data: Path) -> dict[tuple[str, str], list[Question | BadRow]]:
    return {
        (language, split): list(slake.read(spec(real_data / "slake", language=language), split))
        for language in slake.LANGUAGES
        for split in ("train", "validation", "test")
    }


def test_published_counts(published: dict[tuple[str, str], list[Question | BadRow]], real_data: Path) -> None:
    counts = {key: Counter(getattr(row, "answer_type", "bad") for row in rows) for key, rows in published.items()}
    assert counts == {
        ("en", "train"): {"open": 2976 - 1, "closed": 1943, "bad": 1},  # the one without an answer is an open one
        ("en", "validation"): {"open": 631, "closed": 422},
        ("en", "test"): {"open": 645, "closed": 416},
        ("zh", "train"): {"open": 2978, "closed": 1938},
        ("zh", "validation"): {"open": 624, "closed": 422},
        ("zh", "test"): {"open": 613, "closed": 420},
    }
    both = {split: list(slake.read(spec(real_data / "slake"), split)) for split in slake.NAMES}
    assert {split: len(rows) for split, rows in both.items()} == {"train": 9835, "validation": 2099, "test": 2094}
    ids = {row.id for rows in both.values() for row in rows if isinstance(row, Question)}
    assert ids == {str(n) for n in range(14028)} - {"1622"}  # qids are unique over the three files


def test_published_splits_share_no_image_within_a_language(
    published: dict[tuple[str, str], list[Question | BadRow]],
) -> None:
    images = {key: {q.images for q in rows if isinstance(q, Question)} for key, rows in published.items()}
    for language in slake.LANGUAGES:
        parts = [images[language, split] for split in slake.NAMES]
        assert [len(part) for part in parts] == [450, 96, 96] and len(set.union(*parts)) == 642


def test_the_published_row_without_an_answer_is_left_out_and_counted(
    published: dict[tuple[str, str], list[Question | BadRow]],
) -> None:
    (bad,) = (row for row in published["en", "train"] if isinstance(row, BadRow))
    assert bad.published and bad.row == 1623 and "'answer' is missing or empty" in bad.reason


def test_the_sample_of_images_is_found(real_data: Path) -> None:
    # These numbers of rows ask about the 20 of 642 images that the shared sample holds.
    place = real_data / "slake"
    if len(list(place.glob("imgs/*/source.jpg"))) != 20:
        pytest.skip(f"{place / 'imgs'} does not hold the sample of 20 images")
    found = {
        (language, split): len(load(spec(place, language=language), split, drop_bad_rows=True).questions)
        for language, split in (("en", "test"), ("zh", "train"), ("zh", "validation"), ("zh", "test"))
    }
    assert list(found.values()) == [257, 174, 53, 30]


def test_published_dirt(published: dict[tuple[str, str], list[Question | BadRow]]) -> None:
    test = good(published["en", "test"])
    closed = Counter(q.answer for q in test if q.answer_type == "closed")
    assert closed["Yes"] + closed["No"] == 355 and closed["Lung"] == 12  # closed is not yes or no
    chinese = Counter(q.answer for q in good(published["zh", "test"]) if q.answer_type == "closed")
    assert (chinese["不是"], chinese["包含"]) == (86, 65)
    assert any("," in q.answer for q in test)  # lists stay as they were written
    every = [q for rows in published.values() for q in rows if isinstance(q, Question)]
    texts = [text for q in every for text in (q.text, q.answer, *q.facts.values())]
    assert not [text for text in texts if text != " ".join(text.split()) or not text]
    assert {q.facts["language"] for q in test} == {"en"}


def test_row(tmp_path: Path) -> None:
    (question,) = good(read(tmp_path, ROW | {"answer": " Lung,\tSpinal  Cord ", "answer_type": "Closed "}))
    assert (question.id, question.set, question.answer_type) == ("0", "slake", "closed")
    assert (question.text, question.answer) == (ROW["question"], "Lung, Spinal Cord")
    assert question.images == (str(tmp_path / "imgs" / "xmlab1" / "source.jpg"),)
    assert question.facts == {
        "language": "en",
        "modality": "MRI",
        "content_type": "Modality",
        "external_knowledge": "no",
        "location": "Abdomen",
    }


def test_whether_a_question_needs_external_knowledge(
    published: dict[tuple[str, str], list[Question | BadRow]], tmp_path: Path
) -> None:
    said = Counter(question.facts["external_knowledge"] for question in good(published["en", "test"]))
    assert said == {"no": 913, "yes": 148}
    (asked, unsaid) = good(read(tmp_path, ROW | {"base_type": "kvqa"}, ROW | {"qid": 1, "base_type": ""}))
    assert asked.facts["external_knowledge"] == "yes" and "external_knowledge" not in unsaid.facts


def test_one_language_or_both(tmp_path: Path) -> None:
    for language, ids in (("en", ["0"]), ("zh", ["1"]), (None, ["0", "1"])):
        assert [q.id for q in good(read(tmp_path, ROW, CHINESE, language=language))] == ids
    with pytest.raises(DataError, match=r"language=de: it has en, zh"):
        load(write(tmp_path, ROW, language="de"), "train")


def test_a_bad_row_is_reported_in_its_own_language_only(tmp_path: Path) -> None:
    rows = (ROW, CHINESE | {"answer": ""}, ROW | {"qid": 2, "q_lang": "fr"}, "no object")
    assert [type(row) for row in read(tmp_path, *rows, language="zh")] == [BadRow] * 3
    bad = [row for row in read(tmp_path, *rows, language="en") if isinstance(row, BadRow)]
    assert [row.row for row in bad] == [3, 4] and all("'q_lang' en or zh" in row.reason for row in bad)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"answer": " "}, "'answer' is missing or empty"),
        ({"answer": None}, "'answer' is missing or empty"),
        ({"question": ""}, "'question' is missing or empty"),
        ({"qid": None}, "'qid' is missing or empty"),
        ({"img_name": ""}, "'img_name' is missing or empty"),
        ({"answer_type": "YES"}, "answer_type is 'YES'"),
        ({"img_name": "../../x.jpg"}, "lies outside the image folder"),
    ],
)
def test_bad_rows_say_why(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    (bad,) = read(tmp_path, ROW | change)
    assert isinstance(bad, BadRow) and bad.row == 1 and words in bad.reason and not bad.published


def test_only_the_known_empty_answer_is_the_publishers_defect(tmp_path: Path) -> None:
    known = ROW | {"qid": 1622, "answer": ""}
    (bad,) = read(tmp_path, known)
    (elsewhere,) = slake.read(write(tmp_path, known, name="test.json"), "test")
    (other, without_question) = read(tmp_path, known | {"qid": 1623}, known | {"question": ""})
    found = [row for row in (bad, elsewhere, other, without_question) if isinstance(row, BadRow)]
    assert [row.published for row in found] == [True, False, False, False]
    (answered,) = good(read(tmp_path, known | {"answer": "No"}))  # a copy that somebody put right
    assert answered.id == "1622"


def test_the_publishers_defect_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "imgs/xmlab1").mkdir(parents=True)
    Image.new("L", (32, 32)).save(tmp_path / "imgs/xmlab1/source.jpg")
    loaded = load(write(tmp_path, ROW, ROW | {"qid": 1622, "answer": ""}), "train")
    assert (len(loaded.questions), len(loaded.dropped)) == (1, 1)


def test_repeated_qid_is_bad(tmp_path: Path) -> None:
    first, second = read(tmp_path, ROW, ROW | {"question": "Which organ?"})
    assert isinstance(first, Question) and isinstance(second, BadRow) and "qid 0" in second.reason


@pytest.mark.parametrize("name", ["validate.json", "validation.json"])
def test_both_names_of_the_validation_file_are_read(tmp_path: Path, name: str) -> None:
    assert slake.files(write(tmp_path, ROW, name=name), "validation") == [tmp_path / name]


def test_missing_file_names_place_and_override(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file validate\.json or validation\.json.*paths\.slake="):
        slake.files(spec(tmp_path), "validation")
    with pytest.raises(DataError, match=r"nowhere, which is no folder.*paths\.slake="):
        slake.files(spec(tmp_path / "nowhere"), "train")
    with pytest.raises(DataError, match="no split 'dev'; there are train, validation, test"):
        slake.files(spec(tmp_path), "dev")


@pytest.mark.parametrize("leading", ["imgs/", ""])
def test_a_zip_of_images_is_unpacked_once_and_only_to_read(
    tmp_path: Path, cache: Path, leading: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = write(tmp_path / "set", ROW)
    Image.new("L", (32, 32)).save(tmp_path / "source.jpg")
    pixels = (tmp_path / "source.jpg").read_bytes()
    with zipfile.ZipFile(tmp_path / "set" / "imgs.zip", "w") as file:
        file.writestr(f"{leading}xmlab1/source.jpg", pixels)
        link = zipfile.ZipInfo(f"{leading}xmlab1/link.jpg")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(link, "/etc/passwd")
    before = set((cache / "unpacked").glob("*"))
    slake.files(place, "train")
    assert set((cache / "unpacked").glob("*")) == before
    (question,) = load(place, "train").questions  # looks whether the image is there
    image = Path(question.images[0])
    (unpacked,) = set((cache / "unpacked").glob("*")) - before
    assert image == unpacked / leading / "xmlab1" / "source.jpg" and image.read_bytes() == pixels
    assert len(unpacked.name) == 16 and not image.with_name("link.jpg").exists()
    monkeypatch.delattr(slake, "_unpack")
    (again,) = load(place, "train").questions
    assert again.images == question.images


def test_the_folder_of_images_goes_before_the_zip_and_image_root_before_both(tmp_path: Path) -> None:
    place = write(tmp_path, ROW)
    (tmp_path / "imgs.zip").write_bytes(b"no zip")
    (tmp_path / "imgs").mkdir()
    (question,) = good(list(slake.read(place, "train")))
    assert question.images == (str(tmp_path / "imgs/xmlab1/source.jpg"),)
    place.image_root = "elsewhere"
    (question,) = good(list(slake.read(place, "train")))
    assert question.images == (str(tmp_path / "elsewhere/xmlab1/source.jpg"),)


def test_a_zip_that_leaves_its_folder_or_is_damaged_is_refused(tmp_path: Path, cache: Path) -> None:
    place = write(tmp_path / "set", ROW)
    with zipfile.ZipFile(tmp_path / "set" / "imgs.zip", "w") as file:
        file.writestr("imgs/../../../evil.jpg", b"")
    before = set((cache / "unpacked").glob("*"))
    with pytest.raises(DataError, match=r"imgs\.zip holds 'imgs/\.\./\.\./\.\./evil\.jpg'"):
        load(place, "train")
    (tmp_path / "set" / "imgs.zip").write_bytes(b"PK\3\4 cut")
    with pytest.raises(DataError, match=r"imgs\.zip cannot be unpacked"):
        load(place, "train")
    assert set((cache / "unpacked").glob("*")) == before and not list(cache.rglob("evil.jpg"))
