"""Checkpoints that are there whole or not at all, and that say so themselves; the Trainer goes by folder names.

One is written into SAVING, flushed to disk, given a manifest of its files, and only then takes its place in the run.
"""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from vlmft.files import read_json, write_json

MANIFEST = "complete.json"
SAVING = ".saving"  # of a run: where a checkpoint is written
_NAME = re.compile(r"checkpoint-(\d+)$")


def seal(folder: Path, step: int, **facts: Any) -> None:
    """Flush every file of a checkpoint to disk, then write the manifest that makes it count."""
    sizes = {str(file.relative_to(folder)): file.stat().st_size for file in flush(folder) if file.name != MANIFEST}
    write_json(folder / MANIFEST, {"step": step, "files": sizes, **facts})


def put_in_place(run: Path, name: str, step: int, **facts: Any) -> None:
    """The checkpoint `name`, which lies in SAVING, is sealed and takes its place."""
    fresh, place = run / SAVING / name, run / name
    seal(fresh, step, **facts)
    if place.is_dir():  # of this very step, saved for another reason
        shutil.rmtree(fresh)
    else:
        os.replace(fresh, place)
        _flush_names(run)
    with suppress(OSError):  # something else may lie there
        fresh.parent.rmdir()


def flush(folder: Path) -> list[Path]:
    """Flush every file of a folder to disk, and return them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for file in files:
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
    for below in {file.parent for file in files} | {folder}:
        _flush_names(below)
    return files


def _flush_names(folder: Path) -> None:
    """Flush which files a folder has."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a whole checkpoint; None where the checkpoint is half-written, damaged or absent."""
    try:
        found = read_json(folder / MANIFEST)
        whole = found and all((folder / name).stat().st_size == size for name, size in found["files"].items())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if whole else None


def _all(run: Path) -> list[Path]:
    """Checkpoint folders of a run, newest first."""
    found = [(int(match[1]), path) for path in run.glob("checkpoint-*") if (match := _NAME.match(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def newest(run: Path) -> Path | None:
    """The newest whole checkpoint of a run, to resume from."""
    return next((path for path in _all(run) if manifest(path)), None)


def remove_broken(run: Path) -> list[str]:
    """Delete checkpoints that are not whole, and return their names. Call only while holding the run's lock."""
    broken = [path for path in _all(run) if not manifest(path)]
    half = sorted((run / SAVING).glob("checkpoint-*"))
    for path in (*broken, run / SAVING):
        shutil.rmtree(path, ignore_errors=path.name == SAVING)
    return [path.name for path in (*broken, *half)]
