"""vlmft export --data: what is written reads back as it was, by vlmft and by others, or nothing is written."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlmft.cli import main
from vlmft.data import samples
from vlmft.data.export import choose, export
from vlmft.data.exported import validate
from vlmft.data.load import fingerprint, load
from vlmft.data.mixture import load_mixture
from vlmft.data.question import Question, Turn
from vlmft.errors import ConfigError, DataError
from vlmft.schema import AnswerStyle, Config, Dataset, QuestionSet

FORMS = ("messages", "save_to_disk")


def picture(file: Path, color: Any = (200, 30, 30), **how: Any) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (48, 40), color).save(file, **how)
    return str(file)


def own_set(folder: Path, rows: list[dict[str, Any]]) -> Config:
    """The config of a set of one's own, with two pictures in other forms than PNG."""
    picture(folder / "a.jpg", quality=70)
    picture(folder / "b.tif", (10, 90, 30))
    (folder / "train.json").write_text(json.dumps(rows))
    return choose("conversations", [], str(folder))


def talk(*said: str, **keys: Any) -> dict[str, Any]:
    return {"messages": [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said)]} | keys


ROWS = [
    talk("<image>\nWhere?", "<think>Pale.</think><answer>liver</answer>", id="1", images=["a.jpg"], modality="CT"),
    talk("<image>What?", "A liver.", "Is it big?", "<think>No.</think>No", images=["b.tif"], answer_type="OPEN"),
    talk("Compare <image> with <image>.\nWhich?", "B", images=["a.jpg", "b.tif"], options=["CT", "MRI"]),
    talk("<image><image>Where?", "[[1, 2, 3, 4]]", images=["a.jpg", "a.jpg"], task="detection", box_space="0-1000"),
    talk("What is pus?", "fluid < 3 ml; \"thick\"\nand yellow", id="x/y"),
    talk("<image>\nIs it?", images=["a.jpg"], chosen="<think>Red.</think>yes",
         rejected="<think>Pale.</think><answer>no</answer>"),
]  # fmt: skip


def without_places(questions: list[Question], name: str) -> list[Question]:
    """The questions with what is in their pictures in place of where these lie, all as questions of one set."""
    contents: dict[str, str] = {}
    for image in {image for one in questions for image in one.images}:
        contents[image] = Path(image).read_bytes().hex()
    return [replace(one, set=name, images=tuple(contents[image] for image in one.images)) for one in questions]


def read_again(folder: Path, split: str = "train", **keys: Any) -> list[Question]:
    return load(QuestionSet(name="s", format="conversations", path=str(folder), **keys), split).questions


@pytest.mark.parametrize(
    ("style", "form"), [*((style, "messages") for style in AnswerStyle), (AnswerStyle.think_answer, "save_to_disk")]
)
def test_rows_of_every_kind_read_back_as_they_were(tmp_path: Path, style: AnswerStyle, form: str) -> None:
    config = own_set(tmp_path / "own", ROWS)
    meant = without_places(load(config.dataset, "train").questions, "s")
    (part,) = export(config, ["train"], tmp_path / "out", style, form=form)
    assert (part.rows, part.pictures) == (6, 2)
    if style not in (AnswerStyle.think, AnswerStyle.think_answer):
        assert meant[0].turns[0].thought == "Pale."
        meant = [
            replace(
                one, turns=tuple(replace(turn, thought=None) for turn in one.turns),
                rejected=one.rejected and replace(one.rejected, thought=None),
            )
            for one in meant
        ]  # fmt: skip
    thought = "Pale." if style in (AnswerStyle.think, AnswerStyle.think_answer) else None
    assert meant[5].rejected == Turn("Is it?", "no", thought)
    assert meant[2].text == "Compare <image> with <image>.\nWhich?"
    assert without_places(read_again(tmp_path / "out"), "s") == meant
    assert validate(tmp_path / "out") == [part._replace(left_out=())]


