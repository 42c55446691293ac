"""Confidence intervals of means and shares, where the samples come in clusters.

Six pictures of one product are not six independent samples: a query set of 3,000 pictures of 500
products tells hardly more than 500 would. So whole clusters are drawn, with all their samples
(Davison & Hinkley 1997, *Bootstrap Methods and their Application*, §3.8; Field & Welsh 2007).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chiasm.errors import InvalidRequest

RESAMPLES = 10_000
LEVEL = 0.95
_DRAWN_AT_ONCE = 1 << 18  # few enough that what is drawn stays in a core's cache
_NORMAL = NormalDist()

Floats = NDArray[np.float64]
Labels = Sequence[Any] | NDArray[Any]
Method = Literal["bca", "percentile"]


@dataclass(frozen=True)
class Interval:
    """An estimate and the bounds that hold the true value in a share `level` of all experiments."""

    value: float
    low: float
    high: float
    level: float = LEVEL

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f}–{self.high:.3f})"


def wilson(hits: float, trials: int, *, level: float = LEVEL) -> Interval:
    """Wilson's score interval for the share of hits among independent trials.

    Wilson 1927, JASA 22:209. Raises InvalidRequest unless 0 ≤ hits ≤ trials and trials > 0.
    """
    if trials <= 0 or not 0 <= hits <= trials:
        raise InvalidRequest(f"{hits} hits in {trials} trials are no share.")
    z = _NORMAL.inv_cdf(0.5 + _level(level) / 2)
    share = hits / trials
    centre = share + z**2 / (2 * trials)
    half = z * (share * (1 - share) / trials + z**2 / (4 * trials**2)) ** 0.5
    whole = 1 + z**2 / trials
    # At 0 and 1 the bound is the share itself, which rounding would miss by a hair.
    low = 0.0 if hits == 0 else (centre - half) / whole
    high = 1.0 if hits == trials else (centre + half) / whole
    return Interval(share, low, high, level)


def mean(
    values: ArrayLike,
    clusters: Labels | None = None,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
    method: Method = "bca",
) -> Interval:
    """The mean of `values` with a bootstrap interval; whole clusters are drawn.

    values: [samples]. clusters: a label each, such as the sku; None if all are independent.
    method: `percentile`, or `bca`, which corrects it for bias and skew (Efron 1987, JASA 82:171).

    Where all values are equal there is nothing to draw from and the interval has no width: ask
    `share` for shares. Raises InvalidRequest for fewer than two clusters, values that are not
    finite, or labels that are not one a value.
    """
    sums, sizes = _totals(values, clusters)
    estimate = float(sums.sum() / sizes.sum())
    drawn = _resampled(sums, sizes, resamples, seed)
    outside = (1 - _level(level)) / 2
    ends = (outside, 1 - outside)
    if method == "bca":
        ends = _corrected(ends, estimate, drawn, sums, sizes)
    low, high = np.quantile(drawn, ends).tolist()
    # The mean of equal values differs from them by rounding; the estimate stays inside.
    return Interval(estimate, min(low, estimate), max(high, estimate), level)


def share(
    hits: ArrayLike,
    clusters: Labels | None = None,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The share of hits, such as recall@k, with an interval. hits: [samples], bool or 0 and 1.

    Independent samples: Wilson's. Clustered ones: the bootstrap of `mean`; where every sample has
    the same outcome, which the bootstrap takes for certainty, Wilson's with a trial a cluster.
    """
    outcomes = np.asarray(hits, dtype=np.float64)
    if not np.isin(outcomes, (0.0, 1.0)).all():
        raise InvalidRequest("A share is of hits and misses: ones and zeros.")
    if clusters is None:
        return wilson(float(outcomes.sum()), outcomes.size, level=level)
    sums, sizes = _totals(outcomes, clusters)
    if sums.sum() in (0.0, sizes.sum()):
        return wilson(sums.size if sums.any() else 0, sums.size, level=level)
    return mean(outcomes, clusters, level=level, resamples=resamples, seed=seed)


