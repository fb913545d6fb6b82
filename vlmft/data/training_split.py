"""The questions a run trains on and, apart from them, those that choose the best model."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path

from vlmft.data.load import image_groups, load, pick, source
from vlmft.data.mixture import load_mixture, training_sets, weighted
from vlmft.data.question import VQA, Question, Turn
from vlmft.errors import DataError
from vlmft.evaluation import terms
from vlmft.schema import BadRows, Dataset, QuestionSet


@dataclass(frozen=True)
class TrainingSplit:
    train: list[Question]
    validation: list[Question]
    dropped: int  # bad rows left out
    renamed: int = 0  # answers that `dataset.normalize_terms` wrote in another form

    def describe(self) -> str:
        """Counts in words, per set."""
        sets: dict[str, int] = {}
        for question in self.train:
            sets[question.set] = sets.get(question.set, 0) + 1
        images = len({image for question in self.train for image in question.images})
        named = ", ".join(f"{name} {count:,}" for name, count in sets.items())
        held_out = f", {len(self.validation):,} questions held out for validation" if self.validation else ""
        dropped = f", {self.dropped:,} bad rows dropped" if self.dropped else ""
        renamed = f", {self.renamed:,} answers in another form (normalize_terms)" if self.renamed else ""
        return f"{len(self.train):,} questions on {images:,} images ({named}){held_out}{dropped}{renamed}"


def training_questions(dataset: Dataset, seed: int) -> TrainingSplit:
    """The train split of a set or mixture, without what `dataset.validation` holds out of it.

    `dataset.validation` is a split's name, a file, or a fraction of the training images. Raises DataError.
    """
    held_out = [question for spec, split in validation_sets(dataset) for question in load(spec, split).questions]
    loaded = load_mixture(dataset, "train", seed)
    dropped = sum(len(part.dropped) for part in loaded.values())
    weights = {name: member.weight for name, member in training_sets(dataset).items()}
    if (fraction := fraction_of(dataset.validation)) is not None:
        for part in loaded.values():
            rest, aside = split_off(part.questions, fraction, seed)
            part.questions[:] = rest
            held_out += aside
    train, renamed = weighted(loaded, weights, seed), 0
    if dataset.normalize_terms:
        before = train
        train, held_out = ([in_one_form(question) for question in part] for part in (train, held_out))
        renamed = sum(old.answer != new.answer for old, new in zip(before, train, strict=True))
    return TrainingSplit(train, held_out, dropped, renamed)


def in_one_form(question: Question) -> Question:
    """The question with the synonyms of each answer in words in one form; letters, boxes and reports stay."""
    if question.task != VQA:
        return question

    def said(turn: Turn) -> Turn:
        return replace(turn, answer=terms.target(turn.answer))

    rejected = question.rejected and said(question.rejected)
    return replace(question, turns=tuple(map(said, question.turns)), rejected=rejected)


def validation_sets(dataset: Dataset) -> list[tuple[QuestionSet, str]]:
    """The sets and splits that `dataset.validation` names: a split of every member, or one file of conversations.

    None where it is a fraction or null. Raises DataError for a test split, and for what is neither.
    """
    wanted = dataset.validation
    if wanted is None or fraction_of(wanted) is not None:
        return []
    members = {
        name: replace(member, bad_rows=BadRows.drop if dataset.bad_rows is BadRows.drop else member.bad_rows)
        for name, member in training_sets(dataset).items()
    }
    file = Path(wanted).expanduser()
    if wanted == "test" or any(_is_test_file(file, member) for member in members.values()):
        raise DataError(f"dataset.validation={wanted}: a model chosen on the test split has no honest test score")
    if file.is_file():
        spec = QuestionSet(
            name="validation", format="conversations", path=str(file.parent), splits={"validation": file.name},
            image_root=dataset.image_root, bad_rows=dataset.bad_rows, absolute_paths=dataset.absolute_paths,
        )  # fmt: skip
        return [(spec, "validation")]
    for name, member in members.items():
        if wanted not in (splits := source(member).splits(member)):
            raise DataError(
                f"dataset.validation={wanted}: {name} has the splits {', '.join(splits)}; name one of them, a file in "
                "the conversation form, or a fraction of the training images such as 0.1"
            )
    return [(member, wanted) for member in members.values()]


def split_off(questions: list[Question], fraction: float, seed: int) -> tuple[list[Question], list[Question]]:
    """(rest, held out), both in their order: about `fraction` of the images held out, none on both sides.

    Which images are held out depends on the seed and on the set of images, not on the order of the rows.
    DataError if the fraction is not between 0 and 1 or if one side would be empty.
    """
    if not 0 < fraction < 1:
        raise DataError(f"the fraction of images to hold out is {fraction}; it should lie between 0 and 1.")
    groups = image_groups(questions)
    if len(groups) < 2:
        raise DataError(
            "no images can be held out: all questions are about one image, or several that belong together."
        )
    random.Random(f"hold out {seed}").shuffle(groups)
    size = [len({image for i in group for image in questions[i].images}) or 1 for group in groups]
    wanted = fraction * sum(size)
    held: set[int] = set(groups[0])
    count = size[0]
    for group, images in zip(groups[1:-1], size[1:-1], strict=True):
        if count + images / 2 > wanted:
            break
        held.update(group)
        count += images
    return pick(questions, set(range(len(questions))) - held), pick(questions, held)


def _is_test_file(file: Path, member: QuestionSet) -> bool:
    try:
        return file.is_file() and any(path.samefile(file) for path in source(member).files(member, "test"))
    except DataError:  # there is no test split
        return False


def fraction_of(text: str | None) -> float | None:
    """The number that `dataset.validation` is, or None where it names something."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
