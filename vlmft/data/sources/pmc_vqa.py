"""PMC-VQA in both published versions: questions with four options on figures of PubMed Central, one CSV a split.

    version 1  train.csv, test.csv, test_clean.csv beside images/PMC1064097_F1.jpg
               Figure_path, Question, Answer (a text), Choice A, …, Choice D, Answer_label (its letter)
    version 2  train_2.csv, test_2.csv beside figures/PMC8253867_Fig2_41.jpg
               index, Figure_path, Caption, Question, Choice A, …, Choice D, Answer (the letter), split

The header tells which it is. Options come with their labels, some of them wrong (" A:X-ray ", " C: Nucleus" in column
B); these are taken off, and a question's letters are those of the columns.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vlmft.data.question import CLOSED, MULTIPLE_CHOICE, BadRow, Question, Turn
from vlmft.data.sources import (
    Unusable,
    folder,
    image_path,
    image_root,
    one_line,
    refuse_unknown_split,
    set_name,
    type_of,
)
from vlmft.errors import DataError

if TYPE_CHECKING:
    from vlmft.schema import QuestionSet

KEYS = ("options", "shuffle_options", "reasoning")
LETTERS = "ABCD"
PLACES = {letter: place for place, letter in enumerate(LETTERS)}
CHOICES = tuple(f"Choice {letter}" for letter in LETTERS)
VERSION_1 = ("Figure_path", "Question", "Answer", *CHOICES, "Answer_label")
VERSION_2 = ("index", "Figure_path", "Question", *CHOICES, "Answer")  # Caption and split are not read
IMAGES = ("images/images", "images")  # where the pictures of version 1 lie, the first that is there
FIGURES = ("figures/figures", "figures", "images_2/figures", "images_2")  # those of version 2
FILES = {"train": "train.csv", "test": "test_clean.csv"}  # where dataset.splits names none
OVERRIDE = "paths.pmc_vqa"
LABEL = re.compile(r"(?P<mark>['\"]?) ?[A-D] ?: ?")
# "Both A and B" and "None of the above" are only true of the order in which they were published.
OF_OTHERS = re.compile(r"\bthe above\b|\babove (?:options|choices|answers)\b|\b[A-D](?: ?[,&/] ?| (?:and|or) )[A-D]\b")
ORDERS = tuple(permutations(range(len(LETTERS))))
# No thought is published and none is made up: what is trained on stays the letter, also where a thought is asked for.
LETTER = "Answer with the letter of the right option."
THINK_LETTER = "Think step by step first, then answer with the letter of the right option."
THINK_WORDS = "Think step by step first, then give the answer."


class Defect(Unusable):
    """A row whose published options or answer nobody here can put right."""


class Columns(NamedTuple):
    """Where a row holds what is read of it."""

    width: int
    figure: int
    question: int
    choices: tuple[int, ...]
    label: int  # of the letter
    text: int | None  # of the answer's text (version 1)
    id: int | None  # the column index (version 2)


def splits(spec: QuestionSet) -> list[str]:
    """train and test, and the splits named in `spec.splits`."""
    return list(_split_files(spec))


def files(spec: QuestionSet, split: str) -> list[Path]:
    """The split's one CSV file; DataError if it is not there or the split is unknown."""
    named = _split_files(spec)
    refuse_unknown_split(spec, split, list(named), f" Name another one's file with +dataset.splits.{split}=FILE.")
    path = _place(spec) / Path(named[split]).expanduser()
    if not path.is_file():
        key = f"{'' if split in spec.splits else '+'}dataset.splits.{split}"
        raise DataError(
            f"{set_name(spec)}: looked for the {split} split in {path}, where there is no file. Expected a CSV file of "
            f"PMC-VQA (https://huggingface.co/datasets/xmcmic/PMC-VQA); say which one with {key}=FILE, or where the "
            f"set lies with {OVERRIDE}=FOLDER."
        )
    return [path]


def read(spec: QuestionSet, split: str) -> Iterator[Question | BadRow]:
    """Every row of the split: a question, or why it is none. DataError if the file is no CSV of PMC-VQA."""
    yield from _read(spec, split, set())


def stream(spec: QuestionSet, split: str) -> Iterator[Question | BadRow]:
    """As `read`, without a memory of the ids: a row has its own index, whether an earlier one has it too or not."""
    yield from _read(spec, split, None)


def _read(spec: QuestionSet, split: str, used: set[str] | None) -> Iterator[Question | BadRow]:
    if spec.shuffle_options and not spec.options:
        raise DataError(
            f"{set_name(spec)}: dataset.shuffle_options=true has no effect with dataset.options=false; set one of them."
        )
    (path,) = files(spec, split)
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file)
        try:
            at = _columns(path, next(rows, []))
            root = image_root(spec, _images(_place(spec), at))
            number, line = 0, rows.line_num + 1  # counted from 0, as by pandas and all who quote rows
            for row in rows:
                if row:  # not a blank line, which nobody counts
                    try:
                        yield _question(spec, row, at, _id(row, at, f"{path.stem}_{number}", used), root)
                    except Unusable as error:
                        yield BadRow(str(path), f"at line {line}", str(error), published=isinstance(error, Defect))
                    number += 1
                line = rows.line_num + 1
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read as CSV near line {rows.line_num}: {error}. Get it anew.") from None


def _place(spec: QuestionSet) -> Path:
    return folder(spec, "the CSV files of PMC-VQA beside the folder images (version 1) or figures (2)", OVERRIDE)


def _split_files(spec: QuestionSet) -> dict[str, str]:
    return FILES | {str(split): file for split, file in spec.splits.items()}


