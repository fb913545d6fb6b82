"""PathVQA in the forms that are in circulation, with all published rows or (the Hub's) without duplicates.

    qas/train/train_qa.pkl     [{"image": "train_0422", "question": …, "answer": …}, …]
    qas/train_vqa.pkl          [{"img_id": "train_0422", "question_id": …, "sent": …, "label": {answer: 1}, …}, …]
    pvqa_train.json            [{"img_id": …, "sentf": {"pvqa": [question, …]}, "labelf": {"pvqa": [{answer: 1}, …]}},
      or train.json             …], an object per image (LXMERT's), or rows as in train_vqa.pkl
    train-00000-of-….parquet   the Hub's form: duplicates taken out, lower-cased

The first three stand beside images/train/train_0422.jpg. Only the second has an answer type (yes/no, number, other);
so that all forms agree, it is always this: closed where the answer is yes or no, else open.
"""

from __future__ import annotations

import os
import pickle
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmft.data.question import BadRow, Question, Turn
from vlmft.data.sources import (
    Unusable,
    _parquet,
    folder,
    image_path,
    image_root,
    one_line,
    read_rows,
    refuse_unknown_split,
    set_name,
    type_of,
)
from vlmft.errors import DataError

if TYPE_CHECKING:
    from vlmft.schema import QuestionSet

SPLITS = {"train": "train", "validation": "val", "test": "test"}  # ours -> the publisher's
EXTENSIONS = (".jpg", ".jpeg", ".png")
OVERRIDE = "paths.pathvqa"
FORMS = "pvqa.zip unpacked (qas and images), LXMERT's pvqa_train.json, … beside images, or the Hub's parquet files"

Row = tuple[int | str, Any]  # where it stands, and what stands there


def splits(spec: QuestionSet) -> list[str]:
    """The publisher's splits; no image is in two of them."""
    return list(SPLITS)


def files(spec: QuestionSet, split: str) -> list[Path]:
    """The files a split is read from; DataError if none are there or the split is unknown."""
    return _find(spec, split)[1]


def read(spec: QuestionSet, split: str) -> Iterator[Question | BadRow]:
    """Every row of the split, published duplicates too: a question, or why it is none."""
    images, paths = _find(spec, split)
    if paths[0].suffix == ".parquet":
        yield from _parquet.read(spec, split, paths)
        return
    (path,) = paths
    rows = _flat(read_rows(path) if path.suffix == ".json" else _unpickle(path))
    pictures = _Pictures(spec, images, SPLITS[split])
    for (where, row), id in zip(rows, _ids(rows), strict=True):
        try:
            yield _question(spec, row, id, pictures)
        except Unusable as error:
            yield BadRow(str(path), where, str(error))


def _find(spec: QuestionSet, split: str) -> tuple[Path, list[Path]]:
    """The folder of images, and the split's files in the first form that is there."""
    refuse_unknown_split(spec, split, splits(spec))
    theirs = SPLITS[split]
    named = [f"qas/{theirs}/{theirs}_qa.pkl", f"qas/{theirs}_vqa.pkl"]
    named += [f"{below}{name}.json" for below in ("", "qas/", "lxmert/") for name in (f"pvqa_{theirs}", theirs)]
    top = folder(spec, FORMS, OVERRIDE)
    places = (top, top / "pvqa")
    images = next((place / "images" for place in places if (place / "images").is_dir()), top / "images")
    for name in named:
        for place in places:
            if (place / name).is_file():
                return images, [place / name]
    if shards := _parquet.files(top, split):
        return images, shards
    raise DataError(
        f"{set_name(spec)}: looked for the {split} split in {top} and its folder pvqa, where there is no file "
        f"{', '.join(named)}, and no {split}*.parquet below. Expected {FORMS}; get pvqa.zip through "
        f"https://github.com/UCSD-AI4H/PathVQA, or say where the set lies with {OVERRIDE}=FOLDER."
    )


class _Plain(pickle.Unpickler):
    """Reads containers, texts and numbers; whatever else a pickle asks for is refused before it is looked up."""

    path: Path

    def find_class(self, module: str, name: str) -> Any:
        raise DataError(
            f"{self.path} asks for {module}.{name}, which could run code. PathVQA's own pickles hold only lists, "
            "dicts, texts and numbers; get the file anew from the publisher."
        )


