"""`eval.split`: which rows are answered, under which name, and that they stand beside the test split's scores."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vlmft.chat.encode import Encoder
from vlmft.data.question import OPEN, Question, Turn
from vlmft.errors import DataError
from vlmft.evaluation import results
from vlmft.evaluation.evaluate import chosen_sets, prompts_of, wanted
from vlmft.evaluation.predictions import predicted_sets, predictions_file, read_predictions, record, write_predictions
from vlmft.evaluation.runs import Together
from vlmft.evaluation.table import print_table
from vlmft.identity import generation_hash
from vlmft.models.load import load_processor, stop_ids
from vlmft.schema import AnswerStyle, Config, Eval, Model, OverLong, QuestionSet
from vlmft.status import Status


def talk(id: str, *said: str, **keys: Any) -> dict[str, Any]:
    turns = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said)]
    return {"id": id, "messages": turns} | keys


def own_set(folder: Path, **splits: list[dict[str, Any]]) -> QuestionSet:
    folder.mkdir()
    for split, rows in splits.items():
        (folder / f"{split}.json").write_text(json.dumps(rows))
    return QuestionSet(name="s", format="conversations", path=str(folder))


def of(split: str, **keys: Any) -> Eval:
    return Eval(split=split, **keys)


def test_another_split_has_its_own_hash_and_that_of_test_is_what_it_was(tmp_path: Path) -> None:
    spec = own_set(tmp_path / "s", train=[{"id": "train"}], test=[{"id": "test"}])
    spec.max_test_rows = 7
    assert generation_hash("run", spec, Eval(max_rows=3)) == "de759173", "stored predictions would be made again"
    assert generation_hash("run", spec, Eval(), "blank") == "abeb2133"
    train = wanted("run", {"s": spec}, of("train"))
    assert list(train) == ["s.train"]
    assert wanted("run", {"s": replace(spec, max_test_rows=8, max_rows=2)}, of("train")) == train
    assert wanted("run", {"s": spec}, of("train", max_rows=3)) != train
    (tmp_path / "s" / "train.json").write_text(json.dumps([{"id": "other"}]))
    assert wanted("run", {"s": spec}, of("train")) != train


def test_splits_of_one_file_have_different_hashes(real_data: Path) -> None:
    spec = QuestionSet(name="vqa_rad", format="vqa_rad", path=str(real_data / "vqa_rad"))
    assert wanted("run", {"s": spec}, of("train"))["s.train"] != wanted("run", {"s": spec}, Eval())["s"]


@pytest.mark.parametrize("same", ["test.json", "copy.json", "both.json"])
def test_the_rows_of_the_test_split_by_another_name_are_refused(tmp_path: Path, same: str) -> None:
    test = [talk("1", "Where?", "liver")]
    spec = own_set(tmp_path / "s", train=[talk("1", "What?", "pus")], test=test, copy=test)
    spec.splits = {"train": same}
    if same == "both.json":  # a link
        (tmp_path / "s" / same).symlink_to("test.json")
    with pytest.raises(DataError, match=r"s: the split train has the rows of the test split, in .*eval.split=test"):
        wanted("run", {"s": spec}, of("train"))
    assert list(wanted("run", {"s": replace(spec, splits={})}, of("train"))) == ["s.train"], "one id is no row"


def test_a_split_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    spec = own_set(tmp_path / "s", train=[], test=[])
    with pytest.raises(DataError, match=r"s: .*\bdev\b.*train, test"):
        wanted("run", {"s": spec}, of("dev"))
    alone = own_set(tmp_path / "t", train=[talk("1", "What?", "pus")])
    assert list(wanted("run", {"s": alone}, of("train"))) == ["s.train"], "it needs no test split"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["task=train"], "eval.split=train is for task=eval, .* python train.py task=eval runs=.RUN_DIR. "),
        (["task=eval", "eval.ablations=[blank]"], r"eval.split=train does not go with eval.ablations; leave"),
        (["task=eval", "eval.closed=likelihood"], "does not go with eval.closed=likelihood; leave that out: python tr"),
        (["task=eval", "eval.baseline=true"], "does not go with eval.baseline; leave"),
        (["task=eval", "eval.split=blank"], "eval.split='blank' should be the name of a split, such as train"),
        (["task=eval", "eval.split=a/b"], "eval.split='a/b' should be the name of a split"),
    ],
)
def test_what_does_not_go_with_another_split(composed: Callable[..., Config], keys: list[str], words: str) -> None:
    assert composed("task=eval", "eval.split=train").eval.split == "train"
    with pytest.raises(Exception, match=words):
        composed("eval.split=train", *keys)


def test_which_rows_are_answered(tiny: Model, tmp_path: Path) -> None:
    rows = [talk(str(n), "Where?" if n else "Where? " * 80, "liver") for n in range(4)]
    spec = replace(own_set(tmp_path / "s", train=rows, test=rows[1:]), max_rows=1, max_test_rows=1)
    encoder = Encoder(load_processor(tiny), AnswerStyle.answer, stop_ids(tiny))

    def ids(config: Eval, over_long: OverLong = OverLong.drop, limit: int = 60) -> list[str]:
        loaded, prompts = prompts_of(encoder, spec, config, limit, over_long)
        assert [row.question for row in prompts.rows] == [f"s:{question.id}" for question in loaded.questions]
        return [question.id for question in loaded.questions]

    assert len(ids(Eval())) == 1
    assert ids(of("train")) == ["1", "2", "3"], "too long a row is left out as in training"
    assert ids(of("train"), limit=4000) == ["0", "1", "2", "3"]
    assert len(ids(of("train", max_rows=2), limit=4000)) == 2
    with pytest.raises(DataError, match=r"1 rows have more than method.max_row_tokens=60"):
        ids(of("train"), OverLong.refuse)
    with pytest.raises(DataError, match=r"s train: all 4 rows have more than method.max_row_tokens=5"):
        ids(of("train"), limit=5)


def test_scores_of_another_split_have_no_difference_and_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"id": str(n), "set": "s", "images": [], "question": "Is it?", "gold": "yes", "answer_type": "closed",
         "raw": "yes" if n else " ", "finish_reason": "stop", "generation": "g"}
        for n in range(9)
    ]  # fmt: skip
    for name in ("s", "s.train", "s.blank"):
        write_predictions(predictions_file(tmp_path, name), rows)
        results.score_set(tmp_path, name, ["strict"], "g")
    found = results.read(tmp_path)["evaluations"]
    assert "difference" in found["s.blank"] and "difference" not in found["s.train"], "ids are equal by chance"
    results.score_set(tmp_path, "s", ["strict"], "anew")
    assert list(results.read(tmp_path)["evaluations"]) == ["s", "s.train"]
    print_table(results.read(tmp_path))
    shown = capsys.readouterr().out
    assert "s.train  strict" in shown and "s.train: rows of the split train, for vlmft pairs" in shown
    assert "s.train: 11.1 % of the answers could not be read" in shown
    assert "s.train: two models" not in shown and "s.train: 9 questions" not in shown


def test_a_record_holds_what_its_row_is_made_of() -> None:
    reply = {"raw": "x", "tokens": 1, "finish_reason": "stop", "think_prefilled": False, "generation": "g"}
    turns = (Turn("Where?", "liver", "Brown."), Turn("Big?", "no"), Turn("Why?", "pus", "Pale."))
    full = record(Question("1", "s", (), turns, OPEN), **reply)  # type: ignore[arg-type]
    assert full["history"] == [
        {"question": "Where?", "answer": "liver", "thought": "Brown."},
        {"question": "Big?", "answer": "no"},
    ]
    assert (full["question"], full["gold"], full["thought"]) == ("Why?", "pus", "Pale.")
    assert not {"history", "thought"} & record(Question("1", "s", (), (Turn("Why?", "pus"),), OPEN), **reply).keys()  # type: ignore[arg-type]


def test_the_answers_to_training_rows_stand_beside_those_to_test_rows(
    composed: Callable[..., Config], tmp_path: Path
) -> None:
    brief = ("model=tiny_glm41v", "dataset=demo_ct", "task=eval", "hardware=cpu", "eval.generation.max_new_tokens=2")
    run, together = tmp_path / "base", Together()
    run.mkdir()
    for split in ("test", "train"):
        config = composed(*brief, f"eval.split={split}", "eval.max_rows=9")
        together.evaluate(config, run, config, Status(run))
    assert predicted_sets(run) == ["demo_ct", "demo_ct.train"]
    test, train = (read_predictions(predictions_file(run, name)) for name in predicted_sets(run))
    assert {row["id"].split("_")[0] for row in train} == {"train"} and len(train) <= 9
    assert {row["id"].split("_")[0] for row in test} == {"test"}
    assert all("question_only" in row["train"] for row in test) and not any("train" in row for row in train)
    found = results.read(run)["evaluations"]
    assert found["demo_ct"]["floor"]["question_only"] and not any(found["demo_ct.train"]["floor"].values())
    hashes = wanted(run.name, chosen_sets(config.eval, config.dataset), config.eval)
    assert results.pending(run, hashes, ["strict"]) == ([], [])
