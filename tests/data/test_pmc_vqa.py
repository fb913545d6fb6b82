from __future__ import annotations

import csv
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
from vlmft.data.load import load
from vlmft.data.question import MULTIPLE_CHOICE, VQA, BadRow, Question
from vlmft.data.sources import pmc_vqa
from vlmft.errors import DataError
from vlmft.schema import Config, Images, QuestionSet

HEADER_1 = ["Figure_path", "Question", "Answer", "Choice A", "Choice B", "Choice C", "Choice D", "Answer_label"]
HEADER_2 = ["index", "Figure_path", "Caption", "Question", "Choice A", "Choice B", "Choice C", "Choice D", "Answer",
            "split"]  # fmt: skip
V1 = {
    "Figure_path": "PMC1_F1.jpg",
    "Question": " Which organ is shown? ",
    "Answer": "Liver",
    "Choice A": " A:Lung ",
    "Choice B": " B:Liver ",
    "Choice C": " C:Heart ",
    "Choice D": " D:Spleen ",
    "Answer_label": "B",
}
V2 = {
    "index": "62",
    "Figure_path": "PMC8253867_Fig2_41.jpg",
    "Caption": 'A "cell",\r\nseen twice',
    "Question": " Which cell? ",
    "Choice A": " A: Blast ",
    "Choice B": " B: Mast ",
    "Choice C": " C: Fat ",
    "Choice D": " D: Nerve",
    "Answer": "C",
    "split": "train",
}
CHOICES = ("Lung", "Liver", "Heart", "Spleen")


def spec(folder: Path, **keys: Any) -> QuestionSet:
    return QuestionSet(name="pmc_vqa", format="pmc_vqa", path=str(folder), **keys)


def write(file: Path, *rows: dict[str, str] | list[str], header: list[str] | None = None) -> None:
    """A CSV file as published: CRLF, marks where they are needed. A row is a list, or V1's or V2's keys."""
    named = header or (HEADER_2 if rows and "index" in rows[0] else HEADER_1)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as opened:
        lines = csv.writer(opened)
        lines.writerow(named)
        lines.writerows(list(row.values()) if isinstance(row, dict) else row for row in rows)


def read(folder: Path, *rows: dict[str, str] | list[str], **keys: Any) -> list[Question | BadRow]:
    write(folder / "train.csv", *rows)
    return list(pmc_vqa.read(spec(folder, **keys), "train"))


def one(folder: Path, row: dict[str, str], **keys: Any) -> Question:
    (question,) = read(folder, row, **keys)
    assert isinstance(question, Question), question
    return question


def defect(folder: Path, row: dict[str, str]) -> str:
    """Why the row is left out, whatever bad_rows says."""
    (bad,) = read(folder, row)
    assert isinstance(bad, BadRow) and bad.published
    return bad.reason


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


def test_a_letter_of_version_2_is_never_taken_for_the_text_of_an_option(tmp_path: Path) -> None:
    panels = {f"Choice {letter}": f" {letter}: {panel}" for letter, panel in zip("ABCD", "DCBA", strict=True)}
    assert one(tmp_path, V2 | panels).answer == "C"


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
    ("published", "text"),
    [
        (" A:X-ray ", "X-ray"),
        (" A: X-ray", "X-ray"),
        ("A:\u00a0 X-ray\u00a0", "X-ray"),
        (" C:X-ray ", "X-ray"),  # the letter of another column
        ("X-ray", "X-ray"),
        (" A: T: testes, A: gland ", "T: testes, A: gland"),
        (" A: N/A ", "N/A"),
        ("NaN", "NaN"),
        ("A:None", "None"),
        (" A: signal S ' ", "signal S '"),
        ("BA: 3", "BA: 3"),
    ],
)
def test_options_lose_their_labels_and_nothing_else(tmp_path: Path, published: str, text: str) -> None:
    row = V1 | {"Choice A": published, "Answer": text, "Answer_label": "A"}
    question = one(tmp_path, row)
    assert (question.options[0], question.answer) == (text, "A")
    assert one(tmp_path, row, options=False).answer == text


@pytest.mark.parametrize("mark", ["'", '"'])
def test_marks_around_the_whole_list_are_taken_off(tmp_path: Path, mark: str) -> None:
    torn = {"Choice A": f" {mark}A:Lung ", "Choice D": f" D:Spleen {mark} ", "Answer_label": mark}
    question = one(tmp_path, V1 | torn | {"Answer": f"{mark}Lung"})
    assert (question.options, question.answer) == (CHOICES, "A")


@pytest.mark.parametrize("label", ["'", '"', "", "E", "b"])
def test_a_label_that_is_no_letter_is_told_by_the_text_or_left_out(tmp_path: Path, label: str) -> None:
    broken = V1 | {"Answer_label": label}
    assert one(tmp_path, broken | {"Answer": "Spleen"}).answer == "D"
    assert one(tmp_path, broken | {"Answer": "N/A", "Choice C": "C: N/A"}).answer == "C"
    assert one(tmp_path, broken | {"Answer": "T: x,  y", "Choice A": "A: T: x, A: y"}).answer == "A"  # lost its "A:"
    reason = defect(tmp_path, broken | {"Answer": "Kidney"})
    assert f"the letter is {label!r}, none of A, B, C, D" in reason and "'Kidney' is no option's" in reason
    twice = defect(tmp_path, broken | {"Answer": "Lung", "Choice D": "D: lung"})
    assert "'Lung' is that of A and D" in twice


