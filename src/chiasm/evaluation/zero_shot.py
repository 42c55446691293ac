"""Zero-shot classification: a class is what its name's embedding says (Radford et al. 2021, §3.1).

CLIP, arXiv:2103.00020. A name stands in several templates, "a photo of a {}." among them, and the
mean of the embeddings is the class (§3.1.4): it costs nothing at inference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from chiasm.errors import InvalidRequest
from chiasm.evaluation.retrieval import Labels, Vectors, rank

PLACE = "{}"
_TEXTS_AT_ONCE = 256


@dataclass(frozen=True)
class Classification:
    """What became of every picture.

    labels: the right class, int64 [images]. ranks: of the right class among all, from 1, int64
    [images]; a tie counts against us. classes: how many there are.
    """

    labels: NDArray[np.int64]
    ranks: NDArray[np.int64]
    classes: int

    def correct(self, k: int = 1) -> NDArray[np.bool_]:
        """Whether the right class is among the first k: bool [images]."""
        return self.ranks <= k

    def accuracy(self, k: int = 1) -> float:
        """Top-k accuracy over all pictures."""
        return float(self.correct(k).mean())

    def per_class(self, k: int = 1) -> NDArray[np.float64]:
        """Top-k accuracy of every class: float64 [classes], NaN for one without pictures."""
        pictures = np.bincount(self.labels, minlength=self.classes)
        hits = np.bincount(self.labels, weights=self.correct(k), minlength=self.classes)
        accuracy = np.full(self.classes, np.nan)
        np.divide(hits, pictures, out=accuracy, where=pictures > 0)
        return accuracy

    def mean_per_class(self, k: int = 1) -> float:
        """The mean over classes, each counting alike however many pictures it has."""
        return float(np.nanmean(self.per_class(k)))


def class_embeddings(
    encode: Callable[[list[str]], Tensor], names: Sequence[str], templates: Sequence[str] = (PLACE,)
) -> Tensor:
    """One vector of unit length a class: normalise each text's, take the mean, normalise again.

    encode: texts → [texts, d], of any length. templates: texts with `{}` for the name.
    Returns float32 [classes, d]. Raises InvalidRequest for a template without a place for a name.
    """
    if not names or not templates:
        raise InvalidRequest("Zero-shot classes need at least one name and one template.")
    for template in templates:
        if PLACE not in template:
            raise InvalidRequest(
                f"The template {template!r} has no place for a class's name.",
                hint='Write {} where the name goes, as in "a photo of a {}."',
            )
    texts = [template.replace(PLACE, name) for name in names for template in templates]
    rows = [
        F.normalize(encode(texts[start : start + _TEXTS_AT_ONCE]).float(), dim=-1)
        for start in range(0, len(texts), _TEXTS_AT_ONCE)
    ]
    each = torch.cat(rows).view(len(names), len(templates), -1)  # [classes, templates, d]
    return F.normalize(each.mean(dim=1), dim=-1)


def classify(images: Vectors, classes: Vectors, labels: Labels) -> Classification:
    """Rank the classes for every picture.

    images: [images, d]; classes: [classes, d], from `class_embeddings`; labels: the right class of
    each picture, from 0. Raises InvalidRequest for a label that is no class.
    """
    right = torch.as_tensor(labels).cpu().numpy().astype(np.int64)
    if right.size and not 0 <= right.min() <= right.max() < len(classes):
        raise InvalidRequest(f"Labels run from 0 to {len(classes) - 1}, one for each class.")
    ranking = rank(images, classes, right, np.arange(len(classes)))
    return Classification(right, ranking.ranks, len(classes))
