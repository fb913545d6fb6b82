from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from vlmft.chat.collate import collate, for_model
from vlmft.chat.encode import IGNORED, Encoder, Row, fit
from vlmft.data.question import Question, Turn
from vlmft.errors import DataError
from vlmft.models.load import load_processor
from vlmft.schema import AnswerStyle, Model, OverLong

STOP = {0, 7, 9}


@pytest.fixture(scope="module")
def processor(tiny: Model) -> Any:
    return load_processor(tiny)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("pictures") / "a.png"
    Image.new("RGB", (112, 84), (90, 10, 200)).save(path)
    return str(path)


def question(picture: str, *turns: Turn) -> Question:
    return Question("q1", "set", (picture,), turns or (Turn("Is it red?", "no", "It is blue."),), "closed")


def trained(encoder: Encoder, row: Row) -> list[str]:
    """The runs of labelled tokens, decoded."""
    runs: list[list[int]] = [[]]
    for label in row.labels:
        runs[-1].append(label) if label != IGNORED else runs.append([]) if runs[-1] else None
    return [encoder.tokenizer.decode(run) for run in runs if run]


@pytest.mark.parametrize(
    ("style", "said"),
    [
        (AnswerStyle.plain, "no"),
        (AnswerStyle.answer, "<answer>no</answer>"),
        (AnswerStyle.think_answer, "<think>It is blue.</think><answer>no</answer>"),
    ],
)
def test_the_loss_is_on_the_answer_and_the_end_token_only(
    processor: Any, picture: str, style: AnswerStyle, said: str
) -> None:
    encoder = Encoder(processor, style, STOP)
    (row,) = encoder.train_rows(question(picture))
    assert trained(encoder, row) == [said + "<|user|>"]
    assert len(row.input_ids) == len(row.labels)
    assert all(label in (IGNORED, token) for token, label in zip(row.input_ids, row.labels, strict=True))


def test_a_thought_is_never_invented(processor: Any, picture: str) -> None:
    encoder = Encoder(processor, AnswerStyle.think_answer, STOP)
    (row,) = encoder.train_rows(question(picture, Turn("Is it red?", "no")))
    assert trained(encoder, row) == ["<answer>no</answer><|user|>"]


def test_training_starts_from_what_generation_starts_from(processor: Any, picture: str) -> None:
    encoder = Encoder(processor, AnswerStyle.answer, STOP)
    asked = question(picture)
    (row,) = encoder.train_rows(asked)
    prompt = encoder.prompt_row(asked)
    assert row.input_ids[: len(prompt.input_ids)] == prompt.input_ids
    assert row.labels[len(prompt.input_ids)] != IGNORED and row.labels[len(prompt.input_ids) - 1] == IGNORED


