from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vlmft.data.training_split import training_questions
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
