"""Conversation rows: what a row says, and what is wrong with one that says nothing usable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.conversation_rows import question, read, reason, row, talk
from vlmft.data.question import Question, Turn


def test_published_row(tmp_path: Path) -> None:
    published = {
        "id": "train_0422",
        "image": "pvqa/train/train_0422.jpg",
        "conversations": [
            {"from": "human", "value": "<image>\nWhere are liver stem cells located?"},
            {"from": "gpt", "value": "in the canals of hering"},
        ],
        "answer_type": "OPEN",
        "modality": "pathology",
    }
    assert question(tmp_path, published) == Question(
        id="train_0422",
        set="s",
        images=(str(tmp_path / "pvqa/train/train_0422.jpg"),),
        turns=(Turn("Where are liver stem cells located?", "in the canals of hering"),),
        answer_type="open",
        facts={"modality": "pathology"},
    )


def test_quoted_rows_of_both_forms(real_data: Path, tmp_path: Path) -> None:
    quoted = json.loads((real_data / "conversations" / "quoted_example.json").read_text())
    chat = next(value for key, value in quoted.items() if key.startswith("_converted"))
    ours, theirs = read(tmp_path, [quoted["row"], chat], absolute_paths=True)
    assert isinstance(ours, Question) and isinstance(theirs, Question)
    assert ours.turns == theirs.turns == (Turn("Where are liver stem cells located?", "in the canals of hering"),)


def test_chat_form_is_the_same_question(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "<image>Is it big?"}, {"role": "assistant", "content": "<answer>yes</answer>"}]
    got = question(tmp_path, {"messages": said, "images": ["a.png"]})
    assert (got.turns, got.images, got.id) == ((Turn("Is it big?", "yes"),), (str(tmp_path / "a.png"),), "row1")


def test_misspelt_key_and_other_role_names(tmp_path: Path) -> None:
    said = [{"from": "user", "value": "Is it big?"}, {"from": "assistant", "value": "yes"}]
    assert question(tmp_path, {"image": "a.png", "conversatons": said}).turns == (Turn("Is it big?", "yes"),)


@pytest.mark.parametrize("text", ["<image>\nIs it big?", "Is it big?\n<image>", "Is it big? <image>", "Is it big?"])
def test_mark_of_a_single_image_is_removed(tmp_path: Path, text: str) -> None:
    assert question(tmp_path, row(text)).text == "Is it big?"


def test_mark_between_words_of_a_single_image_leaves_one_blank(tmp_path: Path) -> None:
    assert question(tmp_path, row("What is in <image> here?")).text == "What is in here?"


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        ("Compare <image> with <image>.", "Compare <image> with <image>."),
        ("<image> against <image>", "<image> against <image>"),
        ("<image>\n<image>\nCompare them.", "Compare them."),
        ("Compare them.<image> <image>", "Compare them."),
        ("Compare them.", "Compare them."),
    ],
)
def test_marks_of_several_images_stay_only_between_words(tmp_path: Path, asked: str, kept: str) -> None:
    got = question(tmp_path, row(asked, image=["a.png", "b.png"]))
    assert got.text == kept
    assert got.images == (str(tmp_path / "a.png"), str(tmp_path / "b.png"))


def test_images_of_several_turns_keep_their_turns(tmp_path: Path) -> None:
    got = question(tmp_path, talk("<image>\nOne?", "a", "<image>\nTwo?", "b", image=["a.png", "b.png"]))
    assert [turn.question for turn in got.turns] == ["<image>\nOne?", "<image>\nTwo?"]


@pytest.mark.parametrize("keys", [{"image": None}, {"image": []}, {"images": [], "image": None}])
def test_row_without_image_is_text_only(tmp_path: Path, keys: dict[str, Any]) -> None:
    assert question(tmp_path, row("Is it big?", **keys)).images == ()


def test_wrong_number_of_marks_is_bad(tmp_path: Path) -> None:
    assert "2 <image> marks for 1 image" in reason(tmp_path, row("<image> <image> big?"))
    assert "1 <image> marks for 0 images" in reason(tmp_path, row(image=None))
    assert "1 <image> marks for 2 images" in reason(tmp_path, row(image=["a.png", "b.png"]))


def test_repeated_mark_in_every_turn_is_named_as_a_converter_defect(tmp_path: Path) -> None:
    grouped = talk("<image>One?", "a", "<image>Two?", "b", "<image>Three?", "c")
    got = reason(tmp_path, grouped)
    assert "3 <image> marks for 1 image" in got and "known defect of converters" in got
    assert "defect" not in reason(tmp_path, row("<image> <image> big?"))


def test_several_turns(tmp_path: Path) -> None:
    got = question(tmp_path, talk("<image>\nWhat?", "A liver.", "Is it big?", "No."))
    assert got.turns == (Turn("What?", "A liver."), Turn("Is it big?", "No."))
    assert got.answer_type == "closed"


@pytest.mark.parametrize(
    ("stated", "answer", "expected"),
    [
        ("OPEN", "yes", "open"),
        ("CLOSED", "left lung", "closed"),
        ("open", "yes", "open"),
        ("close", "left lung", "closed"),
        ("CLOSED ", "no", "closed"),
        (None, "Yes.", "closed"),
        (None, "NO", "closed"),
        (None, "是", "closed"),
        (None, "否", "closed"),
        (None, "yes, mildly", "open"),
    ],
)
def test_answer_type(tmp_path: Path, stated: str | None, answer: str, expected: str) -> None:
    assert question(tmp_path, row(answer=answer, answer_type=stated)).answer_type == expected


def test_unknown_answer_type_is_bad(tmp_path: Path) -> None:
    assert "'maybe'" in reason(tmp_path, row(answer_type="maybe"))


@pytest.mark.parametrize(
    ("target", "thought", "answer"),
    [
        ("<think>\nIt is pale.\n</think>\n<answer>liver</answer>", "It is pale.", "liver"),
        ("<think>It is pale.</think>liver", "It is pale.", "liver"),
        ("It is pale.</think>liver", "It is pale.", "liver"),
        ("<answer>liver</answer>", None, "liver"),
        ("<think></think><answer>liver</answer>", None, "liver"),
        ("<answer><|begin_of_box|>liver<|end_of_box|></answer>", None, "liver"),
        ("size < 3 cm", None, "size < 3 cm"),
    ],
)
def test_target_is_split_at_its_tags(tmp_path: Path, target: str, thought: str | None, answer: str) -> None:
    assert question(tmp_path, row(answer=target)).turns == (Turn("Is it big?", answer, thought),)


@pytest.mark.parametrize("target", ["<answer>liver", "<think>pale", "<answer>a</answer> b", "a</think>b</think>c"])
def test_tags_that_do_not_pair_are_bad(tmp_path: Path, target: str) -> None:
    assert "tags do not pair" in reason(tmp_path, row(answer=target))


@pytest.mark.parametrize(
    "appended",
    [
        " Please choose from the following two options: [yes, no]",
        "\nPlease choose from the following two options: [yes, no].\n<image>",
        ' (Answer with either "Yes" or "No")',
    ],
)
def test_appended_prompts_are_stripped(tmp_path: Path, appended: str) -> None:
    assert question(tmp_path, row("Is it big?" + appended)).text == "Is it big?"


def test_other_options_in_the_question_stay(tmp_path: Path) -> None:
    text = "Which? Please choose from the following two options: [left, right]"
    assert question(tmp_path, row(text)).text == text


def test_ids_are_made_unique_and_do_not_depend_on_good_rows(tmp_path: Path) -> None:
    ids = [7, "7", "b", "7#1", None, 7]
    rows = [row(id=id) for id in ids]
    got = [each.id for each in read(tmp_path, rows) if isinstance(each, Question)]
    assert got == ["7#2", "7#3", "b", "7#1", "row5", "7#4"]
    rows[0]["conversations"] = []
    assert [each.id for each in read(tmp_path, rows) if isinstance(each, Question)] == got[1:]


@pytest.mark.parametrize(
    ("keys", "task", "options"),
    [
        ({}, "vqa", ()),
        ({"task": "report"}, "report", ()),
        ({"task": "Multi-label "}, "multi_label", ()),
        ({"task": "Instance Detection", "options": None}, "instance_detection", ()),
        ({"options": ["CT ", "MRI"]}, "multiple_choice", ("CT", "MRI")),
        ({"task": "", "options": {"A": "CT", "B": "MRI"}}, "multiple_choice", ("CT", "MRI")),
        ({"task": "vqa", "options": ["CT", "MRI"]}, "vqa", ("CT", "MRI")),
        ({"task": None, "options": []}, "vqa", ()),
    ],
)
def test_task_and_options(tmp_path: Path, keys: dict[str, Any], task: str, options: tuple[str, ...]) -> None:
    got = question(tmp_path, row(**keys))
    assert (got.task, got.options, got.facts) == (task, options, {})


def test_number_as_answer_is_text(tmp_path: Path) -> None:
    assert question(tmp_path, row(answer=4)).answer == "4"


def test_other_keys_become_facts(tmp_path: Path) -> None:
    got = question(tmp_path, row(modality=" CT ", qid=3, score=0.5, tags=["x"], note="", answer_type="OPEN"))
    assert got.facts == {"modality": "CT", "qid": "3", "score": "0.5"}


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (row(""), "question is empty"),
        (row("<image>"), "question is empty"),
        (row("Please choose from the following two options: [yes, no]"), "question is empty"),
        (row(answer=" "), "answer is empty"),
        (row(answer="<answer> </answer>"), "answer is empty"),
        (row(answer="see <image>"), "answer holds <image>"),
        (row(answer=None), "holds no text"),
        (row(answer=["a"]), "holds no text"),
        (talk("Q?"), "has no answer"),
        (talk("Q?", "a", "R?"), "has no answer"),
        ({"image": "a.png"}, "no list of turns"),
        ({"image": "a.png", "conversations": []}, "no list of turns"),
        ({"image": "a.png", "conversations": ["Q?", "a"]}, "turn 1 is no object"),
        ({"conversations": [{"from": "gpt", "value": "a"}, {"from": "human", "value": "Q?"}]}, "turn 1 is from 'gpt'"),
        ({"messages": [{"role": "system", "content": "Be brief."}]}, "system message"),
        (row(image=3), "image is 3"),
        (row(image=""), "image is ''"),
        (row(image=["a.png", None]), "image is None"),
        (row(image={"bytes": None, "path": None}), "image is {"),
        (row(task="segmentation"), "task is 'segmentation'; it should be one of vqa, multiple_choice, multi_label"),
        (row(task=3), "task is '3'"),
        (row(options="A. CT B. MRI"), "options are 'A. CT B. MRI'; they should be a list of texts, A first"),
        (row(options=["CT", 3]), "options are ["),
        (row(options=["CT", " "]), "options are ["),
        (row(options={"A": "CT", "B": None}), "options are {"),
        ("text", "expected an object"),
    ],
)
def test_bad_rows_say_why(tmp_path: Path, bad: Any, words: str) -> None:
    assert words in reason(tmp_path, bad)
