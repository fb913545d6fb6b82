from __future__ import annotations

import csv
import hashlib
import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlmft.data import leakage, samples
from vlmft.data.load import load, source
from vlmft.data.question import Question
from vlmft.data.samples.flare25 import COLLECTIONS
from vlmft.errors import DataError
from vlmft.identity import run_name
from vlmft.schema import Config, QuestionSet

SPECS: dict[str, dict[str, Any]] = {
    "aqua": {"format": "aqua", "knowledge": ""},
    "flare25": {"format": "flare25"},
    "pathvqa": {"format": "pathvqa"},
    "pmc_vqa": {"format": "pmc_vqa", "splits": {"test": "test.csv"}},
    "pmc_vqa_v2": {"format": "pmc_vqa", "splits": {"train": "train_2.csv", "test": "test_2.csv"}},
    "slake": {"format": "slake", "language": "en"},
    "vqa_rad": {"format": "vqa_rad"},
}
OURS = [kind for kind in samples.KINDS if kind != "flare25"]  # tests/data/test_flare25.py looks closer at that one


def spec(kind: str, folder: Path, **keys: Any) -> QuestionSet:
    given = SPECS[kind] | keys
    if "knowledge" in given:
        given["knowledge"] = str(folder)
    return QuestionSet(name=kind, path=str(folder), **given)


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("samples")
    return {kind: samples.write_sample(kind, folder / kind) for kind in samples.KINDS}


@pytest.mark.parametrize("kind", samples.KINDS)
def test_each_is_read_back_without_a_bad_row(drawn: dict[str, Path], kind: str) -> None:
    place = spec(kind, drawn[kind])
    pictures = {}
    for split in source(place).splits(place):
        loaded = load(place, split)  # looks for every picture; a bad row is an error
        assert not loaded.dropped
        pictures[split] = {path for question in loaded.questions for path in question.images}
        if kind in OURS:
            fewest, most = {"train": (80, 120), "test": (32, 40)}.get(split, (20, 40))
            assert fewest <= len(loaded.questions) <= most and len(pictures[split]) * 3 <= len(loaded.questions)
    assert not pictures["train"] & pictures["test"]
    pixels = {split: {Image.open(path).tobytes() for path in paths} for split, paths in pictures.items()}
    assert not pixels["train"] & pixels["test"]
    sizes = {side for paths in pictures.values() for path in paths for side in Image.open(path).size}
    assert min(sizes) >= 56 and max(sizes) <= 96


@pytest.mark.parametrize("kind", OURS)
def test_a_picture_is_needed_and_the_training_rows_show_every_answer(drawn: dict[str, Path], kind: str) -> None:
    place = spec(kind, drawn[kind])
    train, test = (load(place, split).questions for split in ("train", "test"))

    def asked(question: Question) -> str:
        return question.text.split("\n")[0]  # without options and descriptions

    def answer(question: Question) -> str:
        return dict(zip("ABCD", question.options, strict=False)).get(question.answer, question.answer).lower()

    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for question in train:
        answers[asked(question)][answer(question)] += 1
    assert {asked(q) for q in test} <= set(answers) and {answer(q) for q in test} <= {answer(q) for q in train}
    hits = [answers[asked(q)].most_common(1)[0][0] == answer(q) for q in test]
    assert sum(hits) / len(hits) < 0.6


@pytest.mark.parametrize("kind", samples.KINDS)
def test_drawing_is_deterministic_and_quick(drawn: dict[str, Path], kind: str, tmp_path: Path) -> None:
    started = time.process_time()
    samples.write_sample(kind, tmp_path / kind)
    assert time.process_time() - started < 2
    assert digests(tmp_path / kind) == digests(drawn[kind])


