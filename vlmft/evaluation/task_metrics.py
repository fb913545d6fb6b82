"""Scores of the tasks whose answer is no short text: letters, label lists, boxes, numbers and reports.

A metric of one record is a pair (numerator, denominator), and that of a set is the sum of the numerators over the sum
of the denominators, so that a bootstrap can draw images and add up again. What is no such ratio is in `over_all`.
"""

from __future__ import annotations

import math
import operator
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from vlmft.data.question import (
    COUNTING,
    DETECTION,
    INSTANCE_DETECTION,
    MULTI_LABEL,
    MULTIPLE_CHOICE,
    REGRESSION,
    REPORT,
)
from vlmft.evaluation.answer_kinds import OK, labels, number
from vlmft.evaluation.boxes import Box, boxes, instances
from vlmft.evaluation.choices import choice, choice_gold

if TYPE_CHECKING:
    import numpy as np

Record = Mapping[str, Any]
Boxes = Mapping[str, Sequence[Box]]  # by class

# The metric that heads a table. An "mae" is of the answers that were read, so "parse_rate" stands beside it.
HEADLINE: Mapping[str, str] = {
    MULTIPLE_CHOICE: "accuracy",
    MULTI_LABEL: "f1_micro",
    DETECTION: "f1@0.5",
    INSTANCE_DETECTION: "f1@0.5",
    COUNTING: "mae",
    REGRESSION: "mae",
    REPORT: "rouge_l",
}
LOWER_IS_BETTER = frozenset({"mae", "mae_imputed"})

