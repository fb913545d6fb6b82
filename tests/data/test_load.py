from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from vlmft.data.load import fingerprint, image_groups, load, split_off
from vlmft.data.question import Question, Turn
from vlmft.errors import DataError
from vlmft.schema import BadRows, QuestionSet


def write(folder: Path, rows: list[dict[str, Any]], *images: str) -> QuestionSet:
    folder.mkdir(exist_ok=True)
    (folder / "train.json").write_text(json.dumps(rows))
    for image in images:
        (folder / image).write_bytes(b"")
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
        with pytest.raises(DataError, match=r"no format .*; there are conversations, demo, .*vqa_rad") as error:
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


def test_missing_image_is_a_bad_row_and_looked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row("x"), row("y"), row("z", "gone.png"), row("u", "gone.png"), row("v", ["a.png", "gone.png"])]
    spec = write(tmp_path, rows, "a.png")
    spec.bad_rows = BadRows.drop
    looked: list[str] = []

    def isfile(path: str) -> bool:
        looked.append(Path(path).name)
        return Path(path).exists()

    monkeypatch.setattr("vlmft.data.load.os.path.isfile", isfile)
    loaded = load(spec, "train")
    assert ids(loaded.questions) == ["x", "y"] and sorted(looked) == ["a.png", "gone.png"]
    assert [bad.row for bad in loaded.dropped] == ["with id z", "with id u", "with id v"]
    assert "gone.png is not there" in loaded.dropped[0].reason and "dataset.image_root=" in loaded.dropped[0].reason


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no usable rows"):
        load(write(tmp_path, []), "train")
    spec = write(tmp_path, [row("x", answer="")])
    spec.bad_rows = BadRows.drop
    with pytest.raises(DataError, match="all 1 were dropped"):
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


def test_split_off_is_by_image_and_ignores_the_order_of_rows() -> None:
    questions = [asked(f"{image}{n}", f"/i/{image}.png") for n in range(2) for image in "abcdefghij"]
    rest, held = split_off(questions, 0.3, seed=1)
    assert len(held) == 6 and sorted(ids(rest) + ids(held)) == sorted(ids(questions))
    assert not {q.images for q in rest} & {q.images for q in held}
    assert ids(held) == [q.id for q in questions if q in held]
    shuffled = random.Random(0).sample(questions, len(questions))
    assert set(ids(split_off(shuffled, 0.3, seed=1)[1])) == set(ids(held))
    assert len({tuple(ids(split_off(questions, 0.3, seed)[1])) for seed in range(8)}) > 1


def test_split_off_is_the_same_in_another_process_and_place() -> None:
    questions = [asked(image, f"/i/{image}.png") for image in "abcdefghij"]
    moved = [asked(image, f"/elsewhere/{image}.png") for image in "abcdefghij"]
    assert ids(split_off(questions, 0.4, 3)[1]) == ids(split_off(moved, 0.4, 3)[1])
    code = (
        "from vlmft.data.load import split_off; from vlmft.data.question import Question, Turn\n"
        "qs = [Question(i, 's', (f'/i/{i}.png',), (Turn('Big?', 'yes'),), 'closed') for i in 'abcdefghij']\n"
        "print(*[q.id for q in split_off(qs, 0.4, 3)[1]])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ids(split_off(questions, 0.4, 3)[1])


def test_split_off_keeps_images_asked_about_together_on_one_side() -> None:
    chain = [asked("1", "a", "b"), asked("2", "c", "b"), asked("3", "d"), asked("4", "c"), asked("5", "e")]
    assert sorted(sorted(chain[i].id for i in group) for group in image_groups(chain)) == [
        ["1", "2", "4"],
        ["3"],
        ["5"],
    ]
    for seed in range(6):
        rest, held = split_off(chain, 0.4, seed)
        assert rest and held
        assert not {i for q in rest for i in q.images} & {i for q in held for i in q.images}


def test_question_without_image_is_a_group_by_itself() -> None:
    assert len(image_groups([asked("1"), asked("2"), asked("3", "a")])) == 3


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_split_off_leaves_an_image_on_each_side(fraction: float) -> None:
    questions = [asked(image, image) for image in "abcd"]
    rest, held = split_off(questions, fraction, 0)
    assert min(len(rest), len(held)) == 1


def test_split_off_refuses_what_cannot_be_split() -> None:
    with pytest.raises(DataError, match="one image"):
        split_off([asked("1", "a"), asked("2", "a")], 0.5, 0)
    for fraction in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(DataError, match="between 0 and 1"):
            split_off([asked("1", "a"), asked("2", "b")], fraction, 0)


def test_data_imports_neither_torch_nor_numpy_nor_pillow() -> None:
    code = (
        "import sys, vlmft.data.load, vlmft.data.mixture, vlmft.data.sources.demo, vlmft.data.sources.vqa_rad\n"
        "print([name for name in ('torch', 'numpy', 'PIL') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
