"""From the raw text of a completion to the answer it gives, or the reason why it gives none.

The rule never guesses: a text that is not clearly an answer is unparsed, and what is unparsed is counted wrong by
`metrics`, never dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from vlmft.data.question import CLOSED, MULTIPLE_CHOICE, VQA
from vlmft.evaluation.answer_kinds import OK, Parsed, leading_yes_no

EMPTY = "empty"  # the model stopped without saying anything, or with nothing between its answer tags
UNCLOSED_THINK = "unclosed_think"  # it was still thinking when it ended; a thought is not an answer
TRUNCATED = "truncated"  # the token limit came before the answer was closed

LIMIT = "length"  # the finish_reason of a completion that was cut by the token limit

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
_TEXT_BRACE = re.compile(r"\\(?:text(?:bf|it|rm)?|mathrm|mathbf)\s*\{|[{}]")

# a letter that is surely over: a mark or a reason follows. "B" and no more may go on as "Bilateral" or "B or C"
_CUT_LETTER = re.compile(
    r"\W*(?:(?:the\s+)?(?:(?:final|correct)\s+)?(?:answer|option)\s*(?:is\b\s*[:：]?|[:：])\W*)?"
    r"[A-Za-z](?:[*_`]*[:.)\]：）．](?![A-Za-z]\b)|\s+(?:because|since|as)\b)",
    re.IGNORECASE,
)


def parse(raw: str, *, finish_reason: str, answer_type: str, think_prefilled: bool = False, task: str = VQA) -> Parsed:
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
    exactly at the cut counts, so that one new token can be enough). A multiple-choice question (`task`) that
    leads with a letter and a mark or a reason after it ("B. Magn", "The answer is B because") is answered by
    that; a letter at the very cut is not, it may be the first of a word.

    `ambiguous`, `off_vocab` and `refusal` are not given here but by `answer_kinds`: they depend on what was
    asked for.
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
    if task == MULTIPLE_CHOICE:
        said_before_the_cut = _CUT_LETTER.match(answer) is not None
    else:
        said_before_the_cut = answer_type == CLOSED and leading_yes_no(answer) is not None
    if not finished and not said_before_the_cut:
        return Parsed(None, TRUNCATED)
    return Parsed(answer, OK) if answer else Parsed(None, EMPTY)


def thought(raw: str) -> str:
    """What a completion thinks before it answers, "" where it does not, or never comes to an end with it."""
    text = _SPECIAL.sub("", raw)
    closing = [tag for tag in _THINK.finditer(text) if tag[1]]
    return _THINK.sub("", text[: closing[-1].start()]).strip() if closing else ""


def parse_record(record: Mapping[str, Any]) -> Parsed:
    """`parse` on a stored prediction. Raises KeyError for one without raw, finish_reason or answer_type."""
    return parse(
        record["raw"],
        finish_reason=record["finish_reason"],
        answer_type=record["answer_type"],
        task=record.get("task", VQA),
        think_prefilled=bool(record.get("think_prefilled", False)),
    )


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
    for opening, closing in _pairs(_BRACE, text):
        if best is None or opening.start() > best[0]:
            best = opening.start(), text[opening.end() : closing.start()]
    end = text.rfind(_BOX_CLOSE)
    start = text.rfind(_BOX_OPEN, 0, end) if end >= 0 else -1
    if start >= 0 and (best is None or start > best[0]):
        inside = text[start + len(_BOX_OPEN) :]
        best = start, inside[: inside.find(_BOX_CLOSE)]
    if best is None:
        return None
    return _without_text_macros(_BOX_TOKEN.sub("", best[1]))


def _pairs(braces: re.Pattern[str], text: str) -> Iterator[tuple[re.Match[str], re.Match[str]]]:
    """Each opening with its closing brace, as they are closed, but for plain braces."""
    stack: list[re.Match[str]] = []
    for brace in braces.finditer(text):
        if brace[0] != "}":
            stack.append(brace)
        elif stack and (opening := stack.pop())[0] != "{":
            yield opening, brace


def _without_text_macros(text: str) -> str:
    """`text` with every closed `\\text{…}` and its like replaced by what it holds."""
    kept, end = [], 0
    for start, stop in sorted(brace.span() for pair in _pairs(_TEXT_BRACE, text) for brace in pair):
        kept.append(text[end:start])
        end = stop
    return "".join([*kept, text[end:]])
