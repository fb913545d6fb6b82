"""Training on a set that is read while training: one pass before it says which rows are used and how many there are.

That pass holds two bytes for each row of the file; training then draws the same questions in the same order wherever it
goes on, whatever the number of ranks, micro-batches and loader workers.
"""

from __future__ import annotations

import base64
import logging
import math
import os
import zlib
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path

from vlmft.chat.encode import Encoder, Row
from vlmft.chat.over_long import Encoded, fit
from vlmft.chat.packing import Pack
from vlmft.data import leakage, stream
from vlmft.data.load import load
from vlmft.data.question import Question
from vlmft.data.training_split import TrainingSplit, validation_sets
from vlmft.errors import DataError
from vlmft.files import read_json, write_json
from vlmft.schema import Dataset, Method
from vlmft.training.epochs import Epochs, with_picture

logger = logging.getLogger(__name__)

STORED = "streamed.json"  # of a run: what the pass found, for a later start
_NUMBERS = ("questions", "dropped", "over_long", "shrunk", "renamed")


@dataclass
class Stream:
    """A set's file as the pass over it found it."""

    dataset: Dataset
    max_tokens: int
    counts: array[int] = field(default_factory=lambda: array("H"))  # training rows that each row of the file gives
    questions: int = 0  # usable ones
    dropped: int = 0  # bad rows left out
    over_long: int = 0  # training rows left out
    shrunk: int = 0  # training rows whose pictures are made smaller
    renamed: int = 0  # answers that `dataset.normalize_terms` writes in another form
    first: list[Question] = field(default_factory=list)  # a buffer of them,
    rows: list[Row] = field(default_factory=list)  # and their training rows

    @property
    def total(self) -> int:
        """Training rows in an epoch."""
        return sum(self.counts)

    def describe(self) -> str:
        """Counts in words."""
        dropped = f", {self.dropped:,} bad rows dropped" if self.dropped else ""
        renamed = f", {self.renamed:,} answers in another form (normalize_terms)" if self.renamed else ""
        shuffled = f"streamed and shuffled in {self.dataset.buffer_size:,}"
        return f"{self.questions:,} questions ({self.dataset.name}), {shuffled}{dropped}{renamed}"

    def encode(self, encoder: Encoder, questions: Iterable[stream.Numbered]) -> tuple[dict[int, list[Row]], Encoded]:
        """The training rows of each question by its number, and all of them, named by it: ids need not be unique.

        DataError where one is too long and `dataset.over_long` does not help.
        """
        marked = [replace(question, id=f"row {number}") for number, question in questions]
        encoded = fit(encoder, encoder.rows(marked), self.max_tokens, self.dataset.over_long)
        found: dict[int, list[Row]] = {}
        for row in encoded.rows:
            found.setdefault(int(row.question.rpartition(" ")[2]), []).append(row)
        return found, encoded

    def encoded(self) -> Encoded:
        """The first buffer's training rows, with what the over-long policy did to those of the file."""
        return Encoded(self.rows, self.over_long, self.shrunk)

    def split(self) -> TrainingSplit:
        """The first buffer's questions, and those that `dataset.validation` names, all of them. Raises DataError."""
        sets = validation_sets(self.dataset)
        held_out = [
            stream.as_trained(self.dataset, question) for spec, name in sets for question in load(spec, name).questions
        ]
        return TrainingSplit(self.first, held_out, self.dropped, self.renamed)


def read_through(
    dataset: Dataset, method: Method, encoder: Encoder, run: Path, trained_on: Path,
    earlier: Sequence[leakage.Entry] = (),
) -> Stream:  # fmt: skip
    """Look at every row and picture that training can come to, and write `trained_on` for leakage audits.

    Entries of `earlier` runs, whose weights are trained on, come first there. What is found is kept in `run` for later
    starts. Raises DataError naming rows that cannot be used, or are too long.
    """
    found = Stream(dataset, method.max_row_tokens)
    stored = read_json(run / STORED)
    if stored and trained_on.is_file():
        found.counts.frombytes(zlib.decompress(base64.b64decode(stored["counts"])))
        for name in _NUMBERS:
            setattr(found, name, stored[name])
        again = Stream(dataset, method.max_row_tokens)
        next((entry for entry in _entries(again, encoder, None) if again.rows), None)
        found.first, found.rows = again.first, again.rows
        return found
    leakage.write(trained_on, chain(earlier, _entries(found, encoder, stream.reach(dataset, method))))
    if not found.total:
        limit = f"method.max_row_tokens={found.max_tokens}"
        raise DataError(f"{dataset.name} train: every row has more than {limit} tokens; raise that.")
    counts = base64.b64encode(zlib.compress(found.counts.tobytes())).decode()
    write_json(run / STORED, {"counts": counts} | {name: getattr(found, name) for name in _NUMBERS})
    return found


