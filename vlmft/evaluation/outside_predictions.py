"""Predictions that another tool made, joined to the publisher's questions by what a row says, never by its position.

    {"question_id": 17, "prompt": "Is there …?", "text": "Yes"}
    {"image": "synpic42202.jpg", "question": "is there …?", "prediction": "yes"}

Copies of a set are in other orders and number their rows anew, so that the same position, and even the same number,
is often another question.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmft.data.question import IMAGE_MARK, Question
from vlmft.data.sources import Unusable, read_rows
from vlmft.data.sources.conversations import APPENDED
from vlmft.errors import DataError
from vlmft.evaluation.predictions import record

MISSING = "missing"  # the finish_reason of a question that no prediction was given for
GENERATION = "outside"  # stands where our own predictions name the settings they were made under

TEXT_KEYS = ("text", "prediction", "raw")  # not "answer", which is as often the gold answer
ID_KEYS = ("question_id", "id", "qid")
IMAGE_KEYS = ("image", "img_name", "image_name", "images")
QUESTION_KEYS = ("question", "prompt")

_BLANK_BEFORE = re.compile(r"\s+(?=[?.,/])")
_SEPARATOR = re.compile(r"[/\\]+")
_SHOWN = 80  # characters of a text in a message


@dataclass(frozen=True)
class Joined:
    """A record for every question, in their order; the ids of those that no prediction was given for; and for every
    row that joined nothing, its number and the reason."""

    records: list[dict[str, Any]]
    missing: list[str]
    unjoined: list[str]


@dataclass(frozen=True)
class _Prediction:
    raw: str
    finish_reason: str
    think_prefilled: bool


def join(questions: Sequence[Question], file: Path) -> Joined:
    """The file's predictions (JSON lines or a JSON array) as records of these questions.

    A row is joined by its id where a question has that id and the row does not ask something else; otherwise by its
    image and its question, where just one question has both. A question without a prediction becomes a record with no
    text and the finish_reason "missing", which is counted wrong.

    DataError where the file cannot be read, a row has no text, a question is given two different predictions, or no
    row joins anything.
    """
    if not file.is_file():
        raise DataError(f"Looked for predictions in {file}, where there is no file.")
    rows = read_rows(file)
    index = _Index(questions)
    given: dict[int, tuple[int, _Prediction]] = {}  # by the question's position: the row's number, and what it says
    unjoined = []
    for number, row in rows:
        prediction = _prediction(file, number, row)
        try:
            position = index.position(row)
        except Unusable as reason:
            unjoined.append(f"row {number}: {reason}")
            continue
        first, before = given.setdefault(position, (number, prediction))
        if before != prediction:
            raise DataError(
                f"{file}: rows {first} and {number} are different predictions for the question with id "
                f"{questions[position].id}: {_quoted(before.raw)} and {_quoted(prediction.raw)}. Leave one of them."
            )
    if not given:
        raise DataError(_nothing_joined(file, rows, questions, unjoined))
    nothing = _Prediction("", MISSING, False)
    records = [
        record(question, **vars(given[n][1] if n in given else nothing), tokens=0, generation=GENERATION)
        for n, question in enumerate(questions)
    ]
    return Joined(records, [question.id for n, question in enumerate(questions) if n not in given], unjoined)


def normalized_question(text: str) -> str:
    """A question as copies of a set agree on it: without image marks and appended hints, in lower case, with single
    blanks and none before punctuation, and without the question mark or full stop at its end."""
    text = APPENDED.sub("", " ".join(text.replace(IMAGE_MARK, " ").split()))
    return _BLANK_BEFORE.sub("", text.lower()).strip().rstrip("?. ")


class _Index:
    """The positions of the questions, by id and by (images, question), and the images by the ends of their paths."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self.questions = questions
        self.with_id: dict[str, list[int]] = defaultdict(list)
        self.asking: dict[tuple[tuple[str, ...], str], list[int]] = defaultdict(list)
        self.ending: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for position, question in enumerate(questions):
            self.with_id[question.id].append(position)
            self.asking[question.images, normalized_question(question.text)].append(position)
        for image in dict.fromkeys(image for question in questions for image in question.images):
            for end in _ends(image):
                self.ending[end].append(image)

    def position(self, row: dict[str, Any]) -> int:
        """The position of the one question the row is about; Unusable with the reason where there is none."""
        asked = next((row[key] for key in QUESTION_KEYS if isinstance(row.get(key), str) and row[key].strip()), None)
        images = _image_names(row)
        ids = {key: _as_id(row[key]) for key in ID_KEYS if row.get(key) not in (None, "")}
        named = " and ".join(f"{key} {id!r}" for key, id in ids.items())
        known = sorted({position for id in ids.values() for position in self.with_id.get(id, ())})
        fitting = [position for position in known if self._may_be(position, asked, images)]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise Unusable(f"{len(fitting)} questions fit {named}")
        failed = f"it has no {_listed(ID_KEYS)}"
        if known:
            other = self.questions[known[0]]
            failed = f"{named} is {_asked_about(other.text, other.images)}, which is not what the row asks"
        elif ids:
            failed = f"{named} is in no question"
        if not images or asked is None:
            lacking = [_listed(keys) for keys, found in ((IMAGE_KEYS, images), (QUESTION_KEYS, asked)) if not found]
            raise Unusable(f"{failed}; to be joined by image and question it lacks {' and '.join(lacking)}")
        try:
            return self._by_image(images, asked)
        except Unusable as reason:
            raise Unusable(f"{failed}; {reason}" if ids else str(reason)) from None

    def _may_be(self, position: int, asked: str | None, names: list[str]) -> bool:
        """Whether nothing in the row speaks against its id: a copy's own numbering can hit another question's id."""
        question = self.questions[position]
        if asked is not None:
            said, ours = normalized_question(asked), normalized_question(question.text)
            if ours not in said and said not in ours:  # tools put instructions around a question, or take options off
                return False
        try:
            return set(map(self._image, names)) <= set(question.images)
        except Unusable:  # under a name of the tool's own, which says nothing
            return True

    def _by_image(self, names: list[str], asked: str) -> int:
        images = tuple(map(self._image, names))
        positions = self.asking.get((images, normalized_question(asked)), [])
        if not positions:
            raise Unusable(f"no question is {_asked_about(asked, names)}")
        if len(positions) > 1:
            same = ", ".join(self.questions[position].id for position in positions)
            raise Unusable(
                f"{len(positions)} questions are {_asked_about(asked, names)}; only an id tells {same} apart"
            )
        return positions[0]

    def _image(self, name: str) -> str:
        """The image that shares the most path parts with `name`, counted from the end; Unusable if not just one."""
        found: list[str] = next((self.ending[end] for end in reversed(_ends(name)) if end in self.ending), [])
        if not found:
            raise Unusable(f"no question has an image {name}")
        if len(found) > 1:
            raise Unusable(f"the image {name} may be any of {len(found)}, such as {found[0]} and {found[1]}")
        return found[0]


