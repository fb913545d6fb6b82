from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from PIL import Image

from vlmft.data.load import load
from vlmft.data.question import Question
from vlmft.data.sources import demo
from vlmft.errors import DataError
from vlmft.schema import QuestionSet

NAMES = tuple(demo.SETS)


def spec(folder: Path, name: str) -> QuestionSet:
    return QuestionSet(name=name, format="demo", path=str(folder))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def drawn(folder: Path) -> dict[str, dict[str, list[Question]]]:
    return {name: {s: load(spec(folder, name), s).questions for s in ("train", "test")} for name in NAMES}


def test_drawing_is_quick(tmp_path: Path) -> None:
    started = time.process_time()
    for name in NAMES:
        demo.files(spec(tmp_path, name), "train")
    assert time.process_time() - started < 3
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{name}-{demo.VERSION}" for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_sizes_and_pictures(drawn: dict[str, dict[str, list[Question]]], name: str) -> None:
    for split, images in demo.IMAGES.items():
        asked = Counter(q.images[0] for q in drawn[name][split])
        assert len(asked) == images and min(asked.values()) == 5 and max(asked.values()) >= 7
        with Image.open(next(iter(asked))) as picture:
            assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (56, 56))
        texts = {image: frozenset(q.text for q in drawn[name][split] if q.images[0] == image) for image in asked}
        assert len(set(texts.values())) > 13  # the questions vary from image to image
    assert 2400 <= len(drawn[name]["train"]) <= 2800


@pytest.mark.parametrize("name", NAMES)
def test_no_test_picture_is_a_training_picture(drawn: dict[str, dict[str, list[Question]]], name: str) -> None:
    pixels: dict[str, set[bytes]] = {}
    for split, rows in drawn[name].items():
        pixels[split] = {Image.open(path).tobytes() for path in {q.images[0] for q in rows}}
        assert len(pixels[split]) == demo.IMAGES[split]
    assert not pixels["train"] & pixels["test"]


@pytest.mark.parametrize("name", NAMES)
def test_question_alone_does_not_give_the_answer_away(drawn: dict[str, dict[str, list[Question]]], name: str) -> None:
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for q in drawn[name]["train"]:
        answers[q.text][q.answer] += 1
    test = drawn[name]["test"]
    hits = [answers[q.text].most_common(1)[0][0] == q.answer for q in test]
    assert sum(hits) / len(hits) < 0.55
    assert {q.text for q in test} <= set(answers) and {q.answer for q in test} <= {
        a for c in answers.values() for a in c
    }


@pytest.mark.parametrize("name", NAMES)
def test_rows(drawn: dict[str, dict[str, list[Question]]], name: str) -> None:
    rows = drawn[name]["train"] + drawn[name]["test"]
    assert {q.answer_type for q in rows} == {"closed", "open"}
    assert all((q.answer_type == "closed") == (q.answer in ("yes", "no")) for q in rows)
    assert all(1 <= len(q.answer.split()) <= 3 for q in rows)
    assert {q.facts["modality"] for q in rows} == {demo.SETS[name].modality}
    assert len({(q.images, q.text): q.answer for q in rows}) == len(rows)  # nothing is asked twice of one image


def test_sets_share_no_question(drawn: dict[str, dict[str, list[Question]]]) -> None:
    texts = [{q.text for q in drawn[name]["train"]} for name in NAMES]
    assert len(set.union(*texts)) == sum(len(each) for each in texts)


def test_answers_follow_the_facts() -> None:
    facts = {"organ": "liver", "lesion": "none"}
    ask = {a.text: a for a in demo.SETS["demo_ct"].asks}
    rng = random.Random(0)
    values = demo.SETS["demo_ct"].factors["organ"]
    for _ in range(20):
        text, answer, kind = ask["Does this slice show the {}?"].put(facts, values, rng)
        assert kind == "CLOSED" and (answer == "yes") == ("liver" in text)
    assert ask["Is there a focal lesion?"].put(facts, values, rng)[1:] == ("no", "CLOSED")
    assert ask["Which organ does this slice show?"].put(facts, values, rng)[1:] == ("liver", "OPEN")


def digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()


def test_drawing_is_deterministic(folder: Path, drawn: object, tmp_path: Path) -> None:
    demo.files(spec(tmp_path, "demo_ct"), "train")
    assert digest(tmp_path) == digest(folder / f"demo_ct-{demo.VERSION}")


def test_second_use_draws_nothing(folder: Path, drawn: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_write", None)
    assert demo.files(spec(folder, "demo_ct"), "test") == [folder / f"demo_ct-{demo.VERSION}" / "test.json"]


def test_processes_at_once_leave_one_whole_set(tmp_path: Path) -> None:
    code = (
        "import sys; from vlmft.data.load import load; from vlmft.schema import QuestionSet\n"
        "print(len(load(QuestionSet(name='demo_xray', format='demo', path=sys.argv[1]), 'train').questions))"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    counts = {run.communicate()[0].strip() for run in runs}
    assert [run.returncode for run in runs] == [0, 0, 0] and len(counts) == 1
    assert [path.name for path in tmp_path.iterdir()] == [f"demo_xray-{demo.VERSION}"]


def test_loser_of_the_race_discards_its_copy(
    folder: Path, drawn: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "_draw_split", lambda *_: [])
    place = tmp_path / f"demo_ct-{demo.VERSION}"
    shutil.copytree(folder / place.name, place)
    before = digest(place)
    demo._write("demo_ct", place)
    assert digest(place) == before and list(tmp_path.iterdir()) == [place]


def test_interrupted_drawing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "_draw_split", stop)
    with pytest.raises(KeyboardInterrupt):
        demo.files(spec(tmp_path, "demo_ct"), "train")
    assert not list(tmp_path.iterdir())


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'demo_mri'.*demo_ct, demo_xray, demo_path"):
        demo.files(spec(tmp_path, "demo_mri"), "train")
    with pytest.raises(DataError, match="no split 'validation'; there are train, test"):
        demo.files(spec(tmp_path, "demo_ct"), "validation")
    with pytest.raises(DataError, match=r"no path is set.*paths\.demo="):
        demo.files(QuestionSet(name="demo_ct", format="demo"), "train")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot draw into .*paths\.demo="):
        demo.files(spec(tmp_path / "file", "demo_ct"), "train")
    assert not (tmp_path / f"demo_ct-{demo.VERSION}").exists() and demo.splits(spec(tmp_path, "x")) == ["train", "test"]
