from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from chiasm.retrieval import exact
from chiasm.retrieval.exact import ExactVectors


def unit(count: int, dimension: int, seed: int) -> npt.NDArray[np.float32]:
    vectors = np.random.default_rng(seed).standard_normal((count, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def clustered(count: int, dimension: int, seed: int) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((20, dimension))
    vectors = centres[rng.integers(0, 20, count)] + 0.4 * rng.standard_normal((count, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("make", [unit, clustered])
@pytest.mark.parametrize("share", [None, 0.5, 0.01, 0.0])
def test_finds_what_double_precision_finds(
    make, share: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "_BLOCK_ROWS", 1000)
    vectors = make(7300, 96, seed=0)
    held = ExactVectors(96)
    for start in range(0, len(vectors), 777):
        held.append(vectors[start : start + 777])
    mask = None if share is None else np.random.default_rng(1).random(len(vectors)) < share
    rows = np.arange(len(vectors)) if mask is None else np.flatnonzero(mask)
    recalls = []
    queries = make(30, 96, seed=2)
    truths = queries.astype(np.float64) @ vectors[rows].astype(np.float64).T
    for query, truth in zip(queries, truths, strict=True):
        best = rows[np.argsort(-truth)[:10]]
        found, scores = held.view().search(query, 10, mask)
        assert len(found) == len(best)
        assert (np.diff(scores) <= 0).all()
        if len(best):
            recalls.append(len(set(best) & set(found)) / len(best))
            np.testing.assert_allclose(scores, vectors[found] @ query, atol=5e-4)
    assert np.mean(recalls or [1.0]) >= 0.995


def test_a_view_stays_as_it_was() -> None:
    held = ExactVectors(8)
    vectors = unit(30, 8, seed=0)
    held.append(vectors[:20])
    view = held.view()
    held.append(vectors[20:])
    found, _ = view.search(vectors[25], 30)
    assert sorted(found) == list(range(20))
    assert held.view().search(vectors[25], 1)[0].tolist() == [25]


def test_equal_vectors_keep_their_order() -> None:
    held = ExactVectors(4)
    held.append(np.tile(unit(1, 4, seed=0), (500, 1)))
    found, _ = held.view().search(unit(1, 4, seed=1)[0], 500)
    assert found.tolist() == list(range(500))


def test_empty_and_more_than_there_are() -> None:
    held = ExactVectors(4)
    query = unit(1, 4, seed=0)[0]
    assert len(held.view().search(query, 5)[0]) == 0
    held.append(unit(3, 4, seed=1))
    assert sorted(held.view().search(query, 50)[0]) == [0, 1, 2]
    assert len(held.view().search(query, 0)[0]) == 0
