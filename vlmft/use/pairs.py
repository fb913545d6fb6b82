"""`vlmft pairs RUN_DIR`: what a run said wrongly of rows that are no test rows, as preference rows for DPO.

The gold answer is the chosen one and the run's own wrong answer the rejected one. Its stored predictions on the split
(`predictions_<set>.<split>.jsonl`) are read, and rows of the conversation form are written, which dataset=pairs reads.
"""

from __future__ import annotations

import filecmp
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from vlmft.data import export
from vlmft.data.exported import Part
from vlmft.data.question import CLOSED, MULTIPLE_CHOICE, VQA, Question, Turn
from vlmft.errors import ConfigError, DataError
from vlmft.evaluation.ablations import PASSES
from vlmft.evaluation.answer_kinds import OK
from vlmft.evaluation.answers import LIMIT, parse_record, thought
from vlmft.evaluation.predictions import predicted_sets, predictions_file, read_predictions
from vlmft.evaluation.protocols import judge
from vlmft.evaluation.scores import headline
from vlmft.files import whole_folder
from vlmft.models.adapters import is_adapter
from vlmft.schema import AnswerStyle, Eval, read_config

CONF = Path(__file__).parents[2] / "conf"
STYLE = AnswerStyle.think_answer  # the form that holds thoughts; a run writes them in its own style

JUDGED = (VQA, MULTIPLE_CHOICE)  # an answer of another task is more or less right
_FEW, _SIDED = 20, 0.9  # closed pairs, and the share of one answer from which they are one-sided
RIGHT = "right"
GRADED = "of tasks whose answers are graded"
PARTLY = "partly right"
CUT = "cut off at the token limit"
UNREADABLE = "empty or unreadable"
OTHER_WORDS = "right in other words"  # by the table of synonyms
THE_GOLD = "the gold itself"
BAD_REPLY = "that cannot be written as an answer"
BAD_ROW = "to rows that would not be read as they are"


class Made(NamedTuple):
    """The pairs of one set: what was written (None where there are none), and how many answers make no pair, by why.

    `before` says that the same pairs were there already, and `remark` what should be known of them.
    """

    set: str
    part: Part | None
    left_out: Mapping[str, int]
    before: bool = False
    remark: str = ""

    def why_not(self) -> str:
        return ", ".join(f"{count:,} {why}" for why, count in self.left_out.items())


def make(
    run: Path, split: str, protocol: str, *, only: str | None = None, out: Path | None = None, absolute: bool = False
) -> list[Made]:
    """Write the pairs of each set that `run` has answered the split of, or of `only` one, each in its own folder.

    The folder is `<set>` below `out` (RUN_DIR/pairs), and `out` itself with `only`. ConfigError and DataError where
    pairs cannot or must not be made, and where a folder has other content; then that folder is as it was.
    """
    if not (run / "config.yaml").is_file():
        raise DataError(f"{run} is no run directory (config.yaml); name one, such as outputs/…")
    found: dict[str, list[Question]] = {}
    left_out: dict[str, Counter[str]] = {}
    for name in _answered(run, split, only):
        found[name], left_out[name] = of_records(_records(predictions_file(run, f"{name}.{split}")), protocol)
    if not any(found.values()):
        said = [
            f"{run}, {name}: every answer on the split {split} is right under {protocol}; there is nothing to reject"
            if set(counts) == {RIGHT}
            else f"{run}, {name}: no answer on the split {split} makes a pair: {Made(name, None, counts).why_not()}"
            for name, counts in left_out.items()
        ]
        raise DataError("\n".join(said))
    made = []
    for name, questions in found.items():
        part, before = None, False
        if questions:
            folder = out if out and only else (out or run / "pairs") / name
            part, before = _write(folder, questions, absolute)
        made.append(Made(name, part, left_out[name], before, _one_sided(questions)))
    return made


def _one_sided(questions: Sequence[Question]) -> str:
    """A sentence where nearly all closed pairs choose the same answer, "" elsewhere."""
    chosen = Counter(question.answer.casefold() for question in questions if question.answer_type == CLOSED)
    if not chosen:
        return ""
    (answer, count), total = chosen.most_common(1)[0], chosen.total()
    if total < _FEW or count < _SIDED * total:
        return ""
    return (
        f"{count:,} of {total:,} closed pairs choose {answer!r}, as the run nearly always says the other: DPO on them "
        "teaches that answer, not the pictures"
    )


def of_records(records: Iterable[Mapping[str, Any]], protocol: str) -> tuple[list[Question], Counter[str]]:
    """The pairs among the answers of a split, in their order, and how many of the others there are, by why.

    Wrong is what has the score 0 under the protocol. Raises ValueError and KeyError as `protocols.judge`.
    """
    pairs, left_out = [], Counter[str]()
    for record in records:
        if why := _no_wrong_answer(record, protocol):
            left_out[why] += 1
            continue
        question = _pair(record)
        if not export.fault(question, STYLE):
            pairs.append(question)
        else:
            left_out[BAD_REPLY if not export.fault(replace(question, rejected=None), STYLE) else BAD_ROW] += 1
    return pairs, left_out


