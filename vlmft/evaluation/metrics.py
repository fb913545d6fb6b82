"""How close an answer in words is to the gold: SQuAD's definitions, and ours, which keep numbers and Chinese whole.

A change in what any function here makes of a text must raise `protocols.SCORER_VERSION`.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from functools import lru_cache

_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(a|an|the)\b")
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w.])[-+])?"  # a hyphen after a letter or digit is no sign: "L2-3"
    r"(?<![\w.])(?:(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+(?![,0-9])|[0-9]+)(?:\.(?P<part>[0-9]+))?|\.(?P<bare>[0-9]+))"
    r"(?P<percent>\s?%)?"
)
_BETWEEN_DIGITS = re.compile(r"(?<=[0-9])[-/:.,](?=[0-9])")
_SHIELD = {mark: chr(0xE000 + place) for place, mark in enumerate("-/:.,%")}  # private use, never deleted
_FULL_WIDTH = {
    **{0xFF01 + place: chr(0x21 + place) for place in range(94)},
    **dict.fromkeys(map(ord, "\u3000。、「」『』《》【】…·"), " "),
}
_PART = re.compile(r"[;；，、]|,(?![0-9])|(?<![0-9]),|\band\b", re.IGNORECASE)  # "1,000" is one part
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


def normalize(text: str) -> str:
    """SQuAD v1.1's normaliser: lower-case, delete ASCII punctuation, blank articles, collapse white space.

    Source: `normalize_answer` of the official evaluate-v1.1.py, step for step. It turns "0.5" into "05" and keeps
    Chinese punctuation, so `exact_match` and `token_f1` do not compare by it alone.
    """
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_DELETE_PUNCTUATION)).split())


def squad_exact_match(pred: str, gold: str) -> bool:
    """SQuAD's exact match: the same after `normalize`."""
    return normalize(pred) == normalize(gold)


def squad_f1(pred: str, gold: str) -> float:
    """SQuAD 2.0's F1, 0.0 to 1.0, on the words left by `normalize`; where either has none, 1.0 if both have none."""
    return _f1(normalize(pred).split(), normalize(gold).split())


def exact_match(pred: str, gold: str) -> bool:
    """True where both are the same after `normalize`, with numbers compared as numbers.

    Without digits this is SQuAD's exact match. With them: decimal points, minus and percent signs and marks
    between digits count ("0.5" is not "05", "35%" not "35", "10-20" not "1020", "3.4 cm" not "34 cm"), while
    the way a value is written does not ("3" = "3." = "3.0", "1,000" = "1000"). Number words are words: "two"
    is not "2". A gold that is nothing but articles or punctuation ("A") is compared with those kept, so that
    "the" is not right for it. Full-width and Chinese punctuation is punctuation.
    """
    wanted = _comparable(gold)
    return _comparable(pred) == wanted if wanted else _bare(pred) == _bare(gold)


def same_parts(pred: str, gold: str) -> bool:
    """True where the gold lists several things and `pred` lists the same, each once, in any order.

    Things stand between commas, semicolons, their Chinese forms and "and"; each is compared as in `exact_match`.
    64 of the 1,061 English test answers of SLAKE are such lists, in an order of the annotator's own.
    """
    wanted = _parts(gold)
    return len(wanted) > 1 and _parts(pred) == wanted


def token_f1(pred: str, gold: str) -> float:
    """SQuAD's F1, 0.0 to 1.0: harmonic mean of precision and recall over the multiset of normalised tokens.

    Tokens are words. In text with Chinese or Japanese characters each such character is a token, and what
    stands between them is split into words (`mixed_segmentation` of the CMRC 2018 and MLQA scorers), so for
    Chinese this is character F1. Numbers are shielded as in `exact_match`. Where either side normalises to
    nothing the result is 1.0 if both do, else 0.0, as in SQuAD 2.0.
    """
    return _f1(_tokens(pred), _tokens(gold))


def recall_llavamed(pred: str, gold: str) -> tuple[float, float]:
    """LLaVA-Med's recall of the gold's words, and the precision that belongs to it, each 0.0 to 1.0.

    As in its `calculate_f1score`, a shared word counts as often as the *prediction* says it. Recall rewards long
    answers, so it is never shown without precision and the answers' length. Tokens are those of `token_f1`.
    """
    said, wanted = Counter(_tokens(pred)), Counter(_tokens(gold))
    if not said or not wanted:
        return (float(said == wanted),) * 2
    shared = sum(count for word, count in said.items() if word in wanted)
    missed = sum(count for word, count in wanted.items() if word not in said)
    return shared / (shared + missed), shared / said.total()


def answer_length(text: str) -> int:
    """Length of an answer in the tokens of `token_f1`."""
    return len(_tokens(text))


def _f1(pred: list[str], gold: list[str]) -> float:
    if not pred or not gold:
        return float(pred == gold)
    shared = sum((Counter(pred) & Counter(gold)).values())
    return 2 * shared / (len(pred) + len(gold))


def _parts(text: str) -> list[str]:
    return sorted(filter(None, map(_comparable, _PART.split(text))))


def _bare(text: str) -> str:
    return " ".join(text.lower().translate(_DELETE_PUNCTUATION).split()) or text.strip()


@lru_cache(2**14)  # a judgement compares the same answer in several ways, and short answers come back
def _comparable(text: str) -> str:
    """`normalize`, with every number in its plainest form and its marks out of the normaliser's reach."""
    text = _NUMBER.sub(_plain_number, text.translate(_FULL_WIDTH))
    return normalize(_BETWEEN_DIGITS.sub(lambda mark: _SHIELD[mark[0]], text))


def _plain_number(match: re.Match[str]) -> str:
    whole = (match["whole"] or "").replace(",", "").lstrip("0") or "0"
    part = (match["part"] or match["bare"] or "").rstrip("0")
    value = whole + (_SHIELD["."] + part if part else "")
    sign = _SHIELD["-"] if match["sign"] == "-" and value != "0" else ""
    return sign + value + (_SHIELD["%"] if match["percent"] else "")


def _tokens(text: str) -> list[str]:
    return _CJK.sub(r" \g<0> ", _comparable(text)).split()
