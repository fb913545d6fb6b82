"""Writing so that a reader, or the next start after a kill, never meets half a file."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO


def cache_folder() -> Path:
    """Where vlmft keeps what it can make again: $VLMFT_CACHE, or ~/.cache/vlmft."""
    return Path(os.environ.get("VLMFT_CACHE") or Path.home() / ".cache" / "vlmft")


def file_digests(files: Sequence[Path]) -> list[str]:
    """SHA-256 of each file, in hex.

    A digest is remembered under the file's size and time of change, so that twenty gigabytes are read once.
    """
    memory = cache_folder() / "fingerprints.json"
    known: dict[str, str] = read_json(memory) or {}
    keys = [_state(file) for file in files]
    unknown = {key: file for key, file in zip(keys, files, strict=True) if key not in known}
    if unknown:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
            fresh = dict(zip(unknown, threads.map(_digest, unknown.values()), strict=True))
        known |= fresh
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_json(memory, (read_json(memory) or {}) | fresh)
    return [known[key] for key in keys]


def _state(file: Path) -> str:
    """Another one whenever the file is changed, as far as its facts tell."""
    facts = os.stat(file)
    return f"{os.path.abspath(file)} {facts.st_size} {facts.st_mtime_ns}"


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write `path` whole, as `whole_file` does."""
    with whole_file(path) as file:
        file.write(text)


@contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """A file to write, under a temporary name; at the end it is flushed to disk and becomes `path` in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `folder` in one step at the end; of several processes the first one wins."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield fresh
        fresh.chmod(0o755)  # mkdtemp's folders are their owner's alone
        try:
            os.rename(fresh, folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def made_once(folder: Path, marker: str, kind: str, recipe: int, make: Callable[[Path], object]) -> bool:
    """Fill `folder` by `make` and mark what it is, unless that was done by this recipe; an older one's is made anew.

    False where the folder holds something else, which is left alone.
    """
    if folder.exists():
        found = read_json(folder / marker) or {}
        if found.get("kind") != kind:
            return False
        if found["recipe"] == recipe:
            return True
        shutil.rmtree(folder)
    with whole_folder(folder) as fresh:
        make(fresh)
        write_json(fresh / marker, {"kind": kind, "recipe": recipe})
    return True


def disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one behind it, says that there is no room left on a disk or in a quota."""
    if error is None:
        return False
    # Libraries that write files themselves raise errors of their own: safetensors with the system's words, torch not.
    words = ("No space left on device", "Disk quota exceeded", "PytorchStreamWriter failed", ". unexpected pos ")
    said = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return said or any(text in str(error) for text in words) or disk_full(error.__cause__ or error.__context__)


def read_json(path: Path) -> Any:
    """The file's value, or None where there is no such file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
