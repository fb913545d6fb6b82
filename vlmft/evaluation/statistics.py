"""How far a score can be trusted: intervals, paired tests, and what a set is too small to show.

Questions about one image are right or wrong together, so resampling draws clusters of records, not records. The
intervals cover the choice of the test questions; `seed_spread` is about the training, and neither holds the other.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from statistics import NormalDist, fmean, stdev
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import ArrayLike, NDArray

RESAMPLES = 10_000

_WEIGHTS_AT_ONCE = 500_000  # cells of the matrix of weights: 4 MB, which a processor's cache can hold


def clusters(images: Sequence[Sequence[str]]) -> list[int]:
    """The cluster of each record, numbered from 0 in order of first appearance.

    `images` holds the images of each record. Records that share one are in one cluster, also by way of a third
    record; a record without images is a cluster of its own.
    """
    parent = list(range(len(images)))

    def root(record: int) -> int:
        while parent[record] != record:
            parent[record] = parent[parent[record]]
            record = parent[record]
        return record

    first: dict[str, int] = {}
    for record, names in enumerate(images):
        for name in names:
            parent[root(record)] = root(first.setdefault(name, record))
    number: dict[int, int] = {}
    return [number.setdefault(root(record), len(number)) for record in range(len(images))]


def bootstrap(
    numerators: ArrayLike,
    denominators: ArrayLike,
    clusters: Sequence[int],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> NDArray[float64]:
    """The percentile intervals of m metrics at once: float64, shape (m, 2), low and high in the metrics' own units.

    `numerators` and `denominators` have shape (n records, m metrics); a metric is the sum of its numerators over
    the sum of its denominators, so a record that has no part in it has 0 in both. All metrics see the same draws.
    Resamples in which a metric has no denominator are left out of its interval, and a metric that rests on fewer
    than two clusters has nan. Where every record has the same value the interval has no width: `wilson` is the
    one for that. Raises ValueError for shapes that differ, values that are not finite and denominators below 0.
    Source: the cluster bootstrap (whole clusters are drawn; Davison and Hinkley 1997, on hierarchical data) with
    Efron's percentile interval (1979).
    """
    import numpy as np

    sums = _cluster_sums(numerators, denominators, clusters)
    clusters_behind = np.count_nonzero(np.split(sums, 2, axis=1)[1], axis=0)
    intervals = np.full((len(clusters_behind), 2), np.nan)
    if len(sums):
        drawn = np.concatenate([_ratios(totals) for totals in _resampled(sums, resamples, seed)])
        for metric in np.flatnonzero(clusters_behind >= 2):
            intervals[metric] = _percentiles(drawn[:, metric], level)
    return intervals


def bootstrap_macro(
    correct: Sequence[float],
    group: Sequence[Hashable],
    clusters: Sequence[int],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """The percentile interval (low, high) of the mean over groups of the mean of `correct` within the group.

    With the gold classes as groups that is balanced accuracy. A group that is absent from a resample is left out of
    that resample's mean. All three sequences have one item per record. Both ends are nan where there are fewer than
    two clusters. Raises ValueError for lengths that differ and values that are not finite. Source: as `bootstrap`.
    """
    import numpy as np

    if len(correct) != len(group):
        raise ValueError(f"There are {len(correct)} values of correct for {len(group)} groups; a record has one each.")
    number: dict[Hashable, int] = {}
    column = np.array([number.setdefault(name, len(number)) for name in group], dtype=int)
    member = (column[:, None] == np.arange(len(number))).astype(float)
    sums = _cluster_sums(member * np.asarray(correct, dtype=float)[:, None], member, clusters)
    if len(sums) < 2:
        return float("nan"), float("nan")
    means = [np.nanmean(_ratios(totals), axis=1) for totals in _resampled(sums, resamples, seed)]
    return _percentiles(np.concatenate(means), level)


def paired_difference(
    numerators_a: ArrayLike,
    denominators_a: ArrayLike,
    numerators_b: ArrayLike,
    denominators_b: ArrayLike,
    clusters: Sequence[int],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float, float, float]:
    """How far metric b lies above metric a on the same records: (difference, low, high, p).

    Each of the first four has shape (n records,); the metrics are ratios as in `bootstrap`, and both see the same
    draws. p is two-sided: twice the smaller share of resamples on either side of 0, with one resample added to
    both, so that it is never 0. It is also never below what the exact sign test gives when all clusters in which
    a and b differ favour one side: with few of them the bootstrap alone finds too much. The difference is nan where
    a denominator sums to 0; where either metric rests on fewer than two clusters, low and high are nan and p is
    1.0. Raises ValueError as `bootstrap`. Source: as `bootstrap`; the added one, Davison and Hinkley 1997, on tests.
    """
    import numpy as np

    def differences(totals: NDArray[float64]) -> NDArray[float64]:
        # Rounded, so that two equal metrics whose sums were added up in another order differ by 0.
        return np.round(np.diff(_ratios(totals), axis=1)[:, 0], 12)

    above, below = (
        np.stack(pair, axis=-1) for pair in ((numerators_a, numerators_b), (denominators_a, denominators_b))
    )
    sums = _cluster_sums(above, below, clusters)
    difference = float(differences(sums.sum(axis=0, keepdims=True))[0])
    if np.count_nonzero(sums[:, 2:], axis=0).min() < 2:
        return difference, float("nan"), float("nan"), 1.0
    drawn = np.concatenate([differences(totals) for totals in _resampled(sums, resamples, seed)])
    low, high = _percentiles(drawn, level)
    drawn = drawn[~np.isnan(drawn)]
    fewer = min(np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0))
    differing = np.count_nonzero((sums[:, 0] != sums[:, 1]) | (sums[:, 2] != sums[:, 3]))
    p = max(2 * (fewer + 1) / (drawn.size + 1), 2 * 0.5**differing)
    return difference, low, high, float(min(1.0, p))


def _cluster_sums(numerators: ArrayLike, denominators: ArrayLike, clusters: Sequence[int]) -> NDArray[float64]:
    """Both side by side, summed within each cluster: shape (k clusters, 2 * m)."""
    import numpy as np

    above, below = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
    if above.ndim != 2 or above.shape != below.shape or len(above) != len(clusters):
        raise ValueError(
            f"Numerators {above.shape}, denominators {below.shape} and {len(clusters)} clusters do not fit: both "
            "arrays are (records, metrics), with one cluster number per record."
        )
    values = np.concatenate([above, below], axis=1)
    wrong = np.flatnonzero(~np.isfinite(values).all(axis=1) | (below < 0).any(axis=1))
    if wrong.size:
        raise ValueError(
            f"Record {wrong[0]}: {above[wrong[0]].tolist()} over {below[wrong[0]].tolist()}. All are finite numbers, "
            "and a denominator is at least 0."
        )
    present, where = np.unique(np.asarray(clusters, dtype=int), return_inverse=True)
    sums = np.zeros((len(present), values.shape[1]))
    np.add.at(sums, where, values)
    return sums


def _resampled(sums: NDArray[float64], resamples: int, seed: int) -> Iterator[NDArray[float64]]:
    """The column totals of `resamples` draws of as many clusters as there are, with replacement, some at a time.

    Counting drawn numbers gives the multinomial weights ten times faster than drawing from the multinomial.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    count = len(sums)
    at_once = max(1, _WEIGHTS_AT_ONCE // count)
    for start in range(0, resamples, at_once):
        drawn = rng.integers(count, size=(min(at_once, resamples - start), count))
        yield np.array([np.bincount(row, minlength=count) for row in drawn], dtype=float) @ sums


def _ratios(totals: NDArray[float64]) -> NDArray[float64]:
    """The left half of the columns over the right half, nan where that is 0."""
    import numpy as np

    above, below = np.split(totals, 2, axis=1)
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below != 0)


