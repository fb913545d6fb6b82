from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from vlmft.data.load import load
from vlmft.data.question import Question, Turn
from vlmft.data.sources import slake
from vlmft.errors import DataError
from vlmft.evaluation.outside_predictions import join, normalized_question
from vlmft.evaluation.predictions import as_line
from vlmft.schema import QuestionSet


def question(id: str, image: str | tuple[str, ...], text: str, answer: str = "yes") -> Question:
    images = (image,) if isinstance(image, str) else image
    return Question(id, "s", images, (Turn(text, answer),), "open")


QUESTIONS = [
    question("1", "/data/a/source.jpg", "Is there a mass ?"),
    question("2", "/data/b/source.jpg", "Is there a mass ?"),
    question("3", "/data/b/source.jpg", "Which organ is this?"),
    question("4", "/data/c.jpg", "Where, then, is it?"),
    question("5", "/data/c.jpg", "where , then, is it"),
    question("x6", ("/data/c.jpg", "/data/d.jpg"), "What has changed?"),
]


@pytest.fixture
def joined(tmp_path: Path):  # type: ignore[no-untyped-def]
    def of(*rows: Any, questions: list[Question] = QUESTIONS) -> Any:
        file = tmp_path / "answers.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return join(questions, file)

    return of


def raws(result: Any) -> dict[str, str]:
    return {row["id"]: row["raw"] for row in result.records if row["finish_reason"] != "missing"}


@pytest.mark.parametrize(
    ("row", "id", "raw"),
    [
        ({"question_id": 3, "text": "lung"}, "3", "lung"),
        ({"id": "3", "prediction": "lung"}, "3", "lung"),
        ({"qid": 3.0, "raw": "lung"}, "3", "lung"),
        ({"question_id": 0, "id": "x6", "text": "nothing"}, "x6", "nothing"),
        ({"question_id": None, "id": "3", "text": "lung"}, "3", "lung"),
        ({"id": 3, "text": "first", "prediction": "second", "raw": "third"}, "3", "first"),
        ({"id": 3, "prediction": "second", "raw": "third", "answer": "gold"}, "3", "second"),
        ({"id": 3, "prediction": ""}, "3", ""),
        ({"id": 3, "prediction": [[1, 2, 3, 4]]}, "3", "[[1, 2, 3, 4]]"),
        ({"id": 3, "prediction": 7}, "3", "7"),
        ({"id": "3", "prompt": "<image>\nIn a word: which organ  is this?", "text": "lung"}, "3", "lung"),
        ({"id": "4", "prompt": "Where, then?", "text": "left"}, "4", "left"),
        ({"id": "3", "image": "renamed.png", "text": "lung"}, "3", "lung"),
        ({"id": "x6", "image": "d.jpg", "text": "nothing"}, "x6", "nothing"),
        ({"id": "5", "image": "c.jpg", "question": "where, then, is it?", "text": "left"}, "5", "left"),
        ({"image": "a/source.jpg", "question": "is there a mass?", "text": "no"}, "1", "no"),
        ({"img_name": "imgs\\b\\source.jpg", "prompt": "Is there a mass?\n<image>", "text": "no"}, "2", "no"),
        ({"id": "q7", "image_name": "/other/b/source.jpg", "question": "which organ is this", "raw": "x"}, "3", "x"),
        ({"images": ["c.jpg", "./d.jpg"], "question": "what has changed?", "text": "size"}, "x6", "size"),
    ],
)  # fmt: skip
def test_a_row_joins_the_question_it_names(joined: Any, row: dict[str, Any], id: str, raw: str) -> None:
    result = joined(row)
    assert raws(result) == {id: raw}
    assert result.unjoined == []
    assert result.missing == [each.id for each in QUESTIONS if each.id != id]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"question_id": "x", "text": "no"},
            "row 2: question_id 'x' is in no question; to be joined by image and question it lacks "
            "image, img_name, image_name or images and question or prompt",
        ),
        (
            {"question_id": None, "id": "", "image": "c.jpg", "text": "no"},
            "row 2: it has no question_id, id or qid; to be joined by image and question it lacks question or prompt",
        ),
        (
            {"id": 99, "image": "z.jpg", "question": "Is there a mass?", "text": "no"},
            "row 2: id '99' is in no question; no question has an image z.jpg",
        ),
        (
            {"image": "source.jpg", "question": "Is there a mass?", "text": "no"},
            "row 2: the image source.jpg may be any of 2, such as /data/a/source.jpg and /data/b/source.jpg",
        ),
        (
            {"image": "a/source.jpg", "question": "Which organ is this?", "text": "no"},
            'row 2: no question is "Which organ is this?" about a/source.jpg',
        ),
        (
            {"image": "c.jpg", "question": "What has changed?", "text": "no"},
            'row 2: no question is "What has changed?" about c.jpg',
        ),
        (
            {"image": "c.jpg", "question": "Where, then, is it?", "text": "no"},
            'row 2: 2 questions are "Where, then, is it?" about c.jpg; only an id tells 4, 5 apart',
        ),
        ({"question_id": 2, "id": 4, "text": "no"}, "row 2: 2 questions fit question_id '2' and id '4'"),
    ],
)
def test_a_row_that_joins_nothing_is_named_with_the_reason(joined: Any, row: dict[str, Any], reason: str) -> None:
    result = joined({"id": "1", "text": "yes"}, row)
    assert result.unjoined == [reason]
    assert raws(result) == {"1": "yes"}


