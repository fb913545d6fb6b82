"""What `vlmft export --data` wrote, read again: is every row as it was, and will other readers take it?"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vlmft.data.picture_check import look
from vlmft.data.question import IMAGE_MARK, BadRow, Question
from vlmft.data.sources import _chat, _saved, conversations, read_rows
from vlmft.errors import DataError
from vlmft.evaluation.answers import parse
from vlmft.schema import AnswerStyle, QuestionSet

FORMS = MESSAGES, SAVE_TO_DISK = ("messages", "save_to_disk")
EXAMPLES, IMAGES = "examples.json", "images"
SHOWN = 5  # faults named in an error
_THINKS = (AnswerStyle.think, AnswerStyle.think_answer)


class Part(NamedTuple):
    """One split of one set that was exported, or looked through."""

    file: Path
    rows: int
    pictures: int
    left_out: Sequence[BadRow] = ()

    def describe(self) -> str:
        return f"{self.file}: {self.rows:,} rows on {self.pictures:,} pictures"


def validate(folder: Path) -> list[Part]:
    """The splits below a folder in the chat form, every row and picture of which is as it should be.

    DataError naming file and row of what is not, or if there is nothing to look at.
    """
    files = _splits_below(folder)
    if not files:
        raise DataError(f"{folder}: there is no <split>.json and no saved <split>/; name a folder that was exported.")
    parts = []
    for file in files:
        rows = list(_read(file))
        pictures = look([image for _, got, _ in rows if got for image in got.images])
        faults = []
        for number, got, fault in rows:
            images = got.images if got else ()
            broken = [f"image {image} {pictures[image].problem}" for image in images if pictures[image].problem]
            faults += [f"row {number}: {reason}" for reason in ([fault] if fault else broken)]
        refuse(file, faults)
        parts.append(Part(file, len(rows), len(pictures)))
    return parts


def _splits_below(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = [file for file in sorted(folder.glob("*.json")) if file.name not in (EXAMPLES, "dataset_dict.json")]
    for below in sorted(path for path in folder.iterdir() if path.is_dir() and path.name != IMAGES):
        found += [below] if _saved.is_saved(below) else _splits_below(below)
    return found


def _read(file: Path, image_root: str | None = None) -> Iterator[tuple[int, Question | None, str]]:
    """Number, question and fault ("" without one) of each row of an exported split."""
    spec = QuestionSet(
        name=file.stem, format="conversations", path=str(file.parent), splits={file.name: file.name},
        image_root=image_root, absolute_paths=True,
    )  # fmt: skip
    paths = conversations.files(spec, file.name)
    rows = enumerate(_saved.rows(paths), 1) if _saved.is_part(paths[0]) else iter(read_rows(file))
    for (number, row), got in zip(rows, conversations.read(spec, file.name), strict=True):
        if isinstance(got, BadRow):
            yield number, None, got.reason
        else:
            yield number, got, said_otherwise(row, got)


def said_otherwise(row: dict[str, Any], question: Question) -> str:
    """What another reader than vlmft's would stumble over, "" where there is nothing."""
    said, rejected = _chat.exchanges(row)
    marks = sum(asked.count(IMAGE_MARK) for asked, _ in said)
    if marks != len(question.images):
        return f"{marks} {IMAGE_MARK} marks for {len(question.images)} images"
    pairs = [(target, turn.answer) for (_, target), turn in zip(said, question.turns, strict=True)]
    for target, answer in [*pairs, *([(rejected, question.rejected.answer)] if rejected and question.rejected else [])]:
        parsed = parse(target, finish_reason="stop", answer_type=question.answer_type, task=question.task)
        if parsed.text != answer:
            return f"the answer {answer!r} is scored as {parsed.text!r}"
    return ""


def differences(file: Path, questions: list[Question], style: AnswerStyle) -> list[str]:
    """What of the rows of an exported split does not read back as it is meant."""
    digests: dict[str, str] = {}
    thinks = style in _THINKS  # under the other styles the thoughts are left out

    def seen_as(one: Question) -> dict[str, Any]:
        for image in one.images:
            if image not in digests:
                with open(image, "rb") as opened:
                    digests[image] = hashlib.file_digest(opened, "sha256").hexdigest()
        *turns, unwanted = [
            turn and (turn.question, (turn.thought if thinks else None), turn.answer)
            for turn in (*one.turns, one.rejected)
        ]
        facts = {fact: value.strip() for fact, value in one.facts.items() if value.strip()}
        return {
            "id": one.id, "turns": turns, "answer_type": one.answer_type, "task": one.task, "options": one.options,
            "rejected": unwanted, "facts": facts, "images": [digests[image] for image in one.images],
        }  # fmt: skip

    faults = []
    with tempfile.TemporaryDirectory(prefix=".images-", dir=file.parent) as unpacked:
        image_root = unpacked if _saved.is_saved(file) else None
        for (number, got, fault), wanted in zip(_read(file, image_root), questions, strict=True):
            here = f"row {number} (id {wanted.id})"
            if got is None or fault:
                faults.append(f"{here}: {fault}")
                continue
            back, meant = seen_as(got), seen_as(wanted)
            faults += [
                f"{here}: {key} {meant[key]!r} is read as {back[key]!r}" for key in meant if meant[key] != back[key]
            ]
    return faults


def refuse(file: Path, faults: list[str]) -> None:
    """DataError naming the file and the first faults of its rows, if there are any."""
    if faults:
        more = [f"  … and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        raise DataError("\n".join([f"{file} is not as it should be:", *(f"  {one}" for one in faults[:SHOWN]), *more]))
