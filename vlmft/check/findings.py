"""What a check finds, and what can be found in the rows and pictures of a split without a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vlmft.data.picture_check import Seen
from vlmft.data.question import CLOSED, MULTIPLE_CHOICE, BadRow, Question

ERROR, WARNING, NOTE = "error", "warning", "note"
LEVELS = (ERROR, WARNING, NOTE)  # an error stops training; a warning should be known; a note only says
KEPT = 1000  # rows named in check.json for each finding


@dataclass(frozen=True)
class Finding:
    level: str
    what: str  # `count` of them, or a sentence where there are no `rows`
    count: int
    rows: tuple[str, ...]  # the first KEPT: where each stands, and what is wrong with it

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def finding(level: str, what: str, rows: Sequence[str], count: int | None = None) -> list[Finding]:
    """One finding about the rows (of which there may be more than these), or none where there are none."""
    return [Finding(level, what, len(rows) if count is None else count, tuple(rows[:KEPT]))] if rows else []


def left_out(dropped: Sequence[BadRow], drop: bool, count: int | None = None) -> list[Finding]:
    """Rows that cannot be used: errors, or where they are to be dropped, notes, as are the publisher's own defects.

    `count` is how many there are where `dropped` holds only the first of them.
    """
    published = [str(row) for row in dropped if row.published]
    ours = [str(row) for row in dropped if not row.published]
    level, what = (NOTE, "rows that bad_rows=drop leaves out") if drop else (ERROR, "rows that cannot be used")
    return [
        *finding(level, what, ours, count),
        *finding(NOTE, "defective rows of the published files, which are left out", published),
    ]


def of_rows(questions: Sequence[Question], seen: Mapping[str, Seen]) -> list[Finding]:
    """Rows that repeat or contradict another one, and pictures that a model will not see as they are stored."""
    asked: dict[Any, dict[tuple[str, ...], str]] = {}
    repeated, contradicting = [], []
    for question in questions:
        pictures = tuple(seen[image].sha256 if image in seen else image for image in question.images)
        said = tuple(_plain(turn.question) for turn in question.turns)
        answers = tuple(_plain(turn.answer) for turn in question.turns)
        before = asked.setdefault((pictures, said, question.options), {})
        if answers in before:
            repeated.append(f"{where(question)}: as {before[answers]}")
        elif before:
            others, name = next(iter(before.items()))
            contradicting.append(f"{where(question)}: {answers[-1]!r}, but {name} says {others[-1]!r}")
        before.setdefault(answers, where(question))
    return [
        *finding(
            WARNING, "rows that contradict another one (same pictures and question, another answer)", contradicting
        ),
        *finding(WARNING, "rows that repeat another one (same pictures, question and answer)", repeated),
        *_remarks(questions, seen),
    ]


def _remarks(questions: Sequence[Question], seen: Mapping[str, Seen]) -> Iterable[Finding]:
    shown = dict.fromkeys(image for question in questions for image in question.images)
    remarks = [f"{path}: {remark}" for path in shown if path in seen for remark in seen[path].remarks()]
    return finding(WARNING, "pictures that a model will not see as they are stored", remarks)


def where(question: Question) -> str:
    return f"{question.set}:{question.id}"


def balance(questions: Sequence[Question]) -> dict[str, dict[str, int]]:
    """How often each answer is given, the commonest first: of closed questions, and of each form of choice."""
    answers: dict[str, Counter[str]] = {}
    for question in questions:
        if question.task == MULTIPLE_CHOICE:
            kind = f"{len(question.options)} options" if question.options else "choice"
        elif question.answer_type == CLOSED:
            kind = "closed"
        else:
            continue
        answers.setdefault(kind, Counter())[_plain(question.answer)] += 1
    return {kind: dict(counter.most_common()) for kind, counter in answers.items()}


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
