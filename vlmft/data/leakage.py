"""What of a test set was trained on: the same picture, one that looks alike, the same question, the same answer to it.

A run that trains keeps `trained_on` beside its weights: digests without text, pictures or paths. Any test set can then
be audited from the run's folder alone.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmft.data.picture_check import NO_HASH, Progress, look
from vlmft.data.question import Question
from vlmft.errors import DataError
from vlmft.evaluation.metrics import normalize
from vlmft.files import whole_file

# Bits. Measured on the 315 pictures of VQA-RAD and 20 of SLAKE: all 420 copies of every fourth one, saved again as JPEG
# (quality 30 to 90, 0.37 to 1.5 times as wide), are within 4 of it; of the 55,945 pairs of different pictures none is
# within 6, one or two are within 8 and about 15 within 10.
ALIKE = 4
_CELLS = 2**22  # distances held at once: 32 MiB of exclusive-ors
_LISTS = ("ids", "questions", "pairs")
_SHARED = ("same_image", "alike", "same_question", "same_pair", "same_id")

Entry = dict[str, Any]


def fingerprints(images: Sequence[str], progress: Progress | None = None) -> dict[str, tuple[str, int]]:
    """By path the SHA-256 in hex and the 64-bit perceptual hash, NO_HASH for a plain picture.

    DataError naming a picture that cannot be read or decoded.
    """
    seen = look(images, progress)
    for path, picture in seen.items():
        if picture.problem:
            raise DataError(f"{path} {picture.problem}")
    return {path: (picture.sha256, picture.phash) for path, picture in seen.items()}


def trained_on(questions: Sequence[Question], progress: Progress | None = None) -> list[Entry]:
    """An entry for each set and pictures, in order: "set", "images" ("sha256", "phash"), "ids", "questions", "pairs".

    "questions" are digests of the normalised questions, "pairs" of question and answer, of every turn, since all are
    trained. What comes again, as from a weight of 2, is there once. DataError as `fingerprints`.
    """
    return entries(questions, fingerprints([image for question in questions for image in question.images], progress))


def entries(questions: Sequence[Question], known: Mapping[str, tuple[str, int]]) -> list[Entry]:
    """As `trained_on`, of questions whose pictures' `fingerprints` are known."""
    found: dict[tuple[str, tuple[str, ...]], Entry] = {}
    for question in questions:
        pictures = [known[image] for image in question.images]
        entry = found.setdefault(
            (question.set, tuple(sha256 for sha256, _ in pictures)),
            {
                "set": question.set,
                "images": [{"sha256": sha256, "phash": f"{phash:016x}"} for sha256, phash in pictures],
                **{kind: {} for kind in _LISTS},  # keys without values: each once, in order
            },
        )
        entry["ids"][question.id] = None
        for turn in question.turns:
            entry["questions"][_digest(turn.question)] = None
            entry["pairs"][_digest(turn.question, turn.answer)] = None
    return [entry | {kind: list(entry[kind]) for kind in _LISTS} for entry in found.values()]


def write(file: Path, entries: Iterable[Entry]) -> None:
    """Write the entries as JSON lines, whole or not at all, each as it comes."""
    with whole_file(file) as lines:
        for entry in entries:
            lines.write(json.dumps(entry, separators=(",", ":")) + "\n")


def read(file: Path) -> list[Entry] | None:
    """The entries that `write` wrote, or None where there is no such file. DataError naming a line that is none."""
    return list(each(file)) if file.is_file() else None


def each(file: Path) -> Iterator[Entry]:
    """The entries that `write` wrote, one after another. DataError naming a line that is none."""
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
            except ValueError:
                entry = None
            if not isinstance(entry, dict) or not {"set", "images", *_LISTS} <= entry.keys():
                raise DataError(
                    f"{file}, line {number} does not say what was trained on; train the run again to have it."
                )
            yield entry


@dataclass(frozen=True, slots=True)
class Audit:
    """What of a test set was trained on.

    `counts` has for each training set: "images" of the test, those that are there by SHA-256 ("same_image") or else by
    their looks ("alike"); "questions" of the test, those "on_same_image" or else "on_alike_image" (at least one), the
    "same_question" about the same pictures, the "same_pair" (its answer too), the "same_id" in a set of the same name.
    `rows` has for each test question, over all training sets: "image", "alike", "question", "pair".
    """

    counts: dict[str, dict[str, int]]
    rows: list[dict[str, bool]]


