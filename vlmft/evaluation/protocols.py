"""Right or wrong under a named protocol: what one stored prediction is worth.

Scoring reads records (`predictions_<set>.jsonl`) and nothing else, so it can be done again without a GPU. A change in
what a protocol, `answers`, `answer_kinds`, `metrics` or `task_metrics` makes of a record must raise SCORER_VERSION.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vlmft.data.question import CLOSED, OPEN, TASKS, VQA
from vlmft.evaluation import task_metrics, terms
from vlmft.evaluation.answer_kinds import parse_yes_no, yes_no_gold
from vlmft.evaluation.answers import parse_record
from vlmft.evaluation.metrics import (
    answer_length,
    exact_match,
    recall_llavamed,
    same_parts,
    squad_exact_match,
    squad_f1,
    token_f1,
)

SCORER_VERSION = 2

Record = Mapping[str, Any]
Values = dict[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one record is worth.

    `parsed` is the answer that was compared ("yes"/"no" where that was asked), None where `status` (see `answers`) is
    not ok. `values` holds, by metric, what the record adds to numerator and denominator of the set's metric.
    """

    parsed: str | None
    status: str
    correct: bool
    values: Values


@dataclass(frozen=True)
class Protocol:
    """How answers in words are judged, and which metric of each task heads a table.

    `words(answer, record)` is asked where an answer was extracted; `answer` None means it was not.
    """

    about: str
    words: Callable[[str | None, str, Record], Verdict]
    every_task: bool = False  # `words` judges the other tasks too, instead of their own metrics
    headline: Mapping[str, str] = field(default_factory=dict)  # task → metric, where it is not the task's own

    def heads(self, task: str) -> str:
        if task == VQA or self.every_task:
            return self.headline.get(VQA, "accuracy")
        return self.headline.get(task, task_metrics.HEADLINE[task])


def judge(record: Record, protocol: str) -> Verdict:
    """The verdict on one prediction; what is unparsed is wrong.

    Raises ValueError for an unknown protocol, answer type or task, KeyError for a record that lacks gold,
    answer_type, raw or finish_reason.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"There is no scoring protocol '{protocol}'. There are: {', '.join(PROTOCOLS)}.")
    kind, task = record["answer_type"], record.get("task", VQA)
    if kind not in (CLOSED, OPEN):
        raise ValueError(f"Record {record.get('id')!r}: answer_type {kind!r} is not {CLOSED!r} or {OPEN!r}.")
    if task not in TASKS:
        raise ValueError(f"Record {record.get('id')!r}: there is no task {task!r}. There are: {', '.join(TASKS)}.")
    answer = parse_record(record)
    chosen = PROTOCOLS[protocol]
    if task == VQA or chosen.every_task:
        return chosen.words(answer.text, answer.status, record)
    found = task_metrics.outcome(task, answer.text, answer.status, record)
    return Verdict(found.parsed, found.status, found.correct, dict(found.values))


def _verdict(
    record: Record, parsed: str | None, status: str, correct: bool, open_values: Mapping[str, float]
) -> Verdict:
    """Accuracy over all, of closed questions by the set's own types and by the yes/no rule, and `open_values`."""
    values: Values = {"accuracy": (float(correct), 1)}
    if yes_no_gold(str(record["gold"])):
        values["yes_no_accuracy"] = (float(correct), 1)
    if record["answer_type"] == CLOSED:
        values["closed_accuracy"] = (float(correct), 1)
    else:
        values |= {"open_exact_match": (float(correct), 1)} | {name: (value, 1) for name, value in open_values.items()}
    return Verdict(parsed, status, correct, values)


def _normalized(answer: str | None, status: str, record: Record) -> Verdict:
    gold = str(record["gold"])
    wanted = yes_no_gold(gold)
    said = parse_yes_no(answer) if wanted and answer is not None else None
    if said is not None and record["answer_type"] == CLOSED:
        verdict = _verdict(record, said.text, said.status, said.text == wanted, {})
    else:
        correct = answer is not None and (exact_match(answer, gold) or same_parts(answer, gold))
        verdict = _verdict(record, answer, status, correct, {"open_f1": 0.0 if answer is None else _f1(answer, gold)})
    if said is not None:  # by this rule a gold that is yes or no asks for it, whatever type the set gives it
        verdict.values["yes_no_accuracy"] = (float(said.text == wanted), 1)
    alike = verdict.correct or (verdict.parsed is not None and terms.same(verdict.parsed, gold))
    verdict.values["accuracy_terms"] = (float(alike), 1)
    return verdict


def _f1(answer: str, gold: str) -> float:
    """`token_f1`, but as `exact_match` for a gold that normalises to nothing ("A"): F1 would take "the" for it."""
    return token_f1(answer, gold) if answer_length(gold) else float(exact_match(answer, gold))


def _strict(answer: str | None, status: str, record: Record) -> Verdict:
    gold = str(record["gold"]).strip()
    f1 = 0.0 if answer is None else _f1(answer, gold)
    return _verdict(record, answer, status, answer == gold, {"open_f1": f1})


def _squad(answer: str | None, status: str, record: Record) -> Verdict:
    gold = str(record["gold"])
    f1 = 0.0 if answer is None else squad_f1(answer, gold)
    verdict = _verdict(record, answer, status, answer is not None and squad_exact_match(answer, gold), {"open_f1": f1})
    verdict.values["f1"] = (f1, 1)  # over all questions: MedGemma's "tokenized F1"
    return verdict


def _llavamed(answer: str | None, status: str, record: Record) -> Verdict:
    gold = str(record["gold"])
    verdict = _normalized(answer, status, record)
    del verdict.values["accuracy_terms"]
    if record["answer_type"] == CLOSED:
        verdict.values["overall"] = verdict.values["closed_accuracy"]
        return verdict
    recall, precision = (0.0, 0.0) if answer is None else recall_llavamed(answer, gold)
    verdict.values.update(
        overall=(recall, 1), open_recall=(recall, 1), open_precision=(precision, 1),
        open_answer_words=(0 if answer is None else answer_length(answer), 1),
    )  # fmt: skip
    return verdict


PROTOCOLS: Mapping[str, Protocol] = {
    "normalized": Protocol(
        "exact match after SQuAD's normalisation with numbers kept whole and lists compared as sets; a closed question "
        "whose gold is yes or no by the leading word",
        _normalized,
    ),
    "strict": Protocol(
        "the extracted answer equals the gold to the character, outer white space apart, in every task",
        _strict,
        every_task=True,
    ),
    "squad": Protocol("SQuAD's exact match and F1, closed questions too", _squad),
    "llavamed": Protocol(
        "LLaVA-Med's pair: token recall of open answers, accuracy of closed ones; yes and no by the leading word, "
        "not by its substring rule",
        _llavamed,
        headline={VQA: "overall"},
    ),
    "flare": Protocol(
        "the metrics of FLARE 2025, each over one set: balanced accuracy, micro F1, F1 at IoU 0.5, mean absolute "
        "error; answers in words as in normalized",
        _normalized,
        headline={"multiple_choice": "balanced_accuracy"},
    ),
}