def _entries(found: Stream, encoder: Encoder, most: int | None) -> Iterator[leakage.Entry]:
    """Read the file, counting in `found`, until `most` questions are kept; what is trained on, as `leakage` has it."""
    dataset, tally, kept = found.dataset, stream.Tally(), 0
    for chunk, pictures in stream.usable(dataset, stream.Looking(), tally):
        tally.refuse(dataset)
        said = [stream.as_trained(dataset, question) for _, question in chunk]
        numbers = [number for number, _ in chunk]
        rows, encoded = found.encode(encoder, zip(numbers, said, strict=True))
        found.counts.extend([0] * (numbers[-1] + 1 - len(found.counts)))
        for number, of_question in rows.items():
            found.counts[number] = len(of_question)
        found.questions, found.dropped = tally.usable, tally.bad + tally.defects
        found.over_long += encoded.dropped
        found.shrunk += encoded.shrunk
        found.renamed += sum(old.answer != new.answer for (_, old), new in zip(chunk, said, strict=True))
        if not found.rows:
            found.first, found.rows = said, encoded.rows
        yield from leakage.entries(said, {path: (seen.sha256, seen.phash) for path, seen in pictures.items()})
        kept += len(rows)
        if most is not None and kept >= most:
            return
    tally.refuse(dataset)


class Streamed(Epochs):
    """Epochs whose rows are read in turn: a step has the next `batch_size` of them in the order they are drawn in.

    Behind the item that was asked for last, the file is read from its start again, and ahead of it rows are passed over
    without being encoded. So items should be asked for in order; which process asks for which makes no difference.
    """

    def __init__(
        self, found: Stream, encoder: Encoder, *, batch_size: int, micro_batches: int, most: int, max_tokens: int,
        seed: int,
    ) -> None:  # fmt: skip
        self.stream, self.encoder = found, encoder
        self.rows, self.picture = found.rows, with_picture(found.rows)  # of the first of them
        self.batch_size, self.micro_batches, self.seed = batch_size, micro_batches, seed
        self.most, self.max_tokens, self.shares = min(most, batch_size), max_tokens, most > 1
        self.total = found.total
        self.steps = math.ceil(self.total / batch_size)
        self._forget()

    def __getitem__(self, item: int) -> list[Pack]:
        epoch, number = divmod(item, len(self))
        step, part = divmod(number, self.micro_batches)
        return self._step(epoch, step)[part]

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_cursor", "_newest")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._forget()

    def questions(self, steps: int) -> int:
        """How many questions the first `steps` optimiser steps hold, counted as often as they come."""
        epochs, rest = divmod(steps, self.steps)
        return epochs * self.total + rest * self.batch_size

    def questions_per_pack(self) -> float:
        """Of the steps that a buffer of rows gives, on average."""
        steps = min(self.steps, math.ceil(self.stream.dataset.buffer_size / self.batch_size))
        packs = [pack for item in range(steps * self.micro_batches) for pack in self[item]]
        return sum(len(pack.rows) for pack in packs) / len(packs)

    def _forget(self) -> None:
        self._cursor: tuple[int, int, int, Iterator[tuple[int, Question, int]]] = (0, 0, 0, iter(()))
        self._newest: tuple[tuple[int, int], Epochs] | None = None

    def _step(self, epoch: int, step: int) -> Epochs:
        """A plan of one step: as an epoch of so few rows would have it."""
        if self._newest is None or self._newest[0] != (epoch, step):
            planned = Epochs(
                self._rows(epoch, step), self.encoder.image_token_id, batch_size=self.batch_size,
                micro_batches=self.micro_batches, most=self.most, max_tokens=self.max_tokens, seed=self.seed,
            )  # fmt: skip
            planned.picture = self.picture
            self._newest = (epoch, step), planned
        return self._newest[1]

    def _rows(self, epoch: int, step: int) -> list[Row]:
        owner, at_epoch, at_step, drawn = self._cursor
        # A forked process shares the position in a file that was open before, so it opens its own.
        if owner != os.getpid() or at_epoch != epoch or at_step > step:
            at_step, drawn = 0, self._drawn(epoch)
        deque(islice(drawn, (step - at_step) * self.batch_size), maxlen=0)
        chosen = list(islice(drawn, self.batch_size))
        self._cursor = os.getpid(), epoch, step + 1, drawn
        if not chosen:
            raise DataError(self._changed(f"it ends before step {step + 1} of an epoch of {self.steps}"))
        questions = {number: question for number, question, _ in chosen}
        found, _ = self.stream.encode(self.encoder, questions.items())
        for number in questions:
            if len(found.get(number, ())) != self.stream.counts[number]:
                raise DataError(self._changed(f"row {number} gives {len(found.get(number, ()))} rows to train on"))
        return [
            replace(found[number][place], question=f"{question.set}:{question.id}")
            for number, question, place in chosen
        ]

    def _drawn(self, epoch: int) -> Iterator[tuple[int, Question, int]]:
        """Each training row of the epoch in its order: the number and question it is of, and which of theirs it is."""
        dataset, counts = self.stream.dataset, self.stream.counts
        for number, question in stream.drawn(self._usable(), self.most, dataset.buffer_size, self.seed, epoch):
            for place in range(counts[number]):
                yield number, question, place

    def _usable(self) -> Iterator[stream.Numbered]:
        counts = self.stream.counts
        for number, row in stream.rows(self.stream.dataset):
            if number >= len(counts):
                return
            if counts[number] and isinstance(row, Question):
                yield number, stream.as_trained(self.stream.dataset, row)

    def _changed(self, what: str) -> str:
        return (
            f"{self.stream.dataset.name} train has changed since it was read before training: {what}. Start the run "
            "again with force=true."
        )
