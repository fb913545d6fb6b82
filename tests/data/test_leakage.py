from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from vlmft.data import leakage
from vlmft.data.leakage import NO_HASH, Audit, audit, fingerprints, sentences, trained_on
from vlmft.data.load import load
from vlmft.data.question import Question, Turn
from vlmft.errors import DataError
from vlmft.schema import QuestionSet

np = pytest.importorskip("numpy")
Image = pytest.importorskip("PIL.Image")


def picture(file: Path, seed: int, size: tuple[int, int] = (400, 300)) -> str:
    """A smooth made-up picture; each seed gives another one."""
    grey = np.random.default_rng(seed).integers(0, 256, (6, 8), dtype=np.uint8)
    Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC).save(file)
    return str(file)


def blank(file: Path, level: int, noise: float = 1.0) -> str:
    grey = np.random.default_rng(level).normal(level, noise, (300, 300)).clip(0, 255).astype(np.uint8)
    Image.fromarray(grey).save(file, quality=60)
    return str(file)


def ask(
    images: str | tuple[str, ...] = (), text: str = "Is it big?", answer: str = "Yes", id: str = "1", set: str = "a"
) -> Question:
    images = (images,) if isinstance(images, str) else images
    return Question(id, set, images, (Turn(text, answer),), "open")


def counted(train: list[Question], *test: Question) -> dict[str, int]:
    """The counts that are not zero, of one training set."""
    (counts,) = audit(trained_on(train), test).counts.values()
    return {kind: number for kind, number in counts.items() if number}


def distance(one: str, other: str) -> int:
    hashes = fingerprints([one, other])
    return (hashes[one][1] ^ hashes[other][1]).bit_count()


def test_vqa_rads_published_split(real_data: Path) -> None:
    spec = QuestionSet(name="vqa_rad", format="vqa_rad", path=str(real_data / "vqa_rad"))
    train, test = (load(spec, split).questions for split in ("train", "test"))
    entries = trained_on(train)
    assert len(entries) == 313
    assert sum(len(entry["ids"]) for entry in entries) == 1797
    found = audit(entries, test)
    assert found.counts == {
        "vqa_rad": {
            "images": 203,
            "same_image": 202,
            "alike": 0,
            "questions": 451,
            "on_same_image": 446,
            "on_alike_image": 0,
            "same_question": 1,
            "same_pair": 1,
            "same_id": 0,
        }
    }
    assert [row.id for row, seen in zip(test, found.rows, strict=True) if seen["pair"]] == ["447"]
    assert sum(row["image"] for row in found.rows) == 446
    assert sentences(found.counts, "vqa_rad") == [
        "202 of 203 test images of vqa_rad are in train (vqa_rad), 1 (image, question, answer) of 451 as well"
    ]


def test_copies_of_real_pictures_are_alike_and_other_pictures_are_not(real_data: Path, tmp_path: Path) -> None:
    files = sorted((real_data / "vqa_rad" / "VQA_RAD Image Folder").iterdir())[::8]
    copies = []
    for number, file in enumerate(files):
        with Image.open(file) as image:
            scale, quality = ((0.37, 50), (0.5, 60), (1.5, 90), (1, 30))[number % 4]
            smaller = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
        smaller.save(tmp_path / file.name, quality=quality)
        copies.append(str(tmp_path / file.name))
    hashes = [value for _, value in fingerprints([*map(str, files), *copies]).values()]
    of, copied = hashes[: len(files)], hashes[len(files) :]
    assert max((a ^ b).bit_count() for a, b in zip(of, copied, strict=True)) <= 4
    assert min((a ^ b).bit_count() for i, a in enumerate(of) for b in of[:i]) > 6


def test_the_same_bytes_under_another_name_are_the_same_picture(tmp_path: Path) -> None:
    train = picture(tmp_path / "a.png", 1)
    test = shutil.copy(train, tmp_path / "b.png")
    assert counted([ask(train)], ask(str(test), "Where?", id="9")) == {
        "images": 1, "same_image": 1, "questions": 1, "on_same_image": 1
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "scale", "options"),
    [("b.jpg", 1, {"quality": 35}), ("b.jpg", 0.4, {"quality": 80}), ("b.png", 1.7, {}), ("b.bmp", 1, {})],
)
def test_a_picture_saved_again_is_alike(tmp_path: Path, name: str, scale: float, options: dict[str, int]) -> None:
    train = picture(tmp_path / "a.png", 1)
    with Image.open(train) as image:
        size = (int(image.width * scale), int(image.height * scale))
        image.convert("RGB").resize(size).save(tmp_path / name, **options)
    entries = trained_on([ask(train), ask(picture(tmp_path / "c.png", 3))])
    found = audit(entries, [ask(str(tmp_path / name))])
    assert {kind: number for kind, number in found.counts["a"].items() if number} == {
        "images": 1, "alike": 1, "questions": 1, "on_alike_image": 1, "same_id": 1
    }  # fmt: skip
    assert found.rows == [{"image": False, "alike": True, "question": False, "pair": False}]


