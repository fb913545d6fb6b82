"""Conversation rows with a chosen and a rejected answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.data.conversation_rows import ASKED, NO, YES, question, reason, row
from vlmft.data.load import without_images
from vlmft.data.question import Turn

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
