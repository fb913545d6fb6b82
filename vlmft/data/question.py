"""The one record that flows through vlmft: a question about images, with its gold answer and the facts of its row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

CLOSED = "closed"
OPEN = "open"
IMAGE_MARK = "<image>"

VQA = "vqa"  # a short answer in words
MULTIPLE_CHOICE = "multiple_choice"  # a letter, or the text of one of `options`
MULTI_LABEL = "multi_label"  # labels between ; or ,
DETECTION = "detection"  # [[x1, y1, x2, y2], …]
INSTANCE_DETECTION = "instance_detection"  # {"class": [[x1, y1, x2, y2], …], …}
COUNTING = "counting"  # a whole number
REGRESSION = "regression"  # a number
REPORT = "report"  # a text of several sentences
TASKS = (VQA, MULTIPLE_CHOICE, MULTI_LABEL, DETECTION, INSTANCE_DETECTION, COUNTING, REGRESSION, REPORT)


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
    publisher says of the row (modality, organ, question type, …), as strings, for breakdowns of the score. The fact
    `box_space` says in what the boxes of a detection task are measured: "pixels" (also where it is absent) or "0-1000".
    `rejected`, of a preference row, is the last turn with the answer that is not wanted, and its own thought.
    """

    id: str
    set: str
    images: tuple[str, ...]
    turns: tuple[Turn, ...]
    answer_type: str
    facts: Mapping[str, str] = field(default_factory=dict)
    task: str = VQA  # what form of answer is asked for, one of TASKS
    options: tuple[str, ...] = ()  # of a multiple-choice question: their texts, A first
    rejected: Turn | None = None

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
