"""What an answer says, by the kind that was asked for: yes or no, a number, labels (and choices.py, boxes.py).

All read the span that `answers.parse` returned, in time linear in its length, and raise on no text. They do not guess:
what is not clearly one answer is unread, and its status says why.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from dataclasses import dataclass
from typing import Generic, TypeVar

OK = "ok"  # an answer was read
AMBIGUOUS = "ambiguous"  # what was asked for was said, but not as one clear answer ("yes and no", "3 of 5")
OFF_VOCAB = "off_vocab"  # what was asked for was not said ("the lungs are normal" to a yes/no question)
REFUSAL = "refusal"  # no answer was read, and the text says that none can be given

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Parsed:
    """An answer and how it was come by: `text` is None exactly where `status` is not `ok`, and never empty."""

    text: str | None
    status: str


@dataclass(frozen=True, slots=True)
class Read(Generic[Value]):
    """What an answer says and how it was come by: `value` is None exactly where `status` is not `ok`."""

    value: Value | None
    status: str


REFUSES = re.compile(
    r"\b(?:cannot|can\snot|can['’]t|could\snot|couldn['’]t|(?:unable|not\sable|(?:im|not\s)possible)\sto)\s"
    r"(?:\w{1,20}\s){0,2}(?:determin|tell\b|say\b|answer|identif|assess|provide|give\b|count\b|measure|estimat|judge)"
    r"|\b(?:do\snot|don['’]t)\sknow\b|\b(?:insufficient|not\senough)\s(?:information|data|detail|context)"
    r"|(?:无法|不能|难以)\w{0,4}?(?:确定|判断|回答|识别|辨认|提供|给出|得出|估计|测量)|不知道",
    re.IGNORECASE,
)


def why_unread(text: str, *, said: bool) -> str:
    """The status of a text from which nothing was read: `refusal` where it says that no answer can be given ("cannot be
    determined"); else `ambiguous` where what was asked for is `said` in some way, `off_vocab` where it is not."""
    if REFUSES.search(text):
        return REFUSAL
    return AMBIGUOUS if said else OFF_VOCAB


DRESSING = re.compile(r"[*_`#\"“”]")  # markdown emphasis and quotation marks around a word
STOPS = " \t\r\n.,!;:'()。，！；：、（）「」"
_LEADING = re.compile(
    r"\W*(?:(?:the\s+)?(?:final\s+)?answer\s*(?:is\b\s*[:：]?|[:：])\W*)?"
    r"(?P<word>yes|no)(?!\w|['’-]\w)",  # not "none", not "no-contrast"
    re.IGNORECASE,
)
# what turns a leading "yes" into no answer: "and no", "/no", or a choice left hanging
_ALTERNATIVE = re.compile(
    r"[\s,;]*(?:and\s*/\s*or\b|and\b|or\b|[/&|])[\s,]*(?P<other>yes\b|no\b|$)",
    re.IGNORECASE,
)
_SAID = re.compile(r"\b(?:yes|no)\b", re.IGNORECASE)
_WHOLE = {
    "yes": "yes",
    "no": "no",
    **dict.fromkeys(("是", "是的", "有", "包含", "包括", "存在", "可以"), "yes"),
    **dict.fromkeys(("否", "不是", "没有", "不包含", "不包括", "不存在", "不可以", "不"), "no"),
}


def parse_yes_no(text: str) -> Parsed:
    """`yes_no` with a status: `ok` with "yes" or "no"; else `why_unread`, said being that one of the words occurs
    somewhere in `text`."""
    word = leading_yes_no(text) or yes_no_gold(text)
    if word:
        return Parsed(word, OK)
    return Parsed(None, why_unread(text, said=_SAID.search(text) is not None))


def yes_no(text: str) -> str | None:
    """The word, "yes" or "no", that `text` leads with; None where it leads with neither.

    The word may follow "(the) (final) answer is/:" and be followed by anything ("No effusion is seen" is a no) but the
    other word as an alternative ("yes and no", "yes/no"). A word elsewhere does not count: "there is no effusion" and
    "normal" are None, which is where substring scorers hand out points. Chinese answers match a table as a whole.
    """
    return parse_yes_no(text).text


def yes_no_gold(gold: str) -> str | None:
    """The word, "yes" or "no", that is all of a gold answer (in Chinese: one of the table); else None.

    Not the leading-word rule: a gold such as "No finding" is a label, and "no" is not right for it.
    """
    return _WHOLE.get(DRESSING.sub("", gold).strip(STOPS).lower())


def leading_yes_no(text: str) -> str | None:
    """The English word of `yes_no`; a Chinese one may go on, so it cannot be told from its beginning."""
    plain = DRESSING.sub("", text).strip()
    match = _LEADING.match(plain)
    if not match:
        return None
    word = match["word"].lower()
    alternative = _ALTERNATIVE.match(plain, match.end())
    if alternative and alternative["other"].lower() != word:
        return None
    if set(re.findall(r"\w+", plain[match.start("word") :].lower())) == {"yes", "no"}:  # "yes no", "No. Yes."
        return None
    return word


_LATIN = "A-Za-zµÀ-ɏͰ-Ͽ"
_UNIT = "(?:mm|cm|ml|mL|dl|dL|mg|kg|µg|µm|μm|um|nm|px|HU|Hz|ms|min|yrs?|years?|days?)"
_WORD_OR_NUMBER = re.compile(
    # a word or label as a whole, with the numbers that belong to it: "T2", "L2-3", "COVID-19"
    rf"(?<![{_LATIN}0-9_])(?!{_UNIT}(?![{_LATIN}0-9_]))[{_LATIN}][{_LATIN}0-9_]*+(?:[-‐‑–/][{_LATIN}0-9_]++)*+"
    rf"|(?P<sign>(?<![{_LATIN}0-9_.)%])[-–+])?(?<![{_LATIN}0-9_.^])"
    r"(?P<number>(?:(?:[0-9]{1,3}(?:,[0-9]{3})++(?!,?[0-9])|[0-9]++)(?:\.[0-9]++)?|\.[0-9]++)(?:[eE][-+]?[0-9]{1,2}+)?)"
    rf"(?!\.?[0-9]|[\^⁰¹²³⁴-⁹])(?={_UNIT}?(?:[23]?(?![{_LATIN}0-9_]))|[mgl](?![{_LATIN}0-9_]))"
)
_TIMES = re.compile(r"(?<=[0-9])\s?[x×*]\s?(?=[0-9])")
_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
)
_NUMBER_WORDS = {word: float(n) for n, word in enumerate([*_WORDS.split(), "eighteen", "nineteen", "twenty"])}
_NUMBER_WORDS |= {word: float(n) for n, word in enumerate("零一二三四五六七八九十")} | {
    "none": 0.0,
    "无": 0.0,
    "两": 2.0,
}


