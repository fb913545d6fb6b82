"""The training rows of a set one after another, for files larger than memory (`dataset.streaming`).

Nothing here holds more than `dataset.buffer_size` rows. What is drawn from the buffer, in which order, depends on the
file, the seed and the epoch alone.
"""

from __future__ import annotations

import hashlib
import os
import pkgutil
import random
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeAlias

from vlmft.data import images, load, sources
from vlmft.data.picture_check import Seen, perceptual_hash
from vlmft.data.question import BadRow, Question
from vlmft.data.training_split import fraction_of, in_one_form
from vlmft.errors import DataError
from vlmft.schema import BadRows, Dataset, Method

# A question with the number of its row in the file, from 0. Two rows may have one id, but not one number.
Numbered: TypeAlias = tuple[int, Question]


def problems(dataset: Dataset) -> Iterator[str]:
    """Why a set cannot be streamed as the config says; nothing where it is not to be streamed."""
    if not dataset.streaming:
        return
    if dataset.buffer_size < 1:
        yield f"dataset.buffer_size={dataset.buffer_size} should be at least 1, the rows that are shuffled together"
    if dataset.sets:
        yield "dataset.streaming: a mixture is drawn from all of its rows; stream one set, whose file may hold them all"
        return
    if dataset.percent != 100:
        yield (
            f"dataset.percent={dataset.percent:g} is drawn from all images, which streaming never has together; "
            "dataset.max_rows=N takes the first N rows"
        )
    if dataset.weight != 1:
        yield f"dataset.weight={dataset.weight:g} is of a set within a mixture, which streaming does not read"
    if fraction_of(dataset.validation) is not None:
        yield (
            f"dataset.validation={dataset.validation} is drawn from all images, which streaming never has together; "
            "name a split or a file"
        )
    formats = [module.name for module in pkgutil.iter_modules(sources.__path__) if module.name[0] != "_"]
    if dataset.format in formats and not hasattr(load.source(dataset), "stream"):
        can = [name for name in formats if hasattr(load.source(Dataset(format=name)), "stream")]
        yield f"dataset.streaming: {dataset.format} is read whole; {', '.join(can)} can be streamed"


def reach(dataset: Dataset, method: Method) -> int | None:
    """How many questions from the start of the file training can come to; None for all of them.

    With `method.trainer.max_steps` nobody need wait until a long file has been counted.
    """
    steps = int(method.trainer.get("max_steps") or 0)
    if steps <= 0:
        return None
    return steps * method.batch_size + dataset.buffer_size + method.max_questions_per_row


@dataclass
class Tally:
    """What was found of the rows so far."""

    usable: int = 0
    bad: int = 0  # that cannot be used
    defects: int = 0  # of the publisher's own files, which are always left out
    first: list[BadRow] = field(default_factory=list)  # of the bad ones

    def add(self, row: BadRow) -> None:
        if row.published:
            self.defects += 1
            return
        self.bad += 1
        if len(self.first) < load.SHOWN:
            self.first.append(row)

    def refuse(self, dataset: Dataset) -> None:
        """DataError naming the first bad rows, unless they are to be dropped."""
        if not self.bad or dataset.bad_rows is BadRows.drop:
            return
        total = self.usable + self.bad + self.defects
        lines = [f"{dataset.name} train: {self.bad} of the first {total} rows cannot be used:"]
        lines += [f"  {row}" for row in self.first]
        if self.bad > len(self.first):
            lines.append(f"  … and {self.bad - len(self.first)} more")
        raise DataError("\n".join([*lines, "Put them right, or leave them out with dataset.bad_rows=drop."]))


def count(dataset: Dataset, most: int | None) -> tuple[Tally, list[Question]]:
    """One pass over the file, with missing pictures but without opening any: what was found, and the first questions.

    It ends where `most` usable ones have been found. Raises DataError where there are none.
    """
    tally = Tally()
    first: list[Question] = []
    for chunk, _ in usable(dataset, missing, tally):
        first = first or [question for _, question in chunk]
        if most is not None and tally.usable >= most:
            break
    return tally, first


