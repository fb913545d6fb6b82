"""The one record that flows through vlmft: a question about images, with its gold answer and the facts of its row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

CLOSED = "closed"
OPEN = "open"
IMAGE_MARK = "<image>"


@dataclass(frozen=True, slots=True)
class Turn:
    """One exchange. `question` holds IMAGE_MARK only where pictures stand between words; otherwise they come first."""

    question: str
    answer: str
    thought: str | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """A row of a set. The last turn is the one that is scored; earlier turns are history.

    `id` is unique within a set and split and stable between runs. `images` are absolute paths. `facts` holds what the
    publisher says of the row (modality, organ, question type, …), as strings, for breakdowns of the score.
    """

    id: str
    set: str
    images: tuple[str, ...]
    turns: tuple[Turn, ...]
    answer_type: str
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return self.turns[-1].question

    @property
    def answer(self) -> str:
        return self.turns[-1].answer


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used: where it stands, and why.

    `published` marks a defect of the publisher's own files that nobody here can put right: such a row is left out and
    counted whatever `bad_rows` says.
    """

    file: str
    row: int | str
    reason: str
    published: bool = False

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}: {self.reason}"
