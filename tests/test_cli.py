"""vlmft rescore, compare and score: what can be asked of predictions that exist, and that nothing heavy is loaded."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vlmft.cli import main
from vlmft.data.load import load
from vlmft.evaluation import results
from vlmft.evaluation.predictions import predictions_file, write_predictions
from vlmft.schema import QuestionSet


def records(right: set[int], of: int = 30, **more: Any) -> list[dict[str, Any]]:
    row = {"set": "s", "question": "Which organ?", "gold": "Lung", "answer_type": "open", "finish_reason": "stop"}
    return [
        {"id": str(n), "images": [f"/{n}.jpg"], **row, "raw": "lung" if n in right else "liver", "generation": "g"}
        | more
        for n in range(of)
    ]


def run(folder: Path, **predictions: list[dict[str, Any]]) -> Path:
    """A run directory with predictions on the sets that are named."""
    folder.mkdir(parents=True)
    for name, rows in predictions.items():
        write_predictions(predictions_file(folder, name), rows)
    return folder


def evaluations(folder: Path) -> Any:
    return json.loads((folder / "result.json").read_text())["evaluations"]


def refused(*arguments: Any, capsys: pytest.CaptureFixture[str]) -> str:
    """What stderr says of a command that cannot be done."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert stop.value.code == 1 and "Traceback" not in captured.err and captured.out == ""
    return captured.err


def test_rescore_adds_a_protocol_and_keeps_the_others_and_the_facts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(tmp_path / "a", s=records(set(range(20))))
    results.update(folder, state="done", train=None)
    results.score_set(folder, "s", ["strict"], "g", leakage={"s": {"same_image": 0}}, dropped_rows=3)
    main(["rescore", str(folder), "--protocol", "squad", "--debug-matches", "1"])
    found = evaluations(folder)["s"]
    assert {name: of["metrics"]["accuracy"]["value"] for name, of in found["scores"].items()} == {
        "squad": pytest.approx(20 / 30), "strict": 0.0
    }  # fmt: skip
    assert (found["leakage"], found["dropped_rows"], found["generation"]) == ({"s": {"same_image": 0}}, 3, "g")
    assert results.pending(folder, {"s": "g"}, ["squad", "strict"]) == ([], []), "for train.py it is scored"
    shown = capsys.readouterr().out
    assert "squad" in shown and "strict" in shown and "66.7" in shown and f"written   {folder}/result.json" in shown
    assert "'lung' | 'lung' | 'Lung' | right" in shown and "'liver'" not in shown
    assert json.loads((folder / "result.json").read_text())["state"] == "done"


def test_rescore_builds_a_lost_result_of_two_runs_with_their_passes(tmp_path: Path) -> None:
    one = run(tmp_path / "a", s=records(set(range(20))), t=records({1}))
    other = run(tmp_path / "b", **{"s.blank": records(set(range(5))), "s": records(set(range(10)))})
    main(["rescore", str(one), str(other)])
    assert list(evaluations(one)) == ["s", "t"] and list(evaluations(other)) == ["s", "s.blank"]
    assert list(evaluations(one)["s"]["scores"]) == ["normalized", "strict"]
    assert evaluations(other)["s.blank"]["difference"]["normalized"]["difference"] == pytest.approx(5 / 30)
    result = json.loads((one / "result.json").read_text())
    assert (result["schema"], result["run"]) == (results.SCHEMA, "a")


def test_the_folder_one_stands_in_is_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run(tmp_path / "a", s=records({1})))
    main(["rescore", "."])
    assert json.loads(Path("result.json").read_text())["run"] == "a"


def test_rescore_refuses_a_folder_without_predictions_before_it_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, empty = run(tmp_path / "good", s=records({1})), run(tmp_path / "empty")
    said = refused("rescore", good, empty, capsys=capsys)
    assert f"{empty}: there are no predictions_<set>.jsonl" in said
    assert sorted(path.name for path in good.iterdir()) == ["predictions_s.jsonl"]
    assert "nowhere: there are no" in refused("rescore", tmp_path / "nowhere", capsys=capsys)


