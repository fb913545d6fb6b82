"""Answers that mean the same: "X-ray" and "plain film", "axial" and "transverse plane", "liver" and "肝脏".

The synonyms are the groups of terms.yaml. An answer, or one part of a list, is looked up as a whole and never word
by word: "no finding" is not "no". What the table does not hold is equal only to itself.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("terms.yaml")
GROUNDS = {"mesh": r"D\d{6}", "radlex": r"RID\d+", "qid": r"Q\d+", "source": "observed"}

_CHINESE = r"[\u3400-\u4dbf\u4e00-\u9fff\u3007]"
_DASHES = re.compile(r"[\u2010-\u2015\u2212]")
_ARTICLE = re.compile(  # before a word; "a" not before a letter that stands alone: "A B" are two options
    r"(?<![\w-])(?:the|an|a(?!\s+[^\W\d](?![\w-])))\s+(?!(?:and|or)\b)(?=[\"'“‘(*]*\w)"
)
_T2_STAR = re.compile(r"(?<![\w*])t2\s?\*(?!\*)")  # not T2; but *T2* is T2 in italics
_THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_BARE_POINT = re.compile(r"(?<![\w.])\.(?=[0-9])")
_MARK = re.compile(
    r"(?P<kept>(?<=[0-9])[-./:,^](?=[0-9])"  # 0.5, 10-20, 3/4
    r"|(?<![\w.)])-(?=[0-9])"  # a sign: -3
    rf"|(?<=\w)(?:\+(?!(?!{_CHINESE})\w|\+)|-(?![\w+-]))"  # ER+ and ER-, not X-光
    r"|[<>](?=[\s=]*[0-9])|%)"
    r"|(?P<space>[-/\\,;:_|、])"
    r"|(?P<other>[^\w\s])"
)
_SPACE = re.compile(rf"(?<={_CHINESE})\s+|\s+(?={_CHINESE})|(?<=[0-9])\s+(?=%)")
_LIST = re.compile(  # one group, so that `split` gives the separators too
    r"(\s*(?:[;；、，]|(?<![0-9]),|,(?![0-9]{3}(?![0-9])))\s*(?:(?i:and)\s+)?|\s+(?i:and)\s+"
    rf"|(?<={_CHINESE})和(?={_CHINESE}))"  # without regard to case as a whole it would take 13 ms of each start
)
# "no mass and effusion" denies both, so the order of its parts is part of what it says
_DENIAL = re.compile(r"\b(?:no|not|without|neither|nor|never|except)\b|无|没有|未", re.IGNORECASE)
_ABBREVIATION = re.compile(r"[A-Z]{2}|[0-9]")  # what keeps its capitals in a lower-case answer


@dataclass(frozen=True, slots=True)
class Group:
    """Forms of one meaning. `ground` is the key and value of its source: ("mesh", "D008168")."""

    canonical: str
    chinese: str | None
    forms: tuple[str, ...]
    ground: tuple[str, str]


def digest() -> str:
    """Eight hex digits that stand for the content of the table."""
    return hashlib.sha256(TABLE.read_bytes()).hexdigest()[:8]


@cache
def groups(file: Path = TABLE) -> tuple[Group, ...]:
    """The groups of a table, in its order.

    Raises ValueError where a group is not well formed, stands on no known ground, or shares a form with another.
    """
    import yaml

    entries = yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]
    found = tuple(_group(entry, f"{file.name}, group {place}") for place, entry in enumerate(entries, 1))
    holder: dict[str, Group] = {}
    for group in found:
        for form in map(plain, group.forms):
            other = holder.setdefault(form, group)
            if other is not group:
                raise ValueError(
                    f"{file.name}: the form '{form}' is in two groups, '{other.canonical}' and '{group.canonical}'. "
                    "It has to be in one."
                )
    return found


@lru_cache(2**14)  # as in `metrics`
def plain(text: str) -> str:
    """The spelling in which answers are compared: Unicode NFKC, case-folded, no articles, no punctuation, single
    spaces, and no space next to a Chinese character.

    Hyphens, slashes and list marks become spaces, other punctuation goes. Marks that carry meaning stay: those
    between digits ("0.5", "10-20"), signs ("-3", "ER+", "<5") and percent; "1,000" is "1000". An article is one only
    before another word, so that the answers "A" and "the" stay as they are, as does a text of nothing but
    punctuation.
    """
    folded = _DASHES.sub("-", unicodedata.normalize("NFKC", text).casefold())
    marked = _T2_STAR.sub("t2 star", _ARTICLE.sub("", folded))
    marked = _MARK.sub(_without_mark, _BARE_POINT.sub("0.", _THOUSANDS.sub("", marked)))
    return _SPACE.sub("", " ".join(marked.split())) or " ".join(folded.split())


def canonical(text: str) -> str:
    """What `text` is compared as: the canonical form of its group, or itself where no group holds it; both `plain`."""
    spelling = plain(text)
    group = _holders().get(spelling)
    return plain(group.canonical) if group else spelling


def same(pred: str, gold: str) -> bool:
    """True where both have one canonical form, or where `gold` is a list and both have the same parts in any order.

    A list is split at commas, semicolons, 、, "and" and 和. A gold that the table holds as a whole is not split, nor
    is one that denies something ("no mass and effusion").
    """
    if canonical(pred) == canonical(gold):
        return True
    if plain(gold) in _holders() or _DENIAL.search(gold):
        return False
    wanted = _parts(gold)
    return len(wanted) > 1 and _parts(pred) == wanted


def target(answer: str) -> str:
    """A training answer with every known term in its canonical form; an unknown one stays as it is, to the character.

    A Chinese answer gets the Chinese form. An English one keeps its case: a form that began with a small letter
    begins with one again, abbreviations apart ("mri" becomes "MRI"). In a list each part is looked up, and the marks
    between them stay.
    """
    if plain(answer) in _holders():
        return _in_canonical_form(answer)
    pieces = _LIST.split(answer)
    return "".join(piece if place % 2 else _in_canonical_form(piece) for place, piece in enumerate(pieces))


def _group(entry: Mapping[str, Any], place: str) -> Group:
    forms, name, chinese = entry.get("forms") or [], entry.get("canonical"), entry.get("zh")
    if not isinstance(name, str) or not all(isinstance(form, str) and plain(form) for form in forms):
        raise ValueError(f"{place}: `canonical` and every form has to be a text (put quotes around 1, yes and no).")
    spellings = {plain(form) for form in forms}
    for key, value in (("canonical", name), ("zh", chinese)):
        if value is not None and plain(value) not in spellings:
            raise ValueError(f"{place}: its `{key}` '{value}' is not among its forms.")
    if chinese is None and any(re.search(_CHINESE, form) for form in forms):
        raise ValueError(f"{place} ('{name}'): it has Chinese forms and no `zh`, which says how they are written.")
    grounds = [(key, str(entry[key])) for key in entry if key not in ("canonical", "zh", "forms")]
    if len(grounds) != 1 or not re.fullmatch(GROUNDS.get(grounds[0][0], "(?!)"), grounds[0][1]):
        raise ValueError(
            f"{place} ('{name}'): it has to stand on one ground, such as `mesh: D008168`, `radlex: RID10579`, "
            f"`qid: Q199` or `source: observed`; it has {dict(grounds) or 'none'}."
        )
    return Group(name, chinese, tuple(forms), grounds[0])


@cache
def _holders() -> dict[str, Group]:
    return {plain(form): group for group in groups() for form in group.forms}


def _without_mark(match: re.Match[str]) -> str:
    mark = match[0]
    if match["kept"]:
        return mark
    if match["space"]:
        return " "
    is_punctuation = mark.isascii() or unicodedata.category(mark).startswith("P")  # ° and ≤ are not
    return "" if is_punctuation else mark


def _parts(text: str) -> frozenset[str]:
    return frozenset(canonical(part) for part in _LIST.split(text)[::2] if plain(part))


def _in_canonical_form(answer: str) -> str:
    group = _holders().get(plain(answer))
    if group is None:
        return answer
    if group.chinese is not None and re.search(_CHINESE, answer):
        return group.chinese
    first = next((letter for letter in answer if letter.isalpha()), "")
    if first.islower():
        words = group.canonical.split(" ")
        return " ".join(word if _ABBREVIATION.search(word) else word.lower() for word in words)
    return group.canonical[0].upper() + group.canonical[1:]