def test_tokens_are_the_processors_own(processor: Any, picture: str) -> None:
    """Counting image tokens from the header gives what the processor gives from the pixels."""
    encoder = Encoder(processor, AnswerStyle.answer, STOP)
    row = encoder.prompt_row(question(picture))
    said = [
        {"role": "user", "content": [{"type": "image", "path": picture}, {"type": "text", "text": "Is it red?"}]}
    ]  # fmt: skip
    theirs = processor.apply_chat_template(
        said, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    ours = collate(encoder, [row], padding_side="left")
    assert ours.keys() >= {"input_ids", "attention_mask", "pixel_values", "image_grid_thw", "mm_token_type_ids"}
    for key in ("input_ids", "attention_mask", "image_grid_thw", "mm_token_type_ids"):
        assert ours[key].tolist() == theirs[key].tolist(), key
    ours = for_model(encoder, ours, "cpu", torch.float32)
    assert (ours["pixel_values"] - theirs["pixel_values"]).abs().max() == 0, "bit by bit"


def test_every_answer_of_a_conversation_is_trained(processor: Any, picture: str) -> None:
    encoder = Encoder(processor, AnswerStyle.answer, STOP)
    (row,) = encoder.train_rows(question(picture, Turn("Is it red?", "no"), Turn("What then?", "blue")))
    assert trained(encoder, row) == ["<answer>no</answer><|user|>", "<answer>blue</answer><|user|>"]


def test_thoughts_leave_history_and_each_answer_is_still_trained_as_generated(processor: Any, picture: str) -> None:
    encoder = Encoder(processor, AnswerStyle.think_answer, STOP)
    asked = question(picture, Turn("Is it red?", "no", "Hm."), Turn("What then?", "blue", "Look."))
    first, second = encoder.train_rows(asked)
    assert trained(encoder, first) == ["<think>Hm.</think><answer>no</answer><|user|>"]
    assert trained(encoder, second) == ["<think>Look.</think><answer>blue</answer><|user|>"]
    assert "Hm." not in encoder.tokenizer.decode(second.input_ids)


def test_a_text_that_holds_an_image_token_is_refused(processor: Any, picture: str) -> None:
    with pytest.raises(DataError, match=r"q1.*image places"):
        Encoder(processor, AnswerStyle.plain, STOP).train_rows(question(picture, Turn("Is <|image|> red?", "no")))


def test_pictures_between_words(processor: Any, picture: str) -> None:
    encoder = Encoder(processor, AnswerStyle.plain, STOP)
    asked = replace(question(picture, Turn("Before <image> and after <image>?", "same")), images=(picture, picture))
    (row,) = encoder.train_rows(asked)
    text = encoder.tokenizer.decode(row.input_ids)
    assert text.index("Before") < text.index("<|image|>") < text.index("and after")
    assert row.input_ids.count(encoder.image_token_id) == sum(encoder.visual_tokens(row.images))


def test_over_long_rows(processor: Any, picture: str, tmp_path: Path) -> None:
    encoder = Encoder(processor, AnswerStyle.plain, STOP)
    rows = encoder.train_rows(question(picture))
    words = len(rows[0].input_ids) - encoder.visual_tokens(rows[0].images)[0]
    assert fit(encoder, rows, 200, OverLong.refuse).rows == rows
    with pytest.raises(DataError, match=r"1 rows have more than method.max_row_tokens=.*q1 \("):
        fit(encoder, rows, words + 4, OverLong.refuse)
    assert fit(encoder, rows, words + 4, OverLong.drop).dropped == 1
    shrunk = fit(encoder, rows, words + 6, OverLong.shrink_image)
    assert shrunk.shrunk == 1 and len(shrunk.rows[0].input_ids) <= words + 6
    assert trained(encoder, shrunk.rows[0]) == trained(encoder, rows[0])
    batch = collate(encoder, shrunk.rows, padding_side="right")
    merged = int(batch["image_grid_thw"].prod()) // 4
    assert merged == shrunk.rows[0].input_ids.count(encoder.image_token_id)
    with pytest.raises(DataError, match="max_row_tokens"):
        fit(encoder, rows, words, OverLong.shrink_image)


def test_padding(processor: Any, picture: str) -> None:
    encoder = Encoder(processor, AnswerStyle.plain, STOP)
    short, long = (encoder.train_rows(question(picture, Turn("Is it red" * n, "no")))[0] for n in (1, 3))
    right, left = (collate(encoder, [short, long], padding_side=side) for side in ("right", "left"))
    gap = len(long.input_ids) - len(short.input_ids)
    assert right["attention_mask"][0].tolist() == [1] * len(short.input_ids) + [0] * gap
    assert left["attention_mask"][0].tolist() == [0] * gap + [1] * len(short.input_ids)
    assert right["labels"][0, -gap:].tolist() == [IGNORED] * gap
    assert right["mm_token_type_ids"].sum() == 2 * short.input_ids.count(encoder.image_token_id)


def test_a_sideways_photograph_is_read_upright(tmp_path: Path) -> None:
    from vlmft.data import images

    path = tmp_path / "sideways.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 20)).save(path, exif=exif)
    assert images.size(str(path)) == (20, 60) == images.load((str(path), None)).size


@pytest.mark.parametrize("mode", ["CMYK", "L", "RGBA", "P"])
def test_pictures_become_rgb(mode: str, tmp_path: Path) -> None:
    from vlmft.data import images

    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.new(mode, (8, 8)).save(path)
    assert images.load((str(path), None)).mode == "RGB"


def test_a_file_that_is_no_picture_is_named(tmp_path: Path) -> None:
    from vlmft.data import images

    path = tmp_path / "broken.jpg"
    path.write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"broken\.jpg"):
        images.size(str(path))


def test_a_16_bit_picture_is_refused_rather_than_clipped_to_white(tmp_path: Path) -> None:
    from vlmft.data import images

    path = tmp_path / "ct.png"
    Image.new("I;16", (8, 8)).save(path)
    with pytest.raises(DataError, match=r"ct\.png has more than 8 bits"):
        images.size(str(path))