def _unpickle(path: Path) -> list[tuple[int, Any]]:
    """The rows of a pickled list, numbered from 1. DataError if it is damaged, no list, or asks for a class."""
    # Texts written by Python 2 do not say their encoding: UTF-8 if they can be read so.
    for encoding in ("utf-8", "latin1"):
        with path.open("rb") as file:
            reader = _Plain(file, encoding=encoding)
            reader.path = path
            try:
                value = reader.load()
            except DataError:
                raise
            except Exception as error:  # a damaged pickle can raise nearly anything
                if isinstance(error, UnicodeDecodeError) and encoding == "utf-8":
                    continue
                raise DataError(f"{path} is no pickle that can be read: {error!r}. Get the file anew.") from error
        if not isinstance(value, list):
            raise DataError(f"{path} holds a {type(value).__name__}; expected the list of questions.")
        return list(enumerate(value, 1))
    raise AssertionError("latin1 reads every byte")


def _flat(rows: list[tuple[int, Any]]) -> list[Row]:
    """One row per question; an image whose questions and answers cannot be paired becomes one Unusable."""
    flat: list[Row] = []
    for where, row in rows:
        if not isinstance(row, dict) or not {"sentf", "labelf"} & set(row):
            flat.append((where, row))
            continue
        asked, labels = (_below_pvqa(row.get(key)) for key in ("sentf", "labelf"))
        if asked is None or labels is None:
            flat.append((where, Unusable("'sentf' and 'labelf' should each hold a list under 'pvqa'")))
        elif len(asked) != len(labels):
            reason = f"image {row.get('img_id')!r} has {len(asked)} questions in sentf, {len(labels)} answers in labelf"
            flat.append((where, Unusable(reason)))
        else:
            for n, (sent, label) in enumerate(zip(asked, labels, strict=True), 1):
                flat.append((f"{where}, question {n}", {"img_id": row.get("img_id"), "sent": sent, "label": label}))
    return flat


def _below_pvqa(value: Any) -> list[Any] | None:
    found = value.get("pvqa") if isinstance(value, dict) else None
    return found if isinstance(found, list) else None


def _ids(rows: list[Row]) -> list[str]:
    """An id for every row, bad ones too: its question_id if nothing else has it, else <image>_<n-th of that image>."""
    own, placed, questions = [], [], Counter[str]()
    for _, row in rows:
        stem = _stem(_name(row)) if isinstance(row, dict) else ""
        own.append(one_line(row.get("question_id")) if isinstance(row, dict) else "")
        placed.append(f"{stem}_{questions[stem]}")
        questions[stem] += 1
    used = Counter(own + placed)
    return [id if id and used[id] == 1 else other for id, other in zip(own, placed, strict=True)]


def _question(spec: QuestionSet, row: Any, id: str, pictures: _Pictures) -> Question:
    if isinstance(row, Unusable):
        raise row
    if not isinstance(row, dict):
        raise Unusable("not an object with an image, a question and an answer")
    name = _name(row)
    question = one_line(row.get("sent", row.get("question")))
    answer = _best(row["label"]) if "label" in row else one_line(row.get("answer"))
    for what, value in (("image ('img_id', 'image')", name), ("question ('sent', 'question')", question)):
        if not value:
            raise Unusable(f"the {what} is missing or empty")
    if not answer:
        raise Unusable("the answer ('label', 'answer') is missing or empty")
    kind = one_line(row.get("question_type"))
    return Question(
        id=id,
        set=set_name(spec),
        images=(pictures.path(name),),
        turns=(Turn(question, answer),),
        answer_type=type_of(answer),
        facts={"question_type": kind} if kind else {},
    )


def _name(row: dict[str, Any]) -> str:
    return one_line(row.get("img_id", row.get("image")))


def _stem(name: str) -> str:
    """The name without the extension that some files give it."""
    stem, extension = os.path.splitext(name)
    return stem if extension.lower() in EXTENSIONS else name


def _best(label: Any) -> str:
    """The answer with the highest score, the first of equals."""
    if not isinstance(label, dict) or not all(isinstance(score, (int, float)) for score in label.values()):
        raise Unusable(f"'label' is {label!r}; it should be an object of answers and their scores")
    return one_line(max(label, key=label.__getitem__, default=""))


class _Pictures:
    """Where a split's images lie; each is looked for once."""

    def __init__(self, spec: QuestionSet, default: Path, split: str) -> None:
        self.spec, self.root = spec, image_root(spec, default)
        self.below = "" if spec.image_root and not (self.root / split).is_dir() else split
        self.known: dict[str, str] = {}

    def path(self, name: str) -> str:
        """The absolute path, with the extension that is there; .jpg if none is. Unusable if it leaves the folder."""
        if name not in self.known:
            stem = _stem(name)
            names = dict.fromkeys([name] * (stem != name) + [stem + extension for extension in EXTENSIONS])
            paths = [image_path(self.spec, self.root, os.path.join(self.below, each)) for each in names]
            self.known[name] = next((path for path in paths if os.path.isfile(path)), paths[0])
        return self.known[name]
