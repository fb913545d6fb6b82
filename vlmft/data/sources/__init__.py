"""One file per publisher's format; `dataset.format` is the file's name. To add a format, add a file with:

    splits(spec) -> list[str]
        the splits this set has
    files(spec, split) -> list[Path]
        the annotation files a split is read from; DataError if one is not there, or the split is unknown
    read(spec, split) -> Iterator[Question | BadRow]
        every row of the split in the publisher's order; a BadRow for what cannot be used

and, where it reads keys of a set that only some formats have, their names as `KEYS` (see `load.OF_SOME_FORMATS`).
`spec` is a `schema.QuestionSet` or an OmegaConf node with its keys. `read` puts absolute image paths into the
questions without looking whether the images exist; `load.load` does that, once per image. The functions below
are what the formats share.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmft import hub
from vlmft.data.question import CLOSED, OPEN
from vlmft.errors import DataError

if TYPE_CHECKING:
    from vlmft.schema import QuestionSet


class Unusable(Exception):
    """Why one row is no question; `read` makes a BadRow of it."""


def set_name(spec: QuestionSet) -> str:
    """The set's name, or its format where it has none."""
    return spec.name or spec.format


def folder(spec: QuestionSet, expected: str, override: str) -> Path:
    """The absolute folder of the set, or its Hub repository's snapshot in the Hub's cache where there is no folder.

    Raises DataError naming both places, what is `expected`, and the `override` that says where it lies.
    """
    name = set_name(spec)
    if not spec.path and not spec.hub:
        raise DataError(f"{name}: no path is set. Expected {expected}; say where with {override}=FOLDER.")
    path = Path(os.path.abspath(Path(spec.path or "").expanduser()))
    if spec.path and path.is_dir():
        return path
    looked = f"looked in {path}, which is no folder"
    if spec.hub is None:
        raise DataError(f"{name}: {looked}. Expected {expected} there; say where it lies with {override}=FOLDER.")
    if snapshot := hub.here(spec.hub, "dataset", spec.revision):
        return snapshot
    raise DataError(
        f"{name}: {looked}, and in the Hugging Face cache {hub.cache()} for the data set {spec.hub}, which is not "
        f"there. Expected {expected}. Say where it lies with {override}=FOLDER, or fetch it where there is a network: "
        f"python train.py task=fetch dataset={name}"
    )


def image_root(spec: QuestionSet, default: Path) -> Path:
    """The absolute folder image names start from: `spec.image_root` (relative to the set), or `default`."""
    if not spec.image_root:
        return default
    return Path(os.path.abspath(Path(spec.path or "").expanduser() / Path(spec.image_root).expanduser()))


def image_path(spec: QuestionSet, root: Path, name: str) -> str:
    """The absolute path of an image; Unusable if it leaves `root` and the set does not allow that."""
    # By the letters of the path alone: a link inside the root is the owner's own doing, and allowed.
    path = os.path.normpath(os.path.join(root, name))
    if not spec.absolute_paths and os.path.commonpath((root, path)) != str(root):
        raise Unusable(
            f"image {name!r} lies outside the image folder {root} "
            "(dataset.absolute_paths=true allows this, dataset.image_root= moves the folder)"
        )
    return path


def refuse_unknown_split(spec: QuestionSet, split: str, known: list[str], hint: str = "") -> None:
    """DataError naming the splits there are, if `split` is none of them."""
    if split not in known:
        raise DataError(f"{set_name(spec)}: there is no split {split!r}; there are {', '.join(known)}.{hint}")


def one_line(value: Any) -> str:
    """A text or number on one line without outer blanks; "" for anything else."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return ""
    return " ".join(str(value).split())


def stated_type(row: dict[str, Any]) -> str:
    """The answer type that a row's "answer_type" states, OPEN or CLOSED in any case; Unusable where it is neither."""
    stated = one_line(row.get("answer_type")).lower()
    if stated not in (CLOSED, OPEN):
        raise Unusable(f"answer_type is {row.get('answer_type')!r}; it should be OPEN or CLOSED")
    return stated


def type_of(answer: str) -> str:
    """The answer type where the publisher states none: closed for yes and no in any case, else open."""
    return CLOSED if answer.lower() in ("yes", "no") else OPEN


def read_rows(path: Path) -> list[tuple[int, Any]]:
    """The rows of a JSON array or of JSON lines, each with its number (from 1; of the line in JSON lines).

    A line that is not JSON becomes an Unusable in the row's place; a file that is neither is a DataError.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}.") from None
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        if not text.lstrip().startswith("{"):
            raise DataError(f"{path} is neither a JSON array nor JSON lines: {error}.") from None
        return [(n, _line(line)) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    return list(enumerate(whole if isinstance(whole, list) else [whole], 1))


def _line(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        return Unusable(f"not JSON: {error}")
