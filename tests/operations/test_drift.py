"""Drift: steps that are there are found, and none where there is only noise."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from scipy import stats

from chiasm.operations.drift import Drift, Sample, drift

START = datetime(2026, 11, 1, tzinfo=UTC)


def series(planned: np.ndarray, billed: np.ndarray) -> Drift:
    pairs = enumerate(zip(planned, billed, strict=True))
    return drift("m", [Sample(START + timedelta(hours=n), int(p), int(b)) for n, (p, b) in pairs])


def prompts(generator: np.random.Generator, n: int) -> np.ndarray:
    """Tokens of prompts with pictures: over two decades, as they come."""
    return np.round(np.exp(generator.normal(7, 1, n))).clip(20)


def test_noise_alone_is_seldom_taken_for_a_change() -> None:
    generator = np.random.default_rng(0)
    found = 0
    for _ in range(300):
        planned = prompts(generator, 200)
        noise = np.exp(0.05 * generator.standard_t(4, 200))  # heavier tails than the normal
        found += series(planned, np.round(planned * noise).clip(1)).changed is not None
    assert found <= 6  # 2 %


@pytest.mark.parametrize("after", [0.8, 0.95, 1.06, 4.0])
def test_a_step_is_found_where_it_is(after: float) -> None:
    generator = np.random.default_rng(1)
    for place in (12, 100, 180):
        planned = prompts(generator, 200)
        noise = np.exp(0.01 * generator.standard_normal(200))
        ratios = np.where(np.arange(200) < place, 1.0, after)
        found = series(planned, np.round(planned * noise * ratios).clip(1))
        assert found.changed is not None
        assert abs((found.changed - START) / timedelta(hours=1) - place) <= 3
        assert found.ratio == pytest.approx(after, rel=0.03)
        assert found.before == pytest.approx(1.0, rel=0.03)
        assert found.drifts


def test_an_exact_count_shows_its_step_exactly() -> None:
    planned = np.tile([85, 765, 1105], 20)
    billed = np.where(np.arange(60) < 41, planned, planned + 3 * planned // 10)
    found = series(planned, billed)
    assert found.changed == START + timedelta(hours=41)
    assert (found.requests, found.before) == (19, 1.0)


def test_the_last_of_several_steps_counts() -> None:
    planned = np.full(90, 1000)
    billed = np.repeat([1000, 1300, 1100], 30)
    found = series(planned, billed)
    assert found.changed == START + timedelta(hours=60)
    assert (found.before, found.ratio, found.requests) == (1.3, 1.1, 30)


def test_wrong_from_the_start_is_drift_without_a_change() -> None:
    planned = np.arange(100, 200)
    found = series(planned, planned * 2)
    assert (found.ratio, found.changed, found.drifts) == (2.0, None, True)


def test_a_plan_that_is_right_but_for_a_hair_is_right() -> None:
    planned = np.arange(1000, 1100)
    assert not series(planned, planned + 5).drifts


def test_one_request_proves_nothing() -> None:
    found = drift("m", [Sample(START, 100, 400)])
    assert (found.ratio, found.low, found.high, found.drifts) == (4.0, None, None, False)


def test_the_interval_is_the_bootstraps() -> None:
    generator = np.random.default_rng(2)
    planned = prompts(generator, 150)
    billed = np.round(planned * np.exp(0.1 * generator.standard_normal(150))).clip(1)
    found = series(planned, billed)
    assert found.changed is None
    oracle = stats.bootstrap(
        (billed, planned),
        lambda b, p, axis: b.sum(axis) / p.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=4000,
        rng=generator,
    ).confidence_interval
    assert found.low is not None
    assert found.high is not None
    assert found.low == pytest.approx(oracle.low, abs=0.008)
    assert found.high == pytest.approx(oracle.high, abs=0.008)
    assert found.low < billed.sum() / planned.sum() < found.high
