"""vlmft pairs: which answers become preference rows, what is written, and that no test row ever is among them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from vlmft.cli import main
from vlmft.data.load import load
from vlmft.data.question import Question, Turn
from vlmft.evaluation import results
from vlmft.evaluation.answers import thought
from vlmft.evaluation.predictions import predictions_file, read_predictions, write_predictions
from vlmft.provenance import record_attempt
from vlmft.schema import Config, QuestionSet
from vlmft.status import Status
from vlmft.use import pairs
from vlmft.worker import train


def record(id: str, raw: str, gold: str = "liver", **more: Any) -> dict[str, Any]:
    row = {"id": id, "set": "s", "images": [], "question": f"Which {id}?", "gold": gold, "answer_type": "open",
           "task": "vqa", "options": [], "facts": {"organ": "abdomen"}}  # fmt: skip
    return row | {"raw": raw, "tokens": 3, "finish_reason": "stop", "think_prefilled": False, "generation": "g"} | more


def a_run(folder: Path, config: Config | None = None, **predictions: list[dict[str, Any]]) -> Path:
    """A run directory with predictions; `s_train` are those of the split train of s."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(config or Config())))
    for name, rows in predictions.items():
        write_predictions(predictions_file(folder, name.replace("_", ".")), rows)
    return folder


def picture(file: Path, text: str) -> str:
    from PIL import Image

    Image.new("RGB", (8, 8), text).save(file)
    return str(file)


def rows_of(folder: Path, **keys: Any) -> list[Question]:
    return load(QuestionSet(name="s", format="conversations", path=str(folder), **keys), "train").questions


