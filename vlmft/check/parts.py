"""The splits that a run would read, each loaded as the run would load it, but with every bad row at hand."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from vlmft.check.findings import ERROR, NOTE, Finding, left_out, of_rows
from vlmft.data import stream
from vlmft.data.load import Loaded, fingerprint, load
from vlmft.data.mixture import load_member, training_sets
from vlmft.data.picture_check import Seen, look
from vlmft.data.question import Question
from vlmft.data.training_split import validation_sets
from vlmft.errors import DataError
from vlmft.evaluation.evaluate import chosen_sets, test_questions
from vlmft.schema import BadRows, Config, QuestionSet, Task

TRAIN, VALIDATION, TEST = "train", "validation", "test"


@dataclass
class Part:
    """A split of a set: what it is for, its usable questions, and what was found."""

    use: str  # TRAIN, VALIDATION or TEST
    set: str
    split: str
    spec: QuestionSet
    questions: list[Question] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    more: int = 0  # questions of a streamed set beside those that are at hand

    @property
    def total(self) -> int:
        return len(self.questions) + self.more

    @property
    def name(self) -> str:
        return f"{self.set} {self.split}"

    @property
    def images(self) -> dict[str, None]:
        return dict.fromkeys(image for question in self.questions for image in question.images)


def read_parts(config: Config) -> list[Part]:
    """Every split that the run of `config` would read, with the rows that it would refuse or leave out as findings."""
    return list(_parts(config))


def add_findings(parts: Iterable[Part]) -> dict[str, Seen]:
    """Add what is to be said of rows and pictures to the parts, and return what was seen of the pictures, by path."""
    parts = list(parts)
    seen = look([image for part in parts for image in part.images])
    for part in parts:
        part.findings += of_rows(part.questions, seen)
    return seen


def _parts(config: Config) -> Iterator[Part]:
    drop = config.dataset.bad_rows is BadRows.drop
    if config.task is not Task.eval:
        if config.dataset.streaming:
            yield _first_rows(config)
        for name, member in ({} if config.dataset.streaming else training_sets(config.dataset)).items():
            read = partial(load_member, config.dataset, name, "train", config.seed, drop=True)
            yield _read(Part(TRAIN, name, "train", member), drop, read)
        try:
            held_out = validation_sets(config.dataset)
        except DataError as error:
            part = Part(VALIDATION, "dataset.validation", "", config.dataset)
            part.findings = _unreadable(error, part)
            yield part
            held_out = []
        for spec, split in held_out:
            yield _read(Part(VALIDATION, spec.name, split, spec), drop, partial(load, spec, split, drop_bad_rows=True))
    for name, spec in chosen_sets(config.eval, config.dataset).items():
        read = partial(test_questions, replace(spec, bad_rows=BadRows.drop), config.eval)
        yield _read(Part(TEST, name, "test", spec), False, read)


def _first_rows(config: Config) -> Part:
    """A streamed set: every row is read and counted, and those of the first buffer are kept to be looked at."""
    dataset = config.dataset
    part = Part(TRAIN, dataset.name, "train", dataset)
    try:
        tally, part.questions = stream.count(dataset, stream.reach(dataset, config.method))
    except DataError as error:
        part.findings = _unreadable(error, part)
        return part
    part.more = tally.usable - len(part.questions)
    part.findings = left_out(tally.first, dataset.bad_rows is BadRows.drop, tally.bad)
    if part.more:
        said = f"streamed: {tally.usable:,} questions were read, and the first {len(part.questions):,} are looked at"
        part.findings.append(Finding(NOTE, said, 0, ()))
    return part


def _read(part: Part, drop: bool, read: Callable[[], Loaded]) -> Part:
    try:
        loaded = read()
    except DataError as error:
        part.findings = _unreadable(error, part)
        return part
    part.questions = loaded.questions
    part.findings = left_out(loaded.dropped, drop or part.spec.bad_rows is BadRows.drop)
    return part


def _unreadable(error: DataError, part: Part) -> list[Finding]:
    """The error, without the part's name where that begins it: a finding stands behind it."""
    return [Finding(ERROR, str(error).removeprefix(f"{part.name}: "), 0, ())]


def state(parts: Iterable[Part]) -> list[Any]:
    """What the parts were read from, annotations by content and pictures by size and time of change."""
    found: list[Any] = []
    for part in parts:
        try:
            rows = fingerprint(part.spec, part.split) if part.split else ""
        except DataError as error:
            rows = str(error)
        found.append([part.use, part.set, rows, [_facts(image) for image in part.images], part.total])
    return found


def _facts(image: str) -> list[Any]:
    try:
        facts = os.stat(image)
        return [image, facts.st_size, facts.st_mtime_ns]
    except OSError:
        return [image]
