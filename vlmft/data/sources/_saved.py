"""A folder that the library `datasets` has saved (`save_to_disk`): state.json, and the rows in Arrow files.

It is read with pyarrow, a few rows at a time: `datasets` takes seconds to import, and would decode the pictures.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vlmft.errors import DataError

STATE = "state.json"
SUFFIX = ".arrow"
BATCH = 32  # rows in memory at a time


def is_saved(folder: Path) -> bool:
    return (folder / STATE).is_file()


def is_part(file: Path) -> bool:
    return file.suffix == SUFFIX


def parts(folder: Path) -> list[Path]:
    """The Arrow files that the folder's state.json names, in order; DataError if one is not there."""
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        found = [folder / part["filename"] for part in state["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / STATE} is no state.json of a data set that was saved: {error!r}.") from error
    if missing := [part.name for part in found if not part.is_file()]:
        raise DataError(f"{folder} lacks {', '.join(missing)}, which its {STATE} names; copy the folder again.")
    if not found:
        raise DataError(f"{folder}: its {STATE} names no files; save the data set again.")
    return found


def rows(paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Every row; a picture is {"bytes": …, "path": …}. DataError for a file that cannot be read."""
    for batch in _batches(paths):
        for start in range(0, batch.num_rows, BATCH):
            yield from batch.slice(start, BATCH).to_pylist()


def ids(paths: Sequence[Path]) -> list[Any]:
    """What each row has under "id", None where it has none; nothing else is read of it."""
    found: list[Any] = []
    for batch in _batches(paths):
        known = "id" in batch.schema.names
        found += batch.column("id").to_pylist() if known else [None] * batch.num_rows
    return found


def _batches(paths: Sequence[Path]) -> Iterator[Any]:
    import pyarrow

    for path in paths:
        try:
            with pyarrow.memory_map(str(path)) as file, pyarrow.ipc.open_stream(file) as stream:
                yield from stream
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{path} cannot be read as Arrow: {error}. It may be cut short; copy it again.") from error