def _percentiles(drawn: NDArray[float64], level: float) -> tuple[float, float]:
    import numpy as np

    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (1927) of a share of independent records, (low, high) from 0 to 1.

    It holds for small n, and for shares of 0 and 1. Raises ValueError where n is 0 or successes is not 0 to n.
    """
    from scipy.stats import binomtest

    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"{successes} of {n} is no share: n is at least 1, and successes lies from 0 to n.")
    interval = binomtest(successes, n).proportion_ci(confidence_level=level, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> float:
    """The two-sided p of the exact McNemar test (1947) that a and b are right equally often on the same records.

    The pairs in which just one is right are binomial with one half; without such pairs p is 1.0. It takes records as
    independent. Raises ValueError for lengths that differ.
    """
    from scipy.stats import binomtest

    if len(a) != len(b):
        raise ValueError(f"There are {len(a)} verdicts in a and {len(b)} in b; the test pairs the same records.")
    discordant = [bool(x) for x, y in zip(a, b, strict=True) if bool(x) != bool(y)]
    return float(binomtest(sum(discordant), len(discordant)).pvalue) if discordant else 1.0


@overload
def holm(p_values: Mapping[str, float]) -> dict[str, float]: ...
@overload
def holm(p_values: Sequence[float]) -> list[float]: ...
def holm(p_values: Mapping[str, float] | Sequence[float]) -> dict[str, float] | list[float]:
    """p-values adjusted for being many, by Holm (1979), in the order and under the names they came with.

    The i-th smallest of k, from 0, is multiplied by k - i, is at least what a smaller one became, and at most 1.0.
    Raises ValueError for a p-value that is not from 0 to 1.
    """
    if isinstance(p_values, Mapping):
        return dict(zip(p_values, holm(list(p_values.values())), strict=True))
    if wrong := [p for p in p_values if not 0 <= p <= 1]:
        raise ValueError(f"{wrong[0]} is no p-value: those are from 0 to 1.")
    adjusted = [0.0] * len(p_values)
    floor = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = floor
    return adjusted


def smallest_difference(n: int, *, discordant: float = 0.15, power: float = 0.8, level: float = 0.95) -> float:
    """The smallest difference of two accuracies, as a share, that McNemar's test on n records finds with `power`.

    `discordant` is the share of records on which just one of the two is right. The formula is
    (z_(1 - alpha/2) + z_power) * sqrt(discordant / n), that of Connor (1987) without its term in the squared
    difference. Two accuracies differ by no more than the share on which they disagree, so on sets too small for
    `discordant` it is taken as the difference itself; above 1.0 no difference can be found. Records count as
    independent, and the test as the asymptotic one: `mcnemar` is a little more cautious. Raises ValueError for n
    below 1.
    """
    if n < 1:
        raise ValueError(f"n is {n}; a set has at least 1 record.")
    z = NormalDist().inv_cdf((1 + level) / 2) + NormalDist().inv_cdf(power)
    return max(z * (discordant / n) ** 0.5, z**2 / n)


def seed_spread(values: Sequence[float]) -> dict[str, Any]:
    """The scores of runs that differ in the training seed alone: {"n", "mean", "sd", "low", "high"}.

    `sd` is the sample standard deviation (n - 1), None for a single run; low and high are the extremes. This is the
    noise of training, which no interval over test questions holds. Raises ValueError where there are no values.
    """
    if not values:
        raise ValueError("There are no runs to take the spread of.")
    sd = stdev(values) if len(values) > 1 else None
    return {"n": len(values), "mean": fmean(values), "sd": sd, "low": min(values), "high": max(values)}
