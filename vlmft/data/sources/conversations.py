"""The conversation form of LLaVA, LLaVA-Med and Med-MoE ("3vqa"), and the chat form; JSON or JSON lines.

    {"id": …, "image": …, "answer_type": "OPEN", "modality": …, "conversations": [
        {"from": "human", "value": "<image>\\nWhere …?"}, {"from": "gpt", "value": …}]}
    {"images": […], "messages": [{"role": "user", "content": …}, {"role": "assistant", "content": …}]}

`task` and `options` say what form of answer a row asks for (see `question.TASKS`); without them, an answer in words.
A row's other strings and numbers (modality, …) become the question's facts. Converters of these files
differ in many small ways; what is read and what is refused stands at the functions below.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmft.data.question import CLOSED, IMAGE_MARK, MULTIPLE_CHOICE, OPEN, TASKS, VQA, BadRow, Question, Turn
from vlmft.data.sources import (
    Unusable,
    folder,
    image_path,
    image_root,
    read_rows,
    refuse_unknown_split,
    set_name,
)
from vlmft.errors import DataError

if TYPE_CHECKING:
    from vlmft.schema import QuestionSet

USER, ASSISTANT = ("human", "user"), ("gpt", "assistant")
TURNS = ("conversations", "conversatons", "messages")  # the second: misspelt files are in circulation
OWN_KEYS = {"id", "image", "images", "answer_type", "task", "options", *TURNS}
ANSWER_TYPES = {"closed": CLOSED, "close": CLOSED, "open": OPEN}
YES_NO = {"yes", "no", "是", "否"}
# LLaVA-Med and Med-MoE append these to closed test questions; the publishers' questions do not have them.
APPENDED = re.compile(
    r"\s*(Please choose from the following two options: \[yes, no\]"
    r'|\(Answer with either "Yes" or "No"\))\.?',
    re.IGNORECASE,
)
MARK = re.compile(rf"\s*{IMAGE_MARK}\s*")
MARKS_IN_FRONT = re.compile(rf"^(\s*{IMAGE_MARK})+")
MARKS_BEHIND = re.compile(rf"({IMAGE_MARK}\s*)+$")
TARGET = re.compile(
    r"(?:(?:<think>)?(?P<thought>.*?)</think>)?\s*(?:<answer>(?P<tagged>.*)</answer>|(?P<bare>.*))", re.DOTALL
)
TAG = re.compile(r"</?(?:think|answer)>")
BOX = re.compile(r"<\|(?:begin|end)_of_box\|>")  # GLM marks the final answer with these inside <answer>


def splits(spec: QuestionSet) -> list[str]:
    """train, test, validation where that exists, and the splits named in `spec.splits`."""
    return list(_split_files(spec))


def files(spec: QuestionSet, split: str) -> list[Path]:
    """The split's one annotation file; DataError if it is not there or the split is unknown."""
    place = _place(spec)
    named = _split_files(spec)
    refuse_unknown_split(spec, split, list(named), f" Name another one's file with +dataset.splits.{split}=FILE.")
    path = place / Path(named[split]).expanduser()
    if not path.is_file():
        raise DataError(
            f"{set_name(spec)}: looked for the {split} split in {path}, where there is no file. Expected a "
            "JSON array or JSON lines in the conversation form; say which file it is with "
            f"+dataset.splits.{split}=FILE, or where the set lies with dataset.path=FOLDER."
        )
    return [path]


def read(spec: QuestionSet, split: str) -> Iterator[Question | BadRow]:
    """Every row of the split: a question, or why it is none."""
    (path,) = files(spec, split)
    place = _place(spec)
    root = image_root(spec, place / "images" if (place / "images").is_dir() else place)
    rows = read_rows(path)
    for (number, row), id in zip(rows, _unique_ids(rows), strict=True):
        try:
            yield _question(spec, row, id, root)
        except Unusable as error:
            yield BadRow(str(path), number, str(error))


def _place(spec: QuestionSet) -> Path:
    return folder(spec, "files in the conversation form, such as train.json and test.json", "dataset.path")


def _split_files(spec: QuestionSet) -> dict[str, str]:
    named = {"train": "train.json", "test": "test.json"}
    if spec.path and (Path(spec.path).expanduser() / "validation.json").is_file():
        named["validation"] = "validation.json"
    return named | {str(split): file for split, file in spec.splits.items()}


