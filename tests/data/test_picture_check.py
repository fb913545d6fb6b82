from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlmft.data import picture_check
from vlmft.data.picture_check import NO_HASH, look


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLMFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def drawn(seed: int, width: int = 90, height: int = 60) -> Image.Image:
    grey = np.random.default_rng(seed).integers(0, 256, (6, 8), dtype=np.uint8)
    return Image.fromarray(grey).resize((width, height), Image.Resampling.BICUBIC)


def saved(file: Path, image: Image.Image, **options: Any) -> str:
    image.save(file, **options)
    return str(file)


def test_a_picture_is_described_as_it_is_shown(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # on its side
    path = saved(tmp_path / "a.jpg", drawn(1), exif=exif)
    seen = look([path])[path]
    assert (seen.width, seen.height, seen.mode, seen.frames, seen.problem) == (60, 90, "L", 1, "")
    assert seen.phash != NO_HASH and seen.remarks() == []


def test_what_no_model_can_read_is_told_with_its_reason(tmp_path: Path) -> None:
    whole = Path(saved(tmp_path / "whole.jpg", drawn(1)))
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "cut.jpg").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (tmp_path / "page.jpg").write_text("<html>404 Not Found</html>")
    saved(tmp_path / "deep.png", Image.fromarray(np.full((40, 40), 40_000, np.uint16)))
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    names = ("gone", "empty", "cut", "page", "deep", "bomb")
    paths = [next(iter(tmp_path.glob(f"{name}.*")), tmp_path / f"{name}.jpg") for name in names]
    problems = [seen.problem for seen in look([str(path) for path in paths]).values()]
    for problem, said in zip(
        problems,
        ("is not there", "is empty", "truncated", "cannot identify image file", "more than 8 bits", "400000000 pixels"),
        strict=True,
    ):
        assert said in problem and str(tmp_path) not in problem


def test_what_a_model_sees_otherwise_than_it_is_stored_is_remarked(tmp_path: Path) -> None:
    paths = [
        saved(tmp_path / "small.png", drawn(1, 17, 17)),
        saved(tmp_path / "narrow.png", drawn(2, 20_000, 40)),
        saved(tmp_path / "print.jpg", drawn(3).convert("CMYK")),
        saved(tmp_path / "film.gif", drawn(4), save_all=True, append_images=[drawn(5)]),
        saved(tmp_path / "clear.png", drawn(6).convert("RGBA")),
    ]
    said = ("17x17", "200 to one", "CMYK", "2 frames", "transparent")
    for seen, expected in zip(look(paths).values(), said, strict=True):
        assert seen.problem == "" and [expected in remark for remark in seen.remarks()] == [True]


def test_what_was_seen_is_remembered_by_content(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = saved(tmp_path / "a.png", drawn(1)), saved(tmp_path / "b.png", drawn(2))
    broken = tmp_path / "c.png"
    broken.write_bytes(Path(one).read_bytes()[:-60])
    steps: list[tuple[int, int]] = []
    first = look([one, two, str(broken), one], lambda done, of: steps.append((done, of)))
    assert steps == [(1, 3), (2, 3), (3, 3)]
    copy = str(shutil.copy(one, tmp_path / "copy.png"))
    monkeypatch.setattr(picture_check, "_look", lambda path, _: pytest.fail(f"{path} was decoded again"))
    assert look([copy, two, str(broken)]) == {copy: first[one], two: first[two], str(broken): first[str(broken)]}


def test_a_picture_that_was_put_right_is_seen_anew(tmp_path: Path, own_cache: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"")
    assert look([str(path)])[str(path)].problem
    saved(path, drawn(1))
    assert not look([str(path)])[str(path)].problem