def refused(*arguments: Any, capsys: pytest.CaptureFixture[str]) -> str:
    """What stderr says of a command that cannot be done."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["pairs", *map(str, arguments)])
    captured = capsys.readouterr()
    assert stop.value.code == 1 and "Traceback" not in captured.err and captured.out == ""
    return captured.err


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (record("1", "<answer>lung</answer>"), ""),
        (record("1", "The Liver."), pairs.RIGHT),
        (record("1", "<answer>liver</answer> and then", finish_reason="length"), pairs.RIGHT),
        (record("1", "<answer>lung</answer> and then", finish_reason="length"), pairs.CUT),
        (record("1", "lung and lung and", finish_reason="length"), pairs.CUT),
        (record("1", " "), pairs.UNREADABLE),
        (record("1", "<think>It is pale."), pairs.UNREADABLE),
        (record("1", "perhaps", gold="yes", answer_type="closed"), pairs.UNREADABLE),
        (record("1", "No, it is not.", gold="yes", answer_type="closed"), ""),
        (record("1", "two", gold="2"), pairs.OTHER_WORDS),
        (record("1", "lung <image>"), pairs.BAD_REPLY),
        (record("1", "lung <answer"), ""),
        (record("1", "lung</answer>"), pairs.BAD_REPLY),
        (record("1", "lung", gold="<answer>liver"), pairs.BAD_ROW),
        (record("1", "[[1, 2, 3, 4]]", gold="[[5, 6, 7, 8]]", task="detection"), pairs.GRADED),
        (record("1", "none", gold="A long text.", task="report"), pairs.GRADED),
        (record("1", "B", gold="A", task="multiple_choice", options=["CT", "MRI"]), ""),
        (record("1", "The answer is A.", gold="A", task="multiple_choice", options=["CT", "MRI"]), pairs.RIGHT),
    ],
)
def test_which_answers_are_rejected(answer: dict[str, Any], why: str) -> None:
    found, left_out = pairs.of_records([answer], "normalized")
    assert (len(found), dict(left_out)) == ((1, {}) if not why else (0, {why: 1}))


@pytest.mark.parametrize(
    ("answer", "protocol", "why"),
    [
        (record("1", "liver tissue", gold="liver and spleen"), "llavamed", pairs.PARTLY),
        (record("1", "lung", gold="liver and spleen"), "llavamed", ""),
        (record("1", "Liver"), "strict", ""),
        (record("1", "[[1, 2, 3, 5]]", gold="[[1, 2, 3, 4]]", task="detection"), "strict", pairs.GRADED),
        (record("1", "B", gold="A", task="multiple_choice", options=["CT", "MRI"]), "flare", ""),
    ],
)
def test_the_protocol_says_what_is_wrong(answer: dict[str, Any], protocol: str, why: str) -> None:
    found, left_out = pairs.of_records([answer], protocol)
    assert (len(found), dict(left_out)) == ((1, {}) if not why else (0, {why: 1}))


def test_an_answer_that_is_the_gold_is_not_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = pairs.judge(record("1", "lung"), "normalized")
    monkeypatch.setattr(pairs, "judge", lambda record, protocol: judged)  # a scorer that takes it for wrong
    assert pairs.of_records([record("1", "liver")], "normalized")[1] == {pairs.THE_GOLD: 1}


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ("<think> Pale. </think><answer>x</answer>", "Pale."),
        ("Pale.\n</think>\n\nx", "Pale."),
        ("<think>a</think><think>b</think>x<|im_end|>", "ab"),
        ("<think>Pale", ""),
        ("x", ""),
    ],
)
def test_what_a_reply_thinks(raw: str, said: str) -> None:
    assert thought(raw) == said


def test_the_rows_are_those_that_were_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = (picture(tmp_path / f"{color}.png", color) for color in ("red", "blue"))
    thinks = "<think>Dark.</think><answer>lung</answer>"
    earlier = [{"question": "Where?", "answer": "left", "thought": "Seen."}, {"question": "Big?", "answer": "no"}]
    run = a_run(tmp_path / "run", s_train=[
        record("a/1", thinks, images=[one], thought="Brown.", answer_type="closed"),
        record("2", thinks, images=[one, other], history=earlier, question="And <image> or <image>?"),
        record("3", "lung", thought="Brown."),
        record("4", "B", gold="A", images=[other], task="multiple_choice", options=["CT", "MRI"]),
        record("5", "liver"),
    ])  # fmt: skip
    main(["pairs", str(run)])
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == f"written   {run}/pairs/s/train.json: 4 rows on 2 pictures" and shown[1] == "left out  1 right"
    assert shown[2] == (
        f"next      python train.py method=dpo model=… dataset=pairs dataset.name=s paths.pairs={run}/pairs/s eval=none"
    )
    got = rows_of(run / "pairs" / "s")
    facts = {"organ": "abdomen"}
    assert [(row.id, row.turns, row.rejected, row.answer_type, row.facts) for row in got] == [
        ("a/1", (Turn("Which a/1?", "liver", "Brown."),), Turn("Which a/1?", "lung", "Dark."), "closed", facts),
        ("2", (Turn("Where?", "left", "Seen."), Turn("Big?", "no"), Turn("And <image> or <image>?", "liver")),
         Turn("And <image> or <image>?", "lung"), "open", facts),
        ("3", (Turn("Which 3?", "liver", "Brown."),), Turn("Which 3?", "lung"), "open", facts),
        ("4", (Turn("Which 4?", "A"),), Turn("Which 4?", "B"), "open", facts),
    ]  # fmt: skip
    assert got[3].task == "multiple_choice" and got[3].options == ("CT", "MRI")
    seen = [[Path(image).read_bytes() for image in row.images] for row in got]
    assert seen == [[Path(image).read_bytes() for image in of] for of in ([one], [one, other], [], [other])]
    assert all(Path(image).is_relative_to(run / "pairs" / "s" / "images") for row in got for image in row.images)

    before = {file: file.read_bytes() for file in (run / "pairs").rglob("*.*") if file.is_file()}
    main(["pairs", str(run), "--out", str(tmp_path / "again"), "--set", "s"])
    main(["pairs", str(run)])
    assert "unchanged" in capsys.readouterr().out
    assert {file: file.read_bytes() for file in (run / "pairs").rglob("*.*") if file.is_file()} == before
    assert {tmp_path / "again" / file.relative_to(run / "pairs" / "s") for file in before} == {
        file for file in (tmp_path / "again").rglob("*.*") if file.is_file()
    }
    assert (tmp_path / "again" / "train.json").read_bytes() == before[run / "pairs" / "s" / "train.json"]

    main(["pairs", str(run), "--absolute", "--out", str(tmp_path / "there")])
    assert "dataset.absolute_paths=true" in capsys.readouterr().out
    assert not (tmp_path / "there" / "s" / "images").exists()
    assert rows_of(tmp_path / "there" / "s", absolute_paths=True)[0].images == (one,)
    assert "is there already, and train.json is not what" in refused(run, "--absolute", capsys=capsys)
    assert {file: file.read_bytes() for file in (run / "pairs").rglob("*.*") if file.is_file()} == before


def test_every_set_has_its_own_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = Config()
    config.model.name = "tiny_glm41v"
    run = a_run(tmp_path / "run", config, s_train=[record("1", "lung")], slake_train=[record("1", "pus")],
                t_train=[record("1", "liver")], s_validation=[record("9", "lung")], t=[record("1", "pus")])  # fmt: skip
    main(["pairs", str(run), "--out", str(tmp_path / "out")])
    shown = capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["s", "slake"]
    assert "no pairs  t\nleft out  1 right\n" in shown
    assert f"model=tiny_glm41v dataset=pairs dataset.name=slake paths.pairs={tmp_path}/out/slake eval=slake\n" in shown
    assert [row.rejected for row in rows_of(tmp_path / "out" / "slake")] == [Turn("Which 1?", "pus")]
    main(["pairs", str(run), "--split", "validation", "--out", str(tmp_path / "held"), "--set", "s"])
    assert [row.id for row in rows_of(tmp_path / "held")] == ["9"]


def test_closed_pairs_that_all_choose_one_answer_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that says no to everything is wrong where the gold is yes."""

    def closed(number: int, gold: str) -> dict[str, Any]:
        return record(str(number), "yes" if gold == "no" else "no", gold=gold, answer_type="closed")

    rows = [closed(number, "no" if number < 2 else "yes") for number in range(24)]
    main(["pairs", str(a_run(tmp_path / "one", s_train=rows))])
    told = "note      22 of 24 closed pairs choose 'yes', as the run nearly always says the other"
    assert told in capsys.readouterr().out
    both = [closed(number, "yes" if number % 3 else "no") for number in range(24)]
    for name, others in (("two", both), ("few", rows[5:20])):
        main(["pairs", str(a_run(tmp_path / name, s_train=others))])
        assert "note" not in capsys.readouterr().out