def _unique_ids(rows: list[tuple[int, Any]]) -> list[str]:
    """An id for every row, bad ones too: its own if no other row has it, else with #1, #2, … in file order.

    Many files give all questions of an image the image's id, some as a number and some as a string.
    """
    stated = [row.get("id") if isinstance(row, dict) else None for _, row in rows]
    own = [f"row{n}" if id is None else str(id) for (n, _), id in zip(rows, stated, strict=True)]
    rows_with = Counter(own)
    used: Counter[str] = Counter()
    ids = []
    for id in own:
        unique = id
        while rows_with[id] > 1 and unique in rows_with:
            used[id] += 1
            unique = f"{id}#{used[id]}"
        ids.append(unique)
    return ids


def _question(spec: QuestionSet, row: Any, id: str, root: Path) -> Question:
    if isinstance(row, Unusable):
        raise row
    if not isinstance(row, dict):
        raise Unusable(f"expected an object, found {json.dumps(row, ensure_ascii=False)[:60]}")
    images = tuple(image_path(spec, root, name) for name in _image_names(row))
    exchanges = _exchanges(row)
    asked = _place_marks([question for question, _ in exchanges], len(images))
    turns = tuple(_turn(question, target) for question, (_, target) in zip(asked, exchanges, strict=True))
    facts = {
        key: value.strip() if isinstance(value, str) else json.dumps(value)
        for key, value in row.items()
        if key not in OWN_KEYS and isinstance(value, (str, int, float)) and str(value).strip()
    }
    return Question(
        id, set_name(spec), images, turns, _answer_type(row, turns[-1].answer), facts, _task(row), _options(row)
    )


def _task(row: dict[str, Any]) -> str:
    """The form of answer the row asks for; where it says none, words, or a choice if it has options."""
    stated = str(row.get("task") or (MULTIPLE_CHOICE if row.get("options") else VQA))
    task = re.sub(r"[\s-]+", "_", stated.strip().lower())
    if task not in TASKS:
        raise Unusable(f"task is {stated!r}; it should be one of {', '.join(TASKS)}")
    return task


def _options(row: dict[str, Any]) -> tuple[str, ...]:
    found = row.get("options") or []
    texts = list(found.values()) if isinstance(found, dict) else found  # {"A": …, "B": …}, or a list
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise Unusable(f"options are {found!r}; they should be a list of texts, A first")
    return tuple(text.strip() for text in texts)


def _image_names(row: dict[str, Any]) -> list[str]:
    """The row's images, under either key: none (a question without a picture), one name, or a list."""
    found: Any = next((row[key] for key in ("image", "images") if row.get(key) is not None), [])
    names = [found] if isinstance(found, str) else found
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise Unusable(f"image is {found!r}; it should be a file name or a list of file names")
    return names


def _exchanges(row: dict[str, Any]) -> list[tuple[str, str]]:
    """The row's (question, answer) texts; nothing but user and assistant in turn is accepted."""
    key = next((key for key in TURNS if key in row), None)
    said = row[key] if key else None
    if not isinstance(said, list) or not said:
        raise Unusable("no list of turns under 'conversations' or 'messages'")
    texts = []
    for n, turn in enumerate(said):
        if not isinstance(turn, dict):
            raise Unusable(f"turn {n + 1} is no object with 'from' and 'value' (or 'role' and 'content')")
        role, text = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
        if role == "system":
            raise Unusable("has a system message, which vlmft does not pass on; take it out of the row")
        if role not in (ASSISTANT if n % 2 else USER):
            raise Unusable(f"turn {n + 1} is from {role!r}; expected {(ASSISTANT if n % 2 else USER)}")
        if isinstance(text, bool) or not isinstance(text, (str, int, float)):
            raise Unusable(f"turn {n + 1} holds no text")
        texts.append(str(text))
    if len(texts) % 2:
        raise Unusable("the last question has no answer")
    return list(zip(texts[::2], texts[1::2], strict=True))


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
    """The turn, with what converters appended to the question taken off and the target split at its tags."""
    question = APPENDED.sub("", question).strip()
    if not question.replace(IMAGE_MARK, "").strip():
        raise Unusable("the question is empty")
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
    return Turn(question, answer, thought.strip() or None)


def _answer_type(row: dict[str, Any], answer: str) -> str:
    """The row's own type; where it has none: closed if the answer is a bare yes or no, else open."""
    stated = row.get("answer_type")
    if stated is None or stated == "":
        return CLOSED if answer.strip(" .").casefold() in YES_NO else OPEN
    try:
        return ANSWER_TYPES[str(stated).strip().casefold()]
    except KeyError:
        raise Unusable(f"answer_type is {stated!r}; it should be OPEN or CLOSED, or left out") from None