def test_what_stands_in_the_files(tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(own_set(tmp_path / "own", ROWS), ["train"], out, AnswerStyle.think_answer)
    rows = json.loads((out / "train.json").read_text())
    (image,) = rows[0]["images"]
    assert rows[0] == {
        "id": "1",
        "messages": [
            {"role": "user", "content": "<image>\nWhere?"},
            {"role": "assistant", "content": "<think>Pale.</think><answer>liver</answer>"},
        ],
        "images": [image],
        "answer_type": "OPEN",
        "task": "vqa",
        "modality": "CT",
    }
    assert (out / image).read_bytes() == (tmp_path / "own" / "a.jpg").read_bytes()
    assert len(list((out / "images").rglob("*.*"))) == 2, "a picture is there once"
    assert rows[2]["options"] == ["CT", "MRI"] and rows[2]["images"][0] == image
    assert rows[5]["messages"] == [{"role": "user", "content": "<image>\nIs it?"}]
    assert rows[5]["chosen"] == "<think>Red.</think><answer>yes</answer>"
    assert rows[5]["rejected"] == "<think>Pale.</think><answer>no</answer>"
    examples = json.loads((out / "examples.json").read_text())
    assert len(examples) == 5 and examples[0] == {
        "id": "1",
        "split": "train",
        "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Where?"}]}],
        "target": "<think>Pale.</think><answer>liver</answer>",
    }
    assert [message["role"] for message in examples[1]["messages"]] == ["user", "assistant", "user"]


def test_the_same_set_elsewhere_is_the_same_export(tmp_path: Path) -> None:
    for place in ("one", "other"):
        export(own_set(tmp_path / place / "own", ROWS), ["train"], tmp_path / place / "out", AnswerStyle.answer)
    for name in ("train.json", "examples.json"):
        assert len({(tmp_path / place / "out" / name).read_text() for place in ("one", "other")}) == 1


def test_demo_sets_as_a_mixture_and_back(tmp_path: Path, composed: Callable[..., Config]) -> None:
    config = choose("demo", ["dataset.max_rows=30", "dataset.max_test_rows=20"])
    parts = export(config, ["train", "test", "test"], tmp_path / "out", AnswerStyle.answer)
    assert len(parts) == 6, "a split that is named twice is written once"
    for split in ("train", "test"):
        for name, loaded in load_mixture(config.dataset, split, 0).items():
            again = composed("dataset=conversations", f"dataset.path={tmp_path / 'out' / name}").dataset
            assert len(loaded.questions) > 5
            assert without_places(load(again, split).questions, name) == without_places(loaded.questions, name)


@pytest.mark.parametrize("kind", ["aqua", "flare25", "pmc_vqa"])
def test_sets_of_every_form_of_answer(tmp_path: Path, kind: str) -> None:
    place = samples.write_sample(kind, tmp_path / "set")
    overrides = ["dataset.include=[]", "dataset.image_root=null", "dataset.knowledge=null"]
    config = choose("flare25_all" if kind == "flare25" else kind, overrides, str(place))
    config.dataset.image_root = str(place / "Images") if kind == "aqua" else None
    export(config, ["train"], tmp_path / "out", AnswerStyle.answer, most=100)
    meant = without_places(load(config.dataset, "train", limit=100).questions, "s")
    assert without_places(read_again(tmp_path / "out"), "s") == meant


@pytest.mark.parametrize("form", FORMS)
def test_split_with_another_name(tmp_path: Path, form: str) -> None:
    config = own_set(tmp_path / "own", ROWS)
    config.dataset.splits = {"test-hidden": "train.json"}
    export(config, ["test-hidden"], tmp_path / "out", AnswerStyle.answer, form=form)
    (part,) = validate(tmp_path / "out")
    assert len(read_again(tmp_path / "out", "test-hidden", splits={"test-hidden": part.file.name})) == 6


@pytest.mark.parametrize("form", FORMS)
def test_vqa_rad(real_data: Path, tmp_path: Path, form: str) -> None:
    config = choose("vqa_rad", [], str(real_data / "vqa_rad"))
    export(config, ["train"], tmp_path / "out", AnswerStyle.answer, form=form, most=48)
    meant = load(config.dataset, "train", limit=48).questions
    assert len(meant) > 24 and {one.answer_type for one in meant} == {"open", "closed"}
    assert without_places(read_again(tmp_path / "out"), "s") == without_places(meant, "s")
    export(config, ["train"], tmp_path / "again", AnswerStyle.answer, form=form, most=48)
    sets = [QuestionSet(format="conversations", path=str(tmp_path / name)) for name in ("out", "again")]
    assert fingerprint(sets[0], "train") == fingerprint(sets[1], "train")


