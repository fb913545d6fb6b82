"""Several sets as one: `dataset.sets` holds the members, each read as it would be by itself."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING

from vlmft.data.load import Loaded, load
from vlmft.data.question import Question
from vlmft.data.sources import set_name
from vlmft.errors import DataError

if TYPE_CHECKING:
    from vlmft.schema import Dataset, QuestionSet

LIMITS = {"train": "max_rows", "test": "max_test_rows"}


def training_sets(dataset: Dataset) -> dict[str, QuestionSet]:
    """The members of a mixture, or the single set, by name; none where no dataset is chosen."""
    return dict(dataset.sets) or ({set_name(dataset): dataset} if dataset.name else {})


def load_mixture(dataset: Dataset, split: str, seed: int) -> dict[str, Loaded]:
    """The split of every member by name (or of the single set), as `load_member` has it."""
    return {name: load_member(dataset, name, split, seed) for name in training_sets(dataset)}


def load_member(dataset: Dataset, name: str, split: str, seed: int, drop: bool = False) -> Loaded:
    """The split of one member (or of the single set), within its `percent`, `max_rows` or `max_test_rows`.

    A mixture's own `percent` or limit holds for each member that has none, and its `bad_rows=drop` for all, as does
    `drop`. DataError naming the member.
    """
    member = training_sets(dataset)[name]
    limit = LIMITS.get(split)
    rows = getattr(member, limit) if limit else None
    if rows is None and limit:
        rows = getattr(dataset, limit)
    percent = 100.0
    if split == "train":
        percent = member.percent if member.percent != 100 else dataset.percent
    drop = drop or getattr(dataset.bad_rows, "name", dataset.bad_rows) == "drop"
    try:
        return load(member, split, limit=rows, percent=percent, seed=seed, drop_bad_rows=drop)
    except DataError as error:
        if not dataset.sets:
            raise
        raise DataError(f"dataset.sets.{name}: {error}") from error


def weighted(loaded: Mapping[str, Loaded], weights: Mapping[str, float], seed: int) -> list[Question]:
    """The members' questions, one set after another, each as often as its weight says (1.0 if it has none).

    0.5 keeps a seeded half of the rows, 2.0 gives each twice, 1.3 gives each once and a seeded 30 % again.
    DataError for a weight that is no number from 0 up or belongs to no member, or if nothing is left.
    """
    if unknown := set(weights) - set(loaded):
        raise DataError(f"weight for {', '.join(sorted(unknown))}, but the sets are {', '.join(loaded)}.")
    questions: list[Question] = []
    for name, member in loaded.items():
        weight = weights.get(name, 1.0)
        if not (math.isfinite(weight) and weight >= 0):
            raise DataError(f"dataset.sets.{name}.weight is {weight}; it should be a number from 0 up.")
        rows = member.questions
        whole = int(weight)
        again = round((weight - whole) * len(rows))
        extra = random.Random(f"weight {name} {seed}").sample(range(len(rows)), again)
        questions += rows * whole + [rows[i] for i in sorted(extra)]
    if not questions:
        raise DataError("the weights leave no rows; set dataset.sets.<name>.weight above 0 for one of them.")
    return questions