_THRESHOLDS = (0.5, 0.3)
_GLM_BOX = "<|begin_of_box|>"
_CJK = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_TOKEN = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one record is worth. `parsed` is what was understood, as text ("B", "effusion; edema", "2 boxes"), and None
    where `status` is not ok; `correct` is exactly right; `values` are the metrics, each (numerator, denominator)."""

    parsed: str | None
    status: str
    correct: bool
    values: Mapping[str, tuple[float, float]]


def outcome(task: str, answer: str | None, status: str, record: Record) -> Outcome:
    """The outcome of one record under its task, given the answer and the status that `answers.parse` found.

    No answer is a wrong one and stays in the count: no labels and no boxes said, no number read. Only where nothing is
    to be found either does a pooled F1 not move, and `correct` is still False. Raises ValueError for a task that is not
    in HEADLINE, and for a gold that cannot be read as its task asks, naming the record.
    """
    if task not in _OUTCOMES:
        raise ValueError(f"The task {task!r} is not scored here. These are: {', '.join(_OUTCOMES)}.")
    return _OUTCOMES[task](answer, status, record)


def over_all(task: str, records: Sequence[tuple[str | None, Record]]) -> dict[str, float]:
    """The metrics of a whole set that are no ratio of sums, 0.0 to 1.0; each record stands behind its answer.

    report: "bleu", corpus BLEU of 1- to 4-grams (Papineni et al. 2002; texts of fewer than four tokens get 0.0), and
    "chrf" (Popović 2015), both by sacrebleu; an answer that was not read is an empty text. multiple_choice:
    "constant_letter", the share that is right if the best single letter is always said, and "balanced_accuracy".
    Other tasks: nothing. Raises ValueError where there are no records.
    """
    if not records:
        raise ValueError("There are no predictions to score.")
    if task == MULTIPLE_CHOICE:
        golds = [gold_letter(record) for _, record in records]
        said = [_multiple_choice(answer, "", record).parsed for answer, record in records]
        most = max(Counter(golds).values())
        return {"constant_letter": most / len(golds), "balanced_accuracy": balanced(golds, said)}
    if task == REPORT:
        return _corpus([answer or "" for answer, _ in records], [str(record["gold"]) for _, record in records])
    return {}


def balanced(golds: Sequence[str], said: Sequence[str | None]) -> float:
    """Balanced accuracy: the mean over the classes among `golds` of the share of each that was said.

    Equal to scikit-learn's `balanced_accuracy_score` with None as a class of its own. Raises ValueError where there
    are no golds, or not one answer for each.
    """
    if not golds:
        raise ValueError("There are no predictions to score.")
    of = Counter(golds)
    right = Counter(gold for gold, word in zip(golds, said, strict=True) if gold == word)
    return sum(right[gold] / count for gold, count in of.items()) / len(of)


def gold_letter(record: Record) -> str:
    """The letter that the gold of a multiple-choice record names; ValueError, with the record, where it names none."""
    try:
        return choice_gold(str(record["gold"]), record.get("options", ()))
    except ValueError as error:
        raise ValueError(f"Record {record.get('id')!r}: {error}") from None


def _multiple_choice(answer: str | None, status: str, record: Record) -> Outcome:
    letter, status = _read(lambda text: choice(text, record.get("options", ())), answer, status)
    correct = letter == gold_letter(record)
    return Outcome(letter, status, correct, {"accuracy": (float(correct), 1.0)})


def _multi_label(answer: str | None, status: str, record: Record) -> Outcome:
    gold = set(labels(str(record["gold"])))
    listed = [] if answer is None else labels(answer)
    said = set(listed)
    correct = answer is not None and said == gold
    twice, count = 2.0 * len(said & gold), float(len(said) + len(gold))
    values = {"f1_micro": (twice, count), "f1_samples": (twice / count if count else float(correct), 1.0)}
    return Outcome(None if answer is None else "; ".join(listed) or "no labels", status, correct, values)


def _detection(answer: str | None, status: str, record: Record) -> Outcome:
    gold = _gold(boxes, record, "a list of boxes such as [[10, 20, 50, 60]]")
    said, status = _read(boxes, answer, status)
    return _located(None if said is None else {"": said}, status, {"": gold}, record, operator.gt)


def _instance_detection(answer: str | None, status: str, record: Record) -> Outcome:
    gold = _gold(instances, record, 'boxes by class such as {"caries": [[10, 20, 50, 60]]}')
    return _located(*_read(instances, answer, status), gold, record, operator.ge)


def _located(said: Boxes | None, status: str, gold: Boxes, record: Record, enough: Callable[..., Any]) -> Outcome:
    """F1 of boxes by class, 2 TP / (said + gold). Whether an IoU at the threshold itself is `enough` differs between
    the two tasks, as in the PaliGemma baseline of the FLARE 2025 organisers."""
    across, down = _scale(record)
    boxes_of = {
        name: [(x1 * across, y1 * down, x2 * across, y2 * down) for x1, y1, x2, y2 in of_name]
        for name, of_name in (said or {}).items()
    }
    overlaps = [_overlaps(boxes_of[name], of_name) for name, of_name in gold.items() if name in boxes_of]
    hits = {line: sum(_pairs(enough(overlap, line)) for overlap in overlaps) for line in _THRESHOLDS}
    n_said, n_gold = sum(map(len, boxes_of.values())), sum(map(len, gold.values()))
    values = {f"f1@{line}": (2.0 * hit, float(n_said + n_gold)) for line, hit in hits.items()}
    if said is None:
        return Outcome(None, status, False, values)
    counted = "1 box" if n_said == 1 else f"{n_said or 'no'} boxes"
    return Outcome(counted, status, hits[0.5] == n_said == n_gold, values)


def _scale(record: Record) -> tuple[float, float]:
    """What to multiply the answer's x and y with to bring them into the space of the gold.

    GLM is trained to write boxes between its box tokens in thousandths of the picture's sides. Fine-tuned on pixels it
    writes them as it saw them, without those tokens; so the tokens tell whose space it is.
    """
    size = record.get("image_size")
    if size and _GLM_BOX in record["raw"] and record.get("facts", {}).get("box_space", "pixels") == "pixels":
        width, height = size
        return width / 1000, height / 1000
    return 1.0, 1.0


def _overlaps(said: Sequence[Box], gold: Sequence[Box]) -> np.ndarray:
    """The IoU of each said box (row) with each gold one (column); 0.0 for a box without an inside."""
    import numpy as np
    from pycocotools.mask import iou

    a, b = (np.array(of, np.float64).reshape(-1, 4) for of in (said, gold))
    for corners in (a, b):
        corners[:, 2:] -= corners[:, :2]  # x, y, width, height
    return np.reshape(iou(a, b, [0] * len(b)), (len(a), len(b)))


def _pairs(allowed: np.ndarray) -> int:
    """The most one-to-one pairs among those that are allowed."""
    from scipy.optimize import linear_sum_assignment

    return int(allowed[linear_sum_assignment(allowed, maximize=True)].sum())


def _numeric(answer: str | None, status: str, record: Record) -> Outcome:
    """Errors and the share that was read.

    "mae_imputed" puts the training answers' median, `record["train"]["median"]`, in the place of an answer that was not
    read. Where there is no median either, such a record lacks that metric, and a set with such a record should not be
    given one: it would be an "mae" of what was read under another name.
    """
    gold = float(_gold(number, record, "a number such as 35"))
    said, status = _read(number, answer, status)
    if said is not None:
        error = (abs(said - gold), 1.0)
        values = {"mae": error, "parse_rate": (1.0, 1.0), "mae_imputed": error}
        return Outcome(f"{said:.15g}", status, math.isclose(said, gold, rel_tol=1e-9), values)
    values = {"mae": (0.0, 0.0), "parse_rate": (0.0, 1.0)}
    median = (record.get("train") or {}).get("median")
    if median is not None:
        values["mae_imputed"] = (abs(median - gold), 1.0)
    return Outcome(None, status, False, values)


def _report(answer: str | None, status: str, record: Record) -> Outcome:
    """ROUGE-L, the F-measure of the longest common subsequence of tokens (Lin 2004), by rouge_score.

    Its own tokenizer knows ASCII alone and gives 0.0 to two equal Chinese texts.
    """
    from rouge_score.rouge_scorer import RougeScorer

    gold = str(record["gold"])
    scorer = RougeScorer(["rougeL"], tokenizer=SimpleNamespace(tokenize=_tokens))
    rouge = scorer.score(gold, answer or "")["rougeL"].fmeasure
    correct = answer is not None and answer.lower().split() == gold.lower().split()
    return Outcome(answer, status, correct, {"rouge_l": (float(rouge), 1.0)})


def _corpus(said: Sequence[str], golds: Sequence[str]) -> dict[str, float]:
    from sacrebleu import corpus_bleu, corpus_chrf

    tokens = [token for gold in golds for token in _tokens(gold)]
    chinese = sum(re.match(rf"[{_CJK}]", token) is not None for token in tokens) > len(tokens) / 2
    bleu = corpus_bleu(said, [golds], tokenize="zh" if chinese else "13a").score
    return {"bleu": min(bleu / 100, 1.0), "chrf": min(corpus_chrf(said, [golds]).score / 100, 1.0)}


def _tokens(text: str) -> list[str]:
    """Lower-cased words and numbers; each Chinese or Japanese character is a token."""
    return _TOKEN.findall(unicodedata.normalize("NFKC", text).lower())


def _read(reader: Callable[[str], Any], answer: str | None, status: str) -> tuple[Any, str]:
    if answer is None:
        return None, status
    read = reader(answer)
    return read.value, read.status


def _gold(reader: Callable[[str], Any], record: Record, wanted: str) -> Any:
    read = reader(str(record["gold"]))
    if read.status != OK:
        raise ValueError(f"Record {record.get('id')!r}: the gold answer {record['gold']!r} is not {wanted}.")
    return read.value


_OUTCOMES: Mapping[str, Callable[[str | None, str, Record], Outcome]] = {
    MULTIPLE_CHOICE: _multiple_choice,
    MULTI_LABEL: _multi_label,
    DETECTION: _detection,
    INSTANCE_DETECTION: _instance_detection,
    COUNTING: _numeric,
    REGRESSION: _numeric,
    REPORT: _report,
}
