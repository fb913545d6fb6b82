"""A judge's opinion: what it is asked, how it is read, what is kept, and that it changes no score."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.chat_server import refused, said, serving, words
from vlmft.cli import main
from vlmft.errors import DataError
from vlmft.evaluation import judge, results, server
from vlmft.evaluation.judge import judge_set, judgements_file, verdict
from vlmft.evaluation.predictions import predictions_file, read_predictions, write_predictions
from vlmft.schema import Eval, Judge


def record(id: int, raw: str, **changed: Any) -> dict[str, Any]:
    row = {"id": str(id), "set": "s", "images": [f"/{id}.png"], "question": f"<image>Which organ {id}?", "gold": "Lung"}
    return row | {"answer_type": "open", "raw": raw, "finish_reason": "stop", "generation": "g"} | changed


RECORDS = [
    record(1, "lung"), record(2, "the lungs"), record(3, "liver"), record(4, "liver and more", finish_reason="length"),
    record(5, "yes", answer_type="closed", gold="yes"), record(6, "3", task="counting", gold="3"),
    record(7, "<think>it may be</think>pulmonary"), record(8, "spleen"),
]  # fmt: skip


def opinion(body: dict[str, Any], n: int) -> Any:
    text = words(body)
    if "spleen" in text:
        return said("I cannot tell.")
    return said("Yes." if "lung" in text.partition("Given answer")[2] or "pulmonary" in text else "no")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(server, "_FIRST_PAUSE", 0.01)
    write_predictions(predictions_file(tmp_path, "s"), RECORDS)
    results.score_set(tmp_path, "s", ["normalized", "strict"], "g")
    return tmp_path


def asked_of(url: str, model: str = "j", **more: Any) -> Eval:
    return Eval(judge=Judge(url=url, served_model=model), **more)


def entry(run: Path) -> Any:
    return results.read(run)["evaluations"]["s"]


def test_open_answers_are_judged_and_no_score_changes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = entry(run)
    with serving(opinion, models=("j",)) as chat:
        assert judge_set(run, "s", asked_of(chat.url))
        results.judged(run, "s")
        assert not judge_set(run, "s", asked_of(chat.url)) and len(chat.requests) == 5
    body = chat.requests[0]
    assert body["model"] == "j" and body["temperature"] == 0 and isinstance(body["messages"][0]["content"], str)
    asked = "\n".join(chat.texts())
    assert "Question: Which organ 2?\nReference answer: Lung\nGiven answer: the lungs\n" in asked
    assert "Given answer: pulmonary\n" in asked and "it may be" not in asked and "<image>" not in asked
    found = entry(run)
    assert {key: value for key, value in found.items() if key != "judge"} == before
    one = found["judge"]["j"]
    assert (one["n"], one["judged"], one["unparsed"], one["unreadable"]) == (6, 5, 1, 1)
    assert one["value"] == pytest.approx(3 / 6) and one["low"] < 0.5 < one["high"]
    # The rule takes "lung" for right, the judge also "the lungs" and "pulmonary"; both refuse "liver".
    assert one["rule"]["normalized"]["agreement"] == pytest.approx(2 / 4)
    assert one["rule"]["normalized"]["kappa"] == pytest.approx(0.2)
    main(["rescore", str(run)])
    assert entry(run)["judge"]["j"]["value"] == one["value"]
    told = capsys.readouterr().out
    assert "s: judge j: 50.0 % of 6 open answers mean the same as the gold; as normalized on 50.0 %, kappa 0.20" in told
    assert "1 judgements unreadable" in told


def test_only_new_answers_are_judged_and_each_judge_by_itself(run: Path) -> None:
    with serving(opinion, models=("j", "k")) as chat:
        judge_set(run, "s", asked_of(chat.url))
        changed = [row | {"raw": "left lung"} if row["id"] == "3" else row for row in RECORDS]
        write_predictions(predictions_file(run, "s"), changed)
        judge_set(run, "s", asked_of(chat.url))
        assert len(chat.requests) == 6 and "left lung" in chat.texts()[-1]
        judge_set(run, "s", asked_of(chat.url, "k"))
        assert len(chat.requests) == 11
    results.score_set(run, "s", ["normalized"], "g")
    assert set(entry(run)["judge"]) == {"j", "k"}


def test_what_was_judged_before_a_failure_is_kept(run: Path) -> None:
    def dies(body: dict[str, Any], n: int) -> Any:
        return opinion(body, n) if n < 2 else refused(503, "gone")

    with serving(dies, models=("j",)) as chat, pytest.raises(DataError, match=r"eval\.judge\.url=.*status 503: gone"):
        judge_set(run, "s", asked_of(chat.url, concurrency=1, retries=0))
    with open(judgements_file(run, "s"), "a", encoding="utf-8") as file:
        file.write('{"key": "cut sh')
    with serving(opinion, models=("j",)) as chat:
        judge_set(run, "s", asked_of(chat.url))
        assert len(chat.requests) == 3
    assert len(read_predictions(judgements_file(run, "s"))) == 5


@pytest.mark.parametrize(
    ("raw", "read"),
    [
        ("yes", judge.SAME), ("Yes.", judge.SAME), ("**No**", judge.OTHER), ("<think>no</think>yes", judge.SAME),
        ("yes and no", judge.UNREADABLE), ("Yes, it does", judge.UNREADABLE), ("", judge.UNREADABLE),
        ("<think>yes", judge.UNREADABLE),
    ],
)  # fmt: skip
def test_a_reply_is_read_strictly(raw: str, read: str) -> None:
    assert verdict({"raw": raw, "finish_reason": "stop"}) == read


def test_a_judgement_that_was_cut_is_unreadable() -> None:
    assert verdict({"raw": "The answer", "finish_reason": "length"}) == judge.UNREADABLE


def test_without_a_judge_nothing_is_asked(run: Path) -> None:
    assert not judge_set(run, "s", Eval()) and not judgements_file(run, "s").exists()


@pytest.mark.slow
def test_a_served_model_and_its_judge_in_one_command(
    command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    def both(body: dict[str, Any], n: int) -> Any:
        return opinion(body, n) if body["model"] == "j" else said("left lung")

    with serving(both, models=("m", "j")) as chat:
        named = ("task=eval", "eval.backend=server", f"eval.url={chat.url}", "eval.served_model=m", "eval=demo")
        plain = command(*named)
        judged = command(*named, f"eval.judge.url={chat.url}", "eval.judge.served_model=j")
    assert plain.returncode == judged.returncode == 0, plain.stderr + judged.stderr
    assert "judging   demo_" in judged.stdout and "judge j: 100.0 %" in judged.stdout
    (run,) = (tmp_path / "outputs").glob("m-server-*")
    evaluations = json.loads((run / "result.json").read_text())["evaluations"]
    assert any("judge" in found for found in evaluations.values())
    main(["report", str(run), "--out", str(tmp_path / "report"), "--no-images"])
    assert "What a judge says of open answers" in (tmp_path / "report" / "report.md").read_text()
