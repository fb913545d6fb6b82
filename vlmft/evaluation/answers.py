"""From the raw text of a completion to the answer it gives, or the reason why it gives none.

The rule never guesses: a text that is not clearly an answer is unparsed, and what is unparsed is counted wrong by
`metrics`, never dropped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from vlmft.data.question import CLOSED

OK = "ok"  # an answer was read
EMPTY = "empty"  # the model stopped without saying anything, or with nothing between its answer tags
UNCLOSED_THINK = "unclosed_think"  # it was still thinking when it ended; a thought is not an answer
TRUNCATED = "truncated"  # the token limit came before the answer was closed
AMBIGUOUS = "ambiguous"  # a yes/no question: yes or no was said, but not as one clear answer ("yes and no")
OFF_VOCAB = "off_vocab"  # a yes/no question: neither was said ("the lungs are normal")

LIMIT = "length"  # the finish_reason of a completion that was cut by the token limit


@dataclass(frozen=True, slots=True)
class Parsed:
    """An answer and how it was come by: `text` is None exactly where `status` is not `ok`, and never
    empty."""

    text: str | None
    status: str


_BOX_OPEN, _BOX_CLOSE = "<|begin_of_box|>", "<|end_of_box|>"  # GLM-4.xV's own way of writing \boxed{}
_BOX_TOKEN = re.compile(r"<\|(?:begin|end)_of_box\|>")
_SPECIAL = re.compile(  # <|im_end|> and its like, DeepSeek's with full-width bars, SentencePiece's, Gemma's
    r"<\|(?!(?:begin|end)_of_box\|>)[^<>|\s]{1,40}\|>|<｜[^<>｜\s]{1,40}｜>"
    r"|</?s>|<(?:bos|eos|pad|unk|start_of_turn|end_of_turn)>",
    re.IGNORECASE,
)
_THINK = re.compile(r"<(/?)think(?:ing)?\s*>", re.IGNORECASE)
_ANSWER_OPEN = re.compile(r"<answer\s*>", re.IGNORECASE)
_ANSWER_CLOSE = re.compile(r"</answer\s*>", re.IGNORECASE)
_BRACE = re.compile(r"\\boxed\s*\{|[{}]")
_TEXT_MACRO = re.compile(r"\\(?:text(?:bf|it|rm)?|mathrm|mathbf)\s*\{([^{}]*)\}")

_DRESSING = re.compile(r"[*_`#\"“”]")  # markdown emphasis and quotation marks around a word
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
    **dict.fromkeys(("是", "是的", "有", "包含", "可以"), "yes"),
    **dict.fromkeys(("否", "不是", "没有", "不包含", "不可以", "不"), "no"),
}
_STOPS = " \t\r\n.,!;:'()。，！；：、（）「」"


def parse(raw: str, *, finish_reason: str, answer_type: str, think_prefilled: bool = False) -> Parsed:
    """The answer a completion gives, read in this order; never raises on any text.

    1. Special tokens go. What counts is what follows the last closing think tag. A think tag that is open at
       the end, or one that the chat template had prefilled and nothing closed, leaves no answer:
       `unclosed_think`.
    2. The last `<answer>` up to its closing tag or the end; else the whole text. Within that, the last
       balanced `\\boxed{}` or GLM box, if there is one, with `\\text{}` unwrapped.
    3. Nothing left: `empty`.

    A completion cut by the limit (`finish_reason` "length"; every other reason counts as finished) gives an
    answer only where it had closed one, in answer tags or a box: the last closed one stands. Anything else is
    `truncated`: an open answer that reached the limit has rambled past its answer, or lacks its end. A closed
    question that leads with the word yes or no is answered by it, whatever was cut later (a word that ends
    exactly at the cut counts, so that one new token can be enough).

    `ambiguous` and `off_vocab` are not given here but by `parse_yes_no`: they depend on the gold being yes or
    no.
    """
    text = _SPECIAL.sub("", raw)
    tags = list(_THINK.finditer(text))
    closing = [tag.end() for tag in tags if tag[1]]
    if (tags and not tags[-1][1]) or (think_prefilled and not closing):
        return Parsed(None, UNCLOSED_THINK)
    if closing:
        text = text[closing[-1] :]

    cut = finish_reason == LIMIT
    span, closed = _answer_span(text, closed_only=cut)
    boxed = _last_box(span)
    answer = (_BOX_TOKEN.sub("", span) if boxed is None else boxed).strip()
    finished = not cut or closed or boxed is not None
    if not finished and not (answer_type == CLOSED and _leading_yes_no(answer)):
        return Parsed(None, TRUNCATED)
    return Parsed(answer, OK) if answer else Parsed(None, EMPTY)


def parse_yes_no(text: str) -> Parsed:
    """`yes_no` with a status: `ok` with "yes" or "no"; else `ambiguous` where one of the words occurs
    somewhere in `text`, `off_vocab` where neither does."""
    word = _leading_yes_no(text) or yes_no_gold(text)
    if word:
        return Parsed(word, OK)
    return Parsed(None, AMBIGUOUS if _SAID.search(text) else OFF_VOCAB)


def yes_no(text: str) -> str | None:
    """The word, "yes" or "no", that `text` leads with; None where it leads with neither.

    The word may follow "(the) (final) answer is/:" and be followed by anything ("No effusion is seen" is a
    no) but the other word as an alternative ("yes and no", "yes/no"). A word elsewhere does not count: "there
    is no effusion" and "normal" are None, which is where substring scorers hand out points. Chinese answers
    match a table as a whole.
    """
    return parse_yes_no(text).text


def yes_no_gold(gold: str) -> str | None:
    """The word, "yes" or "no", that is all of a gold answer (in Chinese: one of the table); else None.

    Not the leading-word rule: a gold such as "No finding" is a label, and "no" is not right for it.
    """
    return _WHOLE.get(_DRESSING.sub("", gold).strip(_STOPS).lower())


def _leading_yes_no(text: str) -> str | None:
    plain = _DRESSING.sub("", text).strip()
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


def _answer_span(text: str, *, closed_only: bool) -> tuple[str, bool]:
    """What stands in the last answer tag, and whether that tag is closed; the whole text where there is no
    tag.

    With `closed_only` an unclosed last tag gives way to the last closed one before it.
    """
    opens = list(_ANSWER_OPEN.finditer(text))
    if not opens:
        return text, False
    start = opens[-1].end()
    if closed_only:
        closes = list(_ANSWER_CLOSE.finditer(text))
        before = [tag.end() for tag in opens if closes and tag.end() <= closes[-1].start()]
        start = before[-1] if before else start
    close = _ANSWER_CLOSE.search(text, start)
    return (text[start : close.start()], True) if close else (text[start:], False)


def _last_box(text: str) -> str | None:
    """The inside of the box that opens last, of those that are closed; None without one."""
    best: tuple[int, str] | None = None
    stack: list[re.Match[str]] = []
    for brace in _BRACE.finditer(text):
        if brace[0] != "}":
            stack.append(brace)
        elif stack:
            opening = stack.pop()
            if opening[0] != "{" and (best is None or opening.start() > best[0]):
                best = opening.start(), text[opening.end() : brace.start()]
    end = text.rfind(_BOX_CLOSE)
    start = text.rfind(_BOX_OPEN, 0, end) if end >= 0 else -1
    if start >= 0 and (best is None or start > best[0]):
        inside = text[start + len(_BOX_OPEN) :]
        best = start, inside[: inside.find(_BOX_CLOSE)]
    if best is None:
        return None
    inside, before = _BOX_TOKEN.sub("", best[1]), ""
    while inside != before:
        inside, before = _TEXT_MACRO.sub(r"\1", inside), inside
    return inside