def test_never_from_test_questions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path / "run", s=[record("1", "lung")], s_blank=[record("1", "lung")])
    told = refused(run, capsys=capsys)
    assert "it has those of s, s.blank alone. Pairs are never made of test questions" in told
    assert f"python train.py task=eval runs=[{run}] eval.split=train eval=none" in told
    assert "of slake; it has" in (told := refused(run, "--set", "slake", capsys=capsys))
    assert "eval.split=train eval=slake" in told
    for split, what in (("test", "the test split"), ("blank", "a pass without"), ("shuffled", "a pass without")):
        assert f"--split {split} is {what}" in refused(run, "--split", split, capsys=capsys)
    assert "name the set alone, s; its split" in refused(run, "--set", "s.blank", capsys=capsys)
    assert not (run / "pairs").exists()


def test_what_no_pairs_can_be_made_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is no run directory (config.yaml)" in refused(tmp_path, capsys=capsys)
    assert "has no predictions on the split train; Have" in refused(a_run(tmp_path / "none"), capsys=capsys)
    right = a_run(tmp_path / "right", s_train=[record("1", "liver")])
    assert "s: every answer on the split train is right under normalized; there is nothing" in refused(
        right, capsys=capsys
    )
    cut = a_run(tmp_path / "cut", s_train=[record("1", "liver"), record("2", "lu", finish_reason="length")])
    assert "makes a pair: 1 right, 1 cut off at the token limit" in refused(cut, capsys=capsys)
    gone = a_run(tmp_path / "gone", s_train=[record("1", "lung", images=[str(tmp_path / "gone.png")])])
    assert f"row 1: the picture {tmp_path}/gone.png is not there any more" in refused(gone, capsys=capsys)
    file = predictions_file(gone, "s.train")
    for text, words in (
        ("", "is empty"),
        ("[]]\n", "no JSON"),
        ('{"id": 1}\n', "line 1: there is no answer_type, fac"),
    ):
        file.write_text(text)
        assert words in refused(gone, capsys=capsys)
    assert not any((run / "pairs").exists() for run in (right, cut, gone))


