from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlmft.data.load import fingerprint, load
from vlmft.data.question import TASKS, VQA, BadRow, Question
from vlmft.data.samples.flare25 import COLLECTIONS, write_flare25
from vlmft.data.sources import flare25
from vlmft.errors import DataError
from vlmft.evaluation.task_metrics import HEADLINE, LOWER_IS_BETTER, outcome
from vlmft.schema import Config, Images, QuestionSet

LETTERS = "Question: What diagnosis fits? Options: A: Normal bone marrow B: Myelofibrosis, early C: Other."
WIDE = (200, 100)


def spec(folder: Path, **keys: Any) -> QuestionSet:
    return QuestionSet(name="flare", format="flare25", path=str(folder), **keys)


def row(answer: Any = "B", **keys: Any) -> dict[str, Any]:
    made = {"TaskType": "classification", "Modality": "microscopy", "ImageName": "imagesTr/a.png", "Split": "train"}
    return made | {"Question": LETTERS, "Answer": answer} | keys


def write(top: Path, *rows: Any, where: str = "training/Microscopy/bone_marrow", part: str = "train") -> Path:
    place = top / where
    place.mkdir(parents=True, exist_ok=True)
    (place / f"{place.name}_questions_{part}.json").write_text(json.dumps(rows), encoding="utf-8")
    return place


def picture(path: Path, size: tuple[int, int] = WIDE) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)
    return str(path)


def read(top: Path, split: str = "train", **keys: Any) -> list[Question | BadRow]:
    return list(flare25.read(spec(top, **keys), split))


def one(top: Path, *rows: Any, **keys: Any) -> Question:
    write(top, *rows)
    (question,) = read(top, **keys)
    assert isinstance(question, Question), question
    return question


def bad(top: Path, wrong: Any) -> BadRow:
    write(top, row(), wrong)
    good, refused = read(top)
    assert isinstance(good, Question) and isinstance(refused, BadRow)
    assert refused.row == 2 and refused.file.endswith("bone_marrow_questions_train.json")
    return refused


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flare25")
    write_flare25(folder, rows_per_collection=12)
    return folder


def test_a_row_becomes_a_question(tmp_path: Path) -> None:
    image = picture(tmp_path / "training/Microscopy/bone_marrow/imagesTr/a.png")
    question = one(tmp_path, row())
    assert question.text == LETTERS.removeprefix("Question: ")
    assert question.options == ("Normal bone marrow", "Myelofibrosis, early", "Other.")
    assert (question.answer, question.task, question.answer_type) == ("B", "multiple_choice", "closed")
    assert question.images == (image,)
    assert question.facts == {"collection": "bone_marrow", "modality": "microscopy"}
    assert question.id.startswith("bone_marrow/imagesTr/a.png||") and question.set == "flare"


def test_the_quoted_rows_are_read(real_data: Path, tmp_path: Path) -> None:
    quoted = [entry["row"] for entry in json.loads((real_data / "flare25/quoted_examples.json").read_text())]
    write(tmp_path, *quoted)
    cut, listed, treated = read(tmp_path)
    assert isinstance(cut, BadRow) and cut.published and "letters up to B" in cut.reason  # "… B: Myelofibrosis..."
    assert isinstance(listed, Question) and len(listed.images) == 2 and listed.answer == "F" and not listed.options
    assert isinstance(treated, Question) and treated.options == ("No", "Yes") and treated.answer == "A"


def test_every_collection_is_found_however_it_is_called(tmp_path: Path) -> None:
    write(tmp_path, row(), where="training/New Field/something-new")
    write(tmp_path, row(), row(), where="training/Xray/deeper/dental")
    (tmp_path / "training/Xray/deeper/dental/._dental_questions_train.json").touch()  # a Mac's zips have these
    write(tmp_path, row(), where="training/Xray/deeper/dental/images_old")
    facts = [question.facts for question in read(tmp_path) if isinstance(question, Question)]
    assert [(each["collection"], each["modality"]) for each in facts] == [
        ("something-new", "new field"), ("dental", "xray"), ("dental", "xray"),
    ]  # fmt: skip
    assert flare25.splits(spec(tmp_path)) == ["train", "test"]


def test_include_keeps_the_named_collections(sample: Path) -> None:
    questions = load(spec(sample, include=["retino", "neojaundice"]), "train").questions
    assert Counter(q.facts["collection"] for q in questions) == {"retino": 12, "neojaundice": 12}
    with pytest.raises(DataError, match=r"train split has no polyp; it has bone_marrow, boneresorption, BUSI-det, ch"):
        flare25.files(spec(sample, include=["retino", "polyp"]), "train")
    assert fingerprint(spec(sample), "train") != fingerprint(spec(sample, include=["retino"]), "train")


