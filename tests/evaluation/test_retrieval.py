"""Retrieval measures against loops that do what the definitions say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from chiasm.errors import InvalidRequest
from chiasm.evaluation import retrieval


def by_hand(
    similarity: Any, query_labels: Any, gallery_labels: Any, exclude: Any = None
) -> dict[int, tuple[int, float]]:
    """Query → (rank of the first right answer, average precision), one comparison at a time."""
    found = {}
    for query, row in enumerate(similarity):
        places = [j for j in range(len(row)) if exclude is None or j != exclude[query]]
        # Best score first; among equal scores the wrong answers first.
        places.sort(key=lambda j: (-row[j], gallery_labels[j] == query_labels[query]))
        hits, precisions, first = 0, [], 0
        for place, j in enumerate(places, start=1):
            if gallery_labels[j] == query_labels[query]:
                hits += 1
                first = first or place
                precisions.append(hits / place)
        if hits:
            found[query] = (first, sum(precisions) / hits)
    return found


def check(ranking: retrieval.Ranking, expected: dict[int, tuple[int, float]]) -> None:
    assert ranking.queries.tolist() == list(expected)
    assert ranking.ranks.tolist() == [first for first, _ in expected.values()]
    np.testing.assert_allclose(
        ranking.average_precision, [precision for _, precision in expected.values()]
    )


@pytest.mark.parametrize("seed", range(5))
def test_several_right_answers_with_ties(seed: int) -> None:
    generator = np.random.default_rng(seed)
    queries, gallery = generator.integers(0, 12, size=40), generator.integers(0, 15, size=60)
    similarity = generator.integers(0, 8, size=(40, 60)) / 8  # few values: ties everywhere
    ranking = retrieval.rank_similarity(similarity, queries, gallery)
    check(ranking, by_hand(similarity, queries, gallery))


@pytest.mark.parametrize("scores_at_once", [1, 200, 1 << 24])
def test_blocks_give_what_the_whole_matrix_gives(
    scores_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieval, "_SCORES_AT_ONCE", scores_at_once)
    generator = torch.Generator().manual_seed(1)
    vectors = F.normalize(torch.randn(50, 8, generator=generator, dtype=torch.float64), dim=1)
    labels = [f"sku {i % 13}" for i in range(49)] + ["alone"]
    ranking = retrieval.rank(vectors, vectors, labels, labels, exclude=range(50))
    expected = by_hand((vectors @ vectors.T).numpy(), labels, labels, exclude=range(50))
    check(ranking, expected)
    assert 49 not in ranking.queries  # its only picture is the query itself


def test_every_picture_alike_is_no_success() -> None:
    same = np.ones((20, 4)) / 2
    ranking = retrieval.rank(same, same, range(20), range(20))
    assert ranking.ranks.tolist() == [20] * 20
    assert ranking.summary()["recall@10"] == 0.0


def test_the_measures_of_a_textbook_example() -> None:
    """Right answers at places 1, 3 and 6 of the first query, and at 2 of the second."""
    similarity = [[0.9, 0.8, 0.7, 0.6, 0.5, 0.4], [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]]
    first = retrieval.rank_similarity(
        np.array(similarity[:1]), ["a"], ["a", "b", "a", "c", "d", "a"]
    )
    assert first.average_precision[0] == pytest.approx((1 / 1 + 2 / 3 + 3 / 6) / 3)
    second = retrieval.rank_similarity(np.array(similarity), list("ab"), list("abcdef"))
    assert second.summary((1, 2)) == {
        "recall@1": 0.5,
        "recall@2": 1.0,
        "mAP": 0.75,
        "MRR": 0.75,
    }


def test_both_directions_with_several_captions_a_picture() -> None:
    generator = torch.Generator().manual_seed(2)
    images = F.normalize(torch.randn(10, 6, generator=generator, dtype=torch.float64), dim=1)
    texts = F.normalize(torch.randn(30, 6, generator=generator, dtype=torch.float64), dim=1)
    captions = [i // 3 for i in range(30)]
    to_text, to_image = retrieval.both_directions(images, texts, range(10), captions)
    similarity = (images @ texts.T).numpy()
    check(to_text, by_hand(similarity, range(10), captions))
    check(to_image, by_hand(similarity.T, captions, range(10)))
    alone, _ = retrieval.both_directions(images, texts[:10])
    check(alone, by_hand(similarity[:, :10], range(10), range(10)))


def test_half_precision_ranks_as_single_does() -> None:
    vectors = F.normalize(torch.randn(30, 16, generator=torch.Generator().manual_seed(3)), dim=1)
    half = vectors.bfloat16()
    labels = np.arange(30) // 2
    one = retrieval.rank(half, half, labels, labels, exclude=range(30))
    other = retrieval.rank(half.float(), half.float(), labels, labels, exclude=range(30))
    assert one.ranks.tolist() == other.ranks.tolist()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"query_labels": [0, 1]}, "labels: one is for each"),
        ({"queries": np.full((3, 2), np.nan)}, "finite"),
        ({"gallery_labels": [7, 8, 9]}, "No query has a right answer"),
        ({"exclude": [0]}, "leave out"),
    ],
)
def test_what_cannot_be_measured_is_refused(change: dict[str, Any], said: str) -> None:
    given = {"queries": np.eye(3, 2), "gallery": np.eye(3, 2)}
    given |= {"query_labels": [0, 1, 2], "gallery_labels": [0, 1, 2]} | change  # type: ignore[assignment]
    with pytest.raises(InvalidRequest, match=said):
        retrieval.rank(**given)  # type: ignore[arg-type]