def _prediction(file: Path, number: int, row: Any) -> _Prediction:
    """What the row says was predicted; DataError where it does not."""
    where = f"{file}, row {number}"
    if isinstance(row, Unusable):
        raise DataError(f"{where}: {row}.")
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected an object, found {_quoted(row)}.")
    key = next((key for key in TEXT_KEYS if key in row), None)
    if key is None:
        raise DataError(
            f"{where}: no prediction under {_listed(TEXT_KEYS)}; the row has {', '.join(row) or 'no keys'}."
        )
    raw = row[key]
    if raw is None or isinstance(raw, bool):
        raise DataError(f'{where}: {key} is {json.dumps(raw)}; it should be the predicted text ("" for none).')
    finish_reason, think_prefilled = row.get("finish_reason", "stop"), row.get("think_prefilled", False)
    if not isinstance(finish_reason, str):
        raise DataError(f"{where}: finish_reason is {json.dumps(finish_reason)}; it should be a text such as stop.")
    if not isinstance(think_prefilled, bool):
        raise DataError(f"{where}: think_prefilled is {json.dumps(think_prefilled)}; it should be true or false.")
    # Boxes and numbers are scored from their JSON, which some tools write unquoted.
    text = raw if isinstance(raw, str) else json.dumps(raw, ensure_ascii=False)
    return _Prediction(text, finish_reason, think_prefilled)


def _as_id(value: Any) -> str:
    # pandas makes numbers with gaps between them floats
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _image_names(row: dict[str, Any]) -> list[str]:
    found: Any = next((row[key] for key in IMAGE_KEYS if row.get(key)), [])
    names = [found] if isinstance(found, str) else found
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []


def _ends(path: str) -> list[tuple[str, ...]]:
    """The last part of a path, its last two parts, and so on."""
    parts = tuple(_SEPARATOR.split(path))
    return [parts[-count:] for count in range(1, len(parts) + 1)]


def _nothing_joined(file: Path, rows: list[tuple[int, Any]], questions: Sequence[Question], unjoined: list[str]) -> str:
    if not rows:
        return f"{file} holds no predictions."
    if not questions:
        return f"{file}: there are no questions to join its predictions to."
    first = questions[0]
    return (
        f"{file}: none of its {len(rows)} rows joins any of the {len(questions)} questions of {first.set}.\n"
        f"  the keys of the first row: {', '.join(rows[0][1])}\n"
        f"  {unjoined[0]}\n"
        f"  the first question: id {first.id!r}, {_asked_about(first.text, first.images)}\n"
        f"Give the rows the ids of the questions ({_listed(ID_KEYS)}), or their image and question."
    )


def _asked_about(question: str, images: Iterable[str]) -> str:
    return f"{_quoted(question)} about {' and '.join(images) or 'no image'}"


def _listed(keys: Iterable[str]) -> str:
    *most, last = keys
    return f"{', '.join(most)} or {last}"


def _quoted(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