def test_the_test_split_is_the_public_validation_and_can_be_the_hidden_one(sample: Path) -> None:
    public = load(spec(sample), "test").questions
    hidden = load(spec(sample, splits={"test": "validation-hidden"}), "test").questions
    for questions, folder in ((public, "validation-public"), (hidden, "validation-hidden")):
        assert {q.facts["collection"] for q in questions} == {n for n, c in COLLECTIONS.items() if c.held_out == folder}
        assert all(f"/{folder}/" in image for q in questions for image in q.images)


def test_answers_that_are_withheld_are_refused_for_scoring(sample: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"testing/.*_questions_test\.json has no answers.*validation-public"):
        load(spec(sample, splits={"test": "testing"}), "test")
    shutil.copytree(sample / "validation-hidden", tmp_path / "validation-hidden")
    (truth,) = tmp_path.rglob("periapical*_withGT.json")
    truth.unlink()
    with pytest.raises(DataError, match=r"in periapical_questions_val_withGT\.json"):
        load(spec(tmp_path, splits={"test": "validation-hidden"}, include=["periapical"]), "test")


def test_missing_folders_name_place_layout_and_override(tmp_path: Path) -> None:
    write(tmp_path, row())
    with pytest.raises(DataError, match=r"validation-public, below which .*_questions_\*\.json.*paths\.flare25=FOLDER"):
        flare25.files(spec(tmp_path), "test")
    with pytest.raises(DataError, match=r"nowhere, which is no folder.*<Category>/<collection>.*paths\.flare25="):
        flare25.files(spec(tmp_path / "nowhere"), "train")
    with pytest.raises(DataError, match="no split 'validation'; there are train, test"):
        flare25.files(spec(tmp_path), "validation")


@pytest.mark.parametrize(
    ("named", "there"),
    [
        ("imagesTr/a.png", "imagesTr/a.png"),
        ("a.png", "imagesTr/a.png"),
        ("imagesVal/a.png", "imagesTr/a.png"),
        ("imagesTr/a.png", "imagesTr/imagesTr/a.png"),  # unpacked into a folder of the zip's own name
        ("a.png", "a.png"),
    ],
)
def test_pictures_are_found_with_their_folder_or_without(tmp_path: Path, named: str, there: str) -> None:
    image = picture(tmp_path / "training/Microscopy/bone_marrow" / there)
    assert one(tmp_path, row(ImageName=named)).images == (image,)


def test_pictures_may_lie_in_a_tree_of_their_own(tmp_path: Path) -> None:
    image = picture(tmp_path / "pictures/training/Microscopy/bone_marrow/imagesTr/a.png")
    assert one(tmp_path, row(ImageName="a.png"), image_root="pictures").images == (image,)


def test_a_picture_that_cannot_be_told_or_lies_elsewhere_is_refused(tmp_path: Path) -> None:
    for below in ("imagesTr", "imagesVal"):
        picture(tmp_path / f"training/Microscopy/bone_marrow/{below}/a.png")
    assert "imagesTr/a.png or " in bad(tmp_path, row(ImageName="a.png")).reason
    outside = bad(tmp_path, row(ImageName="../../../secret.png"))
    assert "lies outside the image folder" in outside.reason and not outside.published


def test_pictures_still_packed_are_told_once_unless_nobody_looks(tmp_path: Path) -> None:
    place = write(tmp_path, row(), row())
    (place / "imagesTr.zip").touch()
    with pytest.raises(DataError, match=r"bone_marrow are still packed: unpack imagesTr\.zip there"):
        load(spec(tmp_path), "train")
    assert len(load(spec(tmp_path, images=Images.ignore), "train", need_images=False).questions) == 2
    picture(place / "imagesTr/a.png")
    assert len(load(spec(tmp_path), "train").questions) == 2


def test_several_pictures_keep_their_order(tmp_path: Path) -> None:
    question = one(tmp_path, row(ImageName=["imagesTr/b.png", "imagesTr/a.png"]))
    assert [os.path.basename(image) for image in question.images] == ["b.png", "a.png"]


