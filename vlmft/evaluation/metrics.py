"""Right or wrong, under a named protocol: what a stored prediction is worth, and the scores of a set of them.

Scoring reads records (`predictions_<set>.jsonl`) and nothing else, so it can be done again without a GPU. A
change in what any function here, or in `answers`, makes of a record must raise SCORER_VERSION.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmft.data.question import CLOSED, OPEN
from vlmft.evaluation.answers import OK, parse, parse_yes_no, yes_no_gold

SCORER_VERSION = 1

_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(a|an|the)\b")
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w.])[-+])?"  # a hyphen after a letter or digit is no sign: "L2-3"
    r"(?<![\w.])(?:(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+(?![,0-9])|[0-9]+)(?:\.(?P<part>[0-9]+))?|\.(?P<bare>[0-9]+))"
    r"(?P<percent>\s?%)?"
)
_BETWEEN_DIGITS = re.compile(r"(?<=[0-9])[-/:.,](?=[0-9])")
_SHIELD = {mark: chr(0xE000 + place) for place, mark in enumerate("-/:.,%")}  # private use, never deleted
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


def normalize(text: str) -> str:
    """SQuAD v1.1's normaliser: lower-case, delete ASCII punctuation, blank articles, collapse white space.

    Source: `normalize_answer` of the official evaluate-v1.1.py, step for step. It turns "0.5" into "05", so
    answers are not compared by it alone: `exact_match` and `token_f1` shield numbers from it first.
    """
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_DELETE_PUNCTUATION)).split())


def exact_match(pred: str, gold: str) -> bool:
    """True where both are the same after `normalize`, with numbers compared as numbers.

    Without digits this is SQuAD's exact match. With them: decimal points, minus and percent signs and marks
    between digits count ("0.5" is not "05", "35%" not "35", "10-20" not "1020", "3.4 cm" not "34 cm"), while
    the way a value is written does not ("3" = "3." = "3.0", "1,000" = "1000"). Number words are words: "two"
    is not "2". A gold that is nothing but articles or punctuation ("A") is compared with those kept, so that
    "the" is not right for it.
    """
    if not normalize(gold):
        return _bare(pred) == _bare(gold)
    return _comparable(pred) == _comparable(gold)


def token_f1(pred: str, gold: str) -> float:
    """SQuAD's F1, 0.0 to 1.0: harmonic mean of precision and recall over the multiset of normalised tokens.

    Tokens are words. In text with Chinese or Japanese characters each such character is a token, and what
    stands between them is split into words (`mixed_segmentation` of the CMRC 2018 and MLQA scorers). Numbers
    are shielded as in `exact_match`. Where either side normalises to nothing the result is 1.0 if both do,
    else 0.0, as in SQuAD 2.0.
    """
    of_pred, of_gold = _tokens(pred), _tokens(gold)
    if not of_pred or not of_gold:
        return float(of_pred == of_gold)
    shared = sum((Counter(of_pred) & Counter(of_gold)).values())
    return 2 * shared / (len(of_pred) + len(of_gold))


def _bare(text: str) -> str:
    return " ".join(text.lower().translate(_DELETE_PUNCTUATION).split()) or text.strip()


def _comparable(text: str) -> str:
    """`normalize`, with every number in its plainest form and its marks out of the normaliser's reach."""
    text = _NUMBER.sub(_plain_number, text)
    return normalize(_BETWEEN_DIGITS.sub(lambda mark: _SHIELD[mark[0]], text))


def _plain_number(match: re.Match[str]) -> str:
    whole = (match["whole"] or "").replace(",", "").lstrip("0") or "0"
    part = (match["part"] or match["bare"] or "").rstrip("0")
    value = whole + (_SHIELD["."] + part if part else "")
    sign = _SHIELD["-"] if match["sign"] == "-" and value != "0" else ""
    return sign + value + (_SHIELD["%"] if match["percent"] else "")


