"""Fixtures that more than one file about training uses."""

from __future__ import annotations

import random

import pytest
from PIL import Image


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder, chance = tmp_path_factory.mktemp("pictures"), random.Random(0)
    paths = [str(folder / f"{n}.png") for n in range(3)]
    for path, size in zip(paths, ((56, 56), (112, 84), (84, 140)), strict=True):
        Image.frombytes("RGB", size, chance.randbytes(3 * size[0] * size[1])).save(path)
    return paths