def test_a_killed_write_leaves_nothing_that_looks_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_run(tmp_path / "run", s_train=[record("1", "lung")])

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as other, pytest.raises(KeyboardInterrupt):
        other.setattr(pairs.export, "differences", killed)  # all is written by then
        main(["pairs", str(run)])
    assert list((run / "pairs").iterdir()) == []
    main(["pairs", str(run)])
    assert len(rows_of(run / "pairs" / "s")) == 1


@pytest.mark.slow
def test_from_training_to_the_rows_of_dpo(
    composed: Callable[..., Config], command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path,
    capsys: pytest.CaptureFixture[str], cache: Path,
) -> None:  # fmt: skip
    small = ("hardware=cpu", "eval.generation.max_new_tokens=12")
    config = composed("model=tiny_glm41v", "dataset=demo_ct", "dataset.max_rows=64", "method=lora", *small,
                      "method.trainer.max_steps=30", "method.trainer.learning_rate=1e-2")  # fmt: skip
    run = tmp_path / "outputs" / "one"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    record_attempt(run, {}, None)
    train(config, run, Status(run))
    results.update(run, state="done")
    asked = ("task=eval", f"runs=[{run}]", "eval.split=train", "eval.max_rows=40", *small)
    done = command(*asked)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "demo_ct.train  normalized" in done.stdout and not predictions_file(run, "demo_ct").exists()
    records = {row["id"]: row for row in read_predictions(predictions_file(run, "demo_ct.train"))}
    whole = {row.id: row for row in load(config.dataset, "train").questions}
    assert 30 < len(records) <= 40 and records.keys() <= whole.keys() and "train" not in next(iter(records.values()))
    entry = results.read(run)["evaluations"]["demo_ct.train"]
    assert entry["n"] == len(records) and "leakage" not in entry and "difference" not in entry
    main(["rescore", str(run), "--protocol", "squad"])
    assert results.read(run)["evaluations"]["demo_ct.train"]["scores"]["squad"]["metrics"]["f1"]["n"] == len(records)

    capsys.readouterr()
    main(["pairs", str(run)])
    shown = capsys.readouterr().out
    words = re.search(r"next +python train\.py (.*)", shown)[1].split()  # type: ignore[index]
    named = composed(*words)
    assert named.method.name == "dpo" and named.init_from == str(run) and list(named.eval.sets) == ["demo_ct"]
    got = load(named.dataset, "train").questions
    assert got and len(got) + entry["scores"]["normalized"]["correct"] <= len(records)
    for row in got:
        own = whole[row.id]
        assert row.turns == own.turns and (row.answer_type, row.facts) == (own.answer_type, own.facts)
        assert [Path(image).read_bytes() for image in row.images] == [Path(image).read_bytes() for image in own.images]
        assert row.rejected and row.rejected.answer != row.answer and row.rejected.answer in records[row.id]["raw"]
