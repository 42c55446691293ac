"""How well queries find their answers: ranks, recall@k, average precision, reciprocal rank.

A query may have several right answers. What is measured is kept for every query, so that
intervals and paired differences can be computed from it. Wherever an answer's score equals a wrong
one's, the wrong one is taken to stand first: an embedder that gives every picture the same vector
must not look good.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chiasm.errors import InvalidRequest

_SCORES_AT_ONCE = 1 << 24  # 64 MB of similarities

Labels = Sequence[Any] | NDArray[Any] | Tensor
Vectors = NDArray[Any] | Tensor


@dataclass(frozen=True)
class Ranking:
    """What every query found. One row a query that has a right answer in the gallery.

    queries: which of the queries these are, int64 [n]; those without any right answer are left
        out, as nothing could find what is not there. `labels[ranking.queries]` are their clusters.
    ranks: of the first right answer, from 1, int64 [n].
    average_precision: float64 [n]. The mean, over the query's right answers, of the share of right
        ones among all down to it (Manning, Raghavan & Schütze 2008, §8.4).
    """

    queries: NDArray[np.int64]
    ranks: NDArray[np.int64]
    average_precision: NDArray[np.float64]

    def found(self, k: int) -> NDArray[np.bool_]:
        """Whether any right answer stands among the first k; its mean is recall@k.

        Recall as papers on retrieval with pictures have it (Oh Song et al. 2016, §5), not the
        share of all right answers.
        """
        return self.ranks <= k

    @property
    def reciprocal_ranks(self) -> NDArray[np.float64]:
        """1 / rank of the first right answer; its mean is the MRR."""
        return np.reciprocal(self.ranks.astype(np.float64))

    def summary(self, depths: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
        """recall@k for every depth, mAP and MRR: the means over the queries."""
        recalls = {f"recall@{k}": float(self.found(k).mean()) for k in depths}
        return recalls | {
            "mAP": float(self.average_precision.mean()),
            "MRR": float(self.reciprocal_ranks.mean()),
        }


def rank(
    queries: Vectors,
    gallery: Vectors,
    query_labels: Labels,
    gallery_labels: Labels,
    *,
    exclude: Labels | None = None,
) -> Ranking:
    """Rank the gallery for every query by the dot product; an answer is right by an equal label.

    queries, gallery: [queries, d] and [gallery, d], unit length where the cosine is meant. The
    whole matrix of similarities is never held, only blocks of some 64 MB.
    exclude: for every query the place in the gallery that is left out, −1 for none; where the
    queries are the gallery, `range(n)` leaves out each query itself.

    Raises InvalidRequest if numbers of labels and vectors differ, a vector is not finite, or no
    query has a right answer.
    """
    first, second = _finite(queries, "queries"), _finite(gallery, "gallery")
    rows = max(1, _SCORES_AT_ONCE // max(1, len(second)))
    blocks = (_scores(first[start : start + rows], second) for start in range(0, len(first), rows))
    return _rank(blocks, len(first), len(second), query_labels, gallery_labels, exclude)


def rank_similarity(
    similarity: Vectors,
    query_labels: Labels,
    gallery_labels: Labels,
    *,
    exclude: Labels | None = None,
) -> Ranking:
    """`rank`, from similarities that are at hand: [queries, gallery]."""
    matrix = _finite(similarity, "similarities")
    count, width = matrix.shape
    rows = max(1, _SCORES_AT_ONCE // max(1, width))
    blocks = (_numpy(matrix[start : start + rows]) for start in range(0, count, rows))
    return _rank(blocks, count, width, query_labels, gallery_labels, exclude)


def both_directions(
    images: Vectors,
    texts: Vectors,
    image_labels: Labels | None = None,
    text_labels: Labels | None = None,
) -> tuple[Ranking, Ranking]:
    """(image → text, text → image). Without labels, picture i and text i belong together.

    A picture with five captions is one row of `images` and five of `texts`, with one label.
    """
    image_labels = range(len(images)) if image_labels is None else image_labels
    text_labels = range(len(texts)) if text_labels is None else text_labels
    return (
        rank(images, texts, image_labels, text_labels),
        rank(texts, images, text_labels, image_labels),
    )


# One block of queries after another -------------------------------------------------------------


def _rank(
    blocks: Iterable[NDArray[Any]],
    count: int,
    width: int,
    query_labels: Labels,
    gallery_labels: Labels,
    exclude: Labels | None,
) -> Ranking:
    wanted, offered = _codes(query_labels, gallery_labels, (count, width))
    left_out = np.full(count, -1) if exclude is None else _plain(exclude).astype(np.int64)
    if left_out.shape != (count,):
        raise InvalidRequest(f"{count} queries leave out {len(left_out)} answers: one is for each.")
    found: list[tuple[int, int, float]] = []
    start = 0
    for scores in blocks:
        here = slice(start, start + len(scores))
        right = wanted[here, None] == offered  # [block, gallery]
        for row, (first, precision) in _ranked(scores, right, left_out[here]):
            found.append((start + row, first, precision))
        start += len(scores)
    if not found:
        raise InvalidRequest("No query has a right answer in the gallery.")
    places, ranks, precisions = zip(*found, strict=True)
    return Ranking(np.array(places), np.array(ranks), np.array(precisions))


def _ranked(
    scores: NDArray[Any], right: NDArray[np.bool_], left_out: NDArray[np.int64]
) -> Iterator[tuple[int, tuple[int, float]]]:
    """(row, (rank of the first right answer, average precision)) of the rows that have one."""
    excluded = np.flatnonzero(left_out >= 0)
    right[excluded, left_out[excluded]] = False
    wrong = np.where(right, -np.inf, scores)  # −∞ is below every score and counts nowhere
    wrong[excluded, left_out[excluded]] = -np.inf
    wrong.sort(axis=1)
    for row in np.flatnonzero(right.any(axis=1)):
        answers = np.sort(scores[row, right[row]])[::-1]
        ahead = wrong.shape[1] - np.searchsorted(wrong[row], answers, side="left")
        nth = np.arange(1, answers.size + 1)  # the right ones down to each, itself included
        yield int(row), (int(ahead[0]) + 1, float((nth / (ahead + nth)).mean()))


def _codes(
    query_labels: Labels, gallery_labels: Labels, counts: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Both lists of labels as whole numbers, equal where the labels are."""
    ours, theirs = _plain(query_labels), _plain(gallery_labels)
    if (len(ours), len(theirs)) != counts:
        raise InvalidRequest(
            f"{counts[0]} queries and {counts[1]} answers have {len(ours)} and {len(theirs)} "
            "labels: one is for each."
        )
    _, codes = np.unique(np.concatenate([ours, theirs]), return_inverse=True)
    return codes[: len(ours)], codes[len(ours) :]


def _plain(labels: Labels) -> NDArray[Any]:
    return labels.cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)


def _finite(vectors: Vectors, what: str) -> Tensor:
    """As a matrix of single precision at least. One NaN would win or lose every comparison."""
    tensor = torch.as_tensor(vectors).detach()
    if tensor.dtype != torch.float64:
        tensor = tensor.float()
    if tensor.ndim != 2 or not bool(tensor.isfinite().all()):
        raise InvalidRequest(f"The {what} must be a matrix of finite numbers.")
    return tensor


def _scores(queries: Tensor, gallery: Tensor) -> NDArray[Any]:
    return _numpy(queries @ gallery.T)


def _numpy(tensor: Tensor) -> NDArray[Any]:
    return np.asarray(tensor.cpu().numpy())