def _columns(path: Path, header: list[str]) -> Columns:
    """Where the columns stand; DataError if they are those of neither version."""
    names = [re.sub("^Anwser", "Answer", one_line(name)) for name in header]  # so spelt in an early upload
    for wanted in (VERSION_1, VERSION_2):
        if set(wanted) <= set(names):
            first = wanted is VERSION_1
            return Columns(
                width=len(names),
                figure=names.index("Figure_path"),
                question=names.index("Question"),
                choices=tuple(names.index(choice) for choice in CHOICES),
                label=names.index("Answer_label" if first else "Answer"),
                text=names.index("Answer") if first else None,
                id=None if first else names.index("index"),
            )
    raise DataError(
        f"{path} is no CSV file of PMC-VQA: its first line is {','.join(header)[:200]!r}. Expected the columns "
        f"{', '.join(VERSION_1)} (version 1), or {', '.join(VERSION_2)} (version 2)."
    )


def _images(place: Path, at: Columns) -> Path:
    """The folder of the version's pictures, whichever is there; the published name if none is."""
    names, published = (IMAGES, "images") if at.id is None else (FIGURES, "figures")
    return next((place / name for name in names if (place / name).is_dir()), place / published)


def _id(row: list[str], at: Columns, place: str, used: set[str] | None) -> str:
    """The row's index (one numbering over the splits) if no earlier row has it, else the `place` in its own file."""
    index = one_line(row[at.id]) if at.id is not None and len(row) == at.width else ""
    if not index or (used is not None and index in used):
        return place
    if used is not None:
        used.add(index)
    return index


def _question(spec: QuestionSet, row: list[str], at: Columns, id: str, root: Path) -> Question:
    if len(row) != at.width:
        raise Unusable(f"has {len(row)} columns, not {at.width}: a comma or a quotation mark is missing or too many")
    if "\n" in row[at.label].rstrip():  # the next rows, which would be lost as one defect of the publisher's
        raise Unusable("the letter has several lines: a quotation mark is missing or too many")
    question, figure = one_line(row[at.question]), row[at.figure].strip()
    for what, value in (("Question", question), ("Figure_path", figure)):
        if not value:
            raise Unusable(f"{what} is empty")
    choices = _choices(row, at)
    right = _right(row, at, choices)
    # A bare name cannot leave the folder; to ask that of each takes a quarter of the time of reading.
    bare = os.path.basename(figure) == figure != ".."
    image = f"{root}{os.sep}{figure}" if bare else image_path(spec, root, figure)
    if not spec.options:
        asked = f"{question}\n{THINK_WORDS}" if spec.reasoning else question
        answer = choices[right]
        return Question(id, set_name(spec), (image,), (Turn(asked, answer),), type_of(answer))
    order = _order(id, choices) if spec.shuffle_options else ORDERS[0]
    shown = tuple(choices[place] for place in order)
    listed = (f"{letter}: {option}" for letter, option in zip(LETTERS, shown, strict=True))
    asked = "\n".join((question, *listed, THINK_LETTER if spec.reasoning else LETTER))
    return Question(
        id=id,
        set=set_name(spec),
        images=(image,),
        turns=(Turn(asked, LETTERS[order.index(right)]),),
        answer_type=CLOSED,
        task=MULTIPLE_CHOICE,
        options=shown,
    )


def _choices(row: list[str], at: Columns) -> list[str]:
    """The four texts without their labels, and without the quotation marks that stand around all four."""
    texts = [one_line(row[column]) for column in at.choices]
    labels = [LABEL.match(text) for text in texts]
    choices = [text[label.end() :] if label else text for text, label in zip(texts, labels, strict=True)]
    mark = labels[0]["mark"] if labels[0] else ""
    if mark and choices[-1].endswith(mark):
        choices[-1] = choices[-1][:-1].rstrip()
    for name, choice in zip(CHOICES, choices, strict=True):
        if not choice:
            raise Defect(f"{name} is empty")
    return choices


def _right(row: list[str], at: Columns, choices: list[str]) -> int:
    """The place of the right option: what the letter says, or the answer's text where there is none.

    Where the text is another option's than the letter's, no one can say which of them is right, and a guess would be
    scored and trained as a fact: Defect. A text that is no option's is damaged (some lost each "A:" in them), and says
    nothing against the letter.
    """
    label = one_line(row[at.label])
    letter = label if label in PLACES else ""
    text = one_line(row[at.text]) if at.text is not None else "" if letter else label
    if letter and text in ("", choices[PLACES[letter]]):
        return PLACES[letter]
    same = [place for place, choice in enumerate(choices) if _comparable(choice) == _comparable(text)]
    if letter and (not same or PLACES[letter] in same):
        return PLACES[letter]
    if letter:
        raise Defect(
            f"the letter is {letter} ({choices[PLACES[letter]]}), but the answer's text {text!r} is that of "
            f"{' and '.join(LETTERS[place] for place in same)}"
        )
    if len(same) == 1:
        return same[0]
    several = f"is that of {' and '.join(LETTERS[place] for place in same)}" if same else "is no option's"
    raise Defect(f"the letter is {label!r}, none of {', '.join(LETTERS)}, and the answer's text {text!r} {several}")


def _comparable(text: str) -> str:
    """A text without what is lost or torn in some answers: each "A:", and quotation marks around it."""
    return one_line(text.replace("A:", "")).strip("'\" ").casefold()


def _order(id: str, choices: Sequence[str]) -> tuple[int, ...]:
    """The places of the options in the order they are shown in, the same for an id everywhere."""
    if any(OF_OTHERS.search(choice) for choice in choices):
        return ORDERS[0]
    drawn = int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "big")
    return ORDERS[drawn % len(ORDERS)]