def number(text: str) -> Read[float]:
    """The one number in `text`, as it is written ("35%" is 35.0, "1,000" 1000.0), whatever words stand around it.

    A number that is part of a word or label ("T2", "L2-3", "COVID-19", "3D") does not count; a number word ("two",
    "三", "none") does as the whole text. `ambiguous`: several different ones ("3 of 5", "2 x 3 cm"). `off_vocab`: none.
    """
    word = _NUMBER_WORDS.get(text.strip(STOPS + '*_`"').casefold())
    if word is not None:
        return Read(word, OK)
    plain = _TIMES.sub(" × ", text.translate(_HALF_WIDTH))
    found = set()
    for match in _WORD_OR_NUMBER.finditer(plain):
        if match["number"]:
            value = float(match["number"].replace(",", ""))
            found.add(-value if match["sign"] in ("-", "–") else value)
    if len(found) == 1 and all(map(math.isfinite, found)):
        return Read(found.pop() + 0.0, OK)  # no "-0.0"
    return Read(None, why_unread(text, said=bool(found)))


_HALF_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {ord("−"): "-"}  # NFKC makes "mm²" "mm2"
FENCE = re.compile(r"^\s*+```\w*+|```\s*+$")
_LABEL_END = re.compile(r"[;,；，、\r\n]")
_OUTER = " \t.:!?。！？：'\"“”‘’*_`•·"


def labels(text: str) -> list[str]:
    """The labels of a list between ; or , or lines (in Chinese also 、), or of a JSON list of strings: NFKC, case and
    outer punctuation apart, in their order, each once. "and" does not divide: it is part of many a label."""
    return list(dict.fromkeys(filter(None, map(label, _json_texts(text) or _LABEL_END.split(text)))))


def _json_texts(text: str) -> list[str]:
    """The texts of a JSON list of texts; none for anything else."""
    try:
        found = json.loads(FENCE.sub("", text))
    except (ValueError, RecursionError):
        return []
    return found if isinstance(found, list) and all(isinstance(piece, str) for piece in found) else []


def label(piece: str) -> str:
    """The name of a label or class: NFKC, without case and outer punctuation."""
    plain = " ".join(nfkc(piece).casefold().split())
    plain = plain.lstrip(_OUTER + "-–—([{").rstrip(_OUTER + "]}")  # "HER2-" keeps its minus
    return plain if "(" in plain else plain.rstrip(_OUTER + "]})")


def nfkc(text: str) -> str:
    """NFKC in pieces: a run of combining marks is sorted in quadratic time."""
    return "".join(unicodedata.normalize("NFKC", text[start : start + 2000]) for start in range(0, len(text), 2000))