def usable(
    dataset: Dataset, look: Callable[[Iterable[str]], dict[str, Seen]], tally: Tally
) -> Iterator[tuple[list[Numbered], dict[str, Seen]]]:
    """The usable questions of the train split, `buffer_size` rows at a time, with what `look` saw of their pictures.

    At most `dataset.max_rows` of them, the first of the file. What is read is added to the tally. Raises DataError at
    the end where there were none.
    """
    load.refuse_what_has_no_effect(dataset, load.source(dataset), f"{dataset.name} train")
    if dataset.max_rows is not None and dataset.max_rows < 1:
        raise DataError(f"{dataset.name} train: dataset.max_rows={dataset.max_rows} leaves nothing.")
    place = ", ".join(str(file) for file in load.source(dataset).files(dataset, "train")[: load.SHOWN])
    rest = rows(dataset)
    while (dataset.max_rows is None or tally.usable < dataset.max_rows) and (
        some := list(islice(rest, dataset.buffer_size))
    ):
        pictures = look(image for _, row in some if isinstance(row, Question) for image in row.images)
        found = []
        for number, row in some:
            if isinstance(row, Question) and (reason := load.unusable(row, pictures)):
                row = BadRow(place, f"with id {row.id}", reason)
            if isinstance(row, BadRow):
                tally.add(row)
            elif dataset.max_rows is None or tally.usable < dataset.max_rows:
                found.append((number, row))
                tally.usable += 1
        if found:
            yield found, pictures
    if not tally.usable:
        tally.refuse(dataset)
        chosen = f" left by dataset.tasks={dataset.tasks}, dataset.modalities={dataset.modalities}"
        lost = f" (the first bad one: {tally.first[0]})" if tally.first else ""
        raise DataError(
            f"{dataset.name} train: no usable rows in {place}"
            f"{chosen if dataset.tasks or dataset.modalities else ''}{lost}."
        )


def rows(dataset: Dataset) -> Iterator[tuple[int, Question | BadRow]]:
    """The rows that the set's filters keep, with their numbers. Whether their pictures are there is not looked at."""
    for number, row in enumerate(load.source(dataset).stream(dataset, "train")):
        if load.chosen(dataset, row):
            yield number, load.read_as_said(dataset, row)


def as_trained(dataset: Dataset, question: Question) -> Question:
    """The question with its answers in the form that they are trained in."""
    return in_one_form(question) if dataset.normalize_terms else question


def missing(paths: Iterable[str]) -> dict[str, Seen]:
    """Of the pictures, those that are not there."""
    return {path: Seen("", problem="is not there") for path in dict.fromkeys(paths) if not os.path.isfile(path)}


class Looking:
    """Looks at pictures, each decoded once while rows that follow each other show it.

    Nothing is remembered on disk: of millions of pictures, that memory would itself have to be read and written whole.
    """

    def __init__(self) -> None:
        self._before: dict[str, Seen] = {}

    def __call__(self, paths: Iterable[str]) -> dict[str, Seen]:
        """What each of the pictures is; one that cannot be used has a `problem`."""
        wanted = list(dict.fromkeys(paths))
        new = [path for path in wanted if path not in self._before]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
            fresh = dict(zip(new, threads.map(_seen, new), strict=True))
        self._before = {path: fresh.get(path) or self._before[path] for path in wanted}
        return self._before


def _seen(path: str) -> Seen:
    if not os.path.isfile(path):
        return Seen("", problem="is not there")
    try:
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return Seen("", problem=f"cannot be read: {error.strerror}")
    try:
        images.size(path)  # refuses what has more than 8 bits a channel
        return Seen(sha256, phash=perceptual_hash(path))
    except DataError as error:
        return Seen(sha256, problem=str(error).removeprefix(f"{path} "))


def drawn(questions: Iterable[Numbered], most: int, buffer_size: int, seed: int, epoch: int) -> Iterator[Numbered]:
    """The questions in an order of this seed and epoch: units drawn at random from a buffer of `buffer_size` rows.

    A unit is a run of at most `most` questions about the same pictures, which stay together.
    """
    chance = random.Random(f"stream {seed} {epoch}")
    held: list[list[Numbered]] = []
    size = 0

    def draw() -> list[Numbered]:
        place = chance.randrange(len(held))
        held[place], held[-1] = held[-1], held[place]
        return held.pop()

    for unit in _units(questions, most):
        held.append(unit)
        size += len(unit)
        while size >= buffer_size:
            taken = draw()
            size -= len(taken)
            yield from taken
    while held:
        yield from draw()


def _units(questions: Iterable[Numbered], most: int) -> Iterator[list[Numbered]]:
    unit: list[Numbered] = []
    for number, question in questions:
        if unit and (len(unit) == most or not question.images or question.images != unit[0][1].images):
            yield unit
            unit = []
        unit.append((number, question))
    if unit:
        yield unit