def test_datasets_reads_what_was_saved_and_the_pictures_are_the_original_bytes(tmp_path: Path) -> None:
    from datasets import Image as Pictures
    from datasets import load_from_disk

    export(own_set(tmp_path / "own", ROWS), ["train"], tmp_path / "out", AnswerStyle.answer, form="save_to_disk")
    saved = load_from_disk(str(tmp_path / "out"))
    assert list(saved) == ["train"] and saved["train"][0]["images"][0].size == (48, 40)
    raw = saved["train"].cast_column("images", [Pictures(decode=False)])[3]
    assert [one["bytes"] for one in raw["images"]] == [(tmp_path / "own" / "a.jpg").read_bytes()] * 2
    assert [one["path"] for one in raw["images"]] == ["a.jpg"] * 2, "no places of this machine"
    assert raw["messages"][1] == {"role": "assistant", "content": "<answer>[[1, 2, 3, 4]]</answer>"}


def test_absolute_paths_copy_nothing(tmp_path: Path) -> None:
    config = own_set(tmp_path / "own", ROWS)
    export(config, ["train"], tmp_path / "out", AnswerStyle.answer, absolute=True)
    rows = json.loads((tmp_path / "out" / "train.json").read_text())
    assert rows[0]["images"] == [str(tmp_path / "own" / "a.jpg")] and not (tmp_path / "out" / "images").exists()
    assert read_again(tmp_path / "out", absolute_paths=True)[0].images == (str(tmp_path / "own" / "a.jpg"),)
    with pytest.raises(ConfigError, match="--absolute"):
        export(config, ["train"], tmp_path / "z", AnswerStyle.answer, form="save_to_disk", absolute=True)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"facts": {"images": "two"}}, r"row 1 \(id q\): facts \{'images': 'two'\} is read as \{\}"),
        (
            {"turns": (Turn("Is it? Please choose from the following two options: [yes, no]", "yes"),)},
            "turns .* is read",
        ),
        ({"turns": (Turn("Is it?", "\\boxed{yes}"),)}, "is scored as 'yes'"),
        ({"turns": (Turn("Is it?", "a</answer>b"),)}, "tags do not pair"),
        ({"turns": (Turn("What is <image>?", "pus"),)}, "turns .* is read"),
    ],
)
def test_a_row_that_would_read_back_otherwise_is_named_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any], words: str
) -> None:
    image = picture(tmp_path / "own" / "a.png")
    question = replace(Question("q", "s", (image,), (Turn("Is it?", "yes"),), "closed"), **keys)
    monkeypatch.setattr("vlmft.data.sources.vqa_rad.read", lambda spec, split: iter([question]))
    monkeypatch.setattr("vlmft.data.sources.vqa_rad.files", lambda spec, split: [])
    config = Config(dataset=Dataset(name="vqa_rad", format="vqa_rad"))
    out = tmp_path / "new" / "out"
    with pytest.raises(DataError, match=words) as told:
        export(config, ["train"], out, AnswerStyle.answer)
    assert str(told.value).startswith(f"{out / 'train.json'} is not as it should be:")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_picture_that_was_written_otherwise_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = own_set(tmp_path / "own", ROWS)
    monkeypatch.setattr("vlmft.data.sources._parquet.kept", lambda root, content: picture(root / "ab" / "a.png"))
    with pytest.raises(DataError, match=r"row 1 \(id 1\): images .* is read as"):
        export(config, ["train"], tmp_path / "out", AnswerStyle.answer)


