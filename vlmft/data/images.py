"""Pictures on disk: their size from the header, and their pixels as RGB."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from vlmft.errors import DataError

Size = tuple[int, int]  # width, height in pixels
Picture = tuple[str, Size | None]  # a file, and the size to shrink it to first

_SIDEWAYS = {5, 6, 7, 8}  # EXIF orientations that swap width and height
_EXIF_ORIENTATION = 0x0112


@lru_cache(maxsize=100_000)
def size(path: str) -> Size:
    """Width and height as shown (EXIF orientation applied), without decoding. DataError where it is no image."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            width, height = image.size
            sideways = image.getexif().get(_EXIF_ORIENTATION) in _SIDEWAYS
            mode = image.mode
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image: {error}") from error
    if mode.startswith(("I", "F")):
        # Pillow would clip 12- and 16-bit greys at 255, and which window to show is for a radiologist to say.
        raise DataError(f"{path} has more than 8 bits a channel (mode {mode}): save it with 8, in the window you mean")
    return (height, width) if sideways else (width, height)


def load(picture: Picture) -> Any:
    """The picture as a PIL image in RGB. Raises DataError naming the file where it cannot be decoded."""
    from PIL import Image, ImageOps

    path, smaller = picture
    try:
        with Image.open(path) as image:
            shown = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be decoded: {error}") from error
    return shown.resize(smaller, Image.Resampling.BICUBIC) if smaller else shown
