"""The conversation form of LLaVA, LLaVA-Med and Med-MoE ("3vqa"), and the chat form; JSON or JSON lines.

    {"id": …, "image": …, "answer_type": "OPEN", "modality": …, "conversations": [
        {"from": "human", "value": "<image>\\nWhere …?"}, {"from": "gpt", "value": …}]}
    {"images": […], "messages": [{"role": "user", "content": …}, {"role": "assistant", "content": …}]}

A preference row ends with the question and has the answers "chosen" and "rejected" (`_chat`, which reads the turns).
Instead of a file, a split may be a folder that `datasets` has saved, with the same columns (`_saved`),
and its file may be parquet with them.
`task` and `options` say what form of answer a row asks for (see `question.TASKS`); without them, an answer in words.
A row's other strings and numbers (modality, …) become the question's facts. Converters of these files
differ in many small ways; what is read and what is refused stands at the functions below.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmft.data.question import CLOSED, MULTIPLE_CHOICE, OPEN, TASKS, VQA, BadRow, Question
from vlmft.data.sources import (
    Unusable,
    _chat,
    _json_rows,
    _parquet,
    _saved,
    folder,
    image_path,
    image_root,
    read_rows,
    refuse_unknown_split,
    set_name,
)
from vlmft.errors import DataError
from vlmft.files import cache_folder

if TYPE_CHECKING:
    from vlmft.schema import QuestionSet

OWN_KEYS = {"id", "image", "images", "answer_type", "task", "options", *_chat.KEYS}
ANSWER_TYPES = {"closed": CLOSED, "close": CLOSED, "open": OPEN}
YES_NO = {"yes", "no", "是", "否"}
# LLaVA-Med and Med-MoE append these to closed test questions; the publishers' questions do not have them.
APPENDED = re.compile(
    r"\s*(Please choose from the following two options: \[yes, no\]"
    r'|\(Answer with either "Yes" or "No"\))\.?',
    re.IGNORECASE,
)
IMAGES = "images"  # the folder beside the annotation files


def splits(spec: QuestionSet) -> list[str]:
    """train, test, validation where that exists, and the splits named in `spec.splits`."""
    return list(_split_files(spec))


def files(spec: QuestionSet, split: str) -> list[Path]:
    """The split's one annotation file, or the parts of its saved folder; DataError without them or for no split."""
    place = _place(spec)
    named = _split_files(spec)
    refuse_unknown_split(spec, split, list(named), f" Name another one's file with +dataset.splits.{split}=FILE.")
    path = place / Path(named[split]).expanduser()
    if _saved.is_saved(path):
        return _saved.parts(path)
    if not path.is_file():
        raise DataError(
            f"{set_name(spec)}: looked for the {split} split in {path}, where there is no file. Expected a "
            "JSON array, JSON lines or parquet in the conversation form; say which file it is with "
            f"+dataset.splits.{split}=FILE, or where the set lies with dataset.path=FOLDER."
        )
    return [path]


def read(spec: QuestionSet, split: str) -> Iterator[Question | BadRow]:
    """Every row of the split: a question, or why it is none. Pictures that the rows hold go to the cache."""
    paths = files(spec, split)
    rows: Iterable[tuple[int, Any]]
    if _has_columns(paths):
        rows = enumerate(_column_rows(paths), 1)
        own = _saved.ids(paths) if _saved.is_part(paths[0]) else _parquet.ids(paths[0])
        stated = list(enumerate(own, 1))
    else:
        rows = read_rows(paths[0])
        stated = [(n, row.get("id") if isinstance(row, dict) else None) for n, row in rows]
    yield from _read(spec, paths, rows, _unique_ids(stated))


def stream(spec: QuestionSet, split: str) -> Iterator[Question | BadRow]:
    """As `read`, holding a few rows at a time; the id of a row is its own, whether others have it too or not."""
    paths = files(spec, split)
    yield from _read(
        spec, paths, enumerate(_column_rows(paths), 1) if _has_columns(paths) else _json_rows.rows(paths[0]), None
    )


def _read(
    spec: QuestionSet, paths: list[Path], rows: Iterable[tuple[int, Any]], ids: list[str] | None
) -> Iterator[Question | BadRow]:
    file = paths[0].parent if _saved.is_part(paths[0]) else paths[0]
    path_of = _path_of(spec)
    for place, (number, row) in enumerate(rows):
        stated = row.get("id") if isinstance(row, dict) and not ids else None
        id = ids[place] if ids else f"row{number}" if stated is None else str(stated)
        try:
            yield _question(spec, row, id, path_of)
        except Unusable as error:
            yield BadRow(str(file), number, str(error))