def test_rows_have_the_published_keys(drawn: dict[str, Path], real_data: Path) -> None:
    for kind, name, published in (
        ("slake", "train.json", "slake/train.json"),
        ("slake", "validate.json", "slake/validate.json"),
        ("vqa_rad", "VQA_RAD Dataset Public.json", "vqa_rad/VQA_RAD Dataset Public.json"),
        ("aqua", "val.json", "aqua/val.json"),
    ):
        theirs = json.loads((real_data / published).read_text())[0]
        for row in json.loads((drawn[kind] / name).read_text()):
            differing = {key for key in row | theirs if type(row.get(key)) is not type(theirs.get(key))}
            assert differing <= {"qid"}  # VQA-RAD's first is a text, the others are numbers
    for kind, names in (("pmc_vqa", ("train", "test_clean")), ("pmc_vqa_v2", ("train_2", "test_2"))):
        for name in names:
            with (
                open(drawn[kind] / f"{name}.csv", newline="") as ours,
                open(real_data / f"pmc_vqa/{name}.csv", newline="") as theirs_too,
            ):
                rows = list(csv.reader(ours))
                assert rows[0] == next(csv.reader(theirs_too)) and {len(row) for row in rows} == {len(rows[0])}


def test_files_lie_where_the_publishers_put_them(drawn: dict[str, Path]) -> None:
    there = {kind: set(digests(folder)) for kind, folder in drawn.items()}
    for kind, names in {
        "aqua": ("train.json", "val.json", "semart_train.csv", "semart_val.csv", "semart_test.csv"),
        "pathvqa": ("images/val/val_0000.jpg", "qas/test/test_qa.pkl", "qas/train_vqa.pkl"),
        "pmc_vqa": ("train.csv", "test.csv", "test_clean.csv", "images/PMC9000000_F1.jpg"),
        "pmc_vqa_v2": ("train_2.csv", "test_2.csv", "figures/PMC9000001_Fig1_1.jpg"),
        "slake": ("train.json", "validate.json", "test.json", "imgs/xmlab1/source.jpg"),
        "vqa_rad": ("VQA_RAD Dataset Public.json", "VQA_RAD Image Folder/synpic10000.jpg"),
    }.items():
        assert set(names) <= there[kind], kind


def test_what_is_odd_in_the_published_files_is_odd_here(drawn: dict[str, Path]) -> None:
    table = (drawn["aqua"] / "semart_train.csv").read_bytes()
    with pytest.raises(UnicodeDecodeError):
        table.decode()
    assert b"&#249;" in table and b'""' in table and b"\t" in table
    questions = load(spec("aqua", drawn["aqua"]), "train").questions
    told = [q for q in questions if q.facts["need_external_knowledge"] == "true"]
    assert len(told) == len(questions) / 2
    assert all(q.answer.removeprefix("in ") in q.text for q in told)
    assert {q.answer for q in told if q.answer.startswith("in ")} == {"in Siena", "in Orléans", "in Cefalù"}
    modes = Counter(Image.open(path).mode for path in (drawn["pathvqa"] / "images/train").iterdir())
    assert modes == {"RGB": 17, "CMYK": 3}
    qids = [row["qid"] for row in json.loads((drawn["vqa_rad"] / "VQA_RAD Dataset Public.json").read_text())]
    assert qids == ["0", *range(1, len(qids))]
    chinese = load(spec("slake", drawn["slake"], language="zh"), "train").questions
    assert len(chinese) == 60 and {q.answer for q in chinese} >= {"肝脏", "包含", "不包含", "正常", "不正常"}
    with open(drawn["pmc_vqa"] / "train.csv", newline="") as file:
        row = next(csv.DictReader(file))
    assert row["Choice A"].startswith(" A:") and row[f"Choice {row['Answer_label']}"].strip()[2:] == row["Answer"]


def test_no_collection_of_flare_has_anything_in_two_splits(drawn: dict[str, Path]) -> None:
    for name, collection in COLLECTIONS.items():
        place = spec("flare25", drawn["flare25"], include=[name], splits={"test": collection.held_out})
        train, test = (load(place, split).questions for split in ("train", "test"))
        assert leakage.sentences(leakage.audit(leakage.trained_on(train), test).counts, name) == []


