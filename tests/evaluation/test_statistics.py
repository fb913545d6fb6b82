"""Intervals and tests against scipy, against every resample there is, and against figures worked out by hand."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from vlmft.evaluation.statistics import (
    bootstrap,
    bootstrap_macro,
    clusters,
    holm,
    mcnemar,
    paired_difference,
    seed_spread,
    smallest_difference,
    wilson,
)

NAN = float("nan")


def column(values: Any) -> Any:
    return np.asarray(values, dtype=float)[:, None]


@pytest.mark.parametrize(
    ("images", "numbers"),
    [
        ([], []),
        ([["a"], ["b"], ["a"]], [0, 1, 0]),
        ([["a"], ["b"], ["c", "b"], ["a", "c"]], [0, 0, 0, 0]),  # joined by the records after them
        ([["a"], ["b"], ["c"], ["c", "a"]], [0, 1, 0, 0]),
        ([[], [], ["a"], []], [0, 1, 2, 3]),
        ([["a", "a"], ["b", "b"]], [0, 1]),
    ],
)
def test_records_that_share_an_image_are_one_cluster(images: list[list[str]], numbers: list[int]) -> None:
    assert clusters(images) == numbers


def test_a_long_chain_of_shared_images_is_one_cluster() -> None:
    chain = [[str(place), str(place + 1)] for place in range(5000)]
    assert set(clusters(chain)) == {0} and set(clusters(chain[::-1])) == {0}


def every_resample(sums: list[list[float]], metric: Callable[[Any], float]) -> list[float]:
    """The metric of all k**k ways to draw k of the clusters, each as likely as another."""
    return [metric(np.sum(drawn, axis=0)) for drawn in itertools.product(sums, repeat=len(sums))]


def ends(drawn: list[float]) -> list[float]:
    """The 60 % interval of a discrete distribution given in full; repeated, so that nothing is interpolated."""
    shares = [np.mean(np.array(drawn) <= value) for value in drawn]
    assert min(abs(share - edge) for share in shares for edge in (0.2, 0.8)) > 0.015, "no step lies at an end"
    return [float(end) for end in np.quantile(np.repeat(drawn, 1000), [0.2, 0.8])]


def test_bootstrap_is_that_of_all_resamples_of_clusters() -> None:
    # three images with 1, 2 and 3 questions, right 1, 0 and 2 times
    right, of = [1, 0, 0, 1, 1, 0], [0, 1, 1, 2, 2, 2]
    found = bootstrap(column(right), np.ones((6, 1)), of, level=0.6)
    drawn = every_resample([[1, 1], [0, 2], [2, 3]], lambda total: total[0] / total[1])
    assert found.shape == (1, 2) and found.dtype == np.float64
    assert found[0].tolist() == pytest.approx(ends(drawn))
    # the same with other numbers for the same clusters: gaps are no empty clusters
    assert found.tolist() == bootstrap(column(right), np.ones((6, 1)), [0, 10, 10, 20, 20, 20], level=0.6).tolist()


def test_bootstrap_of_single_records_is_scipys() -> None:
    values = np.random.default_rng(5).gamma(2.0, size=200)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=10_000, method="percentile", rng=1).confidence_interval
    ours = bootstrap(column(values), np.ones((200, 1)), range(200))[0]
    assert ours.tolist() == pytest.approx([theirs.low, theirs.high], abs=0.01)
    narrower = bootstrap(column(values), np.ones((200, 1)), range(200), level=0.8)[0]
    assert ours[0] < narrower[0] < narrower[1] < ours[1]


def test_the_interval_is_wider_where_the_records_of_an_image_agree() -> None:
    right = np.repeat(np.random.default_rng(2).integers(2, size=100), 4)  # 100 images, 4 questions each
    (alone,) = bootstrap(column(right), np.ones((400, 1)), range(400))
    (together,) = bootstrap(column(right), np.ones((400, 1)), np.repeat(np.arange(100), 4).tolist())
    assert (together[1] - together[0]) / (alone[1] - alone[0]) == pytest.approx(2, abs=0.15)  # the root of 4


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    of = np.repeat(np.arange(60), 3).tolist()
    hits = 0
    for _ in range(300):
        right = rng.random(180) < np.repeat(rng.beta(2, 1, size=60), 3)  # two thirds, and images differ
        ((low, high),) = bootstrap(column(right), np.ones((180, 1)), of, resamples=400)
        hits += low <= 2 / 3 <= high
    assert 0.90 <= hits / 300 <= 0.98


def test_metrics_share_the_draws_and_a_seed_gives_the_same_again() -> None:
    rng = np.random.default_rng(4)
    values, of = rng.random((50, 1)), rng.integers(20, size=50).tolist()
    both = bootstrap(np.hstack([values, 1 - values]), np.ones((50, 2)), of)
    assert both[1].tolist() == pytest.approx((1 - both[0, ::-1]).tolist())
    assert both.tolist() == bootstrap(np.hstack([values, 1 - values]), np.ones((50, 2)), of).tolist()
    assert both.tolist() != bootstrap(np.hstack([values, 1 - values]), np.ones((50, 2)), of, seed=1).tolist()


def test_a_metric_of_some_records_leaves_out_resamples_without_them() -> None:
    # the second metric has two of four clusters behind it, the third one, the fourth none
    ones = np.ones((4, 1))
    above = np.hstack([ones, column([1, 0, 0, 0]), column([1, 0, 0, 0]), 0 * ones])
    below = np.hstack([ones, column([1, 1, 0, 0]), column([1, 0, 0, 0]), 0 * ones])
    found = bootstrap(above, below, range(4)).tolist()
    assert found[:2] == [[1, 1], [0, 1]] and np.isnan(found[2:]).all()
    assert np.isnan(bootstrap(ones, ones, [7, 7, 7, 7])).all()
    assert np.isnan(bootstrap(np.ones((0, 2)), np.ones((0, 2)), [])).tolist() == [[True, True]] * 2


@pytest.mark.parametrize(
    ("above", "below", "of", "told"),
    [
        ([[1], [1]], [[1], [1]], [0], r"\(2, 1\).* 1 clusters"),
        ([[1], [1]], [[1, 1], [1, 1]], [0, 1], r"\(2, 2\)"),
        ([1, 1], [1, 1], [0, 1], r"\(2,\)"),
        ([[1], [NAN]], [[1], [1]], [0, 1], r"Record 1: \[nan\] over \[1.0\]"),
        ([[1], [1]], [[1], [-1]], [0, 1], "Record 1.*at least 0"),
    ],
)
def test_what_makes_no_ratio_is_refused(above: Any, below: Any, of: list[int], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        bootstrap(above, below, of)


def test_macro_is_that_of_all_resamples_with_absent_groups_left_out() -> None:
    right, group, of = [1, 0, 1, 0, 0, 1], ["b", "c", "c", "a", "b", "a"], [0, 1, 2, 3, 3, 3]
    # right in a, b, c, then all in a, b, c
    sums = [[0, 1, 0, 0, 1, 0], [0, 0, 0, 0, 0, 1], [0, 0, 1, 0, 0, 1], [1, 0, 0, 2, 1, 0]]

    def balanced(total: Any) -> float:
        return float(np.mean([total[place] / total[place + 3] for place in range(3) if total[place + 3]]))

    found = bootstrap_macro(right, group, of, level=0.6)
    assert found == pytest.approx(ends(every_resample(sums, balanced)))


def test_macro_weighs_groups_alike() -> None:
    # 90 of a, all right, and 10 of b, all wrong: accuracy is 0.9, balanced accuracy one half in any resample
    right, group = [1] * 90 + [0] * 10, ["a"] * 90 + ["b"] * 10
    assert bootstrap_macro(right, group, range(100)) == (0.5, 0.5)
    assert np.isnan(bootstrap_macro([1, 0], ["a", "b"], [0, 0])).all()
    with pytest.raises(ValueError, match="1 values of correct for 2 groups"):
        bootstrap_macro([1], ["a", "b"], [0, 1])


def test_many_records_take_little_time_and_memory() -> None:
    code = (
        "import numpy, resource, time\n"
        "from vlmft.evaluation.statistics import bootstrap\n"
        "rng = numpy.random.default_rng(0)\n"
        "values, of = rng.random((15000, 12)), rng.integers(10000, size=15000)\n"
        "before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()\n"
        "bootstrap(values, numpy.ones_like(values), of)\n"
        "print(time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    seconds, kilobytes = map(float, done.stdout.split())
    assert seconds < 6, "0.7 s when this was written"
    if sys.platform == "linux":  # elsewhere ru_maxrss has other units
        assert kilobytes < 100_000


def test_difference_is_that_of_all_resamples() -> None:
    a, b, of = [1, 0, 0, 1, 0, 0, 0], [0, 1, 0, 1, 0, 1, 1], [0, 1, 1, 2, 2, 3, 3]
    ones = [1] * 7
    difference, low, high, p = paired_difference(a, ones, b, ones, of, level=0.6)
    drawn = every_resample([[-1, 1], [1, 2], [0, 2], [2, 2]], lambda total: total[0] / total[1])
    assert difference == pytest.approx(2 / 7)
    assert (low, high) == pytest.approx(ends(drawn))
    assert p == pytest.approx(2 * np.mean(np.array(drawn) <= 0), abs=0.02)
    back = paired_difference(b, ones, a, ones, of, level=0.6)
    assert back == pytest.approx((-difference, -high, -low, p))


def test_ratios_may_have_their_own_denominators() -> None:
    # mean error over what was parsed: a parsed all three (6 / 3), b only two (2 / 2)
    difference, low, high, _ = paired_difference([1, 2, 3], [1, 1, 1], [1, 0, 1], [1, 0, 1], [0, 1, 2])
    assert difference == -1 and (low, high) == (-2, 0)  # in some resamples b has nothing: they are left out
    # b parsed two of twenty, so that 0.9 ** 20 of the resamples, 1,216 of 10,000, have none and count for neither side
    zeros, ones, two = [0] * 20, [1] * 20, [1] * 2 + [0] * 18
    assert 2 / paired_difference(zeros, ones, two, two, range(20))[3] == pytest.approx(8785, abs=150)


def test_p_is_never_nought_nor_below_an_exact_tests() -> None:
    ones = wins = [1] * 100
    assert paired_difference([0] * 70, ones[:70], wins[:70], ones[:70], range(70))[3] == pytest.approx(2 / 10_001)
    for few in (1, 3, 5):  # records in which only b is right
        b = [1] * few + [0] * (100 - few)
        p = paired_difference([0] * 100, ones, b, ones, range(100))[3]
        assert p == mcnemar([False] * 100, [bool(x) for x in b]) == 2 * 0.5**few
    assert paired_difference(wins, ones, wins, ones, range(100)) == (0, 0, 0, 1)


def test_equal_metrics_that_add_up_in_another_order_do_not_differ() -> None:
    # 0.1 + 0.2 + 0.3 and 0.3 + 0.2 + 0.1 are two numbers in floating point
    a, b, of = [0.1, 0.2, 0.3] * 40, [0.3, 0.2, 0.1] * 40, np.repeat(np.arange(40), 3).tolist()
    assert paired_difference(a, [1] * 120, b, [1] * 120, of) == (0, 0, 0, 1)


def test_a_difference_that_cannot_be_told_has_no_interval() -> None:
    one_image = paired_difference([0, 0], [1, 1], [1, 1], [1, 1], [0, 0])
    assert one_image[0] == 1 and np.isnan(one_image[1:3]).all() and one_image[3] == 1
    nothing = paired_difference([0, 0], [0, 0], [1, 1], [1, 1], [0, 1])
    assert np.isnan(nothing[:3]).all() and nothing[3] == 1
    with pytest.raises(ValueError, match="3 clusters"):
        paired_difference([0, 0], [1, 1], [1, 1], [1, 1], [0, 1, 2])


def test_p_of_no_difference_is_even() -> None:
    rng = np.random.default_rng(6)
    of, ones = np.repeat(np.arange(50), 2).tolist(), np.ones(100)
    found = [paired_difference(rng.random(100), ones, rng.random(100), ones, of, resamples=400)[3] for _ in range(300)]
    assert 0.02 <= np.mean(np.array(found) < 0.05) <= 0.09 and 0.42 <= np.mean(found) <= 0.58


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(0, 10, 0, 0.27753), (10, 10, 0.72247, 1), (5, 10, 0.23659, 0.76341), (81, 263, 0.25529, 0.36619)],
)
def test_wilson(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=1e-4)  # 81 of 263: Newcombe 1998, table I
    z = stats.norm.ppf(0.95)
    share = (successes + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(successes * (n - successes) / n + z * z / 4)
    assert wilson(successes, n, level=0.9) == pytest.approx((share - half, share + half), abs=1e-9)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 3), (4, 3)])
def test_wilson_refuses_what_is_no_share(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"{successes} of {n} is no share"):
        wilson(successes, n)


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [(0, 0, 1), (1, 0, 1), (5, 0, 0.0625), (0, 6, 0.03125), (1, 9, 22 / 1024), (3, 3, 1), (2, 5, 2 * 29 / 128)],
)
def test_mcnemar_is_binomial_on_the_pairs_that_differ(only_a: int, only_b: int, p: float) -> None:
    a = [True] * only_a + [False] * only_b + [True, True, False]
    b = [False] * only_a + [True] * only_b + [True, True, False]
    assert mcnemar(a, b) == mcnemar(b, a) == pytest.approx(p)


def test_mcnemar_pairs_the_same_records() -> None:
    with pytest.raises(ValueError, match="2 verdicts in a and 1 in b"):
        mcnemar([True, False], [True])


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ([], []),
        ([0.04], [0.04]),
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # 0.04 * 1 is raised to 0.03 * 2
        ([0.5, 0.4, 0.9], [1, 1, 1]),
        ([0.02, 0.02], [0.04, 0.04]),
    ],
)
def test_holm(p_values: list[float], adjusted: list[float]) -> None:
    assert holm(p_values) == pytest.approx(adjusted)
    named = holm({str(place): p for place, p in enumerate(p_values)})
    assert named == {str(place): value for place, value in enumerate(holm(p_values))}


@pytest.mark.parametrize("wrong", [-0.1, 1.1, NAN])
def test_holm_refuses_what_is_no_p_value(wrong: float) -> None:
    with pytest.raises(ValueError, match=f"{wrong} is no p-value"):
        holm([0.5, wrong])


@pytest.mark.parametrize(
    ("n", "points"),
    # VQA-RAD and its yes/no questions, SLAKE in English and its closed questions, PMC-VQA clean, AQUA, PathVQA
    [(451, 5.1), (251, 6.8), (1061, 3.3), (416, 5.3), (2000, 2.4), (4912, 1.5), (6719, 1.3)],
)
def test_smallest_difference_of_published_sets(n: int, points: float) -> None:
    assert round(100 * smallest_difference(n), 1) == points


def test_smallest_difference_is_found_with_the_power_it_says() -> None:
    rng = np.random.default_rng(7)
    for power in (0.5, 0.8):
        found = smallest_difference(1000, discordant=0.2, power=power)
        b, c, _ = rng.multinomial(1000, [(0.2 + found) / 2, (0.2 - found) / 2, 0.8], size=20_000).T
        assert np.mean((b - c) ** 2 / (b + c) > stats.chi2.ppf(0.95, 1)) == pytest.approx(power, abs=0.015)


def test_smallest_difference_on_small_sets() -> None:
    assert smallest_difference(40) == pytest.approx(7.8489 / 40, abs=1e-4)  # above 0.15, so all that differ favour one
    assert smallest_difference(5) > 1
    assert smallest_difference(400, level=0.99) > smallest_difference(400)
    with pytest.raises(ValueError, match="n is 0"):
        smallest_difference(0)


def test_seed_spread() -> None:
    assert seed_spread([0.5, 0.7, 0.6]) == pytest.approx({"n": 3, "mean": 0.6, "sd": 0.1, "low": 0.5, "high": 0.7})
    assert seed_spread([0.5]) == {"n": 1, "mean": 0.5, "sd": None, "low": 0.5, "high": 0.5}
    with pytest.raises(ValueError, match="no runs"):
        seed_spread([])


def test_importing_it_loads_nothing_heavy() -> None:
    code = "import sys, vlmft.evaluation.statistics; print(*{'numpy', 'scipy', 'torch'} & sys.modules.keys())"
    root = Path(__file__).resolve().parents[2]
    assert not subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True).stdout.strip()