def test_a_folder_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="out is there already"):
        export(own_set(tmp_path / "own", ROWS), ["train"], tmp_path / "out", AnswerStyle.answer)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    with pytest.raises(ConfigError, match="normalize_terms"):
        export(choose("demo", ["dataset.normalize_terms=true"]), ["train"], tmp_path / "z", AnswerStyle.answer)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": []}, r"row 2: 1 <image> marks for 0 images"),
        ({"messages": talk("What?", "A liver.")["messages"]}, "row 2: 0 <image> marks for 1 images"),
        ({"messages": talk("<image>What?", "<answer>pus")["messages"]}, "row 2: .* tags do not pair"),
        ({"messages": [{"role": "assistant", "content": "<image>What?"}]}, "row 2: turn 1 is from 'assistant'"),
        ({"images": ["images/gone.png"]}, "row 2: image .*gone.png is not there"),
        ({"images": ["images/text.png"]}, "row 2: image .*text.png cannot be read as an image"),
        ({"messages": talk("<image>What?", "$\\boxed{5}$")["messages"]}, "row 2: .* is scored as '5'"),
        ({"rejected": "x"}, "row 2: has 'rejected' without 'chosen'"),
    ],
)
def test_validation_names_file_and_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], words: str
) -> None:
    out = tmp_path / "out"
    export(own_set(tmp_path / "own", ROWS), ["train"], out, AnswerStyle.answer)
    rows = json.loads((out / "train.json").read_text())
    rows[1] |= change
    (out / "images" / "text.png").write_text("no picture")
    (out / "train.json").write_text(json.dumps(rows))
    with pytest.raises(SystemExit) as stop:
        main(["export", "--data", "--validate", str(out)])
    told = capsys.readouterr()
    assert (
        stop.value.code == 1 and told.out == "" and told.err.startswith(f"{out / 'train.json'} is not as it should be:")
    )
    with pytest.raises(DataError, match=words):
        validate(out)


def test_validation_of_nothing(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match=r"there is no <split>\.json"):
            validate(folder)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    own_set(tmp_path / "own", [*ROWS, talk("<image>\nGone?", "yes", images=["gone.jpg"])])
    monkeypatch.chdir(tmp_path)
    asked = ["export", "--data", "conversations", "--path", "own", "--out", "out", "--answer-style", "plain"]
    with pytest.raises(SystemExit):
        main(asked)
    assert "gone.jpg is not there" in capsys.readouterr().err and not Path("out").exists()
    main([*asked, "--max-rows", "2", "dataset.bad_rows=drop"])
    lines = capsys.readouterr().out.splitlines()
    rows = json.loads(Path("out/train.json").read_text())
    assert lines[0].startswith(f"written   {tmp_path / 'out/train.json'}: {len(rows)} rows on ") and 0 < len(rows) < 3
    assert lines[1].startswith("left out  1 rows") and "gone.jpg" in lines[1]
    main(["export", "--validate", "out"])
    assert capsys.readouterr().out.startswith(f"in order  {tmp_path / 'out/train.json'}: {len(rows)} rows")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "slak", "--out", "z"], "there is no such dataset. Did you mean slake?"),
        (["--data", "slake", "--out", "z", "dataset.max_row=3"], "dataset.max_row: there is no such key"),
        (["--data", "slake", "--out", "z", "--path", "nowhere"], "nowhere, which is no folder"),
        (["--data", "demo", "--out", "z", "--path", "x"], "dataset.path belongs to one set"),
        (["--data", "demo_ct", "--out", "z", "--language", "zh"], "does not tell languages"),
        (["--data", "demo_ct", "--out", "z", "--split", "dev"], "no split 'dev'; there are train, test"),
        (["--data", "demo_ct", "--out", "/dev/null/out"], "/dev/null/out cannot be written"),
        (["--data", "demo_ct"], "--out FOLDER"),
        ([], "a set with --data SET"),
        (["--data", "--out", "z"], "name the set"),
    ],
)
def test_what_is_wrong_is_told_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], words: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["export", *arguments])
    assert stop.value.code == 1 and words in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_as_installed_from_anywhere_and_without_torch(tmp_path: Path) -> None:
    arguments = ["export", "--data", "demo_ct", "--out", "out", "--form", "save_to_disk", "--max-rows", "8"]
    code = f"import sys; sys.path.remove(''); from vlmft.cli import main; main({arguments})"
    code += "; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == "" and "written" in done.stdout, done.stderr