def _tokens(text: str) -> list[str]:
    return _CJK.sub(r" \g<0> ", _comparable(text)).split()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one record is worth. `parsed` is the answer that was compared ("yes"/"no" where that was asked),
    None where `status` (see `answers`) is not ok; `f1` is `token_f1`, or as `correct` where yes or no was
    asked for."""

    parsed: str | None
    status: str
    correct: bool
    f1: float


def _normalized(answer: str, record: Mapping[str, Any]) -> Verdict:
    gold = str(record["gold"])
    wanted = yes_no_gold(gold) if record["answer_type"] == CLOSED else None
    if wanted:
        said = parse_yes_no(answer)
        correct = said.text == wanted
        return Verdict(said.text, said.status, correct, float(correct))
    return Verdict(answer, OK, exact_match(answer, gold), _graded(answer, gold))


def _strict(answer: str, record: Mapping[str, Any]) -> Verdict:
    gold = str(record["gold"]).strip()
    return Verdict(answer, OK, answer == gold, _graded(answer, gold))


def _graded(answer: str, gold: str) -> float:
    """`token_f1`, but 1.0 or 0.0 for a gold that normalises to nothing ("A"), where F1 would take "the" for
    it."""
    return token_f1(answer, gold) if normalize(gold) else float(exact_match(answer, gold))


PROTOCOLS: Mapping[str, Callable[[str, Mapping[str, Any]], Verdict]] = {
    # closed with a gold that is yes or no: the same word by the leading-word rule; all else: exact_match
    "normalized": _normalized,
    # the extracted span equals the gold to the character, outer white space apart: "Yes." is not "Yes".
    # F1 has the one definition of token_f1 in every protocol.
    "strict": _strict,
}


def judge(record: Mapping[str, Any], protocol: str) -> Verdict:
    """The verdict on one prediction; what is unparsed is wrong.

    A record holds id, set, images, question, gold, answer_type ("closed" or "open"), raw and finish_reason,
    and `think_prefilled` where the chat template opened a think tag. Raises ValueError for an unknown
    protocol or answer type, KeyError for a record that lacks one of the last four fields.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"There is no scoring protocol '{protocol}'. There are: {', '.join(PROTOCOLS)}.")
    kind = record["answer_type"]
    if kind not in (CLOSED, OPEN):
        raise ValueError(f"Record {record.get('id')!r}: answer_type {kind!r} is not {CLOSED!r} or {OPEN!r}.")
    answer = parse(
        record["raw"],
        finish_reason=record["finish_reason"],
        answer_type=kind,
        think_prefilled=bool(record.get("think_prefilled", False)),
    )
    if answer.text is None:
        return Verdict(None, answer.status, False, 0.0)
    return PROTOCOLS[protocol](answer.text, record)


def score(records: Iterable[Mapping[str, Any]], protocols: Sequence[str]) -> dict[str, Any]:
    """The scores of one set, as they stand in result.json (schema 1): plain types, shares from 0 to 1, not
    rounded.

    `unparsed_rate` is the share of records whose status is not ok under the first of `protocols`. `accuracy`
    counts an open answer as right where it matches exactly; a share of no questions is None. Raises
    ValueError where there are no records or no protocols.
    """
    rows = list(records)
    if not rows:
        raise ValueError("There are no predictions to score.")
    if not protocols:
        raise ValueError(f"No scoring protocol is named. There are: {', '.join(PROTOCOLS)}.")
    verdicts = {name: [judge(row, name) for row in rows] for name in protocols}
    first = verdicts[protocols[0]]
    return {
        "n": len(rows),
        "unparsed_rate": sum(verdict.status != OK for verdict in first) / len(rows),
        "scores": {name: _summary(rows, judged) for name, judged in verdicts.items()},
        "scorer_version": SCORER_VERSION,
    }


def _summary(rows: Sequence[Mapping[str, Any]], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    of: dict[str, list[Verdict]] = {CLOSED: [], OPEN: []}
    for row, verdict in zip(rows, verdicts, strict=True):
        of[row["answer_type"]].append(verdict)
    correct = sum(verdict.correct for verdict in verdicts)
    return {
        "accuracy": correct / len(verdicts),
        "correct": correct,
        "incorrect": len(verdicts) - correct,
        "closed": {"n": len(of[CLOSED]), "accuracy": _mean([verdict.correct for verdict in of[CLOSED]])},
        "open": {
            "n": len(of[OPEN]),
            "exact_match": _mean([verdict.correct for verdict in of[OPEN]]),
            "f1": _mean([verdict.f1 for verdict in of[OPEN]]),
        },
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
