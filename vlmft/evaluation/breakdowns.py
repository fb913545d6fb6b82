"""Which groups of questions a score is broken down into: by what the publisher says of the rows, and by training."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

FEWEST = 20  # a smaller group is not shown: its score would be noise, and may point at single patients
MOST_VALUES = 30  # a fact with more such groups is no breakdown


def groups_of(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[int]]]:
    """Fact → value → numbers of the records that have it; facts that do not divide the records are left out.

    A fact that lists several values ("POS, PRES") puts its record into the group of each.
    """
    found: dict[str, dict[str, list[int]]] = {}
    for number, record in enumerate(records):
        for fact, value in _facts(record):
            found.setdefault(fact, {}).setdefault(value, []).append(number)
    groups = {}
    for fact, members in found.items():
        parts = {value: members[value] for value in sorted(members) if FEWEST <= len(members[value]) < len(records)}
        if 0 < len(parts) <= MOST_VALUES:
            groups[fact] = parts
    return groups


def _facts(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "answer_type", record["answer_type"]
    for fact, value in record.get("facts", {}).items():
        for part in dict.fromkeys(re.split(r"\s*,\s*", str(value))):
            if part:
                yield fact, part
    if (word := re.search(r"\w+", record["question"])) and word[0].isascii():
        yield "first word", word[0].lower()
    train = record.get("train", {})
    if "answer_seen" in train:
        yield "answer", "among the training answers" if train["answer_seen"] else "not among the training answers"
    if "image" in train:
        yield "image", "trained on" if train["image"] else "not trained on"
