"""FLARE 2025's questions and answers: tasks, options, labels, boxes, and what is wrong with a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.data.flare25_rows import LETTERS, bad, one, picture, read, row, spec
from vlmft.data.load import load
from vlmft.data.question import VQA
from vlmft.errors import DataError


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
