from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmft.evaluation import results
from vlmft.evaluation.predictions import predictions_file, write_predictions


def record(generation: str, **changed: Any) -> dict[str, Any]:
    base = {"id": "1", "set": "s", "images": [], "question": "Is it?", "gold": "yes", "answer_type": "closed"}
    return base | {"raw": "yes", "finish_reason": "stop", "generation": generation} | changed


def test_what_is_done_what_is_scored_again_and_what_is_made_again(tmp_path: Path) -> None:
    assert results.pending(tmp_path, {"s": "g1"}, "p1") == (["s"], [])
    write_predictions(predictions_file(tmp_path, "s"), [record("g1")])
    assert results.pending(tmp_path, {"s": "g1"}, "p1") == (["s"], []), "predictions without a score"
    results.score_set(tmp_path, "s", ["strict"], "g1", "p1", floor={"question_only": {"accuracy": 0.5}})
    assert results.pending(tmp_path, {"s": "g1"}, "p1") == ([], [])
    assert results.pending(tmp_path, {"s": "g1"}, "p2") == ([], ["s"])
    assert results.pending(tmp_path, {"s": "g2"}, "p1") == (["s"], [])
    write_predictions(predictions_file(tmp_path, "s"), [record("g2")])
    assert results.pending(tmp_path, {"s": "g1"}, "p1") == (["s"], []), "the file decides"


def test_scoring_again_keeps_the_floor_and_the_other_sets(tmp_path: Path) -> None:
    for name in ("s", "t"):
        write_predictions(predictions_file(tmp_path, name), [record("g1")])
        results.score_set(tmp_path, name, ["strict"], "g1", "p1", floor={"f": 1}, dropped_rows=3, shrunk_rows=0)
    results.score_set(tmp_path, "s", ["normalized"], "g1", "p2")
    found = results.read(tmp_path)["evaluations"]
    assert list(found) == ["s", "t"] and list(found["s"]["scores"]) == ["normalized"]
    assert (found["s"]["floor"], found["s"]["dropped_rows"]) == ({"f": 1}, 3)
