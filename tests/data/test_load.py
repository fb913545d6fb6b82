from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from PIL import Image

from vlmft.data.load import fingerprint, image_groups, load
from vlmft.data.question import Question, Turn
from vlmft.errors import DataError
from vlmft.schema import BadRows, Images, QuestionSet


def write(folder: Path, rows: list[dict[str, Any]], *images: str) -> QuestionSet:
    folder.mkdir(exist_ok=True)
    (folder / "train.json").write_text(json.dumps(rows))
    for image in images:
        Image.new("RGB", (32, 32)).save(folder / image)
    return QuestionSet(name="s", format="conversations", path=str(folder))


def row(id: str, image: Any = "a.png", answer: str = "yes") -> dict[str, Any]:
    said = [{"from": "human", "value": "Big?"}, {"from": "gpt", "value": answer}]
    return {"id": id, "image": image, "conversations": said}


def asked(id: str, *images: str) -> Question:
    return Question(id, "s", images, (Turn("Big?", "yes"),), "closed")


def ids(questions: list[Question]) -> list[str]:
    return [question.id for question in questions]


def test_unknown_format_names_those_there_are(tmp_path: Path) -> None:
    for format in ("slak", "", "_demo_pictures"):
        with pytest.raises(DataError, match=r"no format .*; there are aqua, conversations, demo, .*vqa_rad") as error:
            load(QuestionSet(name="s", format=format, path=str(tmp_path)), "train")
        assert "there are" in str(error.value) and "_demo" not in str(error.value).split("there are")[1]


def test_refusal_lists_how_many_and_the_first_five(tmp_path: Path) -> None:
    rows = [row(str(n), answer="" if n < 7 else "yes") for n in range(10)]
    with pytest.raises(DataError) as error:
        load(write(tmp_path, rows, "a.png"), "train")
    text = str(error.value)
    assert "7 of 10 rows" in text and "dataset.bad_rows=drop" in text and "and 2 more" in text
    assert text.count("the answer is empty") == 5 and f"{tmp_path / 'train.json'}, row 5: " in text


@pytest.mark.parametrize("policy", [BadRows.drop, "drop"])
def test_drop_counts_what_it_drops(tmp_path: Path, policy: Any) -> None:
    spec = write(tmp_path, [row("x"), row("y", answer="")], "a.png")
    spec.bad_rows = policy
    loaded = load(spec, "train")
    assert ids(loaded.questions) == ["x"] and [bad.row for bad in loaded.dropped] == [2]


def test_policy_of_an_omegaconf_node(tmp_path: Path) -> None:
    spec = write(tmp_path, [row("x"), row("y", answer="")], "a.png")
    with pytest.raises(DataError, match="1 of 2 rows"):
        load(OmegaConf.structured(spec), "train")
    spec.bad_rows = BadRows.drop
    assert len(load(OmegaConf.structured(spec), "train").dropped) == 1


