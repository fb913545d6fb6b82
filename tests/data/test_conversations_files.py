"""Conversation sets on disk: files, saved folders and splits, and where their pictures lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.data.conversation_rows import ASKED, YES, question, read, reason, row
from vlmft.data.question import BadRow, Question, Turn
from vlmft.data.sources import conversations
from vlmft.errors import DataError
from vlmft.schema import QuestionSet


@pytest.mark.parametrize("name", ["../a.png", "x/../../a.png", "/etc/a.png"])
def test_path_outside_the_image_root_is_bad_unless_allowed(tmp_path: Path, name: str) -> None:
    assert "lies outside the image folder" in reason(tmp_path, row(image=name))
    assert question(tmp_path, row(image=name), absolute_paths=True).images[0].endswith("/a.png")


def test_folder_that_only_begins_like_the_root_is_outside(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    assert "lies outside" in reason(tmp_path, row(image="../images-other/a.png"))


def test_absolute_path_and_dots_inside_the_root_are_fine(tmp_path: Path) -> None:
    assert question(tmp_path, row(image=f"{tmp_path}/x/../a.png")).images == (str(tmp_path / "a.png"),)


def test_images_folder_is_the_default_root(tmp_path: Path) -> None:
    assert question(tmp_path, row()).images == (str(tmp_path / "a.png"),)
    (tmp_path / "images").mkdir()
    assert question(tmp_path, row()).images == (str(tmp_path / "images" / "a.png"),)
    assert question(tmp_path, row(), image_root="3vqa").images == (str(tmp_path / "3vqa" / "a.png"),)


def test_names_may_start_beside_the_annotation_file_too(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    beside = str(tmp_path / "images" / "a.png")
    assert question(tmp_path, row(image="images/a.png")).images == (beside,)
    assert question(tmp_path, row(image="images/a.png"), image_root=".").images == (beside,)
    (tmp_path / "images" / "images").mkdir()
    assert question(tmp_path, row(image="images/a.png")).images == (str(tmp_path / "images" / "images" / "a.png"),)


def saved(folder: Path, rows: list[dict[str, Any]], shards: int = 1) -> Path:
    from datasets import Dataset, Features, Image, List, Value

    said = List({"role": Value("string"), "content": Value("string")})
    columns = {"id": Value("string"), "messages": said, "images": List(Image()), "modality": Value("string")}
    Dataset.from_list(rows, features=Features(columns)).save_to_disk(folder, num_shards=shards)
    return folder


def picture(file: Path, red: int) -> str:
    from PIL import Image

    Image.new("RGB", (40, 30), (red, 40, 40)).save(file)
    return str(file)


def test_saved_folder_in_several_parts(tmp_path: Path, cache: Path) -> None:
    images = [picture(tmp_path / f"{n}.jpg", n) for n in range(3)]
    said = [*ASKED, YES]
    rows = [{"id": "a", "messages": said, "images": [image], "modality": "CT"} for image in images]
    rows[1] |= {"id": "b", "messages": ASKED, "modality": None}
    saved(tmp_path / "set" / "train", rows, shards=2)
    spec = QuestionSet(name="s", format="conversations", path=str(tmp_path / "set"))
    assert [file.name for file in conversations.files(spec, "train")] == [
        f"data-0000{n}-of-00002.arrow" for n in (0, 1)
    ]
    first, bad, last = conversations.read(spec, "train")
    assert isinstance(first, Question) and isinstance(bad, BadRow) and isinstance(last, Question)
    assert (first.id, last.id, first.facts, first.turns) == (
        "a#1",
        "a#2",
        {"modality": "CT"},
        (Turn("Where?", "liver"),),
    )
    assert (bad.file, bad.row) == (str(tmp_path / "set" / "train"), 2) and "has no answer" in bad.reason
    for got, image in ((first, images[0]), (last, images[2])):
        assert Path(got.images[0]).is_relative_to(cache) and Path(got.images[0]).suffix == ".jpg"
        assert Path(got.images[0]).read_bytes() == Path(image).read_bytes()
    spec.image_root = "pictures"
    kept = [one.images[0] for one in conversations.read(spec, "train") if isinstance(one, Question)]
    assert all(Path(image).is_relative_to(tmp_path / "set" / "pictures") for image in kept)


def test_saved_folder_that_is_not_whole_or_beside_a_file(tmp_path: Path) -> None:
    spec = QuestionSet(name="s", format="conversations", path=str(tmp_path))
    folder = saved(tmp_path / "train", [{"id": "a", "messages": [*ASKED, YES], "images": [], "modality": "CT"}] * 99)
    part = folder / "data-00000-of-00001.arrow"
    part.write_bytes(part.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"data-00000-of-00001\.arrow cannot be read as Arrow"):
        list(conversations.read(spec, "train"))
    part.unlink()
    with pytest.raises(DataError, match=r"lacks data-00000-of-00001\.arrow"):
        conversations.files(spec, "train")
    (folder / "state.json").write_text("{}")
    with pytest.raises(DataError, match=r"state\.json is no state\.json"):
        conversations.files(spec, "train")
    (tmp_path / "train.json").write_text("[]")
    with pytest.raises(DataError, match=r"the split train twice, train\.json and train/"):
        conversations.splits(spec)
    spec.splits = {"train": "train.json"}
    assert conversations.files(spec, "train") == [tmp_path / "train.json"]


def test_json_lines_name_the_line_that_is_not_json(tmp_path: Path) -> None:
    lines = "\n".join([json.dumps(row(id="x")), "", "{broken", json.dumps(row(id="y"))])
    first, bad, last = read(tmp_path, lines)
    assert isinstance(first, Question) and isinstance(bad, BadRow) and isinstance(last, Question)
    assert (first.id, bad.row, last.id) == ("x", 3, "y") and "not JSON" in bad.reason


def test_single_json_line_and_byte_order_mark(tmp_path: Path) -> None:
    (got,) = read(tmp_path, "\ufeff" + json.dumps(row(id="x")))
    assert isinstance(got, Question) and got.id == "x"


def test_line_separator_inside_a_json_line_is_not_a_new_line(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps(row(id=id, answer="a\u2028b"), ensure_ascii=False) for id in "xy")
    assert all(isinstance(each, Question) for each in read(tmp_path, lines))


@pytest.mark.parametrize("text", ["[{]", "", "id,question\n"])
def test_file_that_is_neither_form_is_an_error_naming_it(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"train\.json is neither a JSON array nor JSON lines"):
        read(tmp_path, text)


def test_splits_and_their_files(tmp_path: Path) -> None:
    spec = QuestionSet(name="s", format="conversations", path=str(tmp_path))
    assert conversations.splits(spec) == ["train", "test"]
    for name in ("train.json", "validation.json", "test_rad.json"):
        (tmp_path / name).write_text("[]")
    assert conversations.splits(spec) == ["train", "test", "validation"]
    assert conversations.files(spec, "train") == [tmp_path / "train.json"]
    spec.splits = {"rad": "test_rad.json"}
    assert conversations.splits(spec) == ["train", "test", "validation", "rad"]
    assert conversations.files(spec, "rad") == [tmp_path / "test_rad.json"]
    with pytest.raises(DataError, match="no split 'dev'; there are train, test, validation, rad"):
        conversations.files(spec, "dev")


def test_missing_places_are_named_with_the_override(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"test\.json, where there is no file.*\+dataset\.splits\.test=FILE"):
        conversations.files(QuestionSet(name="s", path=str(tmp_path)), "test")
    with pytest.raises(DataError, match=r"nowhere, which is no folder.*train\.json.*dataset\.path="):
        conversations.files(QuestionSet(name="s", path=str(tmp_path / "nowhere")), "train")
    with pytest.raises(DataError, match=r"no path is set.*dataset\.path="):
        conversations.files(QuestionSet(name="s"), "train")


def test_path_may_be_relative_or_start_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.json").write_text("[]")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("set", "~/set"):
        found = conversations.files(QuestionSet(name="s", path=path), "train")
        assert found == [tmp_path / "set" / "train.json"]


def test_reads_from_an_omegaconf_node(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(json.dumps([row()]))
    node = OmegaConf.structured(QuestionSet(name="s", path=str(tmp_path), splits={"train": "other.json"}))
    (got,) = conversations.read(node, "train")
    assert isinstance(got, Question) and got.set == "s"
