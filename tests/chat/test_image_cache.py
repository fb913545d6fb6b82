from __future__ import annotations

import errno
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from vlmft.chat.image_cache import ImageCache, normalized
from vlmft.data import images
from vlmft.errors import DataError
from vlmft.models.load import load_processor
from vlmft.schema import Config, Model

# Larger and smaller than the twins' limits, odd, square, narrow, shrunk first; two of one shape, which go as one stack.
PICTURES = (((513, 301), None), ((301, 513), (97, 201)), ((513, 301), None), ((9, 7), None), ((640, 40), (320, 20)),
            ((1600, 1200), None), ((140, 112), None))  # fmt: skip


@pytest.fixture(scope="module")
def processor(tiny: Model) -> Any:
    return load_processor(tiny).image_processor


@pytest.fixture
def picture(tmp_path: Path) -> str:
    return noise(tmp_path / "a.png", (131, 77))


@pytest.fixture
def cache(processor: Any, tmp_path: Path) -> ImageCache:
    return ImageCache(processor, tmp_path / "kept")


def noise(path: Path, size: images.Size, seed: int = 0) -> str:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


def stock(processor: Any, *pictures: images.Picture) -> Any:
    return processor(images=[images.load(picture) for picture in pictures], return_tensors="pt")


def same_as_stock(cache: ImageCache, *pictures: images.Picture) -> bool:
    ours, theirs = cache.batch(pictures), stock(cache.image_processor, *pictures)
    assert ours["pixel_values"].dtype == torch.uint8
    values = normalized(ours["pixel_values"], cache.image_processor)
    same_grid = torch.equal(ours["image_grid_thw"], theirs["image_grid_thw"])
    return same_grid and values.dtype == torch.float32 and torch.equal(values, theirs["pixel_values"])


def kept(cache: ImageCache) -> list[Path]:
    return sorted(path for path in cache.folder.rglob("*") if path.is_file())


def no_decoding(picture: images.Picture) -> Any:
    raise AssertionError(f"{picture} was decoded")


@pytest.mark.parametrize("limits", [(), ("model.min_pixels=50176", "model.max_pixels=200704")])
@pytest.mark.parametrize("family", ["glm41v", "qwen3vl"])
def test_patches_made_and_read_are_bit_by_bit_what_the_processor_gives(
    family: str, limits: tuple[str, ...], composed: Callable[..., Config], tmp_path: Path, monkeypatch: Any
) -> None:
    processor = load_processor(composed(f"model=tiny_{family}", *limits).model).image_processor
    cache = ImageCache(processor, tmp_path / "kept")
    assert cache.cacheable
    pictures = [(noise(tmp_path / f"{n}.png", size, n), smaller) for n, (size, smaller) in enumerate(PICTURES)]
    assert same_as_stock(cache, *pictures)
    theirs = stock(processor, *pictures)
    monkeypatch.setattr(images, "load", no_decoding)
    for reader in (cache, ImageCache(processor, tmp_path / "kept")):
        ours = reader.batch(pictures)
        assert torch.equal(normalized(ours["pixel_values"], processor), theirs["pixel_values"])
        assert torch.equal(ours["image_grid_thw"], theirs["image_grid_thw"])


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P", "EXIF"])
def test_every_mode_is_shown_as_without_the_cache(mode: str, cache: ImageCache, tmp_path: Path) -> None:
    path = tmp_path / ("a.png" if mode in ("RGBA", "P") else "a.jpg")
    with Image.open(noise(tmp_path / "rgb.png", (200, 90))) as source:
        exif = Image.Exif()
        exif[0x0112] = 6
        source.convert("RGB" if mode == "EXIF" else mode).save(path, **({"exif": exif} if mode == "EXIF" else {}))
    assert same_as_stock(cache, (str(path), None))
    assert same_as_stock(cache, (str(path), None))
    assert len(kept(cache)) == 1


def test_the_processor_may_round_to_a_narrower_type_afterwards(cache: ImageCache, picture: str) -> None:
    ours = normalized(cache.patches((picture, None))[0], cache.image_processor, torch.bfloat16)
    assert torch.equal(ours, stock(cache.image_processor, (picture, None))["pixel_values"].bfloat16())


def test_a_changed_picture_is_noticed_and_a_copy_is_known(cache: ImageCache, picture: str, tmp_path: Path) -> None:
    assert same_as_stock(cache, (picture, None))
    copy = tmp_path / "copy.png"
    copy.write_bytes(Path(picture).read_bytes())
    assert same_as_stock(cache, (str(copy), None))
    assert len(kept(cache)) == 1
    noise(Path(picture), (131, 77), seed=1)
    os.utime(picture, ns=(1, 1))
    assert same_as_stock(cache, (picture, None))
    assert len(kept(cache)) == 2


def test_a_picture_overwritten_while_it_is_decoded_is_not_kept(
    cache: ImageCache, picture: str, monkeypatch: Any
) -> None:
    load = images.load

    def late(chosen: images.Picture) -> Any:
        noise(Path(picture), (60, 90), seed=1)
        return load(chosen)

    with monkeypatch.context() as during:
        during.setattr(images, "load", late)
        cache.patches((picture, None))
    assert not kept(cache)
    assert same_as_stock(cache, (picture, None))


