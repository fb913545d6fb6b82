from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlmft.data.load import fingerprint, load
from vlmft.data.question import BadRow, Question, Turn
from vlmft.data.sources import aqua
from vlmft.errors import DataError
from vlmft.evaluation.breakdowns import groups_of
from vlmft.schema import Config, Images, QuestionSet

ROW = {
    "image": "29281-213muril.jpg",
    "question": "who sit on a couch holding a baby",
    "answer": "woman",
    "need_external_knowledge": False,
}
ASKS = ROW | {"question": "who is carmela", "answer": "the painter's wife", "need_external_knowledge": True}
HEADER = ("IMAGE_FILE", "DESCRIPTION", "AUTHOR", "TITLE", "TECHNIQUE", "DATE", "TYPE", "SCHOOL", "TIMEFRAME")
PAINTING = (ROW["image"], "Carmela was his wife.", "MURIL", "Home", "Oil", "1650", "genre", "Spanish", "1601-1650")


def spec(folder: Path, **keys: Any) -> QuestionSet:
    return QuestionSet(name="aqua", format="aqua", path=str(folder), **keys)


def write(folder: Path, *rows: Any, name: str = "train.json", **keys: Any) -> QuestionSet:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / name).write_text(json.dumps(list(rows)))
    return spec(folder, **keys)


def table(file: Path, *rows: tuple[Any, ...], header: tuple[str, ...] = HEADER, encoding: str = "latin-1") -> Path:
    file.parent.mkdir(exist_ok=True, parents=True)
    file.write_bytes("".join("\t".join(row) + "\n" for row in (header, *rows)).encode(encoding))
    return file


def read(place: QuestionSet, split: str = "train") -> list[Question | BadRow]:
    return list(aqua.read(place, split))


def asked(folder: Path, *paintings: tuple[Any, ...], row: dict[str, Any] = ASKS, **keys: Any) -> Question:
    """The one question about the paintings of a table."""
    file = table(folder / "semart_train.csv", *paintings)
    (question,) = read(write(folder, row, **({"knowledge": str(file)} | keys)))
    assert isinstance(question, Question), question
    return question


def test_published_counts(real_data: Path) -> None:
    loaded = load(spec(real_data / "aqua"), "validation", need_images=False)
    kinds = Counter(question.facts["need_external_knowledge"] for question in loaded.questions)
    assert kinds == {"true": 3617, "false": 1507} and not loaded.dropped
    assert len({question.images for question in loaded.questions}) == 1040
    assert len({question.id for question in loaded.questions}) == 5124
    texts = [text for question in loaded.questions for text in (question.text, question.answer)]
    assert not [text for text in texts if "&#" in text or text != " ".join(text.split())]
    assert any("carit à" in text for text in texts)
    assert {question.answer_type for question in loaded.questions} == {"open"}  # nothing is asked for yes or no


def test_published_questions_join_their_paintings(real_data: Path, tmp_path: Path) -> None:
    names = sorted({row["image"] for row in json.loads((real_data / "aqua/val.json").read_text())})
    known = [(name, f"Of {name}.", *PAINTING[2:]) for name in names[1:]]  # of one painting SemArt says nothing
    file = table(tmp_path / "semart_val.csv", *known)
    loaded = load(spec(real_data / "aqua", knowledge=str(file), images=Images.ignore), "validation")
    for question in loaded.questions:
        name, needed = question.id.split("#")[0], question.facts["need_external_knowledge"] == "true"
        assert question.text.endswith(f"\nAbout the painting: Of {name}.") is (needed and name != names[0])
        assert ("knowledge_missing" in question.facts) is (needed and name == names[0])
    groups = groups_of([{"question": q.text, "answer_type": "open", "facts": q.facts} for q in loaded.questions])
    assert {kind: len(rows) for kind, rows in groups["need_external_knowledge"].items()} == {
        "true": 3617,
        "false": 1507,
    }


def test_row(tmp_path: Path) -> None:
    (question,) = read(write(tmp_path, ROW | {"answer": "Yes"}))
    assert question == Question(
        id="29281-213muril.jpg#1",
        set="aqua",
        images=(str(tmp_path / "Images/29281-213muril.jpg"),),
        turns=(Turn("who sit on a couch holding a baby", "Yes"),),
        answer_type="closed",
        facts={"need_external_knowledge": "false"},
    )


def test_knowledge_follows_only_the_questions_that_need_it(tmp_path: Path) -> None:
    file = table(tmp_path / "semart.csv", PAINTING)
    seen, told = read(write(tmp_path, ROW, ASKS, knowledge=str(file)))
    assert isinstance(seen, Question) and isinstance(told, Question)
    assert seen.text == ROW["question"]
    assert told.text == "who is carmela\nAbout the painting: Carmela was his wife."
    facts = {"school": "Spanish", "type": "genre", "timeframe": "1601-1650"}
    assert seen.facts == facts | {"need_external_knowledge": "false"}
    assert told.facts == facts | {"need_external_knowledge": "true"}