def audit(entries: Iterable[Entry], test: Sequence[Question], progress: Progress | None = None) -> Audit:
    """What `entries` (`trained_on`) share with the test questions. DataError as `fingerprints`.

    The entries may be of more rows than memory holds: of each, only what the test has as well is kept, and its looks.
    Pictures count once by content. A question is the same where it is asked, word for word after normalising, about
    the same pictures in any order; one without pictures is compared with such alone.
    """
    known = fingerprints([image for question in test for image in question.images], progress)
    hashes = dict(known.values())
    pictures = [_pictures(known[image][0] for image in question.images) for question in test]
    asked = [(seen, _digest(row.text)) for seen, row in zip(pictures, test, strict=True)]
    pairs = [(seen, _digest(row.text, row.answer)) for seen, row in zip(pictures, test, strict=True)]
    ids, wanted = {row.id for row in test}, {"questions": set(asked), "pairs": set(pairs)}
    trained: dict[str, dict[str, set[Any]]] = {}
    for entry in entries:
        of = trained.setdefault(entry["set"], {kind: set() for kind in ("sha256", "phash", *_LISTS)})
        seen = _pictures(image["sha256"] for image in entry["images"])
        of["sha256"].update(hashes.keys() & set(seen))
        of["phash"].update(int(image["phash"], 16) for image in entry["images"])
        of["ids"].update(ids.intersection(entry["ids"]))
        for kind, theirs in wanted.items():
            of[kind].update(theirs.intersection((seen, digest) for digest in entry[kind]))
    rows = [dict.fromkeys(("image", "alike", "question", "pair"), False) for _ in test]
    counts = {}
    for name, of in trained.items():
        same = hashes.keys() & of["sha256"]
        others = hashes.keys() - same
        near = _near({hashes[sha256] for sha256 in others}, of["phash"])
        alike = {sha256 for sha256 in others if hashes[sha256] in near}
        found = {
            "image": [not same.isdisjoint(seen) for seen in pictures],
            "alike": [same.isdisjoint(seen) and not alike.isdisjoint(seen) for seen in pictures],
            "question": [row in of["questions"] for row in asked],
            "pair": [row in of["pairs"] for row in pairs],
        }
        for what, answers in found.items():
            for row, answer in zip(rows, answers, strict=True):
                row[what] |= answer
        counts[name] = {
            "images": len(hashes),
            "same_image": len(same),
            "alike": len(alike),
            "questions": len(test),
            "on_same_image": sum(found["image"]),
            "on_alike_image": sum(found["alike"]),
            "same_question": sum(found["question"]),
            "same_pair": sum(found["pair"]),
            "same_id": sum(row.set == name and row.id in of["ids"] for row in test),
        }
    return Audit(counts, rows)


def sentences(counts: dict[str, dict[str, int]], test_name: str) -> list[str]:
    """A line for the log about each training set of `Audit.counts` that has something of the test set."""
    lines = []
    for name, of in counts.items():
        if not any(of[kind] for kind in _SHARED):
            continue
        same, verb = of["same_image"] or "none", "is" if of["same_image"] < 2 else "are"
        parts = [f"{same} of {of['images']} test images of {test_name} {verb} in train ({name})"]
        if not of["images"]:
            parts = [f"{test_name} has no test images to look for in train ({name})"]
        if of["alike"]:
            parts.append(f"{of['alike']} of the others look{'s' * (of['alike'] == 1)} like one there")
        shared = [f"{of['same_question']} (image, question)"] * (of["same_question"] > of["same_pair"])
        shared += [f"{of['same_pair']} (image, question, answer)"] * (of["same_pair"] > 0)
        if shared:
            words = f"{' and '.join(shared)} of {of['questions']} as well"
            parts.append(words if of["images"] else words.replace("image, ", ""))
        if of["same_id"]:
            parts.append(f"{of['same_id']} by id")
        lines.append(", ".join(parts))
    return lines


def _digest(*texts: str) -> str:
    """16 hex digits of the texts, each normalised; one that normalises to nothing ("A", "?") is kept as it is."""
    plain = (unicodedata.normalize("NFKC", text) for text in texts)
    joined = "\0".join(normalize(text) or text.strip().lower() for text in plain)
    return hashlib.sha256(joined.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _pictures(digests: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(digests)))


def _near(hashes: set[int], trained: set[int]) -> set[int]:
    """Those of `hashes` that are within ALIKE bits of a trained one."""
    import numpy as np

    ours, theirs = (np.array(sorted(values - {NO_HASH}), dtype=np.uint64) for values in (hashes, trained))
    step = max(1, _CELLS // max(1, len(theirs)))
    near: set[int] = set()
    for some in (ours[start : start + step] for start in range(0, len(ours), step)):
        near.update(some[(np.bitwise_count(some[:, None] ^ theirs) <= ALIKE).any(axis=1)].tolist())
    return near
