from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vlmft.evaluation import results
from vlmft.evaluation.predictions import predictions_file, write_predictions


def record(generation: str, **changed: Any) -> dict[str, Any]:
    base = {"id": "1", "set": "s", "images": [], "question": "Is it?", "gold": "yes", "answer_type": "closed"}
    return base | {"raw": "yes", "finish_reason": "stop", "generation": generation} | changed


def test_what_is_done_what_is_scored_again_and_what_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert results.pending(tmp_path, {"s": "g1"}, ["strict"]) == (["s"], [])
    write_predictions(predictions_file(tmp_path, "s"), [record("g1")])
    assert results.pending(tmp_path, {"s": "g1"}, ["strict"]) == (["s"], []), "predictions without a score"
    results.score_set(tmp_path, "s", ["strict"], "g1")
    assert results.pending(tmp_path, {"s": "g1"}, ["strict"]) == ([], [])
    assert results.pending(tmp_path, {"s": "g1"}, ["strict", "squad"]) == ([], ["s"])
    results.score_set(tmp_path, "s", ["squad"], "g1")
    assert results.pending(tmp_path, {"s": "g1"}, ["strict"]) == ([], []), "a score of before stays"
    assert results.pending(tmp_path, {"s": "g2"}, ["strict"]) == (["s"], [])
    with monkeypatch.context() as other:
        other.setattr(results, "SCORER_VERSION", -1)
        assert results.pending(tmp_path, {"s": "g1"}, ["strict"]) == ([], ["s"]), "another scorer"
    write_predictions(predictions_file(tmp_path, "s"), [record("g2")])
    assert results.pending(tmp_path, {"s": "g1"}, ["strict"]) == (["s"], []), "the file decides"


def test_scoring_again_keeps_what_it_cannot_know_and_the_other_sets(tmp_path: Path) -> None:
    for name in ("s", "t"):
        write_predictions(predictions_file(tmp_path, name), [record("g1")])
        results.score_set(tmp_path, name, ["strict"], "g1", leakage={"s": {}}, dropped_rows=3, shrunk_rows=0)
    results.score_set(tmp_path, "s", ["normalized"], "g1")
    found = results.read(tmp_path)["evaluations"]
    assert list(found) == ["s", "t"] and list(found["s"]["scores"]) == ["normalized", "strict"]
    assert (found["s"]["leakage"], found["s"]["dropped_rows"]) == ({"s": {}}, 3)


def test_a_pass_without_pictures_is_compared_with_its_set(tmp_path: Path) -> None:
    right = [record("g", id=str(n), images=[f"/{n}.jpg"]) for n in range(30)]
    wrong = [row | {"raw": "no"} if n < 10 else row for n, row in enumerate(right)]
    write_predictions(predictions_file(tmp_path, "s"), right)
    write_predictions(predictions_file(tmp_path, "s.blank"), wrong)
    results.score_set(tmp_path, "s.blank", ["normalized"], "g")
    change = results.read(tmp_path)["evaluations"]["s.blank"]["difference"]["normalized"]
    assert change["difference"] == pytest.approx(10 / 30) and change["low"] > 0
    assert (change["n"], change["test"], change["p"]) == (30, "exact McNemar", pytest.approx(2 / 2**10))
    results.score_set(tmp_path, "s", ["normalized"], "g")
    assert "difference" not in results.read(tmp_path)["evaluations"]["s"]


def test_a_pass_goes_when_its_set_is_answered_anew(tmp_path: Path) -> None:
    for name in ("s", "s.blank", "t", "t.blank"):
        write_predictions(predictions_file(tmp_path, name), [record("g1")])
        results.score_set(tmp_path, name, ["strict"], "g1")
    results.score_set(tmp_path, "s", ["normalized"], "g1")
    assert list(results.read(tmp_path)["evaluations"]) == ["s", "s.blank", "t", "t.blank"], "scored again is not anew"
    results.score_set(tmp_path, "s", ["strict"], "g2")
    assert list(results.read(tmp_path)["evaluations"]) == ["s", "t", "t.blank"]
