"""What is said in a row of the conversation form: questions and answers in turn, or a question and two answers to it.

A preference row has its question under one of TURNS or under "prompt", and "chosen" and "rejected" beside it. Each
answer is a text, a message, or a list whose last message it is; what stands before it repeats the question.
"""

from __future__ import annotations

import re
from typing import Any

from vlmft.data.question import IMAGE_MARK, Turn
from vlmft.data.sources import Unusable

USER, ASSISTANT = ("human", "user"), ("gpt", "assistant")
TURNS = ("conversations", "conversatons", "messages")  # the second: misspelt files are in circulation
ANSWERS = CHOSEN, REJECTED = ("chosen", "rejected")
PROMPT = "prompt"
KEYS = (*TURNS, PROMPT, *ANSWERS)
MARK = re.compile(rf"\s*{IMAGE_MARK}\s*")
MARKS_IN_FRONT = re.compile(rf"^(\s*{IMAGE_MARK})+")
MARKS_BEHIND = re.compile(rf"({IMAGE_MARK}\s*)+$")
TARGET = re.compile(
    r"(?:(?:<think>)?(?P<thought>.*?)</think>)?\s*(?:<answer>(?P<tagged>.*)</answer>|(?P<bare>.*))", re.DOTALL
)
TAG = re.compile(r"</?(?:think|answer)>")
BOX = re.compile(r"<\|(?:begin|end)_of_box\|>")  # GLM marks the final answer with these inside <answer>

Exchange = tuple[str, str]  # a question and what is said to it, as they are written


def exchanges(row: dict[str, Any]) -> tuple[list[Exchange], str | None]:
    """The row's exchanges, the last with the wanted answer, and the rejected one (None of an ordinary row).

    Unusable unless user and assistant speak in turn, of a preference row also unless both answers are there and
    answer the same question.
    """
    key = next((key for key in (*TURNS, PROMPT) if row.get(key) is not None), None)
    there = [answer for answer in ANSWERS if row.get(answer) is not None]
    said: Any = row[key] if key else None
    if not there:
        if not isinstance(said, list) or not said or key == PROMPT:
            raise Unusable("no list of turns under 'conversations' or 'messages'")
        return _paired(_texts(said)), None
    if len(there) == 1:
        other = REJECTED if there == [CHOSEN] else CHOSEN
        raise Unusable(f"has {there[0]!r} without {other!r}; a preference row has both")
    asked = said if isinstance(said, list) else [{"role": USER[1], "content": said}] if key else []
    if asked and len(_texts(asked)) % 2 == 0:
        raise Unusable(f"{key!r} ends with an answer; beside 'chosen' and 'rejected' it should end with the question")
    chosen, rejected = (_answered(row[answer], asked, answer) for answer in ANSWERS)
    if chosen[:-1] != rejected[:-1] or (asked and chosen[:-1] != _texts(asked)):
        raise Unusable("'chosen' and 'rejected' repeat another question than is asked")
    return _paired(chosen), rejected[-1]


def _answered(answer: Any, asked: list[Any], key: str) -> list[str]:
    """The texts up to and with the answer."""
    said = answer if isinstance(answer, list) else [answer]
    said = [one if isinstance(one, dict) else {"role": ASSISTANT[1], "content": one} for one in said]
    if not said:
        raise Unusable(f"{key}: the answer is empty")
    texts = _texts(said if len(said) > 1 else [*asked, *said], f"{key}: ")
    if len(texts) % 2:
        raise Unusable(f"{key}: the last question has no answer")
    return texts