def test_an_id_that_is_another_question_by_chance_is_not_followed(joined: Any) -> None:
    first = {"question_id": 1, "image": "b/source.jpg"}
    result = joined(
        {**first, "prompt": "Which organ is this?", "text": "lung"},  # joined by its image and question instead
        {**first, "prompt": "Is there a mass?", "text": "no"},  # the same question, of another image
        {"question_id": 4, "prompt": "Which plane is it?", "text": "axial"},
    )
    assert raws(result) == {"3": "lung", "2": "no"}
    (reason,) = result.unjoined
    assert reason.startswith(
        "row 3: question_id '4' is \"Where, then, is it?\" about /data/c.jpg, which is not what the row asks; to be"
    )


def test_an_id_of_two_questions_joins_neither(joined: Any) -> None:
    twice = [*QUESTIONS, question("1", "/data/e.jpg", "Why?")]
    result = joined({"id": "2", "text": "a"}, {"id": "1", "text": "b"}, questions=twice)
    assert raws(result) == {"2": "a"} and result.unjoined == ["row 2: 2 questions fit id '1'"]


def test_records_are_whole_in_the_order_of_the_questions_and_count_what_is_missing(joined: Any) -> None:
    given = {"id": "3", "raw": "<think>so", "finish_reason": "length", "think_prefilled": True}
    result = joined(given, {"id": "2", "text": "no"})
    assert [row["id"] for row in result.records] == ["1", "2", "3", "4", "5", "x6"]
    assert result.missing == ["1", "4", "5", "x6"]
    said = [(row["raw"], row["finish_reason"], row["think_prefilled"]) for row in result.records[:3]]
    assert said == [("", "missing", False), ("no", "stop", False), ("<think>so", "length", True)]
    assert result.records[1] == {
        "id": "2", "set": "s", "images": ["/data/b/source.jpg"], "question": "Is there a mass ?", "gold": "yes",
        "answer_type": "open", "task": "vqa", "options": [], "facts": {}, "raw": "no", "tokens": 0,
        "finish_reason": "stop", "think_prefilled": False, "generation": "outside",
    }  # fmt: skip


def test_our_own_records_and_a_json_array_are_read(tmp_path: Path, joined: Any) -> None:
    records = joined({"id": "1", "text": "yes"}, {"id": "4", "text": "left"}).records
    ours = tmp_path / "predictions_s.jsonl"
    ours.write_text("".join(map(as_line, records)), encoding="utf-8")
    assert join(QUESTIONS, ours).records == records
    array = tmp_path / "array.json"
    array.write_text(json.dumps(records, indent=1), encoding="utf-8")
    assert join(QUESTIONS, array).records == records


def test_the_same_prediction_twice_is_taken_once_and_two_different_ones_are_refused(joined: Any) -> None:
    by_image = {"image": "b/source.jpg", "question": "which organ is this?"}
    assert raws(joined({"id": "3", "text": "lung"}, {**by_image, "prediction": "lung"})) == {"3": "lung"}
    with pytest.raises(DataError, match=r'rows 1 and 3 are different predictions .* id 3: "lung" and "heart"'):
        joined({"id": "3", "text": "lung"}, {"id": "1", "text": "yes"}, {**by_image, "text": "heart"})
    with pytest.raises(DataError, match=f'id 3: "{"l" * 78}… and "heart"'):
        joined({"id": "3", "text": "l" * 500}, {"id": "3", "text": "heart"})
    with pytest.raises(DataError, match="rows 1 and 2 are different"):
        joined({"id": "3", "text": "lung"}, {"id": "3", "text": "lung", "finish_reason": "length"})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"id": 2, "answer": "yes"},
            "answers.jsonl, row 2: no prediction under text, prediction or raw; the row has id, answer.",
        ),
        ({}, "row 2: no prediction under text, prediction or raw; the row has no keys."),
        ({"id": 2, "text": None}, 'row 2: text is null; it should be the predicted text ("" for none).'),
        ({"id": 2, "text": True}, "row 2: text is true"),
        ({"id": 2, "text": "a", "finish_reason": 1}, "row 2: finish_reason is 1; it should be a text such as stop."),
        ({"id": 2, "text": "", "think_prefilled": 1}, 'row 2: think_prefilled is 1; it should be true or false.'),
        (["a"], 'row 2: expected an object, found ["a"].'),
    ],
)  # fmt: skip
def test_a_row_that_is_no_prediction_is_refused(joined: Any, row: Any, message: str) -> None:
    with pytest.raises(DataError) as error:
        joined({"id": "1", "text": "yes"}, row)
    assert message in str(error.value)