def difference(
    before: ArrayLike,
    after: ArrayLike,
    clusters: Labels | None = None,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
    method: Method = "bca",
) -> Interval:
    """The mean of after − before on the same samples, in the same order, by `mean`.

    Paired: what makes a query easy for both falls out, so the interval is narrower than what two
    separate intervals suggest.
    """
    first, second = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if first.shape != second.shape:
        raise InvalidRequest(
            f"A paired difference needs the same samples twice, not {first.shape} and "
            f"{second.shape}."
        )
    return mean(
        second - first, clusters, level=level, resamples=resamples, seed=seed, method=method
    )


# The bootstrap ----------------------------------------------------------------------------------


def _totals(values: ArrayLike, clusters: Labels | None) -> tuple[Floats, Floats]:
    """Sum and number of the samples of every cluster: [clusters] each. All the bootstrap needs."""
    samples = np.asarray(values, dtype=np.float64)
    if samples.ndim != 1 or not np.isfinite(samples).all():
        raise InvalidRequest("An interval is of a list of finite values.")
    if clusters is None:
        sums, sizes = samples, np.ones_like(samples)
    else:
        if len(clusters) != samples.size:
            raise InvalidRequest(f"{samples.size} values have {len(clusters)} cluster labels.")
        _, member = np.unique(np.asarray(clusters), return_inverse=True)
        sums, sizes = (
            np.bincount(member, weights=weights).astype(np.float64)
            for weights in (samples, np.ones_like(samples))
        )
    if sums.size < 2:
        raise InvalidRequest(
            f"An interval needs at least two independent clusters; there are {sums.size}."
        )
    return sums, sizes


def _resampled(sums: Floats, sizes: Floats, resamples: int, seed: int) -> Floats:
    """The mean in each of `resamples` draws, with replacement, of as many clusters: [resamples]."""
    generator = np.random.Generator(np.random.SFC64(seed))
    count = sums.size
    kinds, members = np.unique(np.stack([sums, sizes], axis=1), axis=0, return_counts=True)
    if kinds.shape[0] * 16 < count:
        # Of clusters that are alike it only matters how many are drawn, as with hits and misses.
        numbers = generator.multinomial(count, members / count, size=resamples)
        totals = numbers.astype(np.float64) @ kinds  # [resamples, sum and size]
        return np.asarray(totals[:, 0] / totals[:, 1])
    width = np.uint16 if count < 1 << 16 else np.uint32
    one_size = bool((sizes == sizes[0]).all())
    means = np.empty(resamples)
    step = max(1, _DRAWN_AT_ONCE // count)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        chosen = generator.integers(0, count, size=(rows, count), dtype=width)
        # No index is out of range; with mode="clip" numpy does not look, which is twice as fast.
        total = sums.take(chosen, mode="clip").sum(axis=1)
        size = count * sizes[0] if one_size else sizes.take(chosen, mode="clip").sum(axis=1)
        means[start : start + rows] = total / size
    return means


def _corrected(
    ends: tuple[float, float], estimate: float, drawn: Floats, sums: Floats, sizes: Floats
) -> tuple[float, float]:
    """The quantiles that BCa reads instead of `ends` (Efron 1987; Davison & Hinkley 1997, §5.3)."""
    # Half of the ties lie below. A draw of equal values misses the estimate by rounding only.
    near = np.abs(drawn - estimate) <= 1e-12 * max(1.0, abs(estimate))
    below = float(((drawn < estimate) & ~near).mean() + near.mean() / 2)
    if not 0 < below < 1:
        return ends
    bias = _NORMAL.inv_cdf(below)
    without = (sums.sum() - sums) / (sizes.sum() - sizes)  # the mean without each cluster
    influence = without.mean() - without
    spread = float((influence**2).sum())
    # Equal clusters leave nothing but rounding, whose third power means nothing.
    skewed = spread > sums.size * (1e-12 * max(1.0, abs(estimate))) ** 2
    acceleration = float((influence**3).sum()) / (6 * spread**1.5) if skewed else 0.0

    def moved(end: float) -> float:
        z = bias + _NORMAL.inv_cdf(end)
        return _NORMAL.cdf(bias + z / (1 - acceleration * z))

    return moved(ends[0]), moved(ends[1])


def _level(level: float) -> float:
    if not 0 < level < 1:
        raise InvalidRequest(f"A confidence level lies between 0 and 1, not at {level}.")
    return level