def test_both_forms_of_pathvqa_hold_the_same_questions(drawn: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "qas").mkdir()
    (tmp_path / "qas/train_vqa.pkl").symlink_to(drawn["pathvqa"] / "qas/train_vqa.pkl")
    (tmp_path / "images").symlink_to(drawn["pathvqa"] / "images")
    ours = [load(spec("pathvqa", place), "train").questions for place in (drawn["pathvqa"], tmp_path)]
    told = [[(Path(q.images[0]).name, q.text, q.answer, q.answer_type) for q in questions] for questions in ours]
    assert told[0] == told[1]


def test_second_use_draws_nothing_and_an_older_recipe_is_drawn_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = samples.write_sample("slake", tmp_path / "slake")
    before = digests(folder)
    with monkeypatch.context() as patched:
        patched.delattr(samples, "_writer")
        assert samples.write_sample("slake", folder) == folder
    (folder / "sample.json").write_text('{"kind": "slake", "recipe": 0}')
    (folder / "train.json").write_text("[]")
    samples.write_sample("slake", folder)
    assert digests(folder) == before


def test_interrupted_drawing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(folder: Path) -> None:
        (folder / "train.json").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(samples, "_writer", lambda kind: stop)
    with pytest.raises(KeyboardInterrupt):
        samples.write_sample("slake", tmp_path / "slake")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_drawn_says_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no drawn sample 'radiology'; there are aqua, flare25, pathvqa, pmc_vqa,"):
        samples.write_sample("radiology", tmp_path / "radiology")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/train.json").write_text("[1]")
    with pytest.raises(DataError, match="mine is not the drawn sample slake: remove it"):
        samples.write_sample("slake", tmp_path / "mine")
    samples.write_sample("slake", tmp_path / "slake")
    with pytest.raises(DataError, match="slake is not the drawn sample aqua"):
        samples.write_sample("aqua", tmp_path / "slake")
    with pytest.raises(DataError, match=r"cannot draw the sample aqua into .*Choose another folder"):
        samples.write_sample("aqua", tmp_path / "mine/train.json/below")
    assert (tmp_path / "mine/train.json").read_text() == "[1]"


def test_samples_take_the_place_of_every_set(composed: Callable[..., Config], cache: Path) -> None:
    config = composed("dataset=medvqa", "eval=aqua", "samples=true", "dataset.sets.pathvqa.path=/theirs")
    places = {name: (member.path, member.hub) for name, member in config.dataset.sets.items()}
    assert places == {name: (str(cache / "samples" / name), None) for name in ("slake", "vqa_rad", "pathvqa")}
    assert len(load(config.eval.sets["aqua"], "test").questions) == 40
    assert config.eval.sets["aqua"].knowledge == str(cache / "samples" / "aqua")
    assert composed("eval=aqua", "eval.sets.aqua.knowledge=null", "samples=true").eval.sets["aqua"].knowledge is None
    two = composed("dataset=pmc_vqa_v2", "eval=pmc_vqa", "samples=true")
    assert (two.dataset.path, two.eval.sets["pmc_vqa"].path) == tuple(
        str(cache / "samples" / kind) for kind in ("pmc_vqa_v2", "pmc_vqa")
    )
    assert load(two.dataset, "train").questions


def test_samples_leave_demo_sets_and_runs_on_them_as_they_are(composed: Callable[..., Config]) -> None:
    names = [run_name(composed("model=tiny_glm41v", "dataset=demo", f"samples={on}")) for on in ("true", "false")]
    assert names[0] == names[1]


def test_samples_of_ones_own_data_are_refused(composed: Callable[..., Config]) -> None:
    with pytest.raises(DataError, match=r"samples=true: no sample is drawn of conversations; there are aqua, flare25,"):
        composed("dataset=conversations", "samples=true")
