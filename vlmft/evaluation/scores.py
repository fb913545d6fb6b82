"""From the records of a set to its scores, each with its interval: a pure function of `predictions_<set>.jsonl`.

Every metric is a sum over the records divided by another, so one bootstrap over images gives the intervals of all
metrics, groups and protocols at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vlmft.data.question import MULTIPLE_CHOICE, VQA
from vlmft.evaluation import floors, statistics, task_metrics
from vlmft.evaluation.answer_kinds import OK
from vlmft.evaluation.breakdowns import groups_of
from vlmft.evaluation.protocols import PROTOCOLS, SCORER_VERSION, Verdict, judge

SMALL = 100  # with fewer records a share has Wilson's interval: there are too few images to draw from

Record = Mapping[str, Any]
Column = Sequence[tuple[float, float] | None]  # numerator and denominator by record; None: the record has no part in it


def score(records: Iterable[Record], protocols: Sequence[str]) -> dict[str, Any]:
    """The scores of one set, as they stand in result.json: plain types, shares from 0 to 1, not rounded.

    Per protocol: `headline`, the metric that heads a table; `metrics`, each with value, low, high (95 %), n and where
    the interval is from; `groups` of the headline metric; the headline metric `without_duplicates` of training rows;
    `statuses` of the answers. `floor` has the metrics' values for what can be answered without looking.
    Raises ValueError where there are no records or no protocols, and as `protocols.judge`.
    """
    rows = list(records)
    if not rows:
        raise ValueError("There are no predictions to score.")
    if not protocols:
        raise ValueError(f"No scoring protocol is named. There are: {', '.join(PROTOCOLS)}.")
    clusters = statistics.clusters([row["images"] for row in rows])
    verdicts = {name: [judge(row, name) for row in rows] for name in protocols}
    groups = groups_of(rows)
    columns: dict[tuple[str, ...], Column] = {}
    for name, judged in verdicts.items():
        columns |= {("metrics", name, metric): column for metric, column in _columns(judged).items()}
        heads = columns.get(("metrics", name, headline(rows, name))) or [(float(v.correct), 1.0) for v in judged]
        for fact, members in groups.items():
            columns |= {("groups", name, fact, value): _only(heads, places) for value, places in members.items()}
        if repeated := [n for n, row in enumerate(rows) if row.get("train", {}).get("pair")]:
            columns["without duplicates", name] = _only(heads, set(range(len(rows))) - set(repeated))
    measured = measured_by(columns, clusters)
    return {
        "n": len(rows),
        "images": len({image for row in rows for image in row["images"]}),
        "smallest_difference": statistics.smallest_difference(len(rows)),
        "unparsed_rate": _unparsed(verdicts[protocols[0]]),
        "scores": {
            name: {
                "headline": headline(rows, name),
                "correct": sum(verdict.correct for verdict in judged),
                "incorrect": sum(not verdict.correct for verdict in judged),
                "unparsed_rate": _unparsed(judged),
                "statuses": dict(Counter(verdict.status for verdict in judged)),
                "metrics": {key[2]: found for key, found in measured.items() if key[:2] == ("metrics", name)}
                | _over_all(rows, judged, clusters),
                "groups": {
                    fact: {value: measured["groups", name, fact, value] for value in members}
                    for fact, members in groups.items()
                },
                "without_duplicates": measured.get(("without duplicates", name)),
            }
            for name, judged in verdicts.items()
        },
        "floor": {
            floor: {name: values(blind, name) for name in protocols}
            for floor in (floors.CONSTANT, floors.QUESTION_ONLY)
            if (blind := floors.as_predictions(rows, floor))
        },
        "scorer_version": SCORER_VERSION,
    }


def headline(records: Sequence[Record], protocol: str) -> str:
    """The metric that heads a table: that of the task most of the records have."""
    tasks = Counter(record.get("task", VQA) for record in records)
    return PROTOCOLS[protocol].heads(tasks.most_common(1)[0][0])


def values(records: Sequence[Record], protocol: str) -> dict[str, float | None]:
    """Every metric of the records, without intervals."""
    judged = [judge(record, protocol) for record in records]
    ratios = {metric: _ratio(column) for metric, column in _columns(judged).items()}
    return ratios | {name: found["value"] for name, found in _over_all(records, judged, None).items()}


def _columns(verdicts: Sequence[Verdict]) -> dict[str, Column]:
    names = dict.fromkeys(name for verdict in verdicts for name in verdict.values)
    if any("mae" in verdict.values and "mae_imputed" not in verdict.values for verdict in verdicts):
        names.pop("mae_imputed", None)  # without a median to put in, it would be another name for "mae"
    return {name: [verdict.values.get(name) for verdict in verdicts] for name in names}


def _only(column: Column, places: Iterable[int]) -> Column:
    kept = set(places)
    return [pair if n in kept else None for n, pair in enumerate(column)]


def _ratio(column: Column) -> float | None:
    below = sum(pair[1] for pair in column if pair)
    return sum(pair[0] for pair in column if pair) / below if below else None


def measured_by(columns: Mapping[tuple[str, ...], Column], clusters: Sequence[int]) -> dict[tuple[str, ...], Any]:
    """Each column's value with its interval, as in result.json."""
    import numpy as np

    pairs = np.array([[pair or (0.0, 0.0) for pair in column] for column in columns.values()])
    drawn = statistics.bootstrap(pairs[:, :, 0].T, pairs[:, :, 1].T, clusters)
    return {
        key: _with_interval(column, interval)
        for (key, column), interval in zip(columns.items(), drawn.tolist(), strict=True)
    }


def _with_interval(column: Column, drawn: Sequence[float]) -> dict[str, Any]:
    pairs = [pair for pair in column if pair]
    value, source = _ratio(column), "bootstrap over images"
    low, high = (None if bound != bound else bound for bound in drawn)  # nan: never measurable
    share = all(above in (0, 1) and below == 1 for above, below in pairs)
    if pairs and share and (len(pairs) < SMALL or value in (0, 1)):  # where all are right, every draw is as well
        source = "Wilson"
        low, high = statistics.wilson(round(sum(above for above, _ in pairs)), len(pairs))
    return {"value": value, "low": low, "high": high, "n": len(pairs), "interval": source}


def _over_all(
    rows: Sequence[Record], verdicts: Sequence[Verdict], clusters: Sequence[int] | None
) -> dict[str, dict[str, Any]]:
    """What is no ratio of sums over records: corpus BLEU, balanced accuracy. Intervals with `clusters` only."""
    found: dict[str, dict[str, Any]] = {}
    for task in dict.fromkeys(row.get("task", VQA) for row in rows):
        if task == VQA:
            continue
        places = [n for n, row in enumerate(rows) if row.get("task", VQA) == task]
        said = [(verdicts[n].parsed, rows[n]) for n in places]
        for name, value in task_metrics.over_all(task, said).items():
            found[name] = {"value": value, "low": None, "high": None, "n": len(places), "interval": None}
        if task == MULTIPLE_CHOICE and clusters is not None and "balanced_accuracy" in found:
            low, high = statistics.bootstrap_macro(
                [verdicts[n].correct for n in places],
                [task_metrics.gold_letter(rows[n]) for n in places],
                [clusters[n] for n in places],
            )
            found["balanced_accuracy"] |= {"low": low, "high": high, "interval": "bootstrap over images"}
    return found


def _unparsed(verdicts: Sequence[Verdict]) -> float:
    return sum(verdict.status != OK for verdict in verdicts) / len(verdicts)
