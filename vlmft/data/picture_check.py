"""Every picture looked at once, and what was seen remembered under its content: whether a model can read it, its size,
how it is stored, and what it looks like.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path

from vlmft.data import images
from vlmft.errors import DataError
from vlmft.files import cache_folder, file_digests, read_json, write_json

logger = logging.getLogger(__name__)

NO_HASH = 0  # of a picture too plain to be told by its looks; the hash of any other has at least the bit of its mean
# Half of the frequencies reach this many grey levels; below it their order is noise, and plain pictures would look
# alike. Blank ones with JPEG noise have under 1, pages with one letter up to 4, those of the two sets 13 and more.
PLAIN = 4.0

_MEMORY = "pictures.json"  # what is looked for in another way needs another name here
_SIDE = 256  # JPEGs are decoded at the smallest size from here up; at 128 copies lie farther apart
_BATCH = 1024  # pictures waiting for the threads
_MANY = 500  # pictures, from which on it is said that they are looked at
_SMALL = 28  # pixels of the shorter side, below which a picture is enlarged to fill a visual token
_NARROW = 200  # sides to one, above which the processors of GLM and Qwen refuse a picture

Progress = Callable[[int, int], None]  # pictures looked at, of how many


@dataclass(frozen=True, slots=True)
class Seen:
    """What a picture is. `problem` says why no model can read it, "" where one can."""

    sha256: str
    width: int = 0  # as shown, in pixels
    height: int = 0
    mode: str = ""  # Pillow's, as stored
    frames: int = 1
    phash: int = NO_HASH
    problem: str = ""

    def remarks(self) -> list[str]:
        """What a model will not see as it is stored, or may not be meant."""
        said = []
        if min(self.width, self.height) < _SMALL:
            said.append(f"small, {self.width}x{self.height} pixels: it is enlarged to fill a visual token")
        if max(self.width, self.height) > _NARROW * min(self.width, self.height):
            said.append(f"{self.width}x{self.height} pixels: GLM and Qwen refuse more than {_NARROW} to one")
        if self.frames > 1:
            said.append(f"{self.frames} frames, of which the first is used")
        if self.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
            said.append(f"stored as {self.mode}, converted to RGB")
        if self.mode in ("RGBA", "LA", "PA"):
            said.append("transparent in places, which is not kept")
        return said


def look(paths: Sequence[str], progress: Progress | None = None) -> dict[str, Seen]:
    """What each of the pictures is, by path; a file that is not there has a `problem` as well.

    What was seen is remembered under the SHA-256, so that a copy elsewhere is not decoded again.
    """
    there = [path for path in dict.fromkeys(paths) if os.path.isfile(path) and os.access(path, os.R_OK)]
    digests = dict(zip(there, file_digests([Path(path) for path in there]), strict=True))
    memory = cache_folder() / _MEMORY
    kept: dict[str, list[object]] = read_json(memory) or {}
    unknown = {digest: path for path, digest in digests.items() if digest not in kept}
    if len(unknown) > _MANY:
        logger.info("pictures  looking at %d for the first time", len(unknown))
    fresh: dict[str, list[object]] = {}
    try:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
            for start in range(0, len(unknown), _BATCH):
                batch = dict(list(unknown.items())[start : start + _BATCH])
                for seen in threads.map(_look, batch.values(), batch):
                    fresh[seen.sha256] = list(astuple(seen))
                    if progress:
                        progress(len(fresh), len(unknown))
    finally:
        if fresh:  # what another process has found meanwhile is kept too
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_json(memory, (read_json(memory) or {}) | fresh)
    kept |= fresh
    known = {digest: Seen(*kept[digest]) for digest in dict.fromkeys(digests.values())}  # type: ignore[arg-type]
    return {path: known[digests[path]] if path in digests else _gone(path) for path in dict.fromkeys(paths)}


def _gone(path: str) -> Seen:
    return Seen("", problem="cannot be read: permission denied" if os.path.exists(path) else "is not there")


def _look(path: str, sha256: str) -> Seen:
    from PIL import Image

    if not os.path.getsize(path):
        return Seen(sha256, problem="is empty (0 bytes)")
    try:
        width, height = images.size(path)
        with Image.open(path) as image:
            mode, frames = image.mode, getattr(image, "n_frames", 1)
        return Seen(sha256, width, height, mode, frames, perceptual_hash(path))
    except DataError as error:
        return Seen(sha256, problem=str(error).removeprefix(f"{path} ").replace(f" '{path}'", ""))


def perceptual_hash(path: str) -> int:
    """The picture's pHash: which of the low 8x8 frequencies of its 32x32 grey copy are above their median.

    Source: Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010); here the mean is among
    the 64. NO_HASH for a nearly constant picture and for plain bars. DataError where it cannot be decoded.
    """
    import numpy as np
    from PIL import Image, ImageOps
    from scipy.fft import dctn

    try:
        with Image.open(path) as image:
            image.draft("L", (_SIDE, _SIDE))
            small = ImageOps.exif_transpose(image).convert("L").resize((32, 32), Image.Resampling.LANCZOS)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be decoded: {error}") from error
    low = dctn(np.asarray(small, dtype=np.float64), norm="ortho")[:8, :8].ravel()
    if np.median(np.abs(low)) < PLAIN:
        return NO_HASH
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")
