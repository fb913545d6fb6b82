from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from vlmft.chat import encode
from vlmft.chat.collate import collate, for_model
from vlmft.chat.encode import IGNORED, Encoder, Row
from vlmft.chat.over_long import fit
from vlmft.chat.prompts import messages, target
from vlmft.data.load import load, without_images
from vlmft.data.question import IMAGE_MARK, Question, Turn
from vlmft.errors import DataError
from vlmft.models.load import load_processor, stop_ids
from vlmft.models.tiny import WRITERS
from vlmft.schema import AnswerStyle, Config, Model, OverLong, QuestionSet

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


PARTS = (
    "Is it red?", "  blanks around  ", "\n\n", "/nothink", " /nothink", "<think>", "</think>", "<answer>no</answer>",
    "<|user|>", "<|assistant|>\n", "<|im_end|>", "<|eot_id|>", "<|endoftext|>", "é日本語 🫁\u200b\u00a0", "\u0301", " ",
    ".", "{{ messages }}{% if", "a" * 200, "[gMASK]<sop>", "None",
)  # fmt: skip


def drawn(picture: str, count: int) -> list[Question]:
    """Conversations of odd texts: several turns, thoughts, no picture or some, before the text or between words."""
    chance = random.Random(0)

    def text() -> str:
        return "".join(chance.choices(PARTS, k=chance.randint(1, 3)))

    made = []
    for n in range(count):
        turns = [Turn(text(), text(), chance.choice([None, "", text()])) for _ in range(chance.choice([1, 1, 2, 3]))]
        shown = chance.choice([0, 1, 2])
        if chance.random() < 0.3:
            turns[-1] = replace(turns[-1], question=(text() + IMAGE_MARK) * shown + text())
        made.append(Question(str(n), "drawn", (picture,) * shown, tuple(turns), "open"))
    return made


def one_by_one(encoder: Encoder, question: Question) -> list[Row]:
    """The training rows of a question, written out: every text rendered and tokenised by itself."""

    def tokens(text: str) -> list[int]:
        ids: list[int] = encoder.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def row(question: Question, first: int) -> Row | None:
        said = messages(question, encoder.style, encoder.think_prefilled)
        whole, done = encoder._render(said[:-1]), 0
        ids: list[int] = []
        labels: list[int] = []
        for n, turn in enumerate(question.turns[first:], start=first):
            before = encoder._render(said[: 2 * n + 1])
            answer = target(turn, encoder.style, encoder.think_prefilled)
            if n + 1 < len(question.turns) and not whole.startswith(before + answer):
                return None
            shown, spoken = tokens(whole[done : len(before)]), tokens(answer)
            ids += shown + spoken
            labels += [t if done and not i and t in encoder.stop_ids else IGNORED for i, t in enumerate(shown)] + spoken
            done = len(before + answer)
        pictures = tuple((path, None) for path in question.images)
        counts = iter(encoder.visual_tokens(pictures))
        repeats = [next(counts) if token == encoder.image_token_id else 1 for token in ids] + [1]
        pairs = zip(repeats, [*ids, encoder.end_id], [*labels, encoder.end_id], strict=True)
        wide = [pair for times, *pair in pairs for _ in range(times)]
        return Row(f"{question.set}:{question.id}", [i for i, _ in wide], [label for _, label in wide], pictures)

    if found := row(question, 0):
        return [found]
    cut = [replace(question, turns=question.turns[: n + 1]) for n in range(len(question.turns))]
    return [made for n, one in enumerate(cut) if (made := row(one, n))]


def assert_as_one_by_one(encoder: Encoder, questions: list[Question]) -> list[Row]:
    """Rows and prompts of many questions at once are those of each by itself, which are returned."""
    wanted = [row for question in questions for row in one_by_one(encoder, question)]
    assert list(encoder.rows(iter(questions))) == wanted
    assert [row for question in questions for row in encoder.train_rows(question)] == wanted
    last = {row.question: row for row in wanted}
    for question, prompt in zip(questions, encoder.prompts(iter(questions)), strict=True):
        row = last[prompt.question]
        end = len(row.labels) - len(encoder.answer_ids(question.turns[-1]))
        assert (prompt.input_ids, prompt.labels, prompt.images) == (row.input_ids[:end], [], row.images)
        assert encoder.prompt_row(question) == prompt
    return wanted


@pytest.mark.parametrize("kind", sorted(WRITERS))
def test_many_at_once_as_one_by_one(
    kind: str, composed: Callable[..., Config], picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "_TOGETHER", 7)
    config = composed(f"model=tiny_{kind}", "dataset=demo_ct")
    processor, stop = load_processor(config.model), stop_ids(config.model)
    questions = drawn(picture, 60) + load(config.dataset, "train").questions[:20]
    if not hasattr(processor, "image_token"):
        questions = [without_images(question) for question in questions]
    for style in AnswerStyle:
        rows = assert_as_one_by_one(Encoder(processor, style, stop), questions)
        assert len(rows) >= len(questions) and max(map(len, (row.input_ids for row in rows))) > 200


def test_published_questions_at_once_as_one_by_one(processor: Any, real_data: Path) -> None:
    published = QuestionSet(name="vqa_rad", format="vqa_rad", path=str(real_data / "vqa_rad"))
    questions = load(published, "train").questions
    assert len(assert_as_one_by_one(Encoder(processor, AnswerStyle.plain, STOP), questions)) == 1797


def test_questions_are_taken_as_rows_are_asked_for(processor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "_TOGETHER", 3)
    taken = []

    def endless() -> Iterable[Question]:
        while True:
            taken.append(None)
            yield Question(str(len(taken)), "set", (), (Turn("Is it red?", "no"),), "closed")

    encoder = Encoder(processor, AnswerStyle.plain, STOP)
    for asked in (encoder.rows(endless()), encoder.prompts(endless())):
        taken.clear()
        assert [next(asked).question for _ in range(4)] == ["set:1", "set:2", "set:3", "set:4"]
        assert len(taken) == 6, "two times three"


def test_rows_share_the_numbers_of_their_tokens_but_no_list(processor: Any) -> None:
    """A number of its own for each token would weigh four times as much as the lists of them."""
    encoder = Encoder(processor, AnswerStyle.plain, STOP)
    asked = [Question(str(n), "set", (), (Turn("Is the heart enlarged?", "no"),), "closed") for n in range(2)]
    for rows in (list(encoder.rows(asked)), list(encoder.prompts(asked)), [encoder.prompt_row(one) for one in asked]):
        first, second = (row.input_ids for row in rows)
        assert first == second and first is not second and max(first) > 256
        assert all(a is b for a, b in zip(first, second, strict=True))


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
