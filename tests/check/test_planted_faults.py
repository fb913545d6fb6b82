"""Every fault that a set can have, planted in one set: each is found, and named by file and row."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Command = Callable[..., subprocess.CompletedProcess[str]]


def drawn(seed: int, width: int = 64, height: int = 48) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def row(id: str, image: Any, question: str = "<image>\nIs it big?", answer: str = "yes", **keys: Any) -> dict[str, Any]:
    said = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": id, "image": image, "conversations": said, **keys}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of conversations with one fault a row, and good rows between them."""
    place = tmp_path_factory.mktemp("planted")
    images = place / "images"
    images.mkdir()
    for number in range(4):
        drawn(number).save(images / f"good{number}.jpg")
    whole = (images / "good0.jpg").read_bytes()
    (images / "truncated.jpg").write_bytes(whole[:-40])
    (images / "empty.jpg").write_bytes(b"")
    (images / "page.jpg").write_text("<html>404</html>")
    drawn(10, 17, 17).save(images / "small.png")
    drawn(11, 20_000, 40).save(images / "narrow.png")
    drawn(12).convert("CMYK").save(images / "print.jpg")
    Image.fromarray(np.full((40, 40), 40_000, np.uint16)).save(images / "deep.png")
    drawn(13).save(images / "film.gif", save_all=True, append_images=[drawn(14)])
    Image.new("1", (20_000, 20_000)).save(images / "bomb.png")
    rows = [
        row("good0", "good0.jpg"),
        row("missing", "nowhere.jpg"),
        row("truncated", "truncated.jpg"),
        row("empty", "empty.jpg"),
        row("page", "page.jpg"),
        row("small", "small.png"),
        row("narrow", "narrow.png"),
        row("print", "print.jpg"),
        row("deep", "deep.png"),
        row("film", "film.gif"),
        row("bomb", "bomb.png"),
        row("silent", "good1.jpg", answer=" "),
        row("marks", "good1.jpg", question="<image>\n<image>\nIs it big?"),
        row("label", "good1.jpg", answer="E", options=["CT", "MRI", "US", "PET"]),
        row("outside", "../../etc/secret.jpg"),
        row("long", "good2.jpg", question="<image>\n" + "Is it big? " * 80),
        row("again", "good0.jpg"),
        row("against", "good0.jpg", answer="no"),
    ]
    test = [
        row("leaked", "good0.jpg"),
        row("fresh", "good3.jpg"),
        row("wordy", "good3.jpg", question="<image>\nWhy?", answer="because " * 60),
    ]
    (place / "train.json").write_text(json.dumps(rows))
    (place / "test.json").write_text(json.dumps(test))
    return place


EXPECTED = {  # row → how it is named, by what is wrong
    "missing": "row with id missing: image .*nowhere.jpg is not there",
    "truncated": "row with id truncated: image .*truncated.jpg cannot be .*truncated",
    "empty": "row with id empty: image .*empty.jpg is empty",
    "page": "row with id page: image .*page.jpg .*cannot identify image file",
    "deep": "row with id deep: image .*deep.png .*more than 8 bits",
    "bomb": "row with id bomb: image .*bomb.png .*400000000 pixels",
    "silent": "train.json, row 12: .*empty",
    "marks": "train.json, row 13: .*image",
    "label": "row with id label: .*'E' is neither the letter nor the text",
    "outside": "train.json, row 15: .*outside the image folder",
    "small": "small.png: small, 17x17 pixels",
    "narrow": "conversations:narrow: .*narrow.png .20000x40 pixels. is refused by the processor",
    "print": "print.jpg: stored as CMYK",
    "film": "film.gif: 2 frames",
    "long": r"conversations:long: \d{3} tokens",
    "again": "conversations:again: as conversations:good0",
    "against": "conversations:against: 'no', but conversations:good0 says 'yes'",
    "leaked": "conversations:leaked$",
    "wordy": r"conversations:wordy: \d+ tokens",
}


def test_each_fault_is_found_and_named(planted: Path, command: Command, tmp_path: Path) -> None:
    asked = (
        "task=check", "model=tiny_glm41v", "dataset=conversations", f"dataset.path={planted}",
        "method.max_row_tokens=300", "eval.generation.max_new_tokens=20", "hardware=cpu",
    )  # fmt: skip
    done = command(*asked)
    assert done.returncode == 1 and "would stop" in done.stderr, done.stdout + done.stderr
    (folder,) = (tmp_path / "outputs/checks").iterdir()
    result = json.loads((folder / "check.json").read_text())
    lines = [line for part in result["parts"] for found in part["findings"] for line in found["rows"]]
    for row, said in EXPECTED.items():
        assert any(re.search(said, line) for line in lines), f"{row}: {lines}"
    named = {part["name"]: part for part in result["parts"]}
    assert named["conversations train"]["questions"] == 8 and named["conversations test"]["questions"] == 3
    page = (folder / "index.html").read_text()
    assert page.count('class="trained">') > 5 and "data:image/jpeg;base64," in page and "nowhere.jpg" in page
    assert "error     conversations train: rows that cannot be used: 10" in done.stdout
    assert not list((tmp_path / "outputs").glob("*/config.yaml"))

    again = command(*asked)
    assert again.returncode == 1 and "as before: nothing has changed" in again.stdout
    assert again.stdout.splitlines()[:-2] == done.stdout.splitlines()[:-2]


def test_a_run_does_not_begin_on_them(planted: Path, command: Command, tmp_path: Path) -> None:
    done = command("model=tiny_glm41v", "dataset=conversations", f"dataset.path={planted}", "hardware=cpu")
    assert done.returncode == 1 and "conversations train: rows that cannot be used: 10" in done.stderr
    assert "and 5 more" in done.stderr and "dataset.bad_rows=drop" in done.stderr
    assert not list((tmp_path / "outputs").glob("*/train.log"))
