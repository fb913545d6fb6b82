"""FLARE 2025 Task 5 (MLLM-2D): one folder of many collections, each with its own kind of question.

    {training,validation-public,validation-hidden,testing}/<Category>/<collection>/
        <collection>_questions_train.json (val, test; the hidden answers: …_val_withGT.json)
        imagesTr, imagesVal or imagesTs, unpacked

    {"TaskType": "classification", "Modality": "microscopy", "ImageName": "imagesTr/a.jpg" (or a list of them),
     "Question": "Question: … Options: A: … B: …", "Answer": "D", "Split": "train"}

Whatever collections lie there are read; `include` keeps some. A row has no id: it is the picture's name with a digest
of the question. Answers that no scorer could read are the publisher's defects. An answer that can be read is kept even
where it is hardly true (boneresorption has 2085 among numbers near 28), and so are duplicates with different answers.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vlmft.data.question import (
    CLOSED,
    COUNTING,
    DETECTION,
    IMAGE_MARK,
    INSTANCE_DETECTION,
    MULTI_LABEL,
    MULTIPLE_CHOICE,
    OPEN,
    REGRESSION,
    REPORT,
    VQA,
    BadRow,
    Question,
    Turn,
)
from vlmft.data.sources import (
    Unusable,
    folder,
    image_path,
    image_root,
    one_line,
    read_rows,
    refuse_unknown_split,
    set_name,
    type_of,
)
from vlmft.data.sources._flare25_answers import PIXELS, THOUSANDTHS, Defect, choice, located, options_of, plain, said
from vlmft.errors import DataError

if TYPE_CHECKING:
    from vlmft.schema import QuestionSet

KEYS = ("include", "box_space")
SPLITS = {"train": "training", "test": "validation-public"}  # ours -> the publisher's; `dataset.splits` has others
OVERRIDE = "paths.flare25"
LAYOUT = "FLARE's folders training, validation-public, … with <Category>/<collection>/<collection>_questions_*.json"

# What a model is asked for is what it is trained on, so the question says which boxes are meant.
ASKED = {
    PIXELS: "Give each box as [x1, y1, x2, y2] in pixels of the original picture.",
    THOUSANDTHS: "Give each box as [x1, y1, x2, y2], from 0 to 1000 across the picture's width and height.",
}
CLASSIFICATION = "classification"
TASKS = {  # TaskType in lower case, with blanks for - and _
    "classification": CLASSIFICATION,
    "multi label classification": MULTI_LABEL,
    "multilabel classification": MULTI_LABEL,
    "detection": DETECTION,
    "instance detection": INSTANCE_DETECTION,
    "counting": COUNTING,
    "cell counting": COUNTING,
    "regression": REGRESSION,
    "report generation": REPORT,
}
FILE = re.compile(r"(?P<collection>[^.].*)_questions_(?P<part>.+?)(_withGT)?\.json", re.IGNORECASE)


class Collection(NamedTuple):
    name: str
    category: str
    file: Path
    pictures: Path  # the folder that image names start from


def splits(spec: QuestionSet) -> list[str]:
    """train and test, and those named in `spec.splits`."""
    return list(_folders(spec))


def files(spec: QuestionSet, split: str) -> list[Path]:
    """The question files of the split's collections; DataError if there are none, or not all of `spec.include`."""
    return [collection.file for collection in _collections(spec, split)]


def read(spec: QuestionSet, split: str) -> Iterator[Question | BadRow]:
    """Every row of the split's collections: a question, or why it is none. DataError where answers are withheld."""
    seen = Counter[str]()
    for collection in _collections(spec, split):
        rows = read_rows(collection.file)
        if rows and not any(isinstance(row, dict) and said(row.get("Answer")) for _, row in rows):
            raise DataError(
                f"{set_name(spec)}: {collection.file} has no answers, so there is nothing to train on or to score. "
                "dataset.splits.test names a folder with answers, such as validation-public; of the hidden ones they "
                f"are in {collection.name}_questions_val_withGT.json."
            )
        pictures = _Pictures(spec, collection)
        for where, row in rows:
            try:
                yield _question(spec, collection, row, pictures, seen)
            except Unusable as error:
                yield BadRow(str(collection.file), where, str(error), published=isinstance(error, Defect))


def _folders(spec: QuestionSet) -> dict[str, str]:
    return SPLITS | {str(split): name for split, name in spec.splits.items()}


