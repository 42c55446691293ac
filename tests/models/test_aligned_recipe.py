"""The recipe's own arithmetic: how the split is made and how recall is counted."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

RECIPE = Path(__file__).parents[2] / "recipes/default_embedder"


@pytest.fixture(autouse=True)
def recipe_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(RECIPE), *sys.path])


@pytest.mark.parametrize(
    ("caption", "noun"),
    [
        ("A great blue heron.", "heron"),
        ("Some cherries.", "cherry"),
        ("A happy lion!", "lion"),
        ("The baby of a gnu.", "gnu"),
        ("A shamrock is a symbol of St Patrick's Day.", "shamrock"),
        ("The sign for the letter M in American Sign Language.", "letter m"),
        ("A slice of watermelon.", "watermelon"),
        ("A US 25 cent piece ($.25) called a quarter.", "quarter"),
    ],
)
def test_head_noun(caption: str, noun: str) -> None:
    from pictures import head_noun

    assert head_noun(caption) == noun


def test_no_picture_that_names_a_held_out_object_is_trained_on() -> None:
    from pictures import Picture, head_noun, singular, split

    nouns = [f"thing{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(60)]
    stamps = [
        Picture(
            Path(f"{noun}-{copy}.png"), "stamp", f"A {noun}.", objects=frozenset({noun}), hash=h
        )
        for h, (noun, copy) in enumerate((noun, copy) for noun in nouns for copy in "ab")
    ]
    stamps = [
        Picture(s.path, s.source, s.caption, objects=s.objects, hash=hash_of(i))
        for i, s in enumerate(stamps)
    ]
    others = [
        Picture(
            Path(f"{noun}.webp"), "noto", f"shiny {noun}s on a table", objects=frozenset({"table"})
        )
        for noun in nouns
    ] + [
        Picture(Path(f"{noun}.svg"), "openclipart", "untitled", keywords=(noun,)) for noun in nouns
    ]
    found = split([*stamps, *others], salt="test", held_out=20, validation=10)
    held_out = {min(p.objects) for p in found if p.part == "held out"}
    assert sum(p.part == "held out" for p in found) == 20
    assert sum(p.part == "validation" for p in found) == 10
    assert held_out
    assert len(held_out) == 10  # whole objects, both copies
    for picture in found:
        words = {singular(word) for word in f"{picture.caption} {picture.keywords}".split()}
        words |= {word.strip("(),'.").lower() for word in words} | {head_noun(picture.caption)}
        if picture.part in {"train", "validation only"}:
            assert not words & held_out


def test_a_picture_that_looks_like_a_held_out_stamp_is_left_out() -> None:
    from pictures import Picture, split

    stamps = [
        Picture(
            Path(f"{i}.png"), "stamp", f"noun{i}", objects=frozenset({f"noun{i}"}), hash=hash_of(i)
        )
        for i in range(40)
    ]
    copies = [
        Picture(Path(f"{i}.svg"), "openclipart", "picture", hash=hash_of(i) ^ 0b101)
        for i in range(40)
    ]
    found = split([*stamps, *copies], salt="test", held_out=10, validation=5)
    parts = {p.path.stem: p.part for p in found if p.source == "stamp"}
    for picture in found:
        if picture.source == "openclipart" and parts[picture.path.stem] == "held out":
            assert picture.part == "left out"
        elif picture.source == "openclipart" and parts[picture.path.stem] == "train":
            assert picture.part == "train"


def hash_of(number: int) -> int:
    """Sixty-four bits far from those of any other number."""
    import hashlib

    return int.from_bytes(hashlib.sha256(str(number).encode()).digest()[:8], "big")


def test_ranks_count_a_tie_against_us() -> None:
    from evaluate import own, ranks

    similarity = torch.tensor([[0.9, 0.1, 0.5], [0.7, 0.7, 0.1], [0.3, 0.2, 0.1]])
    assert ranks(similarity, own(3)) == [1, 2, 3]
    either = torch.tensor([[True, False, True], [True, True, False], [False, True, True]])
    assert ranks(similarity, either) == [1, 1, 2]


@pytest.mark.parametrize(
    ("hits", "queries", "interval"),
    [
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_wilson_interval(hits: int, queries: int, interval: tuple[float, float]) -> None:
    """Values: Newcombe, Statistics in Medicine 17 (1998), table I, method 3."""
    from evaluate import wilson

    assert wilson(hits, queries) == pytest.approx(interval, abs=5e-5)


def test_class_summaries_recover_the_means_a_linear_classifier_was_made_from() -> None:
    """Normal classes with one covariance, and the classifier that is best for them (LDA)."""
    from train import Cache, class_summaries

    torch.manual_seed(0)
    width = 2560
    means = torch.zeros(3, width)
    means[:, :3] = torch.tensor([[3.0, 0, 0], [0, 3.0, 0], [0, 0, 3.0]])
    seen = means.repeat_interleave(400, dim=0) + 0.5 * torch.randn(1200, width)
    cache = Cache(
        [], [], torch.zeros(0), {}, torch.zeros(0), [], (torch.zeros(3, 1280), torch.zeros(3))
    )
    covariance = torch.cov(seen[:, :1280].T) + 1e-2 * torch.eye(1280)
    weight = torch.linalg.solve(covariance, (means - means.mean(dim=0))[:, :1280].T).T
    cache.classifier = (weight, torch.zeros(3))
    anchors, logits = class_summaries(cache, seen, strength=1.0)
    assert logits.argmax(dim=1).tolist() == [0, 1, 2]
    nearest = torch.cdist(anchors[:, :3], means[:, :3]).argmin(dim=1)
    assert nearest.tolist() == [0, 1, 2]


def test_soft_targets_share_the_weight_among_pictures_of_one_object() -> None:
    from train import soft_targets

    sentence = torch.eye(4)
    group = torch.tensor([0, 0, 1, 2])
    hard = soft_targets(sentence, group, {"target_softness": 0.0, "target_temperature": 0.07})
    torch.testing.assert_close(hard[0], torch.tensor([0.5, 0.5, 0.0, 0.0]))
    soft = soft_targets(sentence, group, {"target_softness": 0.4, "target_temperature": 0.07})
    torch.testing.assert_close(soft.sum(dim=1), torch.ones(4))


def test_contrastive_loss_is_cross_entropy_where_every_row_has_one_answer() -> None:
    from train import contrastive_loss

    torch.manual_seed(0)
    logits = torch.randn(5, 5)
    answers = torch.arange(5)
    expected = (
        torch.nn.functional.cross_entropy(logits, answers)
        + torch.nn.functional.cross_entropy(logits.T, answers)
    ) / 2
    torch.testing.assert_close(contrastive_loss(logits, torch.eye(5)), expected)