def test_without_knowledge_the_kinds_are_still_told_apart(tmp_path: Path) -> None:
    (question,) = read(write(tmp_path, ASKS, knowledge=None))
    assert isinstance(question, Question) and question.text == "who is carmela"
    assert question.facts == {"need_external_knowledge": "true"}


@pytest.mark.parametrize("paintings", [(), ((PAINTING[0], " ", *PAINTING[2:]),)])
def test_a_question_whose_knowledge_is_missing_is_kept_and_marked(tmp_path: Path, paintings: tuple[Any, ...]) -> None:
    question = asked(tmp_path, *paintings)
    assert question.text == "who is carmela" and question.facts["knowledge_missing"] == "true"
    assert "knowledge_missing" not in asked(tmp_path, *paintings, row=ROW).facts


def test_a_long_description_is_cut_at_a_word(tmp_path: Path) -> None:
    long = (PAINTING[0], "one two  three four", *PAINTING[2:])
    for most, text in ((3, "one two three …"), (4, "one two three four"), (1, "one …")):
        assert asked(tmp_path, long, max_knowledge_words=most).text.split(": ")[1] == text
    with pytest.raises(DataError, match=r"max_knowledge_words=0 leaves nothing.*at least 1.*knowledge=null"):
        asked(tmp_path, long, max_knowledge_words=0)


def test_entities_and_blanks_in_questions_answers_and_descriptions(tmp_path: Path) -> None:
    texts = {"question": "who does &#160; the  present painting\treflect", "answer": "&#160; Niccol &#242; &#38; I"}
    painting = (PAINTING[0], " the artist&#146;s Piet&#224;&#160; ", *PAINTING[2:])
    question = asked(tmp_path, painting, row=ASKS | texts)
    assert question.text == "who does the present painting reflect\nAbout the painting: the artist’s Pietà"
    assert question.answer == "Niccol ò & I"


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ('"The ""Hairy Man"" from Munich"', 'The "Hairy Man" from Munich'),
        ('The "Hairy Man" from Munich', 'The "Hairy Man" from Munich'),
        ("Café\x85 still", "Café still"),  # latin-1's 0x85 ends no line
        ("Café\rstill", "Café still"),
    ],
)
def test_a_published_table_is_latin_1_with_quotes(tmp_path: Path, said: str, text: str) -> None:
    question = asked(tmp_path, (PAINTING[0], said, *PAINTING[2:]))
    assert question.text.split("About the painting: ")[1] == text and question.facts["school"] == "Spanish"


def test_a_merged_table_may_be_utf_8_with_other_columns(tmp_path: Path) -> None:
    file = table(
        tmp_path / "all.csv", ("x", "Café", PAINTING[0]), header=("title", "description", "image_file"),
        encoding="utf-8-sig",
    )  # fmt: skip
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    (question,) = read(write(tmp_path, ASKS, knowledge=str(file)))
    assert isinstance(question, Question) and question.text.endswith("painting: Café")
    assert question.facts == {"need_external_knowledge": "true"}


def test_a_damaged_line_spoils_only_the_questions_that_need_it(tmp_path: Path) -> None:
    other = ("b.jpg", *PAINTING[1:])
    file = table(tmp_path / "semart.csv", (PAINTING[0], '"Carmela', *PAINTING[2:]), other)
    rows = read(write(tmp_path, ASKS, ROW, ASKS | {"image": "b.jpg"}, knowledge=str(file)))
    assert [type(row) for row in rows] == [BadRow, Question, Question]
    assert str(rows[0]) == (
        f"{tmp_path / 'train.json'}, row 1: its painting's description, {file} line 2, has 2 columns; expected 9"
    )


def test_a_painting_described_twice_is_told(tmp_path: Path) -> None:
    file = table(tmp_path / "semart.csv", PAINTING, PAINTING)
    place = write(tmp_path, ASKS, knowledge=str(file))
    assert isinstance(read(place)[0], Question)
    table(file, PAINTING, (PAINTING[0], "Another.", *PAINTING[2:]))
    (bad,) = read(place)
    assert isinstance(bad, BadRow) and "line 3, differs from an earlier one of 29281-213muril.jpg" in bad.reason


def test_three_tables_or_a_merged_one_or_any_file_are_read(tmp_path: Path) -> None:
    place = write(tmp_path / "aqua", ASKS, ASKS | {"image": "b.jpg"}, knowledge=str(tmp_path))
    for name, painting in zip(aqua.TABLES, (PAINTING, ("b.jpg", *PAINTING[1:]), ("c.jpg", *PAINTING[1:])), strict=True):
        table(tmp_path / name, painting)
    assert all("wife" in row.text for row in read(place) if isinstance(row, Question))
    assert [path.name for path in aqua.files(place, "train")] == ["train.json", *aqua.TABLES]
    (tmp_path / "semart_val.csv").rename(tmp_path / "semart.csv")
    assert [path.name for path in aqua.files(place, "train")] == ["train.json", "semart.csv"]
    place.knowledge = str(tmp_path / "semart_test.csv")
    assert aqua.files(place, "train")[1:] == [tmp_path / "semart_test.csv"]