def test_a_picture_that_its_camera_turned_is_alike(tmp_path: Path) -> None:
    train = picture(tmp_path / "a.png", 1)
    turned = Image.Exif()
    turned[0x0112] = 6  # shown turned by 90° clockwise
    with Image.open(train) as image:
        image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "b.jpg", exif=turned, quality=90)
        image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "c.jpg", quality=90)
    assert distance(train, str(tmp_path / "b.jpg")) <= 4
    assert distance(train, str(tmp_path / "c.jpg")) > 10


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK", "P", "1"])
def test_every_mode_has_a_hash(tmp_path: Path, mode: str) -> None:
    train = picture(tmp_path / "a.png", 1)
    with Image.open(train) as image:
        image.convert("RGB").convert(mode).save(tmp_path / "b.tiff")
    assert distance(train, str(tmp_path / "b.tiff")) <= 4


def test_another_picture_is_not_alike(tmp_path: Path) -> None:
    train = [ask(picture(tmp_path / f"{seed}.png", seed)) for seed in range(20)]
    assert counted(train, ask(picture(tmp_path / "b.png", 99), id="9")) == {"images": 1, "questions": 1}


def test_plain_pictures_are_alike_only_where_they_are_the_same(tmp_path: Path) -> None:
    pictures = [blank(tmp_path / "white.jpg", 255), blank(tmp_path / "grey.jpg", 128), blank(tmp_path / "c.png", 0, 0)]
    bars = np.full((300, 300), 255, np.uint8)
    bars[:, 40:60] = 0
    Image.fromarray(bars).save(tmp_path / "bars.png")
    pictures.append(str(tmp_path / "bars.png"))
    assert {value for _, value in fingerprints(pictures).values()} == {NO_HASH}
    train = [ask(pictures[0]), ask(pictures[3])]
    assert counted(train, ask(pictures[1], id="9"), ask(pictures[2], id="9")) == {"images": 2, "questions": 2}
    assert counted(train, ask(pictures[0], id="9"))["same_image"] == 1


def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    good, broken = picture(tmp_path / "a.png", 1), tmp_path / "b.png"
    broken.write_bytes(Path(good).read_bytes()[:-200])
    with pytest.raises(DataError, match=r"b\.png .* truncated"):
        fingerprints([good, str(broken)])


def test_what_is_kept_has_neither_text_nor_paths_nor_repeats(tmp_path: Path) -> None:
    one, two = picture(tmp_path / "a.png", 1), picture(tmp_path / "b.png", 2)
    first, third = ask(one, "Where is it?", "Left", id="1"), ask(one, "Is it a mass?", "No", id="3")
    entries = trained_on([first, ask((two, one), id="2"), third, first, ask((), set="b")])
    assert [(entry["set"], len(entry["images"]), entry["ids"]) for entry in entries] == [
        ("a", 1, ["1", "3"]), ("a", 2, ["2"]), ("b", 0, ["1"])
    ]  # fmt: skip
    assert [(len(entry["questions"]), len(entry["pairs"])) for entry in entries] == [(2, 2), (1, 1), (1, 1)]
    assert entries[1]["images"][1] == entries[0]["images"][0]
    kept = json.dumps(entries)
    assert not [word for word in ("Where", "where", "Left", "mass", str(tmp_path), ".png") if word in kept]


def test_written_entries_are_read_back(tmp_path: Path) -> None:
    file = tmp_path / "trained_on.jsonl"
    assert leakage.read(file) is None
    entries = trained_on([ask(picture(tmp_path / "a.png", 1), id="肺\u2028\ud800"), ask((), set="b")])
    leakage.write(file, entries)
    assert leakage.read(file) == entries
    assert len(file.read_text().splitlines()) == 2
    leakage.write(file, [])
    assert leakage.read(file) == []


@pytest.mark.parametrize("line", ['{"set": "a"', '{"set": "a"}', "[]", ""])
def test_a_line_that_is_no_entry_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "trained_on.jsonl"
    leakage.write(file, trained_on([ask()]))
    file.write_text(f"{file.read_text()}{line}\n")
    with pytest.raises(DataError, match=r"trained_on\.jsonl, line 2 does not say"):
        leakage.read(file)


@pytest.mark.parametrize(
    ("text", "answer", "question", "pair"),
    [
        ("Is it big?", "Yes", True, True),
        ("is  it BIG", "yes.", True, True),
        ("Ｉｓ it big？", "Ｙｅｓ", True, True),  # full-width letters
        ("Is it big?", "No", True, False),
        ("Is it small?", "Yes", False, False),
    ],
)
def test_questions_are_compared_after_normalising(
    tmp_path: Path, text: str, answer: str, question: bool, pair: bool
) -> None:
    image = picture(tmp_path / "a.png", 1)
    (row,) = audit(trained_on([ask(image)]), [ask(image, text, answer)]).rows
    assert row == {"image": True, "alike": False, "question": question, "pair": pair}


