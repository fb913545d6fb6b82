"""PMC-VQA on disk: both versions, files and pictures, bad rows, and a run that answers in letters."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import sets
from tests.data.pmc_vqa_rows import CHOICES, HEADER_1, HEADER_2, V1, V2, one, read, spec, write
from vlmft.data.load import load
from vlmft.data.question import MULTIPLE_CHOICE, BadRow, Question
from vlmft.data.sources import pmc_vqa
from vlmft.errors import DataError
from vlmft.schema import Config, Images, QuestionSet


def test_version_1(tmp_path: Path) -> None:
    question = one(tmp_path, V1)
    assert question.text == (
        "Which organ is shown?\nA: Lung\nB: Liver\nC: Heart\nD: Spleen\nAnswer with the letter of the right option."
    )
    assert (question.id, question.answer) == ("train_0", "B")
    assert (question.task, question.answer_type, question.set) == (MULTIPLE_CHOICE, "closed", "pmc_vqa")
    assert question.options == CHOICES
    assert question.images == (str(tmp_path / "images/PMC1_F1.jpg"),)


def test_version_2_is_told_by_its_header_and_its_captions_may_hold_lines_and_marks(tmp_path: Path) -> None:
    first, second = read(tmp_path, V2, V2 | {"index": "64", "Answer": "D"})
    assert isinstance(first, Question) and isinstance(second, Question)
    assert (first.id, first.answer, first.options) == ("62", "C", ("Blast", "Mast", "Fat", "Nerve"))
    assert first.images == (str(tmp_path / "figures/PMC8253867_Fig2_41.jpg"),)
    assert (second.id, second.answer) == ("64", "D")


@pytest.mark.parametrize(
    ("header", "fields"),
    [
        ([name.replace("Answer", "Anwser") for name in HEADER_1], list(V1.values())),
        (["\ufeffFigure_path", *HEADER_1[1:]], list(V1.values())),
        ([*reversed(HEADER_1)], list(V1.values())[::-1]),
        (["", "index", *HEADER_1], ["5", "0", *V1.values()]),
        ([name for name in HEADER_2 if name not in ("Caption", "split")],
         ["train_0", "PMC1_F1.jpg", *list(V1.values())[1:2], *list(V1.values())[3:]]),
    ],
    ids=["misspelt", "byte order mark", "another order", "more columns", "fewer columns of version 2"],
)  # fmt: skip
def test_headers_in_circulation(tmp_path: Path, header: list[str], fields: list[str]) -> None:
    write(tmp_path / "train.csv", fields, header=header)
    (question,) = pmc_vqa.read(spec(tmp_path), "train")
    assert isinstance(question, Question)
    assert (question.id, question.answer, question.options) == ("train_0", "B", CHOICES)


@pytest.mark.parametrize(
    "content", [b"", b"image,question,answer\na,b,c\n", b"version https://git-lfs.github.com/spec/v1\n"]
)
def test_an_unknown_header_names_the_columns_of_both_versions(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "train.csv").write_bytes(content)
    found = content.decode().split("\n")[0]
    with pytest.raises(DataError) as error:
        list(pmc_vqa.read(spec(tmp_path), "train"))
    assert f"first line is {found!r}" in str(error.value)
    assert all(f"{name}" in str(error.value) for name in {*HEADER_1, *HEADER_2} - {"Caption", "split"})


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", V1, V1 | {"Question": "Größe?"})
    (tmp_path / "train.csv").write_bytes((tmp_path / "train.csv").read_text().encode("latin1"))
    with pytest.raises(DataError, match=r"train\.csv cannot be read as CSV near line .*utf-8.*Get it anew"):
        list(pmc_vqa.read(spec(tmp_path), "train"))
    write(tmp_path / "train.csv", V1, V1 | {"Question": "x" * 140_000})  # the rest of a file behind an open mark
    with pytest.raises(DataError, match=r"near line 3: field larger than"):
        list(pmc_vqa.read(spec(tmp_path), "train"))


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (list(V1.values())[:-1], "has 7 columns, not 8"),
        ([*V1.values(), "x"], "has 9 columns, not 8"),
        (V1 | {"Question": " "}, "Question is empty"),
        (V1 | {"Figure_path": ""}, "Figure_path is empty"),
        (V1 | {"Figure_path": "../../x.jpg"}, "lies outside the image folder"),
        (V1 | {"Figure_path": ".."}, "lies outside the image folder"),
        (V1 | {"Answer_label": "\r\nPMC2_F1.jpg"}, "the letter has several lines"),
        (V1 | {"Answer_label": "B\r\nPMC2_F1.jpg"}, "the letter has several lines"),
    ],
)
def test_bad_rows_name_file_and_line(tmp_path: Path, bad: Any, words: str) -> None:
    two_lines = V1 | {"Question": "Which\r\norgan?"}
    first, second, third = read(tmp_path, two_lines, bad, V1)
    assert isinstance(first, Question) and isinstance(second, BadRow) and isinstance(third, Question)
    assert (second.file, second.row, third.id) == (str(tmp_path / "train.csv"), "at line 4", "train_2")
    assert words in second.reason and not second.published


def test_published_defects_are_left_out_and_other_bad_rows_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", V1, V1 | {"Answer_label": "C"})
    loaded = load(spec(tmp_path), "train", need_images=False)
    assert len(loaded.questions) == len(loaded.dropped) == 1
    write(tmp_path / "train.csv", V1, list(V1.values())[1:])
    with pytest.raises(DataError, match=r"1 of 2 rows .*\n.*train\.csv, row at line 3: has 7 columns, not 8"):
        load(spec(tmp_path), "train", need_images=False)


def test_ids_are_rows_or_indices_and_never_twice(tmp_path: Path) -> None:
    def ids(*rows: Any) -> list[str]:
        return [row.id for row in read(tmp_path, *rows) if isinstance(row, Question)]

    assert ids(V1, V1 | {"Answer_label": "C"}, V1) == ["train_0", "train_2"]  # a row left out keeps its number
    assert ids(*(V2 | {"index": index} for index in ("9", "0", "9", "", "3"))) == ["9", "0", "train_2", "train_3", "3"]
    assert ids(V1, [], V1) == ["train_0", "train_1"]  # a blank line is no row


@pytest.mark.parametrize(
    ("row", "there"),
    [
        (V1, "images"),
        (V1, "images/images"),
        (V2, "figures"),
        (V2, "figures/figures"),
        (V2, "images_2/figures"),
        (V2, "images_2"),
        (V1, "mine"),
        (V2, "mine"),
        (V1 | {"Figure_path": " PMC1_F1.jpg "}, "images"),
    ],
)
def test_images_are_found_where_the_zips_unpack_them(tmp_path: Path, row: dict[str, str], there: str) -> None:
    write(tmp_path / "train.csv", row)
    for name in ("images", "figures") if there == "mine" else (there,):
        (tmp_path / name).mkdir(parents=True)
    picture = tmp_path / there / row["Figure_path"].strip()
    picture.parent.mkdir(exist_ok=True)
    Image.new("RGB", (32, 32)).save(picture)
    (question,) = load(spec(tmp_path, image_root="mine" if there == "mine" else None), "train").questions
    assert question.images == (str(picture),)


def test_pictures_may_be_absent_where_they_are_not_asked_about(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", V1)
    with pytest.raises(DataError, match=r"images/PMC1_F1\.jpg is not there"):
        load(spec(tmp_path), "train")
    (question,) = load(spec(tmp_path, images=Images.ignore), "train").questions
    assert question.images == () and question.options == CHOICES


def test_files_are_named_by_the_splits(tmp_path: Path) -> None:
    for name in ("train.csv", "test.csv", "test_clean.csv", "part/dev.csv"):
        write(tmp_path / name, V1)
    given = spec(tmp_path, splits={"validation": "part/dev.csv"})
    assert pmc_vqa.splits(spec(tmp_path)) == ["train", "test"]
    assert pmc_vqa.files(spec(tmp_path), "test") == [tmp_path / "test_clean.csv"]
    assert pmc_vqa.files(replace(given, splits={"test": "test.csv"}), "test") == [tmp_path / "test.csv"]
    assert pmc_vqa.files(given, "validation") == [tmp_path / "part/dev.csv"]
    (question,) = pmc_vqa.read(given, "validation")
    assert isinstance(question, Question) and question.images == (str(tmp_path / "images/PMC1_F1.jpg"),)
    assert question.id == "dev_0"  # by its file, so that no id of one split is in another


def test_missing_files_name_place_and_override(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"test split in .*test_clean\.csv.* \+dataset\.splits\.test=FILE.*paths\.pmc"):
        pmc_vqa.files(spec(tmp_path), "test")
    with pytest.raises(DataError, match=r"where there is no file.* with dataset\.splits\.test=FILE"):
        pmc_vqa.files(spec(tmp_path, splits={"test": "other.csv"}), "test")
    with pytest.raises(DataError, match=r"nowhere, which is no folder.*CSV files.*paths\.pmc_vqa="):
        pmc_vqa.files(spec(tmp_path / "nowhere"), "train")
    with pytest.raises(DataError, match=r"no split 'val'; there are train, test\..*\+dataset\.splits\.val=FILE"):
        pmc_vqa.files(spec(tmp_path), "val")


def test_presets_name_the_published_files(composed: Callable[..., Config], tmp_path: Path) -> None:
    for name, row in (("train", V1), ("test", V1), ("test_clean", V1), ("train_2", V2), ("test_2", V2)):
        write(tmp_path / f"{name}.csv", row | {"Question": name})
    place = f"paths.pmc_vqa={tmp_path}"

    def asked(spec: QuestionSet, split: str) -> str:
        return load(spec, split, need_images=False).questions[0].text.split("\n")[0]

    first = composed("dataset=pmc_vqa", "eval=pmc_vqa", place)
    assert [asked(first.dataset, split) for split in ("train", "test")] == ["train", "test_clean"]
    assert asked(first.eval.sets["pmc_vqa"], "test") == "test_clean"
    whole = composed("dataset=pmc_vqa_v2", "eval=pmc_vqa", "eval.sets.pmc_vqa.splits.test=test.csv", place)
    assert [asked(whole.dataset, split) for split in ("train", "test")] == ["train_2", "test_2"]
    assert asked(whole.eval.sets["pmc_vqa"], "test") == "test"


def test_the_made_set_of_the_benchmarks_is_clean(tmp_path: Path) -> None:
    rows = list(pmc_vqa.read(sets.pmc_vqa(tmp_path, 300), "train"))
    letters = Counter(row.answer for row in rows if isinstance(row, Question))
    assert letters.total() == 300 and min(letters["B"], letters["C"]) > max(letters["A"], letters["D"])


def test_real_rows(real_data: Path) -> None:
    """Twelve published rows, most of them chosen because they are malformed."""

    def all_of(name: str) -> list[Question | BadRow]:
        return list(pmc_vqa.read(spec(real_data / "pmc_vqa", splits={"train": name}), "train"))

    train = all_of("train.csv")
    assert [row.answer if isinstance(row, Question) else "" for row in train] == [*"BAADAAA", "", "C"]
    (torn, no_answer, marks, lost) = (train[n] for n in (1, 2, 6, 8))
    assert isinstance(torn, Question) and torn.options[::3] == ("One patient", "Four patients")
    assert isinstance(no_answer, Question) and no_answer.options[0] == "N/A"
    assert isinstance(marks, Question) and marks.options[::3] == (
        "Focal pattern DFO retinopathy", "Central retinal artery occlusion",
    )  # fmt: skip
    assert isinstance(lost, Question) and "gland, A: common carotid artery" in lost.options[2]
    assert "the letter is C (Nucleus of endocardium), but the answer's text 'Nucleus of Myocardium'" in str(train[7])
    for name, id in (("test_clean.csv", "test_clean_0"), ("train_2.csv", "35"), ("test_2.csv", "62")):
        (question,) = all_of(name)
        assert isinstance(question, Question) and (question.id, question.answer) == (id, "B")


@pytest.mark.slow
def test_a_run_answers_in_letters(command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    rows = [V1 | {"Figure_path": f"PMC{n}_F1.jpg", "Question": f"Which organ is shown in {n}?"} for n in range(8)]
    write(tmp_path / "set/train.csv", *rows[:4])
    write(tmp_path / "set/test_clean.csv", *rows[4:])
    (tmp_path / "set/images").mkdir()
    for row in rows:
        Image.new("RGB", (56, 56), (90, 20, 20)).save(tmp_path / "set/images" / row["Figure_path"])
    done = command(
        "model=tiny_glm41v", "dataset=pmc_vqa", f"paths.pmc_vqa={tmp_path / 'set'}", "dataset.shuffle_options=true",
        "debug=true", "hardware=cpu", "eval.closed=likelihood",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "outputs").glob("*/predictions_pmc_vqa.jsonl")
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert records and all(record["options"]["ABCD".index(record["gold"])] == "Liver" for record in records)
    assert all(record["raw"] in "ABCD" for record in records)
