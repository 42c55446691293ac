"""Planned against billed: whether a provider still counts prompts as the plan does.

A provider that changes how it counts, or a rule that was wrong from the start, shows as a ratio of
billed to planned tokens that is not one. When it changed is found as the most likely single step in
the ratios, again and again in what comes after it, until there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
TOLERANCE = 0.01  # a plan this close is as good as right

_LEAST = 8  # requests on either side of a step
# The largest F over all places of a step is past 13 in one series of a hundred without any
# (Andrews 1993, Econometrica 61:821, table I, one parameter); tokens have heavier tails than that.
_CRITICAL = 20.0
_STEP = 0.005  # a smaller one is of no use to anybody

Floats = NDArray[np.float64]


class Sample(NamedTuple):
    """Prompt tokens of one request, pictures and text together."""

    time: datetime
    planned: int
    billed: int


@dataclass(frozen=True, slots=True)
class Drift:
    """A model's ratio of billed to planned prompt tokens, since it last changed.

    requests: since then. ratio: of the sums. low, high: its interval of 95 %; None for one request.
    changed: the first request after the change, None if there was none in sight; before: the ratio
    until then.
    """

    model: str
    requests: int
    planned: int
    billed: int
    ratio: float
    low: float | None
    high: float | None
    changed: datetime | None = None
    before: float | None = None

    @property
    def drifts(self) -> bool:
        """Whether it is surely off, by more than the tolerance."""
        if self.low is None or self.high is None:
            return False
        return self.low > 1 + TOLERANCE or self.high < 1 - TOLERANCE


def drift(model: str, samples: Sequence[Sample]) -> Drift:
    """samples: at least one, in the order of time, each planned and billed more than nothing."""
    planned = np.array([sample.planned for sample in samples], dtype=np.float64)
    billed = np.array([sample.billed for sample in samples], dtype=np.float64)
    logs = np.log(billed / planned)
    start, previous = 0, 0
    while (step := _step(logs[start:])) is not None:
        start, previous = start + step, start
    now, earlier = slice(start, None), slice(previous, start)
    ratio, half = _ratio(planned[now], billed[now])
    return Drift(
        model=model,
        requests=len(samples) - start,
        planned=int(planned[now].sum()),
        billed=int(billed[now].sum()),
        ratio=ratio,
        low=None if half is None else max(0.0, ratio - half),
        high=None if half is None else ratio + half,
        changed=samples[start].time if start else None,
        before=float(billed[earlier].sum() / planned[earlier].sum()) if start else None,
    )


def _step(values: Floats) -> int | None:
    """Where the mean most likely changed; None where it may well not have."""
    n = len(values)
    if n < 2 * _LEAST:
        return None
    places = np.arange(_LEAST, n - _LEAST + 1)
    sums = np.cumsum(values)[places - 1]
    left, right = sums / places, (values.sum() - sums) / (n - places)
    explained = places * (n - places) / n * (left - right) ** 2
    best = int(explained.argmax())
    rest = max(0.0, float(((values - values.mean()) ** 2).sum() - explained[best]))
    # Ratios that are equal but for rounding have nothing left to explain.
    noise = max(rest / (n - 2), 1e-12)
    if explained[best] / noise < _CRITICAL or abs(np.expm1(left[best] - right[best])) < _STEP:
        return None
    return int(places[best])


def _ratio(planned: Floats, billed: Floats) -> tuple[float, float | None]:
    """Ratio of the sums, and half its interval (Cochran 1977, *Sampling Techniques*, §6.4)."""
    ratio = float(billed.sum() / planned.sum())
    n = len(planned)
    if n < 2:
        return ratio, None
    variance = float(((billed - ratio * planned) ** 2).sum()) * n / (n - 1)
    return ratio, NormalDist().inv_cdf(0.5 + LEVEL / 2) * variance**0.5 / float(planned.sum())