def test_version_2_has_no_text_to_tell_a_broken_letter_by(tmp_path: Path) -> None:
    assert "the letter is '\"'" in defect(tmp_path, V2 | {"Answer": '"'})
    assert one(tmp_path, V2 | {"Answer": "Mast"}).answer == "B"


def test_a_letter_and_a_text_that_disagree_are_left_out(tmp_path: Path) -> None:
    reason = defect(tmp_path, V1 | {"Answer_label": "C"})
    assert reason == "the letter is C (Heart), but the answer's text 'Liver' is that of B"


@pytest.mark.parametrize("text", ["", "T: gland,  carotid, V: vein.", "t: gland, a: carotid, v: vein.", "Kidney"])
def test_a_damaged_text_says_nothing_against_the_letter(tmp_path: Path, text: str) -> None:
    row = V1 | {"Choice C": " C: T: gland, A: carotid, V: vein. ", "Answer_label": "C", "Answer": text}
    assert one(tmp_path, row).answer == "C"


@pytest.mark.parametrize("letter", "AB")
def test_of_options_that_are_alike_the_letter_tells(tmp_path: Path, letter: str) -> None:
    row = V1 | {"Choice A": " A: Liver", "Answer_label": letter}
    for seed in range(8):  # ids differ, so the orders do
        rows = read(tmp_path, *[row] * (seed + 1), shuffle_options=True)
        assert all(isinstance(each, Question) and each.options["ABCD".index(each.answer)] == "Liver" for each in rows)
    assert one(tmp_path, row).answer == letter
    assert one(tmp_path, row).options[:2] == ("Liver", "Liver")


@pytest.mark.parametrize("empty", ["", " D: ", " "])
def test_an_empty_option_is_the_publishers_defect(tmp_path: Path, empty: str) -> None:
    assert defect(tmp_path, V1 | {"Choice D": empty}) == "Choice D is empty"


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


def test_without_options_the_text_is_asked_for(tmp_path: Path) -> None:
    question = one(tmp_path, V1, options=False)
    assert (question.text, question.answer) == ("Which organ is shown?", "Liver")
    assert (question.task, question.options, question.answer_type) == (VQA, (), "open")
    yes = one(tmp_path, V1 | {"Choice B": "B: Yes", "Answer": "Yes"}, options=False)
    assert yes.answer_type == "closed"  # as in every set whose publisher states no type


def test_reasoning_asks_for_a_thought_and_makes_none_up(tmp_path: Path) -> None:
    question = one(tmp_path, V1, reasoning=True)
    assert question.text.endswith("\nThink step by step first, then answer with the letter of the right option.")
    assert (question.answer, question.turns[0].thought) == ("B", None)
    bare = one(tmp_path, V1, reasoning=True, options=False)
    assert bare.text == "Which organ is shown?\nThink step by step first, then give the answer."


def test_shuffled_options_keep_their_answer_and_level_the_letters(tmp_path: Path) -> None:
    keys = {"shuffle_options": True}
    rows = [row for row in read(tmp_path, *[V1] * 800, **keys) if isinstance(row, Question)]
    for row in rows:
        assert sorted(row.options) == sorted(CHOICES) and row.options["ABCD".index(row.answer)] == "Liver"
        assert f"\n{row.answer}: Liver\n" in row.text
    letters = Counter(row.answer for row in rows)
    assert all(160 < letters[letter] < 240 for letter in "ABCD")
    assert len({row.options for row in rows}) == 24
    # The same wherever and whenever it is read; changed orders would be other questions under the same ids.
    assert "".join(row.answer for row in rows[:24]) == "CADABDCDBABCADDCACCDCABC"
    with pytest.raises(DataError, match=r"shuffle_options=true has no effect with dataset\.options=false"):
        read(tmp_path, V1, options=False, **keys)


@pytest.mark.parametrize("option", ["None of the above.", "Both A and C", "A, B", "All the above", "B & C", "A or B"])
def test_options_that_name_others_keep_the_published_order(tmp_path: Path, option: str) -> None:
    rows = read(tmp_path, *[V1 | {"Choice D": f" D:{option} "}] * 20, shuffle_options=True)
    assert {row.options for row in rows if isinstance(row, Question)} == {(*CHOICES[:3], option)}


@pytest.mark.parametrize("option", ["Above the liver", "Vitamin A", "A and then some"])
def test_options_that_name_no_other_are_shuffled(tmp_path: Path, option: str) -> None:
    rows = read(tmp_path, *[V1 | {"Choice D": f" D:{option} "}] * 20, shuffle_options=True)
    assert len({row.options for row in rows if isinstance(row, Question)}) > 5


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
