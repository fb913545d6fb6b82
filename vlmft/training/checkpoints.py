"""Which checkpoints are whole. A manifest, written last, says so; the Trainer itself goes by folder names."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

from vlmft.files import read_json, write_json

MANIFEST = "complete.json"
_NAME = re.compile(r"checkpoint-(\d+)$")


def seal(folder: Path, step: int, **facts: Any) -> None:
    """Flush every file of a checkpoint to disk, then write the manifest that makes it count."""
    sizes = {str(file.relative_to(folder)): file.stat().st_size for file in flush(folder) if file.name != MANIFEST}
    write_json(folder / MANIFEST, {"step": step, "files": sizes, **facts})


def flush(folder: Path) -> list[Path]:
    """Flush every file of a folder to disk, and return them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for file in files:
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
    return files


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
    for path in broken:
        shutil.rmtree(path)
    return [path.name for path in broken]
