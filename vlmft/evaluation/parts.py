"""Predictions while they grow: each process appends to a part of its own, and the first one puts them together.

A killed evaluation goes on from what all parts hold, by however many processes it was and then is. Importing this file
imports no torch.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vlmft import ranks
from vlmft.errors import DataError
from vlmft.evaluation.predictions import (
    other_parts,
    partial_file,
    put_in_place,
    read_predictions,
    restore,
    write_predictions,
)

_PATIENCE = 120.0  # seconds for what another machine wrote to be seen in a shared folder


class Parts:
    """The parts of one set's predictions, seen from one of the processes that work on them."""

    def __init__(self, file: Path, generation: str) -> None:
        self.file, self.generation = file, generation
        self.own = partial_file(file, generation, ranks.number())
        self._seen: dict[Path, int] = {}  # bytes of a part whose lines are counted
        self._lines = 0

    def gather(self, wanted: Iterable[str]) -> set[str]:
        """Of the ids in `wanted` those that are answered already, which the first process's part then holds."""
        answered: list[str] = []
        if ranks.first():
            restore(self.file, self.generation)
            others = other_parts(self.file, self.generation)
            kept = self._read([self.own, *others], set(wanted))
            write_predictions(self.own, kept.values())
            for part in others:
                part.unlink()
            answered = list(kept)
        ranks.meet()  # which makes them a group, where they are none yet
        return set(ranks.same(answered))

    def lines(self) -> int:
        """How many answers all parts hold, as far as they can be seen from here."""
        for part in (self.own, *other_parts(self.file, self.generation)):
            with open(part, "rb") as file:
                file.seek(self._seen.get(part, 0))
                fresh = file.read()
            self._seen[part] = self._seen.get(part, 0) + len(fresh)
            self._lines += fresh.count(b"\n")
        return self._lines

    def put_together(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """When every process is done: the records in the order of `ids`, which `file` then holds and no part.

        Raises DataError where an answer is in no part that can be seen from here.
        """
        ranks.meet()
        ordered: list[dict[str, Any]] = []
        if ranks.first():
            found = self._whole(ids)
            ordered = [found[id] for id in ids]
            write_predictions(self.own, ordered)
            for part in other_parts(self.file, self.generation):
                part.unlink()
            put_in_place(self.file, self.own)
        ranks.meet()
        return ordered or read_predictions(self.file)

    def _whole(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        wanted, last = set(ids), time.monotonic() + _PATIENCE
        while True:
            found = self._read([self.own, *other_parts(self.file, self.generation)], wanted)
            missing = wanted - found.keys()
            if not missing:
                return found
            if ranks.count() == 1 or time.monotonic() > last:
                raise DataError(
                    f"{self.file.name}: of {len(wanted)} questions {len(missing)} have no answer in "
                    f"{self.file.parent}, such as {min(missing)}; {ranks.count()} processes answered them, and the "
                    "folder should be one that all their machines share"
                )
            time.sleep(1)

    def _read(self, parts: Iterable[Path], wanted: set[str]) -> dict[str, dict[str, Any]]:
        records = (record for part in parts for record in read_predictions(part))
        return {r["id"]: r for r in records if r["generation"] == self.generation and r["id"] in wanted}