def next_command(run: Path, made: Made, absolute: bool = False) -> str:
    """The command that trains on the pairs, from the weights of the run, and evaluates on the set's test split."""
    config = read_config(run / "config.yaml")
    model = config.model.name if (CONF / "model" / f"{config.model.name}.yaml").is_file() else "…"
    start = run if (run / "final").is_dir() else config.init_from
    assert made.part
    whole = (run / "final").is_dir() and not is_adapter(run / "final")
    words = [
        f"python train.py method={'dpo_full' if whole else 'dpo'}",
        f"model={model}",
        "dataset=pairs",
        f"dataset.name={made.set}",  # whose rows they are: in names and reports the run is one on that set
        f"paths.pairs={made.part.file.parent}",
    ]
    words += ["dataset.absolute_paths=true"] if absolute else []
    return " ".join([*words, *([f"init_from={start}"] if start else []), _evaluation(made.set)])


def _evaluation(name: str) -> str:
    """What chooses a set to evaluate on."""
    if (CONF / "eval" / f"{name}.yaml").is_file():
        return f"eval={name}"
    known = (CONF / "dataset" / f"{name}.yaml").is_file()
    return f"eval=none +dataset@eval.sets.{name}={name}" if known else "eval=none"


def _answered(run: Path, split: str, only: str | None) -> list[str]:
    """The sets whose split the run has answered."""
    if only and "." in only:
        raise ConfigError(f"--set {only}: name the set alone, {only.partition('.')[0]}; its split is said with --split")
    if split in (Eval.split, *PASSES):
        what = "the test split" if split == Eval.split else "a pass without the rows' own pictures"
        raise ConfigError(f"--split {split} is {what}, which no pairs are made of; name another split, such as train")
    named = predicted_sets(run)
    found = [name.partition(".")[0] for name in named if name.partition(".")[2] == split]
    wanted = [name for name in found if only in (None, name)]
    if not wanted:
        sets = [name.partition(".")[0] for name in named]
        own = read_config(run / "config.yaml").dataset.name
        chosen = f" {_evaluation(only or sets[0])}" if only or (sets and not own) else ""
        of_set = f" of {only}" if only else ""
        told = (
            f"it has those of {', '.join(named)} alone. Pairs are never made of test questions, nor of passes without "
            "pictures. "
            if named
            else ""
        )
        raise DataError(
            f"{run} has no predictions on the split {split}{of_set}; {told}Have it answer these rows first: "
            f"python train.py task=eval runs=[{run}] eval.split={split}{chosen}"
        )
    return wanted


def _records(file: Path) -> Sequence[Mapping[str, Any]]:
    try:
        records = read_predictions(file)
    except ValueError as error:
        raise DataError(f"{file} holds a line that is no JSON: {error}") from error
    if not records:
        raise DataError(f"{file} is empty")
    lacking = {"set", "images", "question", "gold", "facts", "raw", "finish_reason", "answer_type"}
    for number, record in enumerate(records, 1):
        if missing := lacking - record.keys():
            raise DataError(f"{file}, line {number}: there is no {', '.join(sorted(missing))}; it is no prediction")
    return records


def _no_wrong_answer(record: Mapping[str, Any], protocol: str) -> str:
    """Why the record has no answer to reject, "" where it has one."""
    if record.get("task", VQA) not in JUDGED:
        return GRADED
    verdict, answer = judge(record, protocol), parse_record(record).text
    metric = headline([record], protocol)
    score, of = verdict.values.get(metric) or verdict.values["accuracy"]  # balanced accuracy is of no single record
    if score == of:
        return RIGHT
    if record["finish_reason"] == LIMIT:
        return CUT
    if verdict.status != OK or not answer:
        return UNREADABLE
    if answer == str(record["gold"]).strip():
        return THE_GOLD
    if score:
        return PARTLY
    return OTHER_WORDS if verdict.values.get("accuracy_terms", (0, 1))[0] else ""


def _pair(record: Mapping[str, Any]) -> Question:
    """The row that a record is of, with its answer as the rejected one."""
    asked, own = record["question"], record.get("thought")
    said = parse_record(record).text or ""
    return Question(
        id=record["id"],
        set=record["set"],
        images=tuple(record["images"]),
        turns=(*(Turn(**earlier) for earlier in record.get("history", [])), Turn(asked, record["gold"], own)),
        answer_type=record["answer_type"],
        facts=record["facts"],
        task=record.get("task", VQA),
        options=tuple(record.get("options", ())),
        rejected=Turn(asked, said, (thought(record["raw"]) or None) if own else None),
    )


def _write(folder: Path, questions: list[Question], absolute: bool) -> tuple[Part, bool]:
    """What was written, and whether it was there before. DataError where something else is there."""
    for question in questions:
        if gone := [image for image in question.images if not Path(image).is_file()]:
            raise DataError(
                f"{question.set}, row {question.id}: the picture {gone[0]} is not there any more; put it back, or have "
                "the run answer the rows where they lie now"
            )
    there = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    try:
        with whole_folder(folder) as fresh:
            (part,) = export.write(fresh, folder, {"train": questions}, STYLE, absolute=absolute)
            if there and (other := _other(fresh, folder)):
                raise DataError(
                    f"{folder} is there already, and {other} is not what these pairs would have; name another folder "
                    "with --out, or remove it"
                )
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error}") from error
    return part, there


def _other(fresh: Path, folder: Path) -> Path | None:
    """The first file of `fresh` that is not the same in `folder`."""
    for file in sorted(path for path in fresh.rglob("*") if path.is_file()):
        own = file.relative_to(fresh)
        if not (folder / own).is_file() or not filecmp.cmp(file, folder / own, shallow=False):
            return own
    return None