@pytest.mark.parametrize(
    ("stated", "answer", "task"),
    [
        ("Classification", "B", "multiple_choice"),
        ("Multi-label Classification", "a;b", "multi_label"),
        ("multi_label_classification", "a", "multi_label"),
        ("Detection", "[]", "detection"),
        ("instance_detection", "{}", "instance_detection"),
        ("Instance Detection", "{}", "instance_detection"),
        ("Counting", "3", "counting"),
        ("cell counting", "3", "counting"),
        ("Regression", 2.5, "regression"),
        ("Report_Generation", "Normal.", "report"),
        (" report  generation", "Normal.", "report"),
    ],
)
def test_every_spelling_of_a_task(tmp_path: Path, stated: str, answer: Any, task: str) -> None:
    question = one(tmp_path, row(answer, TaskType=stated))
    assert question.task == task
    assert question.answer_type == ("closed" if task == "multiple_choice" else "open")


@pytest.mark.parametrize(
    ("asked", "options"),
    [
        ("Treat? A. No, B. Yes", ("No", "Yes")),
        ("Options: A: Normal B: T1-weighted: no C: Other;", ("Normal", "T1-weighted: no", "Other")),
        ("Which?\nOptions:\nA) one\nB) two\nAnswer with the letter.", ("one", "two")),
        ("Which? (A) one (B) two", ("one", "two")),
        ("Lack of vitamin A: which sign? A. Night blindness B. Rash", ("Night blindness", "Rash")),
        ("Options: A: Hepatitis A. B: Gout", ("Hepatitis A.", "Gout")),
        ("Grade A. Which is it?", ()),
        ("Which color?", ()),
    ],
)
def test_options_of_a_question(tmp_path: Path, asked: str, options: tuple[str, ...]) -> None:
    question = one(tmp_path, row("A", Question=asked))
    assert question.options == options and question.text == asked


@pytest.mark.parametrize(
    ("answer", "asked", "gold", "task", "kind"),
    [
        ("myelofibrosis, early", LETTERS, "myelofibrosis, early", "multiple_choice", "closed"),
        (["C"], LETTERS, "C", "multiple_choice", "closed"),
        ("Mass", "Mass or calcification?", "Mass", VQA, "open"),
        ("Yes", "Is there a mass?", "Yes", VQA, "closed"),
        ("F", "Which of them?", "F", "multiple_choice", "closed"),
    ],
)
def test_classes_are_letters_or_words(tmp_path: Path, answer: Any, asked: str, gold: str, task: str, kind: str) -> None:
    question = one(tmp_path, row(answer, Question=asked))
    assert (question.answer, question.task, question.answer_type) == (gold, task, kind)


@pytest.mark.parametrize(
    ("task", "answer", "gold"),
    [
        ("Multi-label Classification", "Caries;deep filling ; Caries", "Caries; deep filling"),
        ("Multi-label Classification", "A, C", "A; C"),
        ("Multi-label Classification", ["A", "C"], "A; C"),
        ("Multi-label Classification", '["A", "C"]', "A; C"),
        ("counting", 12, "12"),
        ("counting", 12.0, "12"),
        ("Regression", " 28.5 ", "28.5"),
        ("Regression", 2085, "2085"),  # nobody here can say that it is wrong
        ("Report Generation", " The heart is normal.\nNo effusion. ", "The heart is normal.\nNo effusion."),
    ],
)
def test_answers_get_one_form(tmp_path: Path, task: str, answer: Any, gold: str) -> None:
    assert one(tmp_path, row(answer, TaskType=task)).answer == gold


@pytest.mark.parametrize(
    ("task", "answer", "pixels", "thousandths"),
    [
        ("detection", "[[20, 10, 100, 60]]", "[[20, 10, 100, 60]]", "[[100, 100, 500, 600]]"),
        ("detection", [[20, 10, 100, 60.5]], "[[20, 10, 100, 60.5]]", "[[100, 100, 500, 605]]"),
        ("detection", "[(20, 10, 100, 60), (0, 0, 200, 100)]", "[[20, 10, 100, 60], [0, 0, 200, 100]]",
         "[[100, 100, 500, 600], [0, 0, 1000, 1000]]"),
        ("detection", [20, 10, 100, 60], "[[20, 10, 100, 60]]", "[[100, 100, 500, 600]]"),
        ("detection", [[20.01, 10, 20.05, 60]], "[[20.01, 10, 20.05, 60]]", "[[100, 100, 101, 600]]"),
        ("instance_detection", '{"Karies": [[20, 10, 100, 60]], "Wölbung": []}',
         '{"Karies": [[20, 10, 100, 60]], "Wölbung": []}', '{"Karies": [[100, 100, 500, 600]], "Wölbung": []}'),
        ("instance_detection", "{'long': [(20, 10, 100, 60)]}", '{"long": [[20, 10, 100, 60]]}',
         '{"long": [[100, 100, 500, 600]]}'),
        ("instance_detection", {"long": [[20, 10, 100, 60]]}, '{"long": [[20, 10, 100, 60]]}',
         '{"long": [[100, 100, 500, 600]]}'),
    ],
)  # fmt: skip
def test_boxes_in_both_spaces(tmp_path: Path, task: str, answer: Any, pixels: str, thousandths: str) -> None:
    picture(tmp_path / "training/Microscopy/bone_marrow/imagesTr/a.png")
    asked = row(answer, TaskType=task, Question="Question: Where?")
    for space, gold, words in (("pixels", pixels, "in pixels of the original"), ("0-1000", thousandths, "0 to 1000")):
        question = one(tmp_path, asked, box_space=space)
        assert question.answer == gold and question.facts["box_space"] == space
        assert question.text.startswith("Where?\nGive each box as [x1, y1, x2, y2]") and words in question.text
    assert one(tmp_path, asked).answer == thousandths
    with pytest.raises(DataError, match=r"box_space=relative is not one of pixels, 0-1000"):
        read(tmp_path, box_space="relative")


