"""What a run reads from outside, model and sets: found here, fetched from the Hugging Face Hub, or named as missing.

All of it is looked for before anything is made, so that one error names everything that is missing.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from vlmft import hub
from vlmft.data import load
from vlmft.data.sources import set_name
from vlmft.errors import DataError
from vlmft.schema import Model, QuestionSet


class _Needed(NamedTuple):
    repository: str
    kind: hub.Kind
    revision: str | None


def make_ready(model: Model | None, sets: Iterable[tuple[QuestionSet, str]], again: bool = False) -> None:
    """Fetch what is in the Hub and not here; `sets` are pairs of a set and the split that is needed of it.

    `again` asks the Hub also for what is here, in case it has a newer commit. Raises DataError naming all that is
    missing, where it was looked for, and what to do.
    """
    sets = list(sets)
    needed = dict.fromkeys([*_of_model(model), *(one for spec, _ in sets for one in _of_set(spec))])
    wanted = [one for one in needed if again or not hub.here(*one)]
    with ThreadPoolExecutor() as threads:
        reasons = list(threads.map(lambda one: hub.unreachable(*one), wanted))
    why_not = {one.repository: reason for one, reason in zip(wanted, reasons, strict=True) if reason}
    for one in wanted:
        if one.repository not in why_not:
            print(f"fetching  {one.kind} {one.repository} from the Hugging Face Hub", flush=True)
            try:
                hub.download(*one)
            except DataError as error:
                why_not[one.repository] = str(error)
    problems: list[str] = []
    if model and (problem := _missing_model(model)):
        problems.append(_with(problem, why_not.get(model.path)))
    for spec, split in sets:
        try:
            load.source(spec).files(spec, split)
        except DataError as error:
            problems.append(_with(str(error), why_not.get(spec.hub or "")))
    if problems:
        raise DataError("\n".join(dict.fromkeys(problems)))


def without_waiting(model: Model) -> dict[str, str]:
    """Environment of a child that needs a model's small files alone: the Hub is asked only where it answers and has to.

    Its library would try again for half a minute.
    """
    ask = [one for one in _of_model(model) if not hub.here(*one) and not hub.unreachable(*one)]
    return {} if ask else {"HF_HUB_OFFLINE": "1"}


def look_through(model: Model | None, sets: Iterable[QuestionSet]) -> None:
    """Print what there is of a model and of each split of the sets, reading every row and unpacking pictures."""
    if model:
        place = model_folder(model)
        size = sum(file.stat().st_size for file in place.rglob("*") if file.is_file()) if place else 0
        print(f"model     {model.name}: {place} ({size / 1e9:.1f} GB)")
    for spec in sets:
        for split in load.source(spec).splits(spec):
            found = load.load(spec, split, drop_bad_rows=True)
            images = len({image for question in found.questions for image in question.images})
            print(f"set       {set_name(spec)} {split}: {len(found.questions):,} questions on {images:,} images")
            if found.dropped:
                print(f"          {len(found.dropped):,} rows cannot be used, the first: {found.dropped[0]}")


def model_folder(model: Model) -> Path | None:
    """Where the checkpoint lies: its folder, or its snapshot in the Hub's cache; None where it is not here."""
    folder = Path(model.path).expanduser()
    if model.tiny or folder.is_dir():
        return folder
    return hub.here(model.path, "model", model.revision)


def _missing_model(model: Model) -> str | None:
    if not model.path:
        return f"model {model.name or '(unnamed)'}: model.path names no repository or folder"
    if model.tiny or model_folder(model):
        return None
    return (
        f"model {model.name}: {model.path} is no folder here, and is not (or not whole) in the Hugging Face cache "
        f"{hub.cache()}. Say where it lies with model.path=FOLDER, or fetch it where there is a network: "
        f"python train.py task=fetch model={model.name}"
    )


def _of_model(model: Model | None) -> list[_Needed]:
    if model is None or model.tiny or not model.path or Path(model.path).expanduser().is_dir():
        return []
    return [_Needed(model.path, "model", model.revision)]


def _of_set(spec: QuestionSet) -> list[_Needed]:
    if not spec.hub or (spec.path and Path(spec.path).expanduser().is_dir()):
        return []
    return [_Needed(spec.hub, "dataset", spec.revision)]


def _with(problem: str, reason: str | None) -> str:
    return f"{problem} ({reason})" if reason else problem
