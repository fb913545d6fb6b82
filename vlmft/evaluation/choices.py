"""Which option of a multiple-choice question an answer names: its letter, or its text."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vlmft.evaluation.answer_kinds import DRESSING, OK, Read, nfkc, why_unread

_NO_WORD_GOES_ON = r"(?![A-Za-z0-9_]|[-'’][A-Za-z])"  # not "T2", "X-ray", "I'm"
_ANSWER_IS = re.compile(
    r"\W*+(?:the\s++)?(?:(?:final|correct|best|right)\s++)?"
    r"(?:(?:answer|option|choice)\s*+(?:is\b\s*+:?|:)|答案\s*+(?:应?[是为])?\s*+:?)\s*+",
    re.IGNORECASE,
)
_NAMED = re.compile(  # "answer: (B", "the correct option is B", "选B"
    r"(?:\b(?:answer|option|choice)\b|答案|选项|选择|选)\s*+"
    r"(?:(?:(?:is|was|(?:should|would|must)\sbe)\b|应?该?[是为])\s*+)?[:=]?\s*+(?:(?:option|choice|letter|选项)\s++)?"
    rf"[(\[{{<'「【]*+\s*+(?P<letter>[A-Za-z]){_NO_WORD_GOES_ON}",
    re.IGNORECASE,
)
_FIRST = re.compile(r"[^\w]*+(?P<letter>[A-Za-z])" + _NO_WORD_GOES_ON)
_MARK = re.compile(  # what ends a letter at the beginning; not the points of "A.P. view"
    r"\s*+[:)\]}=、]|\s*+\.(?![A-Za-z]\b)|\s*+[,;]|\s++[-–—]\s|[ \t]*+\n|\s++(?=(?:because|since|as)\b)"
)
_HELD_OUT = re.compile(
    r"\s*+(?:(?:is|was|can|could|seems)\s*+)?(?:n['’]t\b|not\b|wrong\b|incorrect|exclu|ruled\b|false)", re.I
)
_PROSE = re.compile(r"[^\S\n]++(?!(?:because|since|as|is|was|and|or|which|based|due|given)\b)\w", re.IGNORECASE)
_OR = re.compile(r"[\s)\].:']*+,?\s*+(?:/|\||或|(?:and\s*+/\s*+)?or\b)", re.IGNORECASE)
_ALSO = re.compile(
    rf"[\s)\].:']*+(?:(?:,|;|&|\+|、|and\b|和|与|及)\s*+)++[(\['「]*+(?P<letter>[A-Za-z]){_NO_WORD_GOES_ON}",
    re.IGNORECASE,
)
_HEADING = re.compile(r"(?<!\w)(?:(?P<marked>[A-Za-z])\s?(?P<mark>[:.)\]])|(?P<letter>[A-Z])(?=\s))\s?")
_CLAUSE = re.compile(r"[.,;:](?!\S)|[\n(]|[。，；：]|(?<=\s)(?:because|since|as)\b", re.IGNORECASE)
_STANDS_ALONE = re.compile(r"(?<![\w'’-])[A-Z](?![\w'’-])")
_JOINTS = frozenset({"and", "or", "both", "either", "或", "和"})
_LOOSE = re.compile(  # punctuation at a word's edge, but for what belongs to a number
    r"(?<!\w)(?![-.]\d)[^\w\s%<>=+±≤≥°]|[^\w\s%<>=+±≤≥°](?!\w)|_"
)


def choice(text: str, options: Sequence[str]) -> Read[str]:
    """The capital letter of the option that `text` names; without `options` any letter from A to Z.

    A letter counts as the whole text ("b", "(B)"), first with a mark after it ("B: …", "B, because") or before its
    option's text, and after the words answer, option or choice ("the correct option is (C)"), there but for an option
    that is ruled out. An option's text counts as the whole, also after "the answer is". A bare "A" in prose is none
    ("The answer is a mass"), nor is a letter elsewhere ("I think B").

    `ambiguous`: several letters ("B or C", a list of all options), a letter with another option's text, a letter that
    stands elsewhere. `off_vocab`: a letter beyond the options, or none. `refusal`: see `why_unread`.
    """
    plain = DRESSING.sub("", nfkc(text)).strip()
    texts = [_comparable(option) for option in options]
    words = re.findall(r"\w+", plain.lower())
    bare = [word for word in words if word not in _JOINTS]
    if len(words) == 1 and re.fullmatch("[a-z]", words[0]):
        letters = {words[0].upper()}
    else:
        named = {
            _comparable(plain),
            _comparable(_ANSWER_IS.sub("", plain, count=1) if _ANSWER_IS.match(plain) else plain),
        }
        letters = {_letter(place) for place, option in enumerate(texts[:26]) if option and option in named}
        if not letters and bare and all(re.fullmatch("[a-z]", word) for word in bare):  # "B or C", "A B"
            letters = {word.upper() for word in bare}
            letters |= {"or"} if len(bare) < len(words) else set()
        letters = letters or _named_letters(plain, texts)
    alone = {letter for letter in _STANDS_ALONE.findall(plain) if letter not in "AI"}
    if len(letters) != 1:
        return Read(None, why_unread(text, said=bool(letters or alone)))
    letter = letters.pop()
    if options and ord(letter) - ord("A") >= len(options):
        return Read(None, why_unread(text, said=False))
    return Read(letter, OK)


def choice_gold(gold: str, options: Sequence[str]) -> str:
    """The capital letter of the option that a gold answer names by letter or text; ValueError where it names none."""
    if len(gold) == 1 and "A" <= gold <= "Z" and ord(gold) - ord("A") < len(options):
        return gold
    letter = choice(gold, options).value
    if letter is None:
        named = "; ".join(f"{_letter(place)}: {option}" for place, option in enumerate(options[:26]))
        raise ValueError(
            f"The gold answer {gold!r} is neither the letter nor the text of one of the options ({named})."
        )
    return letter


def _letter(place: int) -> str:
    return chr(ord("A") + place)


def _comparable(text: str) -> str:
    """`text` for comparing names: NFKC, case, white space and outer punctuation of words apart. "1.5" is not "15"."""
    plain = nfkc(text).casefold().replace("’", "'").replace("−", "-")
    return " ".join(_LOOSE.sub(" ", plain).split())


def _named_letters(plain: str, texts: Sequence[str]) -> set[str]:
    """The letters that stand where an answer stands; more than one where another is offered or contradicts it."""
    letters: set[str] = set()
    first = _FIRST.match(plain)
    if first:
        letter = first["letter"]
        mark = _MARK.match(plain, first.end())
        fits = _fits(letter, plain, mark.end() if mark else first.end(), texts)
        marked = mark is not None and not (letter in "aiI" and mark[0].strip() in ",;")  # "I, as a model"
        if (fits is True or marked) and _listed(plain, texts) <= {letter.upper()}:
            letters |= _offered(letter, plain, first.end(), fits)
        elif fits is False and letter.isupper() and not _NAMED.search(plain):
            return {letter, "or"}
    for match in _NAMED.finditer(plain):
        fits = _fits(match["letter"], plain, match.end(), texts)
        article = match["letter"] in "AIai" and _PROSE.match(plain, match.end()) and fits is not True
        if not article and not _HELD_OUT.match(plain, match.end()):
            letters |= _offered(match["letter"], plain, match.end(), fits)
    return letters


def _offered(letter: str, plain: str, end: int, fits: bool | None) -> set[str]:
    """A letter that was found, with what is offered beside it: "or C", "and C", another option's text."""
    if fits is True:
        return {letter.upper()}
    if fits is False or _OR.match(plain, end):
        return {letter.upper(), "or"}
    also = _ALSO.match(plain, end)
    if also and not (also["letter"] in "AIai" and _PROSE.match(plain, also.end())):
        return {letter.upper(), also["letter"].upper()}
    return {letter.upper()}


def _fits(letter: str, plain: str, end: int, texts: Sequence[str]) -> bool | None:
    """Whether what follows a letter is its own option's text (True), another's (False), or neither (None)."""
    near = plain[end : end + 2 * max(map(len, texts), default=0) + 80].lstrip(" \t\n:.)]}=,;、-–—")
    whole, clause = _comparable(near), _comparable(_CLAUSE.split(near, maxsplit=1)[0])
    place = ord(letter.upper()) - ord("A")
    own = texts[place] if place < len(texts) else ""
    if own and (own == whole or (whole not in texts and f"{whole} ".startswith(f"{own} "))):
        return True
    return False if (whole and whole in texts) or (clause and clause in texts) else None


def _listed(plain: str, texts: Sequence[str]) -> set[str]:
    """The letters that head their own option's text, as in a list of all options; the last may be cut."""
    listed = set()
    for match in _HEADING.finditer(plain):
        letter = (match["marked"] or match["letter"]).upper()
        place = ord(letter) - ord("A")
        if place < len(texts) and texts[place]:
            rest = plain[match.end() : match.end() + len(texts[place])].casefold()
            if texts[place].startswith(rest) and (rest or match["mark"] == ":"):
                listed.add(letter)
    return listed
