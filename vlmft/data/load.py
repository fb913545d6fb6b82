"""From a config node to the questions of one split, and the fingerprint of what they were read from."""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from types import ModuleType

from vlmft.data import sources
from vlmft.data.picture_check import Seen, look
from vlmft.data.question import IMAGE_MARK, MULTIPLE_CHOICE, TASKS, BadRow, Question
from vlmft.data.sources import set_name
from vlmft.errors import DataError
from vlmft.evaluation.choices import choice_gold
from vlmft.evaluation.statistics import clusters
from vlmft.files import file_digests
from vlmft.schema import Images, QuestionSet

SHOWN = 5  # bad rows named in an error
OF_SOME_FORMATS = (
    "include",
    "box_space",
    "options",
    "shuffle_options",
    "reasoning",
    "knowledge",
    "max_knowledge_words",
)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A split's questions in the publisher's order, and the rows that were left out."""

    questions: list[Question]
    dropped: list[BadRow]


def source(spec: QuestionSet) -> ModuleType:
    """The module of `vlmft/data/sources` that reads `spec.format`; DataError naming the formats there are."""
    formats = sorted(module.name for module in pkgutil.iter_modules(sources.__path__) if module.name[0] != "_")
    if spec.format not in formats:
        name = set_name(spec) or "dataset"
        raise DataError(f"{name}: there is no format {spec.format!r}; there are {', '.join(formats)}.")
    return importlib.import_module(f"{sources.__name__}.{spec.format}")


def load(
    spec: QuestionSet,
    split: str,
    *,
    limit: int | None = None,
    percent: float = 100.0,
    seed: int = 0,
    drop_bad_rows: bool = False,
    need_images: bool = True,
) -> Loaded:
    """The usable questions of a split: `percent` of them, at most `limit`, in whole images (but at least one image).

    DataError if the set is not where it should be, if rows are bad and neither `spec.bad_rows` nor
    `drop_bad_rows` says to drop them, or if nothing is left. Defects of the published files are always left out.
    `need_images=False` takes questions whose pictures are not there.
    """
    name = f"{set_name(spec)} {split}"
    if limit is not None and limit < 1:
        raise DataError(f"{name}: at most {limit} rows leaves nothing; it should be at least 1, or null for all.")
    if not 0 < percent <= 100:
        raise DataError(f"{name}: percent is {percent}; it should be above 0 and at most 100.")
    module = source(spec)
    refuse_what_has_no_effect(spec, module, name)
    rows = [read_as_said(spec, row) for row in module.read(spec, split) if chosen(spec, row)]
    questions: list[Question] = []
    dropped: list[BadRow] = []
    shown = [image for row in rows if isinstance(row, Question) for image in row.images] if need_images else []
    pictures = look(shown)
    place = ", ".join(str(file) for file in module.files(spec, split)[:SHOWN])
    for row in rows:
        if isinstance(row, Question) and (reason := unusable(row, pictures)):
            row = BadRow(place, f"with id {row.id}", reason)
        if isinstance(row, BadRow):
            dropped.append(row)
        else:
            questions.append(row)
    ours = [row for row in dropped if not row.published]
    if ours and not drop_bad_rows and getattr(spec.bad_rows, "name", spec.bad_rows) != "drop":
        raise DataError(_refusal(name, ours, len(questions) + len(dropped)))
    if not rows and (spec.tasks or spec.modalities):
        raise DataError(f"{name}: {_nothing_chosen(spec, module.read(spec, split))}")
    if not questions:
        lost = f" (none of its {len(dropped)} can be used; the first: {dropped[0]})" if dropped else ""
        raise DataError(f"{name}: no usable rows in {place}{lost}.")
    share = max(1, round(percent / 100 * len(questions)))
    most = share if limit is None else min(limit, share)
    return Loaded(questions if most >= len(questions) else _limit(questions, most, seed), dropped)


def without_images(question: Question) -> Question:
    """The question as it is asked of a model that sees nothing."""
    turns = tuple(replace(turn, question=turn.question.replace(IMAGE_MARK, "").strip()) for turn in question.turns)
    rejected = question.rejected and replace(question.rejected, question=turns[-1].question)
    return replace(question, images=(), turns=turns, rejected=rejected)


def chosen(spec: QuestionSet, row: Question | BadRow) -> bool:
    """Whether the filters keep a row."""
    if isinstance(row, BadRow):
        return True
    modality = row.facts.get("modality", "").casefold()
    return (not spec.tasks or row.task in spec.tasks) and (
        not spec.modalities or modality in {wanted.casefold() for wanted in spec.modalities}
    )


def read_as_said(spec: QuestionSet, row: Question | BadRow) -> Question | BadRow:
    """The row, without its pictures where `spec.images` is to ignore them."""
    return without_images(row) if isinstance(row, Question) and spec.images is Images.ignore else row


def unusable(question: Question, pictures: dict[str, Seen]) -> str:
    """Why a question whose row is in order cannot be used, "" where it can."""
    for image in question.images:
        if problem := pictures[image].problem if image in pictures else "":
            hint = " (dataset.image_root= says where the images lie)" if not pictures[image].sha256 else ""
            return f"image {image} {problem}{hint}"
    if question.task == MULTIPLE_CHOICE and question.options:
        try:
            choice_gold(question.answer, question.options)
        except ValueError as error:
            return str(error)
    return ""


def _nothing_chosen(spec: QuestionSet, rows: Iterable[Question | BadRow]) -> str:
    asked = [row for row in rows if isinstance(row, Question)]
    tasks = sorted({row.task for row in asked})
    modalities = sorted({row.facts.get("modality", "") for row in asked} - {""})
    return (
        f"no row is left by dataset.tasks={spec.tasks}, dataset.modalities={spec.modalities}; the set's tasks are "
        f"{', '.join(tasks)}, its modalities {', '.join(modalities) or 'not told'}."
    )


def refuse_what_has_no_effect(spec: QuestionSet, module: ModuleType, name: str) -> None:
    """DataError for a key that the format does not read; `KEYS` of a format's module names those it does.

    Also for a task that there is not, and a language that the format does not tell.
    """
    default = QuestionSet()
    for key in OF_SOME_FORMATS:
        if getattr(spec, key) != getattr(default, key) and key not in getattr(module, "KEYS", ()):
            raise DataError(f"{name}: dataset.{key}={getattr(spec, key)} means nothing to the format {spec.format}.")
    if wrong := sorted(set(spec.tasks) - set(TASKS)):
        raise DataError(f"{name}: dataset.tasks: there is no {', '.join(wrong)}; there are {', '.join(TASKS)}.")
    languages = getattr(module, "LANGUAGES", ())
    if spec.language and spec.language not in languages:
        there = f"it has {', '.join(languages)}" if languages else f"the format {spec.format} does not tell languages"
        raise DataError(f"{name}: dataset.language={spec.language}: {there}.")


def fingerprint(spec: QuestionSet, split: str) -> str:
    """16 hex digits over the format and the bytes of the annotation files; the same wherever the set lies."""
    digest = hashlib.sha256(f"{spec.format}\n".encode())
    for content in file_digests(source(spec).files(spec, split)):
        digest.update(bytes.fromhex(content))
    return digest.hexdigest()[:16]


def image_groups(questions: list[Question]) -> list[list[int]]:
    """The positions of the questions, grouped so that no image is in two groups; in order of the image paths.

    A question with several images joins their groups; a question without an image is a group by itself.
    """
    keys = [question.images or (f"\0{question.id}",) for question in questions]
    groups: dict[int, list[int]] = {}
    for position, number in enumerate(clusters(keys)):
        groups.setdefault(number, []).append(position)
    # By the first path, whatever the order of the rows.
    return sorted(groups.values(), key=lambda group: min(min(keys[position]) for position in group))


def _limit(questions: list[Question], limit: int, seed: int) -> list[Question]:
    groups = image_groups(questions)
    random.Random(f"limit {seed}").shuffle(groups)
    kept: set[int] = set(groups[0])
    # Stops at the first image that is too much instead of trying smaller ones, so that images with many
    # questions are not avoided, and a smaller limit keeps a part of what a larger one keeps.
    for group in groups[1:]:
        if len(kept) + len(group) > limit:
            break
        kept.update(group)
    return pick(questions, kept)


def pick(questions: list[Question], positions: Iterable[int]) -> list[Question]:
    """The questions at the positions, in their order."""
    return [questions[i] for i in sorted(positions)]


def _refusal(name: str, bad: list[BadRow], total: int) -> str:
    lines = [f"{name}: {len(bad)} of {total} rows cannot be used:", *(f"  {row}" for row in bad[:SHOWN])]
    if len(bad) > SHOWN:
        lines.append(f"  … and {len(bad) - SHOWN} more")
    return "\n".join([*lines, "Put them right, or leave them out with dataset.bad_rows=drop."])
