"""The questions a run trains on and, apart from them, those that choose the best model."""

from __future__ import annotations

from dataclasses import dataclass

from vlmft.data.load import source, split_off
from vlmft.data.mixture import load_mixture, training_sets, weighted
from vlmft.data.question import Question
from vlmft.errors import DataError
from vlmft.schema import Dataset


@dataclass(frozen=True)
class TrainingSplit:
    train: list[Question]
    validation: list[Question]
    dropped: int  # bad rows left out

    def describe(self) -> str:
        """Counts in words, per set."""
        sets: dict[str, int] = {}
        for question in self.train:
            sets[question.set] = sets.get(question.set, 0) + 1
        images = len({image for question in self.train for image in question.images})
        named = ", ".join(f"{name} {count:,}" for name, count in sets.items())
        held_out = f", {len(self.validation):,} questions held out for validation" if self.validation else ""
        dropped = f", {self.dropped:,} bad rows dropped" if self.dropped else ""
        return f"{len(self.train):,} questions on {images:,} images ({named}){held_out}{dropped}"


def training_questions(dataset: Dataset, seed: int) -> TrainingSplit:
    """The train split of a set or mixture, without what `dataset.validation` holds out of it.

    `dataset.validation` is a split's name, or a fraction of the training images; a test split is refused, since a
    model chosen on it would make its test score worthless. Raises DataError.
    """
    loaded = load_mixture(dataset, "train", seed)
    dropped = sum(len(part.dropped) for part in loaded.values())
    weights = {name: member.weight for name, member in training_sets(dataset).items()}
    wanted = dataset.validation
    if wanted is None:
        return TrainingSplit(weighted(loaded, weights, seed), [], dropped)
    fraction = _fraction(wanted)
    if fraction is not None:
        held_out: list[Question] = []
        for part in loaded.values():
            rest, aside = split_off(part.questions, fraction, seed)
            part.questions[:] = rest
            held_out += aside
        return TrainingSplit(weighted(loaded, weights, seed), held_out, dropped)
    if wanted == "test":
        raise DataError("dataset.validation=test: a model chosen on the test split has no honest test score")
    for name, member in training_sets(dataset).items():
        if wanted not in (splits := source(member).splits(member)):
            raise DataError(
                f"dataset.validation={wanted}: {name} has the splits {', '.join(splits)}; "
                "name one of them, or give a fraction of the training images such as 0.1"
            )
    validation = load_mixture(dataset, wanted, seed)
    return TrainingSplit(
        weighted(loaded, weights, seed), [q for part in validation.values() for q in part.questions], dropped
    )


def _fraction(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
