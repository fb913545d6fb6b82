"""`result.json` of a run: what training did, and the scores of every set that was evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmft.evaluation import judge, terms
from vlmft.evaluation.ablations import shows_other_pictures
from vlmft.evaluation.comparison import compare
from vlmft.evaluation.predictions import generation_of, predictions_file, read_predictions
from vlmft.evaluation.protocols import PROTOCOLS, SCORER_VERSION
from vlmft.evaluation.scores import score
from vlmft.files import read_json, write_json

SCHEMA = 2
FACTS = ("dropped_rows", "shrunk_rows", "leakage")  # of an evaluation, beside what its predictions say


def scoring_hash() -> str:
    """What decides the scores of given predictions under given protocols; another one scores again."""
    return f"{SCORER_VERSION}-{terms.digest()}"


def read(run: Path) -> dict[str, Any]:
    """The result of a run so far, or an empty one."""
    return read_json(run / "result.json") or {
        "schema": SCHEMA, "run": run.name, "state": "running", "train": None, "evaluations": {},
    }  # fmt: skip


def update(run: Path, **values: Any) -> dict[str, Any]:
    """Set top-level values of result.json and return the whole."""
    result = read(run) | values
    write_json(run / "result.json", result)
    return result


def score_set(run: Path, name: str, protocols: Sequence[str], generation: str, **facts: Any) -> None:
    """Score the stored predictions on one set and keep the outcome, with the hashes that say what it belongs to.

    Protocols that it was scored under before are scored again beside `protocols`. `facts` (rows left out, leakage) are
    what scoring cannot know; those of before stay. A pass without the pictures also gets its difference to the set, and
    goes when the set is answered anew; another split (`<set>.<split>`) has other questions, and stays.
    """
    evaluations = read(run)["evaluations"]
    before = evaluations.get(name, {})
    if before.get("generation", generation) != generation:
        gone = {key for key in evaluations if key.startswith(f"{name}.") and shows_other_pictures(key)}
        evaluations = {key: found for key, found in evaluations.items() if key not in gone}
    again = [protocol for protocol in before.get("scores", {}) if protocol in PROTOCOLS]
    named = list(dict.fromkeys([*protocols, *again]))
    records = read_predictions(predictions_file(run, name))
    entry = score(records, named)
    real = read_predictions(predictions_file(run, name.partition(".")[0])) if shows_other_pictures(name) else []
    if {row["id"] for row in real} & {row["id"] for row in records}:
        entry["difference"] = {protocol: compare(records, real, protocol) for protocol in named}
    if judgements := judge.summary(run, name, records, named):
        entry["judge"] = judgements
    kept = {key: value for key, value in before.items() if key in FACTS}
    evaluations[name] = {**entry, "generation": generation, "scoring": scoring_hash(), **kept, **facts}
    update(run, evaluations=evaluations)


def judged(run: Path, name: str) -> None:
    """Add what was judged of a set to its scores, which stay as they are."""
    evaluations = read(run)["evaluations"]
    entry = evaluations[name]
    entry["judge"] = judge.summary(run, name, read_predictions(predictions_file(run, name)), list(entry["scores"]))
    update(run, evaluations=evaluations)


def pending(run: Path, wanted: dict[str, str], protocols: Sequence[str]) -> tuple[list[str], list[str]]:
    """Of the sets in `wanted` (name → generation hash): those to generate, and those only to score again."""
    evaluations = read(run)["evaluations"]
    generate, rescore = [], []
    for name, generation in wanted.items():
        found = evaluations.get(name, {})
        # The file decides, not what was written about it: a kill may have come between the two.
        if not generation == found.get("generation") == generation_of(predictions_file(run, name)):
            generate.append(name)
        elif found.get("scoring") != scoring_hash() or not set(protocols) <= set(found["scores"]):
            rescore.append(name)
    return generate, rescore