def test_boxes_of_several_pictures_are_measured_on_the_first(tmp_path: Path) -> None:
    place = tmp_path / "training/Microscopy/bone_marrow/imagesTr"
    picture(place / "a.png", (100, 100)), picture(place / "b.png", (400, 400))
    shown = ["imagesTr/b.png", "imagesTr/a.png"]
    assert one(tmp_path, row([[40, 40, 80, 80]], TaskType="detection", ImageName=shown)).answer == (
        "[[100, 100, 200, 200]]"
    )


def test_a_picture_that_is_not_there_has_no_thousandths_but_pixels(tmp_path: Path) -> None:
    lost = row([[20, 10, 100, 60]], TaskType="detection")
    refused = bad(tmp_path, lost)
    assert "a.png cannot be read" in refused.reason and "boxes from 0 to 1000" in refused.reason
    assert not refused.published
    assert one(tmp_path, lost, box_space="pixels").answer == "[[20, 10, 100, 60]]"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (row("T"), "'T' is not one of the options (letters up to C"),
        (row("A B"), "'A B' is not one of the options"),
        (row("A B", Question="Which?"), "'A B' is not one of the options (one letter"),
        (row("Leukemia"), "'Leukemia' is not one of the options"),
        (row(["A", "B"]), "it should be a letter or words"),
        (row(""), "the Answer is empty"),
        (row(None), "the Answer is empty"),
        (row(" ;", TaskType="Multi-label Classification"), "holds no label"),
        (row("many", TaskType="counting"), "'many'; it should be one number"),
        (row("3 of 5", TaskType="counting"), "it should be one number"),
        (row(float("nan"), TaskType="regression"), "it should be one number"),
        (row(["Normal."], TaskType="Report Generation"), "it should be a text"),
        (row([[60, 10, 20, 60]], TaskType="detection"), "box [60, 10, 20, 60] has no inside"),
        (row([[20, 60, 60, 60]], TaskType="detection"), "has no inside"),
        (row([[-2, 10, 20, 60]], TaskType="detection"), "box [-2, 10, 20, 60] has no inside or begins outside"),
        (row([[20, -2, 60, 60]], TaskType="detection"), "has no inside or begins outside"),
        (row([[20, 10, 201, 60]], TaskType="detection"), "goes beyond its picture of 200 x 100 pixels"),
        (row([[20, 10, 30, 101]], TaskType="detection"), "goes beyond its picture"),
        (row([[20, 10, 30]], TaskType="detection"), "no list of boxes such as"),
        (row("upper left", TaskType="detection"), "no list of boxes such as"),
        (row("[[1, 2, 3, 4]]", TaskType="instance_detection"), "no object of boxes by class"),
        (row({"a": [[1, 2, 3]]}, TaskType="instance_detection"), "no object of boxes by class"),
        (row({"a": [[60, 10, 20, 60]]}, TaskType="instance_detection"), "has no inside"),
        (row("{'a': {1, 2}}", TaskType="instance_detection"), "no object of boxes by class"),
        (row(Question=" Question: "), "the Question is missing or empty"),
        (row(Question=None), "the Question is missing or empty"),
        (row(ImageName=[]), "ImageName is []; it should be a file name"),
        (row(ImageName=["a.png", ""]), "it should be a file name or a list"),
    ],
)
def test_defects_of_the_publisher_say_why_and_never_stop_a_run(tmp_path: Path, wrong: Any, words: str) -> None:
    picture(tmp_path / "training/Microscopy/bone_marrow/imagesTr/a.png")
    refused = bad(tmp_path, wrong)
    assert words in refused.reason and refused.published
    assert len(load(spec(tmp_path), "train").questions) == 1


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("text", "not an object with an ImageName"),
        (row(TaskType="segmentation"), "TaskType is 'segmentation'; vlmft knows classification, "),
        (row(TaskType=None), "TaskType is None"),
    ],
)
def test_what_this_reader_does_not_know_is_not_blamed_on_the_publisher(tmp_path: Path, wrong: Any, words: str) -> None:
    refused = bad(tmp_path, wrong)
    assert words in refused.reason and not refused.published


