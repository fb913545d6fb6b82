"""`result.json` of a run: what training did, and the scores of every set that was evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmft.evaluation import metrics
from vlmft.evaluation.predictions import generation_of, predictions_file, read_predictions
from vlmft.files import read_json, write_json

SCHEMA = 1


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


def score_set(
    run: Path,
    name: str,
    protocols: Sequence[str],
    generation: str,
    scoring: str,
    floor: Any = None,
    **facts: Any,
) -> None:
    """Score the stored predictions on one set and keep the outcome, with the hashes that say what it belongs to.

    `floor` None keeps the floor that was computed when the set's own training questions were at hand.
    """
    evaluations = read(run)["evaluations"]
    before = evaluations.get(name, {})
    evaluations[name] = {
        **metrics.score(read_predictions(predictions_file(run, name)), protocols),
        "floor": before.get("floor") if floor is None else floor,
        "generation": generation,
        "scoring": scoring,
        **{key: value for key, value in before.items() if key in ("dropped_rows", "shrunk_rows")},
        **facts,
    }
    update(run, evaluations=evaluations)


def pending(run: Path, wanted: dict[str, str], scoring: str) -> tuple[list[str], list[str]]:
    """Of the sets in `wanted` (name → generation hash): those to generate, and those only to score again."""
    evaluations = read(run)["evaluations"]
    generate, rescore = [], []
    for name, generation in wanted.items():
        found = evaluations.get(name, {})
        # The file decides, not what was written about it: a kill may have come between the two.
        if not generation == found.get("generation") == generation_of(predictions_file(run, name)):
            generate.append(name)
        elif found.get("scoring") != scoring:
            rescore.append(name)
    return generate, rescore
