"""Small functions of the kernels against numpy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from chiasm.generation.engine.kernels import arithmetic


@njit
def _each(x: npt.NDArray[np.float32], out: npt.NDArray[np.float32]) -> None:
    for i in range(len(x)):
        out[i] = arithmetic.exp(x[i])


def test_exp_over_its_whole_range() -> None:
    x = np.concatenate(
        [np.linspace(-87, 88, 400_001), np.linspace(-1, 1, 100_001), [0.0, -0.0, 88.0, -87.0]]
    ).astype(np.float32)
    made = np.empty_like(x)
    _each(x, made)
    exact = np.exp(x.astype(np.float64))
    units = np.abs(made - exact) / np.spacing(exact.astype(np.float32))
    assert units.max() <= 2
    assert made[-4] == made[-3] == 1


def test_exp_beyond_its_range_ends_at_its_borders() -> None:
    x = np.array([-88, -1000, -np.inf, 89, 1000, np.inf], np.float32)
    made = np.empty_like(x)
    _each(x, made)
    assert np.allclose(made[:3], np.exp(-87.0), rtol=1e-6)
    assert np.allclose(made[3:], np.exp(88.0), rtol=1e-6)
