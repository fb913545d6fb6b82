"""FLARE 2025 on disk: collections, splits, pictures, the drawn sample, and a model trained on it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.flare25_rows import LETTERS, bad, one, picture, read, row, spec, write
from vlmft.data.load import fingerprint, load
from vlmft.data.question import TASKS, VQA, BadRow, Question
from vlmft.data.samples.flare25 import COLLECTIONS, write_flare25
from vlmft.data.sources import flare25
from vlmft.errors import DataError
from vlmft.evaluation.task_metrics import HEADLINE, LOWER_IS_BETTER, outcome
from vlmft.schema import Config, Images


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