def test_other_limits_sizes_and_libraries_have_entries_of_their_own(
    tiny: Model, picture: str, tmp_path: Path, monkeypatch: Any
) -> None:
    processor = load_processor(tiny).image_processor
    cache = ImageCache(processor, tmp_path / "kept")
    assert same_as_stock(cache, (picture, None)) and same_as_stock(cache, (picture, (90, 60)))
    processor.size = type(processor.size)(shortest_edge=1568, longest_edge=6272)
    assert same_as_stock(cache, (picture, None))
    assert len(kept(cache)) == 3
    monkeypatch.setattr("vlmft.chat.image_cache.version", lambda name: "0.0")
    assert same_as_stock(ImageCache(processor, tmp_path / "kept"), (picture, None))
    assert len(kept(cache)) == 4


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b"", lambda b: b[:99] + bytes([b[99] ^ 1]) + b[100:]])
def test_a_damaged_entry_is_made_again(damage: Callable[[bytes], bytes], cache: ImageCache, picture: str) -> None:
    cache.patches((picture, None))
    (entry,) = kept(cache)
    whole = entry.read_bytes()
    entry.write_bytes(damage(whole))
    assert same_as_stock(cache, (picture, None))
    assert kept(cache) == [entry] and entry.read_bytes() == whole


def test_nothing_is_kept_beyond_the_limit(
    cache: ImageCache, picture: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.patches((picture, None))
    (entry,) = kept(cache)
    room = 2 * entry.stat().st_size
    other, third = (noise(tmp_path / f"{n}.png", (131, 77), n) for n in (1, 2))
    full = ImageCache(cache.image_processor, cache.folder, limit_bytes=room)
    assert same_as_stock(full, (other, None))
    assert len(kept(cache)) == 2 and not caplog.messages, "as much as fits is kept"
    for _ in range(2):
        assert same_as_stock(full, (third, None), (picture, None))
    assert len(kept(cache)) == 2 and len(caplog.messages) == 1


def test_what_other_processes_keep_is_counted_too(processor: Any, tmp_path: Path) -> None:
    pictures = [(noise(tmp_path / f"{n}.png", (131, 77), n), None) for n in range(40)]
    caches = [ImageCache(processor, tmp_path / "kept", limit_bytes=600_000) for _ in range(2)]
    for n, chosen in enumerate(pictures):
        caches[n % 2].patches(chosen)
    held = sum(path.stat().st_size for path in kept(caches[0]))
    assert 500_000 < held < 600_000 + 2 * 600_000 // 16


def test_a_full_disk_costs_time_only(
    cache: ImageCache, picture: str, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    for _ in range(2):
        assert same_as_stock(cache, (picture, None))
    assert not kept(cache), "no temporary file is left"
    (said,) = caplog.messages
    assert "No space left" in said


def test_a_folder_that_cannot_be_made_costs_time_only(processor: Any, picture: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert same_as_stock(ImageCache(processor, tmp_path / "file" / "kept"), (picture, None))


def test_the_folder_may_be_deleted_under_a_run(cache: ImageCache, picture: str) -> None:
    cache.patches((picture, None))
    (entry,) = kept(cache)
    entry.unlink()
    entry.parent.rmdir()
    assert same_as_stock(cache, (picture, None))
    assert kept(cache) == [entry]


def test_a_picture_that_is_not_there_is_named(cache: ImageCache, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png cannot be decoded"):
        cache.patches((str(tmp_path / "gone.png"), None))


def test_two_workers_may_keep_the_same_picture_at_once(
    cache: ImageCache, tmp_path: Path, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    pictures: list[images.Picture] = [(noise(tmp_path / f"{n}.png", (131, 77), n), None) for n in range(8)]
    load, both = images.load, multiprocessing.get_context("fork").Barrier(2)

    def together(chosen: images.Picture) -> Any:
        both.wait(60)
        return load(chosen)

    def batch(chosen: list[images.Picture]) -> dict[str, torch.Tensor]:
        made = cache.batch(chosen)
        assert not caplog.messages
        return made

    monkeypatch.setattr(images, "load", together)
    twice: Any = [picture for picture in pictures for _ in range(2)]
    made = list(DataLoader(twice, 1, num_workers=2, collate_fn=batch, multiprocessing_context="fork"))
    monkeypatch.setattr(images, "load", load)
    for chosen, ours in zip(twice, made, strict=True):
        theirs = stock(cache.image_processor, chosen)
        assert torch.equal(normalized(ours["pixel_values"], cache.image_processor), theirs["pixel_values"])
    monkeypatch.setattr(images, "load", no_decoding)
    cache.batch(pictures)
    assert len(kept(cache)) == len(pictures)


class Tiled:
    """A processor like Mllama's: tiles, with no patch size of its own."""

    max_image_tiles = 4


@pytest.mark.parametrize("change", [lambda patches: patches.roll(1, -1), lambda patches: patches / 2])
def test_processors_that_make_no_plain_patches_are_left_alone(change: Callable[[Any], Any], processor: Any) -> None:
    class Other(type(processor)):  # type: ignore[misc]
        def patchify(self, *arguments: Any, **options: Any) -> Any:
            patches, height, width = super().patchify(*arguments, **options)
            return change(patches), height, width

    assert not ImageCache(Other()).cacheable
    assert not ImageCache(Tiled()).cacheable
    assert not ImageCache(None).cacheable