def test_a_picture_that_cannot_be_read_makes_a_bad_row(tmp_path: Path) -> None:
    rows = [row("x"), row("y"), row("z", "gone.png"), row("u", "cut.png"), row("v", ["a.png", "gone.png"])]
    spec = write(tmp_path, rows, "a.png", "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:-30])
    with pytest.raises(DataError, match=r"3 of 5 rows(.|\n)*gone\.png is not there"):
        load(spec, "train")
    loaded = load(replace(spec, bad_rows=BadRows.drop), "train")
    assert ids(loaded.questions) == ["x", "y"]
    assert [bad.row for bad in loaded.dropped] == ["with id z", "with id u", "with id v"]
    assert "gone.png is not there" in loaded.dropped[0].reason and "dataset.image_root=" in loaded.dropped[0].reason
    assert "cut.png cannot be read as an image: image file is truncated" in loaded.dropped[1].reason
    assert len(load(spec, "train", need_images=False).questions) == 5


def test_an_answer_that_is_no_option_makes_a_bad_row(tmp_path: Path) -> None:
    rows = [row(letter, answer=letter) | {"options": ["CT", "MRI"]} for letter in "ABC"]
    loaded = load(replace(write(tmp_path, rows, "a.png"), bad_rows=BadRows.drop), "train")
    assert ids(loaded.questions) == ["A", "B"]
    assert "'C' is neither the letter nor the text of one of the options (A: CT; B: MRI)" in loaded.dropped[0].reason


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no usable rows"):
        load(write(tmp_path, []), "train")
    spec = write(tmp_path, [row("x", answer="")])
    spec.bad_rows = BadRows.drop
    with pytest.raises(DataError, match="none of its 1 can be used; the first: "):
        load(spec, "train")


def test_limit_keeps_whole_images_in_order(tmp_path: Path) -> None:
    rows = [row(f"{image}{n}", f"{image}.png") for n in range(3) for image in "abcdef"]
    spec = write(tmp_path, rows, *(f"{image}.png" for image in "abcdef"))
    every = ids(load(spec, "train").questions)
    kept = ids(load(spec, "train", limit=8).questions)
    assert len(kept) == 6 and kept == [id for id in every if id in kept]
    assert {id[0] for id in kept} == {kept[0][0], kept[1][0]}
    assert ids(load(spec, "train", limit=8).questions) == kept
    assert len({tuple(ids(load(spec, "train", limit=8, seed=seed).questions)) for seed in range(8)}) > 1
    assert set(kept) < set(ids(load(spec, "train", limit=12).questions))
    assert len(load(spec, "train", limit=1).questions) == 3  # at least one image
    assert ids(load(spec, "train", limit=99).questions) == every
    with pytest.raises(DataError, match="at least 1"):
        load(spec, "train", limit=0)


def test_fingerprint_follows_bytes_and_format_but_not_place(tmp_path: Path) -> None:
    here = write(tmp_path / "here", [row("x")])
    there = write(tmp_path / "there", [row("x")], "a.png")
    other = write(tmp_path / "other", [row("y")])
    print_ = fingerprint(here, "train")
    assert len(print_) == 16 and int(print_, 16) >= 0
    assert fingerprint(there, "train") == print_ != fingerprint(other, "train")
    (tmp_path / "here" / "VQA_RAD Dataset Public.json").write_bytes((tmp_path / "here" / "train.json").read_bytes())
    same_bytes = QuestionSet(name="s", format="vqa_rad", path=here.path)
    assert fingerprint(same_bytes, "train") != print_


def test_question_without_image_is_a_group_by_itself() -> None:
    assert len(image_groups([asked("1"), asked("2"), asked("3", "a")])) == 3


def test_data_imports_neither_torch_nor_numpy_nor_pillow() -> None:
    code = (
        "import sys, vlmft.data.load, vlmft.data.mixture, vlmft.data.sources.demo, vlmft.data.sources.vqa_rad\n"
        "print([name for name in ('torch', 'numpy', 'PIL') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_filters_by_task_and_modality_take_a_part_and_say_what_there_is(tmp_path: Path) -> None:
    rows = [row("x") | {"modality": "CT"}, row("y") | {"modality": "mri"}, row("z") | {"task": "counting"}]
    spec = write(tmp_path, rows, "a.png")
    assert ids(load(replace(spec, modalities=["MRI", "ct"]), "train").questions) == ["x", "y"]
    assert [q.task for q in load(replace(spec, tasks=["counting"]), "train").questions] == ["counting"]
    with pytest.raises(DataError, match=r"the set's tasks are counting, vqa, its modalities CT, mri\."):
        load(replace(spec, tasks=["report"]), "train")
    with pytest.raises(DataError, match="there is no reprot"):
        load(replace(spec, tasks=["reprot"]), "train")


def test_pictures_can_be_ignored(tmp_path: Path) -> None:
    spec = replace(write(tmp_path, [row("x", "gone.png")]), images=Images.ignore)
    (question,) = load(spec, "train").questions
    assert question.images == () and "<image>" not in question.text


def test_keys_of_another_format_are_refused(tmp_path: Path) -> None:
    spec = replace(write(tmp_path, [row("x")], "a.png"), shuffle_options=True)
    with pytest.raises(DataError, match=r"dataset\.shuffle_options=True means nothing to the format conversations"):
        load(spec, "train")