def _texts(said: list[Any], where: str = "") -> list[str]:
    """The texts of messages; nothing but user and assistant in turn is accepted."""
    texts = []
    for n, turn in enumerate(said):
        if not isinstance(turn, dict):
            raise Unusable(f"{where}turn {n + 1} is no object with 'from' and 'value' (or 'role' and 'content')")
        role, text = turn.get("from", turn.get("role")), _text(turn.get("value", turn.get("content")))
        if role == "system":
            raise Unusable("has a system message, which vlmft does not pass on; take it out of the row")
        if role not in (ASSISTANT if n % 2 else USER):
            raise Unusable(f"{where}turn {n + 1} is from {role!r}; expected {(ASSISTANT if n % 2 else USER)}")
        if isinstance(text, bool) or not isinstance(text, (str, int, float)):
            raise Unusable(f"{where}turn {n + 1} holds no text")
        texts.append(str(text))
    return texts


def _text(content: Any) -> Any:
    """The content as one text, with marks where a list of parts has pictures; as it is where it is no such list."""
    if not isinstance(content, list):
        return content
    if not all(isinstance(part, dict) and part.get("type") in ("image", "text") for part in content):
        return content
    return "".join(IMAGE_MARK if part["type"] == "image" else str(part.get("text") or "") for part in content)


def _paired(texts: list[str]) -> list[Exchange]:
    if len(texts) % 2:
        raise Unusable("the last question has no answer")
    return list(zip(texts[::2], texts[1::2], strict=True))


def turns(said: list[Exchange], unwanted: str | None, images: int) -> tuple[tuple[Turn, ...], Turn | None]:
    """The turns, with targets split at their tags, and the last with the rejected target (None of an ordinary row).

    Unusable where wanted and rejected answer are the same, also if their thoughts differ, where marks do not fit the
    number of images, and for empty texts.
    """
    asked = _place_marks([question for question, _ in said], images)
    found = tuple(_turn(question, target) for question, (_, target) in zip(asked, said, strict=True))
    if unwanted is None:
        return found, None
    try:
        rejected = _turn(asked[-1], unwanted)
    except Unusable as error:
        raise Unusable(f"rejected: {error}") from None
    if rejected.answer == found[-1].answer:
        raise Unusable(f"chosen and rejected are the same answer, {rejected.answer[:60]!r}")
    return found, rejected


def _place_marks(questions: list[str], images: int) -> list[str]:
    """The questions with marks only where words stand between pictures; else the marks go: pictures come first."""
    marks = [question.count(IMAGE_MARK) for question in questions]
    if sum(marks) not in (0, images):
        defect = (
            "; every turn repeats the mark of the same image (a known defect of converters that join the "
            "questions of an image): keep it in the first turn only"
            if len(marks) > 1 and images and set(marks) == {images}
            else ""
        )
        raise Unusable(f"{sum(marks)} {IMAGE_MARK} marks for {images} image{'s' * (images != 1)}{defect}")
    without = (side.sub("", questions[0]) for side in (MARKS_IN_FRONT, MARKS_BEHIND))
    together = not any(marks[1:]) and any(IMAGE_MARK not in question for question in without)
    if images == 1 or together:
        return [MARK.sub(lambda mark: "\n" if "\n" in mark[0] else " ", question) for question in questions]
    return questions


def _turn(question: str, target: str) -> Turn:
    """The turn, with the target split at its tags."""
    question = question.strip()
    if not question.replace(IMAGE_MARK, "").strip():
        raise Unusable("the question is empty")
    thought, answer = _apart(target)
    return Turn(question, answer, thought or None)


def _apart(target: str) -> tuple[str, str]:
    """Thought and answer of a target."""
    if IMAGE_MARK in target:
        raise Unusable(f"the answer holds {IMAGE_MARK}")
    parts = TARGET.fullmatch(target.strip())
    assert parts  # the pattern's last alternative takes any text
    thought, answer = parts["thought"] or "", parts["tagged"] or parts["bare"] or ""
    if TAG.search(thought + answer):
        raise Unusable("the answer's tags do not pair; expected <think>…</think><answer>…</answer> or one of them")
    answer = BOX.sub("", answer).strip()
    if not answer:
        raise Unusable("the answer is empty")
    return thought.strip(), answer
