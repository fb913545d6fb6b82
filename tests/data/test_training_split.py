from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.test_load import asked, ids
from vlmft.data.load import image_groups
from vlmft.data.question import Question
from vlmft.data.training_split import split_off, training_questions
from vlmft.errors import DataError
from vlmft.identity import dataset_facts
from vlmft.schema import Config, Dataset


def dataset(composed: Callable[..., Config], *overrides: str) -> Dataset:
    chosen = composed(*overrides).dataset
    return chosen


def test_a_fraction_holds_out_whole_images(composed: Callable[..., Config]) -> None:
    split = training_questions(dataset(composed, "dataset=demo", "dataset.validation=0.1"), seed=0)
    train, held = ({image for q in part for image in q.images} for part in (split.train, split.validation))
    assert not train & held and len(held) == pytest.approx(0.1 * len(train | held), rel=0.1)
    assert {question.set for question in split.validation} == {"demo_ct", "demo_xray", "demo_path"}
    again = training_questions(dataset(composed, "dataset=demo", "dataset.validation=0.1"), seed=0)
    assert again == split
    assert training_questions(dataset(composed, "dataset=demo", "dataset.validation=0.1"), seed=1) != split
    assert "held out" in split.describe()


def test_a_model_is_not_chosen_on_a_test_split(composed: Callable[..., Config]) -> None:
    with pytest.raises(DataError, match="no honest test score"):
        training_questions(dataset(composed, "dataset=demo_ct", "dataset.validation=test"), seed=0)


def test_an_unknown_split_names_those_there_are(composed: Callable[..., Config]) -> None:
    with pytest.raises(DataError, match=r"validation=dev: demo_ct has the splits train, test.*fraction"):
        training_questions(dataset(composed, "dataset=demo_ct", "dataset.validation=dev"), seed=0)


def test_without_validation_everything_is_trained(composed: Callable[..., Config]) -> None:
    split = training_questions(dataset(composed, "dataset=demo_ct"), seed=0)
    assert split.validation == [] and len({q.id for q in split.train}) == len(split.train) > 2000


def conversation(file: Path, *answers: str) -> None:
    rows = [
        {"id": n, "conversations": [{"from": "human", "value": "Big?"}, {"from": "gpt", "value": answer}]}
        for n, answer in enumerate(answers)
    ]
    file.write_text(json.dumps(rows))


def test_a_file_of_conversations_validates_any_set(composed: Callable[..., Config], tmp_path: Path) -> None:
    conversation(tmp_path / "own.json", "yes", "no")
    chosen = ("dataset=demo_ct", f"dataset.validation={tmp_path / 'own.json'}")
    split = training_questions(dataset(composed, *chosen), seed=0)
    assert [question.answer for question in split.validation] == ["yes", "no"] and len(split.train) > 2000
    before = dataset_facts(dataset(composed, *chosen))
    conversation(tmp_path / "own.json", "yes", "perhaps")
    assert dataset_facts(dataset(composed, *chosen)) != before, "its content decides which model is the best"


def test_a_split_is_validation_and_a_test_file_is_not(composed: Callable[..., Config], tmp_path: Path) -> None:
    for name in ("train", "validation", "test"):
        conversation(tmp_path / f"{name}.json", name)
    chosen = ("dataset=conversations", f"dataset.path={tmp_path}")
    split = training_questions(dataset(composed, *chosen, "dataset.validation=validation"), seed=0)
    assert [question.answer for question in split.validation] == ["validation"]
    with pytest.raises(DataError, match="no honest test score"):
        training_questions(dataset(composed, *chosen, f"dataset.validation={tmp_path / 'test.json'}"), seed=0)


@pytest.fixture
def synonyms(tmp_path: Path) -> str:
    """The option that names a set whose answers are written in more than one form."""
    said = [("X-ray", None), ("plain film", None), ("Chest radiograph", "report"), ("plain film", "multi_label")]
    rows = [
        {"id": n, "conversations": [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": answer}]}
        | ({"task": task} if task else {})
        for n, (answer, task) in enumerate(said)
    ]
    first = [{"from": "human", "value": "And before?"}, {"from": "gpt", "value": "plain film"}]
    rows[0]["conversations"] = [*first, *rows[0]["conversations"]]  # type: ignore[misc]
    for name in ("train", "validation"):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    return f"dataset.path={tmp_path}"


def answers(questions: list[Question]) -> list[list[str]]:
    return [[turn.answer for turn in q.turns] for q in sorted(questions, key=lambda q: q.id)]


def test_synonyms_are_trained_in_one_form(composed: Callable[..., Config], synonyms: str) -> None:
    chosen = ("dataset=conversations", synonyms, "dataset.validation=validation")
    split = training_questions(dataset(composed, *chosen, "dataset.normalize_terms=true"), seed=0)
    as_written = [["plain film", "X-ray"], ["plain film"], ["Chest radiograph"], ["plain film"]]
    one_form = [["x-ray", "X-Ray"], ["x-ray"], ["Chest radiograph"], ["plain film"]]
    assert answers(split.train) == answers(split.validation) == one_form, "answers in words alone"
    assert split.renamed == 2 and "2 answers in another form" in split.describe()
    plain = training_questions(dataset(composed, *chosen), seed=0)
    assert answers(plain.train) == answers(plain.validation) == as_written
    assert plain.renamed == 0 and "another form" not in plain.describe()


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
        "from vlmft.data.training_split import split_off; from vlmft.data.question import Question, Turn\n"
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