def _has_columns(paths: list[Path]) -> bool:
    return _saved.is_part(paths[0]) or _parquet.is_parquet(paths[0])


def _column_rows(paths: list[Path]) -> Iterator[dict[str, Any]]:
    return _saved.rows(paths) if _saved.is_part(paths[0]) else _parquet.rows(paths[0])


def _path_of(spec: QuestionSet) -> Callable[[Any], str]:
    """Finds the file of a picture that a row names, or whose bytes it holds; these are written to a file first."""
    place = _place(spec)
    beside = place / IMAGES
    root = image_root(spec, beside if beside.is_dir() else place)
    unpacked = Path(os.path.abspath(image_root(spec, cache_folder() / IMAGES)))
    # Names start in the folder of the pictures or beside the annotation file: that folder's own name tells.
    also = f"{IMAGES}/" if root == beside and not (beside / IMAGES).is_dir() else ""

    def path_of(image: Any) -> str:
        if isinstance(image, dict) and isinstance(content := image.get("bytes"), bytes):
            return _parquet.kept(unpacked, content)
        name = image.get("path") if isinstance(image, dict) else image
        if not isinstance(name, str) or not name.strip():
            raise Unusable(f"image is {image!r}; it should be a file name or a list of file names")
        return image_path(spec, root, name.removeprefix(also))

    return path_of


def _place(spec: QuestionSet) -> Path:
    return folder(spec, "files in the conversation form, such as train.json and test.json", "dataset.path")


def _split_files(spec: QuestionSet) -> dict[str, str]:
    named = {"train": "train.json", "test": "test.json"}
    given = {str(split): file for split, file in spec.splits.items()}
    if not spec.path:
        return named | given
    place = Path(spec.path).expanduser()
    if (place / "validation.json").is_file():
        named["validation"] = "validation.json"
    for split in ("train", "test", "validation"):
        if split not in given and _saved.is_saved(place / split):
            if (place / f"{split}.json").is_file():
                raise DataError(f"{place} holds the split {split} twice, {split}.json and {split}/; keep one of them.")
            named[split] = split
    return named | given


def _unique_ids(stated: list[tuple[int, Any]]) -> list[str]:
    """An id for every row, bad ones too: its own if no other row has it, else with #1, #2, … in file order.

    Many files give all questions of an image the image's id, some as a number and some as a string.
    """
    own = [f"row{n}" if id is None else str(id) for n, id in stated]
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


def _question(spec: QuestionSet, row: Any, id: str, path_of: Callable[[Any], str]) -> Question:
    if isinstance(row, Unusable):
        raise row
    if not isinstance(row, dict):
        raise Unusable(f"expected an object, found {json.dumps(row, ensure_ascii=False)[:60]}")
    found: Any = next((row[key] for key in ("image", "images") if row.get(key) is not None), [])
    images = tuple(path_of(image) for image in (found if isinstance(found, list) else [found]))
    exchanges, unwanted = _chat.exchanges(row)
    asked = [(APPENDED.sub("", question), target) for question, target in exchanges]
    turns, rejected = _chat.turns(asked, unwanted, len(images))
    facts = {
        key: value.strip() if isinstance(value, str) else json.dumps(value)
        for key, value in row.items()
        if key not in OWN_KEYS and isinstance(value, (str, int, float)) and str(value).strip()
    }
    return Question(
        id=id,
        set=set_name(spec),
        images=images,
        turns=turns,
        answer_type=_answer_type(row, turns[-1].answer),
        facts=facts,
        task=_task(row),
        options=_options(row),
        rejected=rejected,
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


def _answer_type(row: dict[str, Any], answer: str) -> str:
    """The row's own type; where it has none: closed if the answer is a bare yes or no, else open."""
    stated = row.get("answer_type")
    if stated is None or stated == "":
        return CLOSED if answer.strip(" .").casefold() in YES_NO else OPEN
    try:
        return ANSWER_TYPES[str(stated).strip().casefold()]
    except KeyError:
        raise Unusable(f"answer_type is {stated!r}; it should be OPEN or CLOSED, or left out") from None