def _collections(spec: QuestionSet, split: str) -> list[Collection]:
    named = _folders(spec)
    refuse_unknown_split(spec, split, list(named), f" Name another one's folder with +dataset.splits.{split}=FOLDER.")
    if spec.box_space not in ASKED:
        raise DataError(f"{set_name(spec)}: dataset.box_space={spec.box_space} is not one of {PIXELS}, {THOUSANDTHS}.")
    top = folder(spec, LAYOUT, OVERRIDE)
    found: dict[tuple[str, str, str], Collection] = {}
    for place, below, names in os.walk(top / named[split], followlinks=True):
        below[:] = sorted(name for name in below if not name.startswith((".", "__", "images")))
        for name in sorted(names):  # "…_val_withGT.json" comes after "…_val.json", and takes its place
            if match := FILE.fullmatch(name):
                key = (place, match["collection"], match["part"].lower())
                category = Path(place).relative_to(top / named[split]).parts[:1]
                pictures = image_root(spec, top) / Path(place).relative_to(top)
                found[key] = Collection(match["collection"], "".join(category), Path(place, name), pictures)
    if not found:
        raise DataError(
            f"{set_name(spec)}: looked for the {split} split in {top / named[split]}, below which there is no "
            f"<collection>_questions_*.json. Expected {LAYOUT}; say where they lie with {OVERRIDE}=FOLDER, or which "
            f"folder this split is with dataset.splits.{split}=FOLDER."
        )
    there = {collection.name for collection in found.values()}
    if unknown := sorted(set(spec.include) - there):
        raise DataError(
            f"{set_name(spec)}: dataset.include: the {split} split has no {', '.join(unknown)}; it has "
            f"{', '.join(sorted(there, key=str.lower))}."
        )
    return [collection for collection in found.values() if not spec.include or collection.name in spec.include]


def _question(spec: QuestionSet, collection: Collection, row: Any, pictures: _Pictures, seen: Counter[str]) -> Question:
    if isinstance(row, Unusable):
        raise row
    if not isinstance(row, dict):
        raise Unusable("not an object with an ImageName, a Question and an Answer")
    names = row.get("ImageName")
    names = names if isinstance(names, list) else [names]
    text = row["Question"] if isinstance(row.get("Question"), str) else ""
    # Before anything is refused, so that a duplicate's number does not depend on what else can be read.
    key = f"{collection.name}/{'+'.join(map(str, names))}||{hashlib.sha256(text.encode()).hexdigest()[:10]}"
    seen[key] += 1
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise Defect(f"ImageName is {row.get('ImageName')!r}; it should be a file name or a list of file names")
    asked = re.sub(r"(?i)^\s*question\s*:", "", text.replace(IMAGE_MARK, " ")).strip()
    if not asked:
        raise Defect("the Question is missing or empty")
    stated = re.sub(r"[\s_-]+", " ", str(row.get("TaskType") or "")).strip().lower()
    if stated not in TASKS:
        raise Unusable(f"TaskType is {row.get('TaskType')!r}; vlmft knows {', '.join(TASKS)}")
    if not said(value := row.get("Answer")):
        raise Defect("the Answer is empty")
    shown = tuple(pictures.path(name.strip()) for name in names)
    task, options = TASKS[stated], options_of(asked) if TASKS[stated] == CLASSIFICATION else ()
    facts = {"collection": collection.name, "modality": collection.category.lower()}
    modality = one_line(row.get("Modality"))
    if re.sub(r"\W", "", modality).lower() != facts["modality"]:  # "X-ray" is the folder Xray
        facts["stated_modality"] = modality  # it is often wrong; the folder is not
    if task == CLASSIFICATION:
        task, answer = choice(value, options)
    elif task in (DETECTION, INSTANCE_DETECTION):
        facts["box_space"] = spec.box_space
        asked = f"{asked}\n{ASKED[spec.box_space]}"
        # Which of several pictures is meant no row says; where there are boxes there is one.
        answer = located(task, value, spec.box_space, shown[0])
    else:
        answer = plain(task, value)
    return Question(
        id=key if seen[key] == 1 else f"{key}#{seen[key]}",
        set=set_name(spec),
        images=shown,
        turns=(Turn(asked, answer),),
        answer_type=CLOSED if task == MULTIPLE_CHOICE else type_of(answer) if task == VQA else OPEN,
        facts={fact: value for fact, value in facts.items() if value},
        task=task,
        options=options,
    )


class _Pictures:
    """Where a collection's pictures lie: as their names say, or in one of its folders images*."""

    def __init__(self, spec: QuestionSet, collection: Collection) -> None:
        self.spec, self.root = spec, collection.pictures
        self.folders = sorted(path.name for path in self.root.glob("images*") if path.is_dir())
        packed = sorted(path.name for path in self.root.glob("*.zip"))
        if packed and not self.folders and getattr(spec.images, "name", spec.images) == "use":
            raise DataError(
                f"{set_name(spec)}: the pictures of {self.root} are still packed: unpack {packed[0]} there."
            )

    def path(self, name: str) -> str:
        """The absolute path; Unusable if it leaves the collection, or if the name fits several pictures."""
        stated = image_path(self.spec, self.root, name)
        if os.path.isfile(stated):
            return stated
        names = dict.fromkeys((name, os.path.basename(name)))
        others = [image_path(self.spec, self.root, os.path.join(below, n)) for below in self.folders for n in names]
        found = [path for path in others if os.path.isfile(path)]
        if len(found) > 1:
            raise Unusable(f"image {name!r} may be {' or '.join(found)}; keep one of them")
        return found[0] if found else stated
