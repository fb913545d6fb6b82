from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from vlmft.data.load import without_images
from vlmft.data.question import BadRow, Question, Turn
from vlmft.data.sources import conversations
from vlmft.errors import DataError
from vlmft.schema import QuestionSet


def row(question: str = "<image>\nIs it big?", answer: Any = "yes", **keys: Any) -> dict[str, Any]:
    said = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": "a", "image": "a.png", "conversations": said, **keys}


def talk(*said: str, **keys: Any) -> dict[str, Any]:
    turns = [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(said)]
    return {"image": "a.png", "conversations": turns, **keys}


def read(folder: Path, rows: Any, **keys: Any) -> list[Question | BadRow]:
    text = rows if isinstance(rows, str) else json.dumps(rows)
    (folder / "train.json").write_text(text, encoding="utf-8")
    return list(conversations.read(QuestionSet(name="s", format="conversations", path=str(folder), **keys), "train"))


def question(folder: Path, row: dict[str, Any], **keys: Any) -> Question:
    (got,) = read(folder, [row], **keys)
    assert isinstance(got, Question), got
    return got


def reason(folder: Path, row: Any, **keys: Any) -> str:
    (got,) = read(folder, [row], **keys)
    assert isinstance(got, BadRow), got
    assert got.file == str(folder / "train.json") and got.row == 1
    return got.reason


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


ASKED = [{"role": "user", "content": "<image>\nWhere?"}]
YES, NO = ({"role": "assistant", "content": f"<answer>{text}</answer>"} for text in ("liver", "lung"))
PARTS = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Where?"}]}]
GOOD, BAD = ([{"role": "assistant", "content": [{"type": "text", "text": text}]}] for text in ("liver", "lung"))


@pytest.mark.parametrize(
    "said",
    [
        {"messages": ASKED, "chosen": "liver", "rejected": "<answer>lung</answer>"},
        {"messages": ASKED, "chosen": YES, "rejected": [NO]},
        {"conversations": [{"from": "human", "value": "<image>Where?"}], "chosen": {"from": "gpt", "value": "liver"},
         "rejected": {"from": "gpt", "value": "lung"}},
        {"prompt": "<image>\nWhere?", "chosen": " liver ", "rejected": "lung"},
        {"prompt": ASKED, "chosen": [YES], "rejected": [NO]},
        {"prompt": ASKED, "chosen": [*ASKED, YES], "rejected": [*ASKED, NO]},
        {"prompt": None, "chosen": [*ASKED, YES], "rejected": [*ASKED, NO]},
        {"prompt": PARTS, "chosen": GOOD, "rejected": BAD},
        {"prompt": PARTS, "chosen": GOOD, "rejected": BAD, "messages": None, "conversations": None},
    ],
)  # fmt: skip
def test_preference_rows_of_every_form_are_the_same_question(tmp_path: Path, said: dict[str, Any]) -> None:
    got = question(tmp_path, {"images": ["a.png"], "modality": "CT", **said})
    assert (got.turns, got.rejected) == ((Turn("Where?", "liver"),), Turn("Where?", "lung"))
    assert got.facts == {"modality": "CT"}
    assert without_images(got).rejected == Turn("Where?", "lung")


def test_preference_after_earlier_turns_keeps_both_thoughts(tmp_path: Path) -> None:
    said = [*ASKED, YES, {"role": "user", "content": "Is it big?"}]
    targets = {"chosen": "<think>8 cm.</think><answer>Yes</answer>", "rejected": "<think>Dark.</think>No"}
    got = question(tmp_path, {"messages": said, "images": ["a.png"], **targets})
    assert got.turns == (Turn("Where?", "liver"), Turn("Is it big?", "Yes", "8 cm."))
    assert (got.rejected, got.answer_type) == (Turn("Is it big?", "No", "Dark."), "closed")


def test_row_without_preference_has_nothing_rejected(tmp_path: Path) -> None:
    assert question(tmp_path, row(chosen=None, rejected=None)).rejected is None


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"chosen": "liver"}, "has 'chosen' without 'rejected'"),
        ({"rejected": "lung"}, "has 'rejected' without 'chosen'"),
        ({"chosen": "lung", "rejected": "<answer>lung</answer>"}, "chosen and rejected are the same answer, 'lung'"),
        ({"chosen": "lung", "rejected": "<think>Dark.</think>lung"}, "chosen and rejected are the same answer, 'lung'"),
        ({"chosen": "liver", "rejected": " "}, "rejected: the answer is empty"),
        ({"chosen": "", "rejected": "lung"}, "the answer is empty"),
        ({"chosen": [], "rejected": "lung"}, "chosen: the answer is empty"),
        ({"chosen": "liver", "rejected": "<answer>lung"}, "rejected: the answer's tags do not pair"),
        ({"chosen": YES, "rejected": ASKED[0]}, "rejected: turn 2 is from 'user'"),
        ({"chosen": [*ASKED, YES], "rejected": [*PARTS, NO]}, "repeat another question than is asked"),
        ({"chosen": [*PARTS, YES], "rejected": [*PARTS, NO]}, "repeat another question than is asked"),
        ({"chosen": [*ASKED, YES, *ASKED], "rejected": NO}, "chosen: the last question has no answer"),
        ({"chosen": {"role": "assistant"}, "rejected": NO}, "chosen: turn 2 holds no text"),
        ({"messages": [*ASKED, YES], "chosen": YES, "rejected": NO}, "'messages' ends with an answer"),
        ({"messages": None, "chosen": "liver", "rejected": "lung"}, "chosen: turn 1 is from 'assistant'"),
        ({"messages": None, "prompt": "<image>Where?"}, "no list of turns"),
        ({"messages": [{"role": "system", "content": "Be brief."}], "chosen": YES, "rejected": NO}, "system message"),
    ],
)
def test_bad_preference_rows_say_why(tmp_path: Path, keys: dict[str, Any], words: str) -> None:
    assert words in reason(tmp_path, {"messages": ASKED, "images": ["a.png"], **keys})


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
