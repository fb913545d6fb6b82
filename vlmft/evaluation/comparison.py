"""Is one set of answers better than another on the same questions: paired, never by comparing two intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlmft.evaluation import statistics
from vlmft.evaluation.protocols import judge
from vlmft.evaluation.scores import headline

Record = Mapping[str, Any]


def compare(first: Sequence[Record], second: Sequence[Record], protocol: str) -> dict[str, Any]:
    """`second` minus `first` in the headline metric, over the questions (by id) that both answer.

    The interval is a paired bootstrap over images; `p` is the exact McNemar test where every question is right or
    wrong, else of that bootstrap. What cannot be measured (an interval over one image) is None. Raises ValueError where
    no question is shared, and as `judge`.
    """
    of_second = {record["id"]: record for record in second}
    pairs = [(record, of_second[record["id"]]) for record in first if record["id"] in of_second]
    if not pairs:
        raise ValueError("The two sets of predictions share no question.")
    judged = [(judge(one, protocol).values, judge(other, protocol).values) for one, other in pairs]
    metric = headline([one for one, _ in pairs], protocol)
    if not any(metric in one for one, _ in judged):
        metric = "accuracy"  # balanced accuracy is no sum over records
    own = [(one.get(metric, (0.0, 0.0)), other.get(metric, (0.0, 0.0))) for one, other in judged]
    *found, p = statistics.paired_difference(
        [one[0] for one, _ in own], [one[1] for one, _ in own],
        [other[0] for _, other in own], [other[1] for _, other in own],
        statistics.clusters([one["images"] for one, _ in pairs]),
    )  # fmt: skip
    shares = all(above in (0, 1) and below == 1 for pair in own for above, below in pair)
    if shares:
        p = statistics.mcnemar([one[0] == 1 for one, _ in own], [other[0] == 1 for _, other in own])
    difference, low, high = (None if value != value else value for value in found)  # nan is no JSON
    return {
        "metric": metric, "n": len(pairs), "difference": difference, "low": low, "high": high, "p": p,
        "test": "exact McNemar" if shares else "paired bootstrap over images",
    }  # fmt: skip