def test_rescore_names_the_run_whose_predictions_cannot_be_scored_or_that_is_at_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"task": "multiple_choice", "options": ["CT", "MRI"]}
    folder = run(tmp_path / "a", s=records({1}, **options))
    assert f"{folder}, s: Record '0': The gold answer 'Lung' is neither" in refused("rescore", folder, capsys=capsys)
    monkeypatch.setattr("vlmft.lock._PATIENCE", 0)
    with open(tmp_path / ".locks" / "a", "r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert f"{folder}: process {os.getpid()}" in refused("rescore", folder, capsys=capsys)


def test_compare_tests_every_two_runs_and_adjusts_for_their_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(tmp_path / "first", s=records(set(range(10))), **{"s.blank": records(set())})
    second = run(tmp_path / "second", s=records(set(range(18))), t=records({1}))
    third = run(tmp_path / "third", s=records(set(range(19))))
    main(["compare", str(first), str(second), str(third), "--protocol", "strict", "--protocol", "normalized"])
    assert "second minus first, strict" in capsys.readouterr().out, "the first of the protocols"
    main(["compare", str(first), str(second), str(third)])
    lines = capsys.readouterr().out.splitlines()
    shown = [line.split() for line in lines if line.startswith("s ")]
    assert [line[:5] for line in shown] == [
        ["s", "first", "second", "accuracy", "30"],
        ["s", "first", "third", "accuracy", "30"],
        ["s", "second", "third", "accuracy", "30"],
    ]
    assert [line[5] for line in shown] == ["+26.7", "+30.0", "+3.3"]
    # 8 and 9 questions that only the second has right, and 1: p is 2 / 2**8, 2 / 2**9 and 1
    assert [line[-4:] for line in shown] == [
        ["=", "0.008", "=", "0.016"], ["=", "0.004", "=", "0.012"], ["=", "1.000", "=", "1.000"]
    ]  # fmt: skip
    assert lines[-1].startswith("p: exact McNemar; Holm over these 3;")


def test_compare_over_one_image_has_no_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [run(tmp_path / name, s=records({1}, images=["/a.jpg"])) for name in "ab"]
    main(["compare", *map(str, folders)])
    assert "+0.0 points [–, –]" in capsys.readouterr().out


def test_compare_refuses_what_cannot_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = run(tmp_path / "one", s=records({1}))
    other = run(tmp_path / "other", t=records({1}))
    apart = run(tmp_path / "apart", s=[row | {"id": f"x{row['id']}"} for row in records({1})])
    assert "name at least two run directories" in refused("compare", one, capsys=capsys)
    assert "no two of these runs have predictions on the same set" in refused("compare", one, other, capsys=capsys)
    said = refused("compare", one, apart, capsys=capsys)
    assert "one and apart on s: The two sets of predictions share no question" in said
    assert "there are no predictions" in refused("compare", one, run(tmp_path / "empty"), capsys=capsys)


def conversations(folder: Path, split: str, *pairs: tuple[str, str]) -> None:
    folder.mkdir(exist_ok=True)
    rows = [
        {"id": f"q{n}", "image": f"{n}.png", "conversations": [{"from": "human", "value": question},
                                                               {"from": "gpt", "value": answer}]}
        for n, (question, answer) in enumerate(pairs)
    ]  # fmt: skip
    (folder / f"{split}.json").write_text(json.dumps(rows))


def said_by(folder: Path, *rows: dict[str, Any]) -> str:
    file = folder / "answers.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.fixture
def outside(tmp_path: Path) -> list[str]:
    """The command that scores a file with one right, one wrong and one alien prediction on three questions."""
    place = tmp_path / "set"
    conversations(place, "test", ("Is it big?", "yes"), ("Where is it?", "lung"), ("Is it red?", "no"))
    file = said_by(
        tmp_path,
        {"question_id": "q0", "text": "Yes."},
        {"image": "1.png", "question": "where is it", "text": "liver"},
        {"id": "q9", "text": "no"},
    )
    return ["score", "--questions", str(place), "--format", "conversations", "--predictions", file]


def test_score_counts_what_is_missing_and_what_joins_nothing(
    outside: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main([*outside, "--json"])
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert (found["n"], found["missing"], found["unjoined"], captured.err) == (3, 1, 1, "")
    assert list(found["scores"]) == ["normalized", "strict"] and found["floor"] == {}
    assert found["scores"]["normalized"]["metrics"]["accuracy"]["value"] == pytest.approx(1 / 3)
    main([*outside, "--protocol", "strict", "--debug-matches", "2"])
    captured = capsys.readouterr()
    assert "not joined: row 3: id 'q9' is in no question" in captured.err
    assert "1 predictions joined no question; 1 of 3 questions have no prediction and count as wrong" in captured.out
    assert "'Yes.' | 'Yes.' | 'yes' | wrong" in captured.out and "normalized" not in captured.out


def test_score_sets_the_floor_of_the_training_split_beside(
    outside: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    conversations(tmp_path / "set", "train", ("Is it green?", "no"), ("Where is it?", "lung"))
    main([*outside, "--json", "--protocol", "normalized"])
    floor = json.loads(capsys.readouterr().out)["floor"]
    assert floor["question_only"]["normalized"]["accuracy"] == pytest.approx(2 / 3)
    main([*outside, "--json", "--split", "train"])  # its own answers would be no floor
    assert json.loads(capsys.readouterr().out)["floor"] == {}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--questions", "nowhere"], "nowhere"),
        (["--format", "slaked"], "slaked"),
        (["--predictions", "nowhere.jsonl"], "Looked for predictions in nowhere.jsonl"),
        (["--split", "dev"], "no split 'dev'"),
    ],
)
def test_score_says_what_is_wrong(
    outside: list[str], change: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(*outside, *change, capsys=capsys)


def test_score_names_a_gold_answer_that_is_none(
    outside: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = json.loads((tmp_path / "set" / "test.json").read_text())
    (tmp_path / "set" / "test.json").write_text(json.dumps([row | {"options": ["CT", "MRI"]} for row in rows]))
    assert "row with id q0: The gold answer 'yes' is neither" in refused(*outside, capsys=capsys)


def test_perfect_predictions_on_vqa_rad(real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = str(real_data / "vqa_rad")
    questions = load(QuestionSet(name="vqa_rad", format="vqa_rad", path=place), "test", need_images=False).questions
    file = said_by(tmp_path, *({"question_id": q.id, "text": q.answer} for q in questions))
    main(["score", "--questions", place, "--format", "vqa_rad", "--predictions", file, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["n"], found["images"], found["missing"], found["unjoined"]) == (451, 203, 0, 0)
    for protocol in ("normalized", "strict"):
        assert found["scores"][protocol]["metrics"]["accuracy"]["value"] == 1.0, protocol
    assert found["floor"]["question_only"]["normalized"]["accuracy"] == pytest.approx(0.364, abs=0.001)
    assert set(found["scores"]["normalized"]["groups"]) >= {"answer_type", "organ", "question_type", "first word"}


def test_one_language_of_slake_without_its_pictures(
    real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "slake"
    place.mkdir()
    for split in ("train", "test"):
        (place / f"{split}.json").symlink_to(real_data / "slake" / f"{split}.json")
    rows = json.loads((place / "test.json").read_text(encoding="utf-8"))
    file = said_by(tmp_path, *({"qid": row["qid"], "text": row["answer"]} for row in rows))
    main(["score", "--questions", str(place), "--format", "slake", "--predictions", file, "--language", "zh", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["n"], found["images"], found["missing"], found["unjoined"]) == (1033, 96, 0, 1061)
    assert found["scores"]["normalized"]["metrics"]["accuracy"]["value"] == 1.0
    assert found["floor"]["question_only"]["normalized"]["accuracy"] == pytest.approx(0.573, abs=0.001)


def test_a_wrong_protocol_names_those_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["rescore", str(tmp_path), "--protocol", "strikt"])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "strikt" in said and "normalized" in said and "llavamed" in said


def test_rescoring_imports_nothing_heavy(tmp_path: Path) -> None:
    folder = run(tmp_path / "a", s=records({1}))
    script = (
        "import sys; from vlmft.cli import main; main(['rescore', sys.argv[1]])\n"
        "heavy = {'torch', 'transformers', 'trl', 'peft', 'datasets'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(evaluations(folder)) == ["s"]
