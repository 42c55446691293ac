"""Zero-shot classification, against what the paper's steps give by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from chiasm.errors import InvalidRequest
from chiasm.evaluation import zero_shot

VECTORS = {
    "a cat": [3.0, 0.0],
    "one cat": [0.0, 5.0],
    "a dog": [0.0, -2.0],
    "one dog": [0.0, -0.1],
}


def encode(texts: list[str]) -> Tensor:
    return torch.tensor([VECTORS[text] for text in texts])


def test_templates_are_normalised_before_and_after_their_mean() -> None:
    found = zero_shot.class_embeddings(encode, ["cat", "dog"], ["a {}", "one {}"])
    half = math.sqrt(0.5)  # not the mean of [3, 0] and [0, 5], which points elsewhere
    np.testing.assert_allclose(found.numpy(), [[half, half], [0, -1]], atol=1e-6)


def test_long_lists_are_encoded_in_pieces() -> None:
    asked: list[int] = []

    def letters(texts: list[str]) -> Tensor:
        asked.append(len(texts))
        return torch.tensor([[float(int(text)), 1.0] for text in texts])

    names = [str(i) for i in range(600)]
    found = zero_shot.class_embeddings(letters, names)
    assert max(asked) <= 256
    np.testing.assert_allclose(found[:, 0] / found[:, 1], np.arange(600), rtol=1e-5)


def test_accuracies_of_a_hand_made_example() -> None:
    classes = torch.eye(4)
    pictures = torch.tensor(
        [
            [0.9, 0.1, 0.0, 0.0],  # 0, right
            [0.2, 0.8, 0.0, 0.0],  # 0, second
            [0.0, 0.9, 0.1, 0.0],  # 1, right
            [0.4, 0.3, 0.2, 0.1],  # 2, third
            [0.5, 0.5, 0.1, 0.0],  # 1, tied with 0: not right
        ]
    )
    found = zero_shot.classify(pictures, classes, [0, 0, 1, 2, 1])
    assert found.ranks.tolist() == [1, 2, 1, 3, 2]
    assert found.accuracy() == 2 / 5
    assert found.accuracy(2) == 4 / 5
    np.testing.assert_array_equal(found.per_class(), [0.5, 0.5, 0.0, np.nan])
    assert found.mean_per_class() == pytest.approx(1 / 3)


def test_a_template_needs_a_place_for_the_name() -> None:
    with pytest.raises(InvalidRequest, match="no place for a class's name"):
        zero_shot.class_embeddings(encode, ["cat"], ["a photo"])


def test_a_label_is_one_of_the_classes() -> None:
    with pytest.raises(InvalidRequest, match="from 0 to 1"):
        zero_shot.classify(torch.eye(2), torch.eye(2), [0, 2])
