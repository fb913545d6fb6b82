"""PMC-VQA's options: letters and their texts, what is asked, and in which order."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.data.pmc_vqa_rows import CHOICES, V1, V2, defect, one, read
from vlmft.data.question import VQA, Question
from vlmft.errors import DataError


def test_a_letter_of_version_2_is_never_taken_for_the_text_of_an_option(tmp_path: Path) -> None:
    panels = {f"Choice {letter}": f" {letter}: {panel}" for letter, panel in zip("ABCD", "DCBA", strict=True)}
    assert one(tmp_path, V2 | panels).answer == "C"


@pytest.mark.parametrize(
    ("published", "text"),
    [
        (" A:X-ray ", "X-ray"),
        (" A: X-ray", "X-ray"),
        ("A:\u00a0 X-ray\u00a0", "X-ray"),
        (" C:X-ray ", "X-ray"),  # the letter of another column
        ("X-ray", "X-ray"),
        (" A: T: testes, A: gland ", "T: testes, A: gland"),
        (" A: N/A ", "N/A"),
        ("NaN", "NaN"),
        ("A:None", "None"),
        (" A: signal S ' ", "signal S '"),
        ("BA: 3", "BA: 3"),
    ],
)
def test_options_lose_their_labels_and_nothing_else(tmp_path: Path, published: str, text: str) -> None:
    row = V1 | {"Choice A": published, "Answer": text, "Answer_label": "A"}
    question = one(tmp_path, row)
    assert (question.options[0], question.answer) == (text, "A")
    assert one(tmp_path, row, options=False).answer == text


@pytest.mark.parametrize("mark", ["'", '"'])
def test_marks_around_the_whole_list_are_taken_off(tmp_path: Path, mark: str) -> None:
    torn = {"Choice A": f" {mark}A:Lung ", "Choice D": f" D:Spleen {mark} ", "Answer_label": mark}
    question = one(tmp_path, V1 | torn | {"Answer": f"{mark}Lung"})
    assert (question.options, question.answer) == (CHOICES, "A")


@pytest.mark.parametrize("label", ["'", '"', "", "E", "b"])
def test_a_label_that_is_no_letter_is_told_by_the_text_or_left_out(tmp_path: Path, label: str) -> None:
    broken = V1 | {"Answer_label": label}
    assert one(tmp_path, broken | {"Answer": "Spleen"}).answer == "D"
    assert one(tmp_path, broken | {"Answer": "N/A", "Choice C": "C: N/A"}).answer == "C"
    assert one(tmp_path, broken | {"Answer": "T: x,  y", "Choice A": "A: T: x, A: y"}).answer == "A"  # lost its "A:"
    reason = defect(tmp_path, broken | {"Answer": "Kidney"})
    assert f"the letter is {label!r}, none of A, B, C, D" in reason and "'Kidney' is no option's" in reason
    twice = defect(tmp_path, broken | {"Answer": "Lung", "Choice D": "D: lung"})
    assert "'Lung' is that of A and D" in twice


def test_version_2_has_no_text_to_tell_a_broken_letter_by(tmp_path: Path) -> None:
    assert "the letter is '\"'" in defect(tmp_path, V2 | {"Answer": '"'})
    assert one(tmp_path, V2 | {"Answer": "Mast"}).answer == "B"


def test_a_letter_and_a_text_that_disagree_are_left_out(tmp_path: Path) -> None:
    reason = defect(tmp_path, V1 | {"Answer_label": "C"})
    assert reason == "the letter is C (Heart), but the answer's text 'Liver' is that of B"


@pytest.mark.parametrize("text", ["", "T: gland,  carotid, V: vein.", "t: gland, a: carotid, v: vein.", "Kidney"])
def test_a_damaged_text_says_nothing_against_the_letter(tmp_path: Path, text: str) -> None:
    row = V1 | {"Choice C": " C: T: gland, A: carotid, V: vein. ", "Answer_label": "C", "Answer": text}
    assert one(tmp_path, row).answer == "C"


@pytest.mark.parametrize("letter", "AB")
def test_of_options_that_are_alike_the_letter_tells(tmp_path: Path, letter: str) -> None:
    row = V1 | {"Choice A": " A: Liver", "Answer_label": letter}
    for seed in range(8):  # ids differ, so the orders do
        rows = read(tmp_path, *[row] * (seed + 1), shuffle_options=True)
        assert all(isinstance(each, Question) and each.options["ABCD".index(each.answer)] == "Liver" for each in rows)
    assert one(tmp_path, row).answer == letter
    assert one(tmp_path, row).options[:2] == ("Liver", "Liver")


@pytest.mark.parametrize("empty", ["", " D: ", " "])
def test_an_empty_option_is_the_publishers_defect(tmp_path: Path, empty: str) -> None:
    assert defect(tmp_path, V1 | {"Choice D": empty}) == "Choice D is empty"


def test_without_options_the_text_is_asked_for(tmp_path: Path) -> None:
    question = one(tmp_path, V1, options=False)
    assert (question.text, question.answer) == ("Which organ is shown?", "Liver")
    assert (question.task, question.options, question.answer_type) == (VQA, (), "open")
    yes = one(tmp_path, V1 | {"Choice B": "B: Yes", "Answer": "Yes"}, options=False)
    assert yes.answer_type == "closed"  # as in every set whose publisher states no type


def test_reasoning_asks_for_a_thought_and_makes_none_up(tmp_path: Path) -> None:
    question = one(tmp_path, V1, reasoning=True)
    assert question.text.endswith("\nThink step by step first, then answer with the letter of the right option.")
    assert (question.answer, question.turns[0].thought) == ("B", None)
    bare = one(tmp_path, V1, reasoning=True, options=False)
    assert bare.text == "Which organ is shown?\nThink step by step first, then give the answer."


def test_shuffled_options_keep_their_answer_and_level_the_letters(tmp_path: Path) -> None:
    keys = {"shuffle_options": True}
    rows = [row for row in read(tmp_path, *[V1] * 800, **keys) if isinstance(row, Question)]
    for row in rows:
        assert sorted(row.options) == sorted(CHOICES) and row.options["ABCD".index(row.answer)] == "Liver"
        assert f"\n{row.answer}: Liver\n" in row.text
    letters = Counter(row.answer for row in rows)
    assert all(160 < letters[letter] < 240 for letter in "ABCD")
    assert len({row.options for row in rows}) == 24
    # The same wherever and whenever it is read; changed orders would be other questions under the same ids.
    assert "".join(row.answer for row in rows[:24]) == "CADABDCDBABCADDCACCDCABC"
    with pytest.raises(DataError, match=r"shuffle_options=true has no effect with dataset\.options=false"):
        read(tmp_path, V1, options=False, **keys)


@pytest.mark.parametrize("option", ["None of the above.", "Both A and C", "A, B", "All the above", "B & C", "A or B"])
def test_options_that_name_others_keep_the_published_order(tmp_path: Path, option: str) -> None:
    rows = read(tmp_path, *[V1 | {"Choice D": f" D:{option} "}] * 20, shuffle_options=True)
    assert {row.options for row in rows if isinstance(row, Question)} == {(*CHOICES[:3], option)}


@pytest.mark.parametrize("option", ["Above the liver", "Vitamin A", "A and then some"])
def test_options_that_name_no_other_are_shuffled(tmp_path: Path, option: str) -> None:
    rows = read(tmp_path, *[V1 | {"Choice D": f" D:{option} "}] * 20, shuffle_options=True)
    assert len({row.options for row in rows if isinstance(row, Question)}) > 5
