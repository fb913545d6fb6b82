"""A packed row and the ordinary rows it stands for: the same logits, loss and gradients, in every proven family."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from vlmft.chat.collate import collate, collate_packs, for_model
from vlmft.chat.encode import IGNORED, Encoder, Row
from vlmft.chat.packing import PROVEN, Pack, attention_mask, groups, into_lines, layout, places, position_ids
from vlmft.data.question import Question, Turn
from vlmft.models.load import load_model, load_processor
from vlmft.schema import Config

WORDS = "is there a lesion in the left lung how many which organ side red blue large small of slice".split()  # noqa: SIM905


@pytest.fixture(scope="module", params=["glm41v", "glm45v", "qwen3vl"])
def parts(request: pytest.FixtureRequest, composed: Callable[..., Config]) -> tuple[Any, Encoder]:
    config = composed(f"model=tiny_{request.param}", "model.max_pixels=30000")
    model = load_model(config.model, "float32").eval()
    assert model.config.model_type in PROVEN
    return model, Encoder(load_processor(config.model), config.model.answer_style, model.generation_config.eos_token_id)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("pictures")
    chance = random.Random(0)
    paths = []
    for n, size in enumerate(((56, 56), (112, 84), (200, 100), (60, 180))):
        paths.append(str(folder / f"{n}.png"))
        pixels = [tuple(chance.randrange(256) for _ in range(3)) for _ in range(size[0] * size[1])]
        image = Image.new("RGB", size)
        image.putdata(pixels)
        image.save(paths[-1])
    return paths


def said(chance: random.Random) -> str:
    return " ".join(chance.choice(WORDS) for _ in range(chance.randint(1, 12)))


def some_rows(encoder: Encoder, pictures: list[str], chance: random.Random) -> list[Row]:
    """Questions about one to three pictures each: one turn or several, with and without a thought."""
    rows = []
    for group in range(chance.randint(1, 3)):
        shown = tuple(chance.sample(pictures, chance.choice((1, 1, 2))))
        for n in range(chance.randint(1, 6)):
            turns = tuple(
                Turn(said(chance), said(chance), chance.choice((None, said(chance))))
                for _ in range(chance.choice((1, 1, 1, 2)))
            )
            rows += encoder.train_rows(Question(f"{group}.{n}", "set", shown, turns, "open"))
    return rows


def packs_of(encoder: Encoder, rows: list[Row]) -> list[Pack]:
    return [
        Pack(tuple(rows[number] for number in numbers), prefix)
        for numbers, prefix in groups(rows, encoder.image_token_id)
    ]


def forward(model: Any, encoder: Encoder, batch: dict[str, Any]) -> torch.Tensor:
    """The logits (B, T, vocabulary) of a batch, packed or not."""
    batch = for_model(encoder, batch, "cpu", torch.float32)
    given = {key: value for key, value in batch.items() if key not in ("labels", "layout")}
    if "layout" in batch:
        given["position_ids"] = position_ids(model, batch, batch["layout"])
        given["attention_mask"] = attention_mask(batch["layout"])
    logits: torch.Tensor = model(**given).logits
    return logits


def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
    )


@pytest.mark.parametrize("seed", range(6))
def test_a_packed_row_is_the_rows_it_stands_for(seed: int, parts: tuple[Any, Encoder], pictures: list[str]) -> None:
    model, encoder = parts
    chance = random.Random(seed)
    rows = some_rows(encoder, pictures, chance)
    packs = packs_of(encoder, rows)
    lines = into_lines(packs)
    model.zero_grad()
    ordinary = collate(encoder, rows, padding_side="right")
    apart = forward(model, encoder, ordinary)
    wanted = loss(apart, ordinary["labels"])
    wanted.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    batch = collate_packs(encoder, packs)
    together = forward(model, encoder, batch)
    got = loss(together, batch["labels"])
    got.backward()
    if "layout" in batch:
        for line, row, spots in places(lines):
            alone = apart[next(n for n, other in enumerate(rows) if other is row), : len(row.input_ids)]
            assert batch["input_ids"][line, spots].tolist() == row.input_ids
            assert torch.allclose(together[line, spots], alone, atol=1e-5)
    assert (batch["labels"] != IGNORED).sum() == (ordinary["labels"] != IGNORED).sum()
    assert got.item() == pytest.approx(wanted.item(), rel=1e-6)
    for name, weight in model.named_parameters():
        if name in gradients:
            difference = (weight.grad - gradients[name]).norm() / gradients[name].norm().clamp(min=1e-6)
            assert difference < 1e-4, name
    assert batch["input_ids"].numel() <= ordinary["input_ids"].numel()


def test_one_branch_never_sees_another(parts: tuple[Any, Encoder], pictures: list[str]) -> None:
    model, encoder = parts
    words = ("red", "blue", "the left lung")
    rows = [row for word in words for row in encoder.train_rows(
        Question(word, "set", (pictures[1],), (Turn(f"is it {word}?", "no"),), "closed"))]  # fmt: skip
    (pack,) = packs_of(encoder, rows)
    assert len(pack.rows) == 3 and pack.prefix > rows[0].input_ids.index(encoder.image_token_id)
    batch = collate_packs(encoder, [pack, Pack((rows[0],))])
    before = forward(model, encoder, batch).detach()
    spots = {number: own for number, (_, _, own) in enumerate(places(into_lines([pack, Pack((rows[0],))])))}
    for changed in range(3):
        own = spots[changed][pack.prefix :]
        batch["input_ids"][0, own[1:]] = (batch["input_ids"][0, own[1:]] + 1) % 600 + 30
        after = forward(model, encoder, batch).detach()
        different = (after - before).abs().amax(-1) > 1e-5  # a changed token may share an expert, and so a rounding
        assert set(different[0].nonzero()[:, 0].tolist()) <= set(own), "nor does the prefix, nor another pack"
        assert different[0, own].any() and not different[1:].any()
        before = after


def test_a_prefix_holds_every_picture_and_no_label(parts: tuple[Any, Encoder], pictures: list[str]) -> None:
    _, encoder = parts
    for seed in range(20):
        for pack in packs_of(encoder, some_rows(encoder, pictures, random.Random(seed))):
            for row in pack.rows:
                assert len(pack.rows) == 1 or encoder.image_token_id not in row.input_ids[pack.prefix :]
                assert all(label == IGNORED for label in row.labels[: pack.prefix + 1])
                assert row.images == pack.rows[0].images
                assert row.input_ids[: pack.prefix] == pack.rows[0].input_ids[: pack.prefix]


def test_what_cannot_share_stays_alone(parts: tuple[Any, Encoder], pictures: list[str]) -> None:
    _, encoder = parts

    def row(question: str, *shown: str) -> Row:
        (made,) = encoder.train_rows(Question(question, "set", shown, (Turn(question, "no"),), "closed"))
        return made

    first, second = pictures[:2]
    rows = [row("a", first), row("b"), row("c"), row("before <image> after", first), row("d", first, second),
            row("e", first)]  # fmt: skip
    assert [numbers for numbers, _ in groups(rows, encoder.image_token_id)] == [[0, 5], [1], [2], [3], [4]]


def test_lines_leave_little_padding() -> None:
    chance = random.Random(0)
    for count in (3, 8, 64):
        packs = [Pack((Row("q", [0] * chance.randint(50, 600), [], ()),)) for _ in range(count)]
        lines = into_lines(packs)
        assert sorted(id(pack) for line in lines for pack in line) == sorted(map(id, packs))
        used, width = sum(pack.tokens for pack in packs), max(sum(pack.tokens for pack in line) for line in lines)
        assert width < 2.5 * max(pack.tokens for pack in packs)
        assert count == 3 or used / (width * len(lines)) > 0.95
    same = [Pack((Row("q", [0] * 100, [], ()),)) for _ in range(5)]
    assert [len(line) for line in into_lines(same)] == [1] * 5, "no longer than they must be"


def test_the_mask_and_positions_of_a_small_line() -> None:
    rows = [Row("a", [1, 2, 3, 4], [], ()), Row("b", [1, 2, 5], [], ())]
    placed = layout([[Pack(tuple(rows), 2), Pack((Row("c", [7, 8], [], ()),))]], 8)
    assert placed[0, 0].tolist() == [0, 0, 0, 0, 0, 1, 1, -1]
    assert placed[1, 0].tolist() == [0, 0, 1, 1, 2, 1, 1, 0]
    mask = attention_mask(placed)[0, 0].int().tolist()
    assert mask[4] == [1, 1, 0, 0, 1, 0, 0, 0] and mask[6] == [0, 0, 0, 0, 0, 1, 1, 0] and mask[7][7] == 1
    positions = position_ids(object(), {}, placed)
    assert positions[0, :7].tolist() == [0, 1, 2, 3, 2, 0, 1]


def test_a_small_folder_of_pictures_is_read_once_per_pack(
    parts: tuple[Any, Encoder], pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, encoder = parts
    rows = [row for n in range(5) for row in encoder.train_rows(
        Question(str(n), "set", (pictures[0],), (Turn(f"is it {n}?", "no"),), "closed"))]  # fmt: skip
    batch = collate_packs(encoder, packs_of(encoder, rows))
    assert len(batch["image_grid_thw"]) == 1 and len(collate(encoder, rows, "right")["image_grid_thw"]) == 5
