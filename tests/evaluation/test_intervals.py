"""Intervals: published values, scipy's bootstrap, and whether 95 % means 95 %."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from chiasm.errors import InvalidRequest
from chiasm.evaluation import intervals


def mean_of_totals(sums: Any, sizes: Any, axis: int) -> Any:
    return sums.sum(axis=axis) / sizes.sum(axis=axis)


def totals(values: Any, clusters: Any) -> tuple[Any, Any]:
    """Sum and size of every cluster, by a loop."""
    members: dict[Any, list[float]] = {}
    for value, cluster in zip(values, clusters, strict=True):
        members.setdefault(cluster, []).append(float(value))
    return (
        np.array([sum(each) for each in members.values()]),
        np.array([float(len(each)) for each in members.values()]),
    )


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"), [(80, 100, 0.711, 0.867), (320, 400, 0.758, 0.836)]
)
def test_wilson_gives_the_published_bounds(hits: int, trials: int, low: float, high: float) -> None:
    found = intervals.wilson(hits, trials)
    assert found.value == 0.8
    assert (round(found.low, 3), round(found.high, 3)) == (low, high)


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
@pytest.mark.parametrize(("hits", "trials"), [(0, 7), (1, 7), (7, 7), (250, 1000)])
def test_wilson_agrees_with_scipy(hits: int, trials: int, level: float) -> None:
    oracle = stats.binomtest(hits, trials).proportion_ci(level, method="wilson")
    found = intervals.wilson(hits, trials, level=level)
    np.testing.assert_allclose((found.low, found.high), (oracle.low, oracle.high), atol=1e-12)


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_independent_samples_agree_with_scipy(method: intervals.Method) -> None:
    values = np.random.default_rng(4).exponential(size=60)  # skewed, so that BCa has work to do
    oracle = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method=method, rng=np.random.default_rng(1)
    ).confidence_interval
    found = intervals.mean(values, resamples=20_000, method=method)
    assert found.value == pytest.approx(values.mean())
    # Two sets of 20,000 draws: their ends differ by about a fiftieth of the width.
    tolerance = 0.04 * (oracle.high - oracle.low)
    np.testing.assert_allclose((found.low, found.high), oracle, atol=tolerance)


@pytest.mark.parametrize("shares", [False, True], ids=["values", "hits and misses"])
@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_clusters_of_several_sizes_agree_with_scipy(method: Any, shares: bool) -> None:
    generator = np.random.default_rng(5)
    clusters = generator.integers(0, 60, size=300)
    effects = generator.exponential(size=60)[clusters]
    values = effects > 0.8 if shares else effects + generator.normal(size=300)
    oracle = stats.bootstrap(
        totals(values, clusters),
        mean_of_totals,
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        method=method,
        rng=np.random.default_rng(1),
    ).confidence_interval
    labels = [f"sku-{cluster}" for cluster in clusters]
    found = intervals.mean(values, labels, resamples=20_000, method=method)
    tolerance = 0.04 * (oracle.high - oracle.low)
    np.testing.assert_allclose((found.low, found.high), oracle, atol=tolerance)


def test_many_clusters_that_are_alike_draw_as_unlike_ones_do() -> None:
    """Hits and misses are drawn by kind, other values one by one; both agree with the normal."""
    generator = np.random.default_rng(6)
    hits = (generator.random(4000) < 0.3).astype(float)
    noise = 1e-6 * generator.normal(size=4000)  # makes every sample its own kind
    error = hits.std() / np.sqrt(4000)
    for values in (hits, hits + noise):
        found = intervals.mean(values)
        expected = hits.mean() + np.array([-1.96, 1.96]) * error
        np.testing.assert_allclose((found.low, found.high), expected, atol=0.1 * error)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Six pictures of each of 50 products; pictures of one product are easy or hard together."""
    generator = np.random.default_rng(7)
    clusters = np.repeat(np.arange(50), 6)
    held = {"clustered": 0, "as if independent": 0}
    repetitions = 400
    for repetition in range(repetitions):
        ease = generator.beta(2, 1, size=50)  # a product's share of hits: 2/3 in the mean
        hits = generator.random(300) < ease[clusters]
        clustered = intervals.share(hits, clusters, resamples=800, seed=repetition)
        naive = intervals.share(hits)
        held["clustered"] += clustered.low <= 2 / 3 <= clustered.high
        held["as if independent"] += naive.low <= 2 / 3 <= naive.high
    # Three standard errors of 400 repetitions below, and room for a bootstrap of 50 clusters.
    assert 0.91 <= held["clustered"] / repetitions <= 0.98
    assert held["as if independent"] / repetitions < 0.88


def test_paired_difference_is_narrower_than_two_intervals() -> None:
    generator = np.random.default_rng(8)
    clusters = np.repeat(np.arange(80), 3)
    ease = generator.normal(size=80)[clusters]
    before = ease + 0.1 * generator.normal(size=240)
    after = ease + 0.3 + 0.1 * generator.normal(size=240)
    found = intervals.difference(before, after, clusters)
    oracle = stats.ttest_rel(
        after.reshape(80, 3).mean(axis=1), before.reshape(80, 3).mean(axis=1)
    ).confidence_interval()
    np.testing.assert_allclose((found.low, found.high), oracle, atol=0.1 * (oracle[1] - oracle[0]))
    alone = intervals.mean(before, clusters)
    assert found.high - found.low < (alone.high - alone.low) / 5


def test_certainty_is_not_claimed_where_every_query_hits() -> None:
    clusters = np.repeat(np.arange(20), 10)
    found = intervals.share(np.ones(200, dtype=bool), clusters)
    oracle = stats.binomtest(20, 20).proportion_ci(method="wilson")
    assert found.high == 1.0
    assert found.low == pytest.approx(oracle.low)
    none = intervals.share(np.zeros(200, dtype=bool), clusters)
    assert (none.low, none.high) == pytest.approx((0.0, 1 - oracle.low))


def test_equal_values_and_equal_clusters_are_no_accident() -> None:
    for values in ([0.1] * 7, [0.1, 0.3] * 7):
        clusters = np.repeat(np.arange(7), len(values) // 7)
        found = intervals.mean(values, clusters)
        assert found.low == pytest.approx(found.value)
        assert found.high == pytest.approx(found.value)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(9).normal(size=50)
    assert intervals.mean(values, seed=3) == intervals.mean(values, seed=3)
    assert intervals.mean(values, seed=3) != intervals.mean(values, seed=4)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: intervals.wilson(3, 2), "3 hits in 2 trials"),
        (lambda: intervals.wilson(0, 0), "0 hits in 0 trials"),
        (lambda: intervals.mean([1.0, 2.0], ["a", "a"]), "at least two independent clusters"),
        (lambda: intervals.mean([1.0, np.nan]), "finite"),
        (lambda: intervals.mean([1.0, 2.0], ["a"]), "2 values have 1 cluster labels"),
        (lambda: intervals.mean([1.0, 2.0], level=95), "between 0 and 1"),
        (lambda: intervals.share([0.0, 0.5]), "hits and misses"),
        (lambda: intervals.difference([1.0], [1.0, 2.0]), "the same samples twice"),
    ],
)
def test_what_is_no_sample_is_refused(call: Any, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        call()
