"""What a set can be scored without looking at an image: the floor that a model must be read against.

A model that fine-tuning taught no more than the questions' usual answers reaches it; on SLAKE-en it stands at
54 %.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from vlmft.data.question import Question
from vlmft.evaluation.metrics import normalize, score
from vlmft.evaluation.predictions import record


def question_only(train: Sequence[Question], test: Sequence[Question]) -> list[str]:
    """The blind answer to each test question, in order, learnt from the train questions' text.

    It is the most common train answer of the first group that is not empty: the same normalised question, the
    same first two words, the same answer type, all of train. Answers are counted stripped and case-folded and
    returned in the form seen first; of equally common ones the one seen first wins. Raises ValueError where
    train is empty.
    """
    if not train:
        raise ValueError("The question-only floor needs training questions; there are none.")
    counts: dict[tuple[str, str], Counter[str]] = {}
    forms: dict[str, str] = {}
    for question in train:
        answer = question.answer.strip()
        forms.setdefault(answer.casefold(), answer)
        for key in _keys(question):
            counts.setdefault(key, Counter())[answer.casefold()] += 1
    # most_common keeps the order of insertion among equals
    best = {key: forms[counter.most_common(1)[0][0]] for key, counter in counts.items()}
    return [next(best[key] for key in _keys(question) if key in best) for question in test]


def question_only_scores(
    train: Sequence[Question], test: Sequence[Question], protocol: str = "normalized"
) -> dict[str, float | None]:
    """The scores of `question_only` as shares: "accuracy" over all, "closed" accuracy and "open" exact match
    (None where test has no such questions). Raises ValueError as `question_only` and `metrics.score` do."""
    records: list[dict[str, Any]] = [
        record(question, raw=answer, tokens=0, finish_reason="stop", think_prefilled=False, generation="blind")
        for question, answer in zip(test, question_only(train, test), strict=True)
    ]
    result = score(records, [protocol])["scores"][protocol]
    return {
        "accuracy": result["accuracy"],
        "closed": result["closed"]["accuracy"],
        "open": result["open"]["exact_match"],
    }


def _keys(question: Question) -> tuple[tuple[str, str], ...]:
    """The groups a question belongs to, the narrowest first."""
    plain = normalize(question.text)
    return (
        ("question", plain),
        ("first two words", " ".join(plain.split()[:2])),
        ("answer type", question.answer_type),
        ("all", ""),
    )
