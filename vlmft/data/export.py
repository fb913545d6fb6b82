"""`vlmft export --data`: a set's questions in the chat form, for other trainers, and readable as a set again.

    FOLDER/<split>.json   [{"id": …, "messages": [{"role": "user", "content": "<image>\\n…"},
                            {"role": "assistant", "content": "<answer>…</answer>"}], "images": ["images/…"], …}, …]
    FOLDER/images/        the pictures as they are, under the digest of their content
    FOLDER/<split>/       under the form `save_to_disk` instead: rows and pictures as the library `datasets` reads them
    FOLDER/examples.json  the first rows as a model is asked them, and what it should say

A mixture's members have a folder each. What is written is read again and compared before the folder gets its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlmft.chat import prompts
from vlmft.config_check import composed, require
from vlmft.data.exported import EXAMPLES, IMAGES, MESSAGES, SAVE_TO_DISK, Part, differences, refuse, said_otherwise
from vlmft.data.load import Loaded, load
from vlmft.data.mixture import LIMITS, load_member, training_sets
from vlmft.data.question import IMAGE_MARK, Question
from vlmft.data.sources import Unusable, _chat, _parquet
from vlmft.errors import ConfigError, DataError
from vlmft.files import whole_folder, write_json
from vlmft.schema import AnswerStyle, Config

SHOWN = 5  # rows of each split in examples.json

Splits = Mapping[str, list[Question]]


def choose(name: str, overrides: Sequence[str], path: str | None = None, language: str | None = None) -> Config:
    """The config of a command line with dataset=`name` and the overrides. ConfigError in train.py's words."""
    said = {key: value for key, value in (("path", path), ("language", language)) if value}
    config = composed([f"dataset={name}", *overrides], said)
    require(config, "dataset")
    return config