def test_the_fingerprint_covers_the_knowledge(tmp_path: Path) -> None:
    place = write(tmp_path, ASKS, knowledge=str(table(tmp_path / "semart.csv", PAINTING)))
    before = fingerprint(place, "train")
    table(tmp_path / "semart.csv", (PAINTING[0], "Carmela was his mother.", *PAINTING[2:]))
    assert fingerprint(place, "train") != before != fingerprint(spec(tmp_path), "train")


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"val\.json, where there is no file.*paths\.aqua="):
        aqua.files(spec(tmp_path), "validation")
    with pytest.raises(DataError, match="no split 'dev'; there are train, validation, test"):
        aqua.files(spec(tmp_path), "dev")
    place = write(tmp_path, ROW, knowledge=str(tmp_path))
    table(tmp_path / "semart_val.csv", PAINTING)
    lacking = r"no semart_train\.csv, semart_test\.csv, and no semart\.csv in their place"
    with pytest.raises(DataError, match=rf"{lacking}.*paths\.semart=.*knowledge=null"):
        aqua.files(place, "train")
    place.knowledge = str(table(tmp_path / "comma.csv", ("a.jpg,text",), header=("IMAGE_FILE,DESCRIPTION",)))
    with pytest.raises(DataError, match=r"comma\.csv: the first line names no column IMAGE_FILE, DESCRIPTION.*TAB"):
        read(place)


def test_other_file_names(tmp_path: Path) -> None:
    place = write(tmp_path, ROW, name="short.json", splits={"train": "short.json", "mine": "short.json"})
    assert len(read(place)) == len(read(place, "mine")) == 1
    assert aqua.splits(place) == ["train", "validation", "test", "mine"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"answer": "&#160; "}, "'answer' is missing or empty"),
        ({"question": None}, "'question' is missing or empty"),
        ({"image": ""}, "'image' is missing or empty"),
        ({"need_external_knowledge": "no"}, "'need_external_knowledge' is 'no'; it should be true or false"),
        ({"need_external_knowledge": None}, "'need_external_knowledge' is None"),
        ({"image": "../x.jpg"}, "lies outside the image folder"),
    ],
)
def test_bad_rows_say_where_and_why(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    good, bad, no_row = read(write(tmp_path, ROW, ROW | change, "no object"))
    assert isinstance(good, Question) and isinstance(bad, BadRow) and isinstance(no_row, BadRow)
    assert str(bad).startswith(f"{tmp_path / 'train.json'}, row 2: ") and words in bad.reason
    assert no_row.row == 3 and "expected an object" in no_row.reason


def test_ids_count_the_questions_of_a_painting_bad_ones_too(tmp_path: Path) -> None:
    rows = read(write(tmp_path, ROW, ROW | {"answer": ""}, ROW, ROW | {"image": "b.jpg"}))
    ids = [row.id for row in rows if isinstance(row, Question)]
    assert ids == ["29281-213muril.jpg#1", "29281-213muril.jpg#3", "b.jpg#1"]


def test_where_the_paintings_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def folder() -> Path:
        (question,) = read(place)
        assert isinstance(question, Question)
        return Path(question.images[0]).parent

    file = table(tmp_path / "semart/semart.csv", PAINTING)
    place = write(tmp_path / "aqua", ROW, knowledge=str(tmp_path / "semart"))
    assert folder() == tmp_path / "aqua/Images"  # the place to name where there is none
    (tmp_path / "semart/Images").mkdir()
    assert folder() == tmp_path / "semart/Images"
    place.knowledge = str(file)
    assert folder() == tmp_path / "semart/Images"
    (tmp_path / "aqua/Images").mkdir()
    assert folder() == tmp_path / "aqua/Images"
    place.image_root = "semart/Images"  # as the preset says it where paths.root is relative
    monkeypatch.chdir(tmp_path)
    assert folder() == tmp_path / "semart/Images"
    (tmp_path / "aqua/semart/Images").mkdir(parents=True)
    assert folder() == tmp_path / "aqua/semart/Images"


def test_preset(composed: Callable[..., Config], tmp_path: Path) -> None:
    for config in (composed(f"paths.root={tmp_path}", "dataset=aqua").dataset, composed("eval=aqua").eval.sets["aqua"]):
        assert (config.format, config.max_knowledge_words) == ("aqua", 256)
        assert config.knowledge is not None and config.image_root == f"{config.knowledge}/Images"
    without = composed("dataset=aqua", "dataset.knowledge=null").dataset
    assert without.knowledge is None and without.image_root == "data/semart/Images"
