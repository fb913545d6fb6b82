"""Pictures decoded and resized once, then read from disk as the very patches that the processor makes of them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import uuid
import zlib
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vlmft.data import images
from vlmft.errors import DataError
from vlmft.files import cache_folder

logger = logging.getLogger(__name__)

_LIBRARIES = ("pillow", "torch", "torchvision", "transformers")  # each may decode or resize otherwise one day
_SHAPE = ("patch_size", "merge_size", "temporal_patch_size")
_DIGESTS = 100_000  # paths whose content is remembered: a streamed set has any number of them
_GRID_BYTES, _SUM_BYTES = 24, 4

Patches = tuple[torch.Tensor, torch.Tensor]  # uint8 (N, channels·patch_size²), and the grid: t, h, w, int64 (3,)


class ImageCache:
    """The uint8 patches of pictures, each kept in a file under its content, its size and the processor's settings.

    What comes from disk and what is made afresh are the same bytes, so nothing but time depends on the cache, and its
    folder may be deleted whenever you like. Once the folder holds `limit_bytes`, or cannot be written, nothing more is
    kept. What other processes write meanwhile is counted late: each may overshoot the limit by a sixteenth of it.

    `cacheable` is False where the processor does not make plain patches of every picture (tiles, text models, Pillow's
    own processors); call it yourself then.
    """

    def __init__(self, image_processor: Any, folder: Path | None = None, limit_bytes: int = 20 * 1000**3) -> None:
        self.image_processor = image_processor
        self.folder = folder or cache_folder() / "patches"
        self.limit_bytes = limit_bytes
        self.cacheable = _cacheable(image_processor)
        self._libraries = [version(name) for name in _LIBRARIES] if self.cacheable else []
        self._digests: dict[str, tuple[int, int, str]] = {}  # path: size, time of change, content
        self._room = 0  # bytes to write before the folder is counted again
        self._closed = False

    def batch(self, pictures: Sequence[images.Picture]) -> dict[str, torch.Tensor]:
        """`pixel_values`, uint8 (N, channels·patch_size²), and `image_grid_thw`, int64 (I, 3), of I ≥ 1 pictures."""
        patches, grids = zip(*[self.patches(picture) for picture in pictures], strict=True)
        return {"pixel_values": torch.cat(patches), "image_grid_thw": torch.stack(grids)}

    def patches(self, picture: images.Picture) -> Patches:
        """One picture's patches and grid. Raises DataError naming the file where it cannot be decoded."""
        digest = self._digest(picture[0])
        file = self._file(digest, picture[1])
        if (kept := _read(file)) is not None:
            return kept
        made = _patches(self.image_processor, images.load(picture))
        if self._digest(picture[0]) == digest:  # else it was overwritten meanwhile, and this is not what the name says
            self._keep(file, *made)
        return made

    def _digest(self, path: str) -> str:
        """SHA-256 of a file's bytes, which are read again only where its size or time of change is another."""
        try:
            facts = os.stat(path)
            size, changed, digest = self._digests.get(path, (-1, -1, ""))
            if (size, changed) != (facts.st_size, facts.st_mtime_ns):
                with open(path, "rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                if len(self._digests) >= _DIGESTS:
                    self._digests.clear()
                self._digests[path] = (facts.st_size, facts.st_mtime_ns, digest)
        except OSError as error:
            raise DataError(f"{path} cannot be decoded: {error}") from error
        return digest

    def _file(self, digest: str, smaller: images.Size | None) -> Path:
        kind = type(self.image_processor)
        # Settings are read at each use: a limit changed after the cache was opened must not meet the older entries.
        said = [digest, smaller, kind.__module__, kind.__qualname__, self.image_processor.to_dict(), self._libraries]
        key = hashlib.sha256(json.dumps(said, sort_keys=True, default=repr).encode()).hexdigest()
        return self.folder / key[:2] / f"{key[:32]}.patches"

    def _keep(self, file: Path, patches: torch.Tensor, grid: torch.Tensor) -> None:
        size = patches.numel() + _GRID_BYTES + _SUM_BYTES
        if self._closed or (size > self._room and not self._count(size)):
            return
        body = grid.numpy().tobytes() + patches.numpy().tobytes()
        # Checked when read, so that half a file after a crash does no harm and no write waits for the disk.
        checksum = zlib.crc32(body).to_bytes(_SUM_BYTES, "little")
        temporary = file.with_name(f".{uuid.uuid4().hex}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                with open(temporary, "xb") as out:
                    out.write(body)
                    out.write(checksum)
                os.replace(temporary, file)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            self._close(f"cannot be written ({error})")
        self._room -= size

    def _count(self, size: int) -> bool:
        """Whether `size` bytes may still be written, from what the folder holds now."""
        left = self.limit_bytes - _held(self.folder)
        if size > left:
            self._close(f"holds its {self.limit_bytes / 1000**3:g} GB")
        self._room = min(left, max(size, self.limit_bytes // 16))
        return not self._closed

    def _close(self, why: str) -> None:
        self._closed = True
        logger.warning("%s %s: further pictures are decoded at each use, which is slower", self.folder, why)


def normalized(pixel_values: torch.Tensor, image_processor: Any, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """uint8 patches (N, channels·patch_size²) → the processor's own `pixel_values`, on the tensor's device.

    They are (N, channels·temporal_patch_size·patch_size²); in float32, the same bits as the processor gives.
    """
    side, frames = image_processor.patch_size, image_processor.temporal_patch_size
    # The processor keeps what it computes from mean and deviation, for which they must be hashable.
    mean, deviation = (
        tuple(value) if isinstance(value, list) else value
        for value in (image_processor.image_mean, image_processor.image_std)
    )
    values: torch.Tensor = image_processor.rescale_and_normalize(
        pixel_values.view(len(pixel_values), -1, side, side),
        image_processor.do_rescale,
        image_processor.rescale_factor,
        image_processor.do_normalize,
        mean,
        deviation,
    ).to(dtype)
    return values.unsqueeze(2).expand(-1, -1, frames, -1, -1).reshape(len(pixel_values), -1)


def _patches(image_processor: Any, image: Any) -> Patches:
    """What the processor makes of a PIL image before its arithmetic. ValueError where these are not plain patches."""
    made = image_processor(images=[image], do_rescale=False, do_normalize=False, return_tensors="pt")
    pixels = made["pixel_values"]
    frames = pixels.view(len(pixels), -1, image_processor.temporal_patch_size, image_processor.patch_size**2)
    first = frames[:, :, :1]
    if pixels.dtype != torch.uint8 or not torch.equal(frames, first.expand_as(frames)):
        raise ValueError(f"{type(image_processor).__name__} does not repeat one frame of whole numbers")
    return first.reshape(len(pixels), -1), made["image_grid_thw"][0]


def _cacheable(image_processor: Any) -> bool:
    """Whether the processor's own values come back bit by bit from uint8 patches, tried on a picture of noise."""
    if not all(hasattr(image_processor, name) for name in (*_SHAPE, "rescale_and_normalize")):
        return False
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (45, 67, 3), dtype=np.uint8))
    try:
        theirs = image_processor(images=[noise], return_tensors="pt")
        patches, grid = _patches(image_processor, noise)
        same = torch.equal(normalized(patches, image_processor), theirs["pixel_values"])
        return same and torch.equal(grid[None], theirs["image_grid_thw"])
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
        return False


def _read(file: Path) -> Patches | None:
    """A kept picture, or None where there is none or where its file is damaged."""
    try:
        whole = np.fromfile(file, np.uint8)
    except OSError:
        return None
    body, checksum = whole[:-_SUM_BYTES], whole[-_SUM_BYTES:]
    if len(body) <= _GRID_BYTES or zlib.crc32(body.data) != int.from_bytes(checksum.tobytes(), "little"):
        return None
    grid = torch.from_numpy(body[:_GRID_BYTES].view(np.int64))
    return torch.from_numpy(body[_GRID_BYTES:]).view(int(grid.prod()), -1), grid


def _held(folder: Path) -> int:
    """Bytes in the files of a folder's folders; what goes away meanwhile is not counted."""
    total = 0
    with suppress(OSError), os.scandir(folder) as shelves:
        for shelf in shelves:
            with suppress(OSError), os.scandir(shelf) as files:
                for file in files:
                    with suppress(OSError):
                        total += file.stat().st_size
    return total
