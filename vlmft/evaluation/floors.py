"""What a set can be scored without looking at an image: the floors that a model must be read against.

A model that fine-tuning taught no more than the questions' usual answers reaches the question-only floor; on SLAKE-en
it stands at 54 %. What each floor says of a test question is kept in its record, so that it is scored again with it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vlmft.data.question import COUNTING, REGRESSION, VQA, Question
from vlmft.evaluation.metrics import normalize

CONSTANT, QUESTION_ONLY = "constant", "question_only"


def learnt(train: Iterable[Question], test: Sequence[Question]) -> list[dict[str, Any]]:
    """For each test question, in order, what the train questions' text gives away:

    `constant`       the most common train answer of its answer type (of its task, where that is not words)
    `question_only`  the most common train answer of the first group that is not empty: the same normalised question,
                     the same first two words, the same answer type, all of train
    `answer_seen`    whether its gold is among the train answers
    `median`         in counting and regression: the median of the train answers

    Answers are counted stripped and case-folded and returned in the form seen first; of equally common ones the one
    seen first wins. No train questions: nothing is learnt.
    """
    wanted = {key for question in test for key in _keys(question)}
    counts: dict[tuple[str, str], Counter[str]] = {}
    forms: dict[str, str] = {}
    numbers: dict[str, list[str]] = {COUNTING: [], REGRESSION: []}
    for question in train:
        answer = question.answer.strip()
        forms.setdefault(answer.casefold(), answer)
        for key in wanted.intersection(_keys(question)):  # the training rows may be more than memory holds
            counts.setdefault(key, Counter())[answer.casefold()] += 1
        if question.task in numbers:
            numbers[question.task].append(question.answer)
    if not counts:
        return [{} for _ in test]
    # most_common keeps the order of insertion among equals
    best = {key: forms[counter.most_common(1)[0][0]] for key, counter in counts.items()}
    medians = {task: _median(answers) for task, answers in numbers.items()}
    notes = []
    for question in test:
        keys = _keys(question)
        note = {
            CONSTANT: next(best[key] for key in keys[2:] if key in best),
            QUESTION_ONLY: next(best[key] for key in keys if key in best),
            "answer_seen": question.answer.strip().casefold() in forms,
        }
        if (median := medians.get(question.task)) is not None:
            note["median"] = median
        notes.append(note)
    return notes


def as_predictions(records: Sequence[Mapping[str, Any]], floor: str) -> list[dict[str, Any]]:
    """The records with what the floor says as their answers; none where one of them has no such floor."""
    if not all(floor in record.get("train", {}) for record in records):
        return []
    said = {"finish_reason": "stop", "think_prefilled": False}
    return [dict(record) | said | {"raw": record["train"][floor]} for record in records]


def _keys(question: Question) -> tuple[tuple[str, str], ...]:
    """The groups a question belongs to, the narrowest first."""
    plain = normalize(question.text)
    return (
        ("question", plain),
        ("first two words", " ".join(plain.split()[:2])),
        ("answer type", question.answer_type if question.task == VQA else question.task),
        ("all", ""),
    )


def _median(answers: Sequence[str]) -> float | None:
    from statistics import median

    numbers = [float(answer) for answer in answers if re.fullmatch(r"\s*[-+]?\d+(\.\d+)?\s*", answer)]
    return median(numbers) if numbers else None