def export(
    config: Config,
    splits: Sequence[str],
    folder: Path,
    style: AnswerStyle,
    *,
    form: str = MESSAGES,
    absolute: bool = False,
    most: int | None = None,
) -> list[Part]:
    """Write the splits of `config.dataset`, of each at most `most` rows in whole images; what was written.

    `absolute` leaves the pictures where they are. Raises DataError if the folder is there already, if the set cannot
    be read, or if a row would not read back as it is; ConfigError for what does not go together. Then nothing is left.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} is there already; name another folder with --out, or remove it.")
    if absolute and form == SAVE_TO_DISK:
        raise ConfigError(f"--absolute: under --form {SAVE_TO_DISK} the pictures are within the rows; leave it out")
    if config.dataset.normalize_terms:
        raise ConfigError("dataset.normalize_terms changes what a run is trained on, not the set; leave it out")

    def write_set(name: str, fresh: Path) -> list[Part]:
        below = Path(name) if config.dataset.sets else Path()
        (fresh / below).mkdir(exist_ok=True)
        loaded = {split: _load(config, name, split, most) for split in dict.fromkeys(splits)}
        questions = {split: found.questions for split, found in loaded.items()}
        parts = write(fresh / below, folder / below, questions, style, form=form, absolute=absolute)
        return [part._replace(left_out=found.dropped) for part, found in zip(parts, loaded.values(), strict=True)]

    try:
        with whole_folder(folder) as fresh:
            return [part for name in training_sets(config.dataset) for part in write_set(name, fresh)]
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error}") from error


def write(
    fresh: Path, folder: Path, questions: Splits, style: AnswerStyle, *, form: str = MESSAGES, absolute: bool = False
) -> list[Part]:
    """Write one set into `fresh`, which is to be `folder`, and read it back: what was written.

    DataError naming the rows that do not read back as they are, OSError where a picture is not there.
    """
    write_rows = _write_saved if form == SAVE_TO_DISK else _write_messages
    write_rows(fresh, questions, style, absolute)
    shown = [_example(one, split, style) for split, rows in questions.items() for one in rows[:SHOWN]]
    write_json(fresh / EXAMPLES, shown)
    parts = []
    for split, rows in questions.items():
        file = split if form == SAVE_TO_DISK else f"{split}.json"
        refuse(folder / file, differences(fresh / file, rows, style))
        pictures = len({image for one in rows for image in one.images})
        parts.append(Part(folder / file, len(rows), pictures))
    return parts


def fault(question: Question, style: AnswerStyle) -> str:
    """Why what is said in a question would not be read back as it is, "" where it would."""
    row = _row(question, style, str)
    try:
        turns, rejected = _chat.turns(*_chat.exchanges(row), len(question.images))
    except Unusable as error:
        return str(error)
    if (turns, rejected) != (question.turns, question.rejected):
        return "it is read as something else"
    return said_otherwise(row, question)


def _load(config: Config, name: str, split: str, most: int | None) -> Loaded:
    dataset = config.dataset
    if most is None:
        return load_member(dataset, name, split, config.seed)
    if split not in LIMITS:
        return load(training_sets(dataset)[name], split, limit=most, seed=config.seed)
    limit = {LIMITS[split]: most}
    sets = {member: replace(spec, **limit) for member, spec in dataset.sets.items()}  # type: ignore[arg-type]
    return load_member(replace(dataset, **limit, sets=sets), name, split, config.seed)  # type: ignore[arg-type]


def _row(question: Question, style: AnswerStyle, path_of: Callable[[str], str]) -> dict[str, Any]:
    """The question in the chat form, its facts behind what vlmft has names for."""
    marked = any(IMAGE_MARK in turn.question for turn in question.turns)
    said = []
    for number, turn in enumerate(question.turns):
        marks = "" if marked or number else f"{IMAGE_MARK}\n" * len(question.images)
        said.append({"role": "user", "content": marks + turn.question})
        said.append({"role": "assistant", "content": prompts.target(turn, style)})
    row: dict[str, Any] = {"id": question.id, "messages": said, "images": [path_of(one) for one in question.images]}
    if question.rejected:
        row[_chat.CHOSEN] = said.pop()["content"]
        row[_chat.REJECTED] = prompts.target(question.rejected, style)
    row |= {"answer_type": question.answer_type.upper(), "task": question.task}
    row |= {"options": list(question.options)} if question.options else {}
    return row | {fact: value for fact, value in question.facts.items() if fact not in row}


def _example(question: Question, split: str, style: AnswerStyle) -> dict[str, Any]:
    asked = prompts.messages(question, style)[:-1]
    example = {
        "id": question.id,
        "split": split,
        "messages": asked,
        "target": prompts.target(question.turns[-1], style),
    }
    return example | ({"rejected": prompts.target(question.rejected, style)} if question.rejected else {})


def _write_messages(folder: Path, questions: Splits, style: AnswerStyle, absolute: bool) -> None:
    copies: dict[str, str] = {}

    def copied(image: str) -> str:
        if image not in copies:
            kept = _parquet.kept(folder / IMAGES, Path(image).read_bytes())
            copies[image] = str(Path(kept).relative_to(folder))
        return copies[image]

    for split, rows in questions.items():
        write_json(folder / f"{split}.json", [_row(one, style, str if absolute else copied) for one in rows])


def _write_saved(folder: Path, questions: Splits, style: AnswerStyle, absolute: bool) -> None:
    from datasets import Dataset, DatasetDict, Features, Image, List, Value, disable_progress_bars

    disable_progress_bars()
    text = Value("string")
    special = {"messages": List({"role": text, "content": text}), "images": List(Image()), "options": List(text)}
    saved = {}
    for split, of_split in questions.items():
        rows = [_row(one, style, str) for one in of_split]  # paths: their bytes are taken as they are at the end
        columns = dict.fromkeys(key for row in rows for key in row)
        features = Features({column: special.get(column, text) for column in columns})
        saved[split] = Dataset.from_dict({key: [row.get(key) for row in rows] for key in columns}, features=features)
    DatasetDict(saved).save_to_disk(str(folder))
