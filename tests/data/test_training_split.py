from __future__ import annotations

from collections.abc import Callable

import pytest

from vlmft.data.training_split import training_questions
from vlmft.errors import DataError
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