def test_a_line_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "cut.jsonl"
    file.write_text('{"id": "1", "text": "yes"}\n{"id": "2", "te', encoding="utf-8")
    with pytest.raises(DataError, match=r"cut\.jsonl, row 2: not JSON"):
        join(QUESTIONS, file)


def test_a_file_that_joins_nothing_says_why(tmp_path: Path, joined: Any) -> None:
    with pytest.raises(DataError) as error:
        joined({"question_id": "q-0", "prompt": "Is it?", "text": "yes"}, {"question_id": "q-1", "text": "no"})
    _, *lines = str(error.value).splitlines()
    assert "none of its 2 rows joins any of the 6 questions of s." in str(error.value)
    assert lines[0] == "  the keys of the first row: question_id, prompt, text"
    assert lines[1].startswith("  row 1: question_id 'q-0' is in no question")
    assert lines[2] == "  the first question: id '1', \"Is there a mass ?\" about /data/a/source.jpg"
    (tmp_path / "empty.json").write_text("[]", encoding="utf-8")
    with pytest.raises(DataError, match=r"empty\.json holds no predictions"):
        join(QUESTIONS, tmp_path / "empty.json")
    with pytest.raises(DataError, match=r"absent\.jsonl, where there is no file"):
        join(QUESTIONS, tmp_path / "absent.jsonl")
    with pytest.raises(DataError, match="there are no questions"):
        joined({"id": "1", "text": "yes"}, questions=[])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Is there a  mass ?", "is there a mass"),
        ("<image>\nIs there\ta mass?", "is there a mass"),
        ("Is there a mass? Please choose from the following two options: [yes, no].", "is there a mass"),
        ('Is there a mass?\n(Answer with either "Yes" or "No")', "is there a mass"),
        ("Left , right /both .", "left, right/both"),
        ("Is it 2.5 cm?", "is it 2.5 cm"),
    ],
)
def test_the_form_in_which_questions_are_compared(text: str, expected: str) -> None:
    assert normalized_question(text) == expected


@pytest.fixture(scope="module")
def published(real_data: Path) -> list[Question]:
    spec = QuestionSet(name="vqa_rad", format="vqa_rad", path=str(real_data / "vqa_rad"))
    return load(spec, "test").questions


def shuffled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    random.Random(0).shuffle(rows)
    return rows


def test_perfect_predictions_of_vqa_rad_join_in_any_order(published: list[Question], joined: Any) -> None:
    rows = [{"question_id": int(each.id), "prompt": each.text, "text": each.answer} for each in published]
    result = joined(*shuffled(rows), questions=published)
    assert len(result.records) == 451 and (result.missing, result.unjoined) == ([], [])
    assert all(row["raw"] == row["gold"] for row in result.records)
    hint = " Please choose from the following two options: [yes, no]."
    rows = [
        # Numbered anew, as copies are: many of these numbers are ids of other test questions.
        {"question_id": n, "image": Path(each.images[0]).name, "prompt": each.text.lower() + hint, "text": each.answer}
        for n, each in enumerate(published)
    ]
    assert len({str(row["question_id"]) for row in rows} & {each.id for each in published}) > 50
    assert joined(*shuffled(rows), questions=published) == result
    without_ids = [{key: value for key, value in row.items() if key != "question_id"} for row in rows]
    assert joined(*shuffled(without_ids), questions=published) == result


def test_images_of_slake_are_told_apart_by_their_folders(real_data: Path, joined: Any) -> None:
    spec = QuestionSet(name="slake", format="slake", path=str(real_data / "slake"), language="en")
    questions = [each for each in slake.read(spec, "test") if isinstance(each, Question)]
    rows = [
        {"img_name": "/".join(Path(each.images[0]).parts[-2:]), "question": each.text, "text": each.answer}
        for each in questions
    ]
    result = joined(*shuffled(rows), questions=questions)
    assert len(result.records) == 1061 and (result.missing, result.unjoined) == ([], [])
    assert all(row["raw"] == row["gold"] for row in result.records)
    with pytest.raises(DataError, match=r"the image source\.jpg may be any of 96"):
        joined(*[row | {"img_name": "source.jpg"} for row in rows], questions=questions)