def test_what_a_row_says_of_its_modality_stands_beside_the_folder(tmp_path: Path) -> None:
    write(
        tmp_path, row(Modality="Photo, dental"), row(Modality="X-ray"), row(Modality=""), where="training/Xray/dental"
    )
    facts = [question.facts for question in read(tmp_path) if isinstance(question, Question)]
    assert [each["modality"] for each in facts] == ["xray"] * 3
    assert [each.get("stated_modality") for each in facts] == ["Photo, dental", None, None]


def test_ids_are_unique_and_do_not_depend_on_what_else_is_read(tmp_path: Path) -> None:
    same = [row(), row("A"), row("T"), row("C"), row(Question=LETTERS + " D: None")]
    write(tmp_path, *same)
    write(tmp_path, row(), where="training/Microscopy/cells")
    ids = [question.id for question in read(tmp_path) if isinstance(question, Question)]
    first = ids[0]
    assert ids[:3] == [first, f"{first}#2", f"{first}#4"]  # the third cannot be used
    assert len(set(ids)) == 5 and ids[4] == first.replace("bone_marrow/", "cells/")
    assert ids[:4] == [q.id for q in read(tmp_path, include=["bone_marrow"]) if isinstance(q, Question)]
    answers = [question.answer for question in read(tmp_path) if isinstance(question, Question)]
    assert answers[:3] == ["B", "A", "C"]  # duplicates with other labels are kept


def test_the_sample_has_every_task_and_no_bad_row(sample: Path, tmp_path: Path) -> None:
    hidden = {"test": "validation-hidden"}
    sets = [load(spec(sample), "train"), load(spec(sample), "test"), load(spec(sample, splits=hidden), "test")]
    assert [len(each.questions) for each in sets] == [12 * 9, 4 * 5, 4 * 4]
    assert not any(each.dropped for each in sets)
    assert {question.task for question in sets[0].questions} == set(TASKS) - {VQA}
    assert Counter(len(q.images) for q in sets[0].questions if q.facts["collection"] == "neojaundice") == {3: 12}
    write_flare25(tmp_path / "again", rows_per_collection=12)
    for file in sample.rglob("*.*"):
        assert file.read_bytes() == (tmp_path / "again" / file.relative_to(sample)).read_bytes()


@pytest.mark.parametrize("space", ["pixels", "0-1000"])
def test_every_gold_of_the_sample_scores_full_marks(sample: Path, space: str) -> None:
    for split in ("train", "test"):
        for q in load(spec(sample, box_space=space), split).questions:
            record = {"id": q.id, "gold": q.answer, "raw": q.answer, "options": q.options, "facts": dict(q.facts)}
            scored = outcome(q.task, q.answer, "ok", record)
            above, below = scored.values[HEADLINE[q.task]]
            assert scored.correct and above / below == (0 if HEADLINE[q.task] in LOWER_IS_BETTER else 1)


def test_the_presets_fit_the_sample(sample: Path, composed: Callable[..., Config]) -> None:
    config = composed("dataset=flare25", "eval=flare25", f"paths.flare25={sample}")
    assert list(config.dataset.sets) == list(config.eval.sets) and len(config.eval.sets) == 5
    for name, member in config.eval.sets.items():
        assert member.name == name == f"flare25_{member.include[0].lower().replace('-', '_')}"
        assert [len(load(member, split).questions) for split in ("train", "test")] == [12, 4]
    everything = composed("dataset=flare25_all", f"paths.flare25={sample}").dataset
    assert len(load(everything, "train").questions) == 12 * 9


@pytest.mark.slow
def test_a_model_is_trained_and_scored_on_the_five(
    sample: Path, command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = command("model=tiny_glm41v", "dataset=flare25", "eval=flare25", "hardware=cpu", f"paths.flare25={sample}",
                   "method.batch_size=8", "method.trainer.max_steps=2", "eval.generation.max_new_tokens=8")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = tmp_path.glob("outputs/*/result.json")
    assert "balanced_accuracy" in result.read_text()
    assert len(list(result.parent.glob("predictions_flare25_*.jsonl"))) == 5