def test_letters_that_normalise_to_nothing_stay_apart() -> None:
    train = trained_on([ask(text="Which?", answer="A")])
    assert [row["pair"] for row in audit(train, [ask(text="Which?", answer=x) for x in ("a", "the", "B")]).rows] == [
        True, False, False
    ]  # fmt: skip


def test_the_same_question_of_another_picture_is_not_the_same(tmp_path: Path) -> None:
    train = [ask(picture(tmp_path / "a.png", 1)), ask(picture(tmp_path / "b.png", 2), "Where?", id="2")]
    assert counted(train, ask(train[1].images, id="9")) == {
        "images": 1, "same_image": 1, "questions": 1, "on_same_image": 1
    }  # fmt: skip


def test_rows_without_a_picture_are_compared_with_such_alone(tmp_path: Path) -> None:
    image = picture(tmp_path / "a.png", 1)
    assert counted([ask(image)], ask(id="9")) == {"questions": 1}
    assert counted([ask()], ask(image, id="9")) == {"images": 1, "questions": 1}
    assert counted([ask()], ask(id="9")) == {"questions": 1, "same_question": 1, "same_pair": 1}


def test_rows_of_several_pictures(tmp_path: Path) -> None:
    one, two, three = (picture(tmp_path / f"{seed}.png", seed) for seed in range(3))
    train = trained_on([ask((one, two))])
    rows = audit(train, [ask((two, one)), ask(one), ask((two, three)), ask(three)]).rows
    assert [(row["image"], row["question"]) for row in rows] == [
        (True, True), (True, False), (True, False), (False, False)
    ]  # fmt: skip


def test_every_turn_of_a_conversation_is_trained() -> None:
    turns = (Turn("Is it big?", "Yes"), Turn("Where?", "Left"))
    train = trained_on([Question("1", "a", (), turns, "open")])
    rows = audit(train, [ask(), ask(text="Where?", answer="Left"), ask(text="Where?", answer="Right")]).rows
    assert [(row["question"], row["pair"]) for row in rows] == [(True, True), (True, True), (True, False)]


def test_each_training_set_has_its_counts_and_rows_are_over_all(tmp_path: Path) -> None:
    one, two, three = (picture(tmp_path / f"{seed}.png", seed) for seed in range(3))
    train = [ask(one, set="a", id="7"), ask(two, "Where?", "Left", set="b", id="8")]
    test = [ask(one, set="a", id="7"), ask(two, "Where?", "Right", set="a", id="8"), ask(three, set="b", id="7")]
    found = audit(trained_on(train), test)
    kinds = ("images", "same_image", "questions", "on_same_image", "same_question", "same_pair", "same_id")
    assert {name: tuple(of[kind] for kind in kinds) for name, of in found.counts.items()} == {
        "a": (3, 1, 3, 1, 1, 1, 1),
        "b": (3, 1, 3, 1, 1, 0, 0),
    }
    assert [(row["image"], row["question"], row["pair"]) for row in found.rows] == [
        (True, True, True), (True, True, False), (False, False, False)
    ]  # fmt: skip


def test_nothing_trained() -> None:
    nothing = {"image": False, "alike": False, "question": False, "pair": False}
    assert audit([], [ask()]) == Audit({}, [nothing])


def test_distances_are_measured_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leakage, "_CELLS", 4)
    trained = {0x0F, 0xFF00, 0xF000_0000_0000_0000, NO_HASH}
    asked = {0x0F, 0xFF, 0x1FF, 0xF0F0, 0xFFF0_0000_0000_0000, 0x8000_0000_0000_0000, NO_HASH}
    assert leakage._near(asked, trained) == {0x0F, 0xFF, 0x8000_0000_0000_0000}


@pytest.mark.parametrize(
    ("counts", "line"),
    [
        ({}, None),
        ({"same_image": 1}, "1 of 20 test images of t is in train (a)"),
        ({"alike": 1}, "none of 20 test images of t is in train (a), 1 of the others looks like one there"),
        (
            {"same_image": 2, "alike": 3},
            "2 of 20 test images of t are in train (a), 3 of the others look like one there",
        ),
        (
            {"same_image": 2, "same_question": 5, "same_pair": 4, "same_id": 6},
            "2 of 20 test images of t are in train (a), "
            "5 (image, question) and 4 (image, question, answer) of 50 as well, 6 by id",
        ),
        ({"images": 0}, None),
        ({"same_id": 1}, "none of 20 test images of t is in train (a), 1 by id"),
        (
            {"images": 0, "same_question": 2, "same_pair": 2},
            "t has no test images to look for in train (a), 2 (question, answer) of 50 as well",
        ),
    ],
)
def test_sentences(counts: dict[str, int], line: str | None) -> None:
    kinds = ("same_image", "alike", "same_question", "same_pair", "same_id")
    nothing = {"images": 20, "questions": 50} | dict.fromkeys(kinds, 0)
    assert sentences({"b": nothing, "a": nothing | counts}, "t") == ([line] if line else [])
