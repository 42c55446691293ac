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


def test_reduction_folds_into_the_head_without_changing_it() -> None:
    from train import Reduction

    from chiasm.models.aligned import HeadsConfig, ImageHead

    torch.manual_seed(0)
    summaries = torch.randn(200, 40) * torch.linspace(0.1, 3, 40) + 1
    reduction = Reduction(summaries, directions=12, floor=0.01)
    small = ImageHead(HeadsConfig(12, 5, 8, 6, 1, 8))
    full = ImageHead(HeadsConfig(40, 5, 8, 6, 1, 8))
    reduction.into(small, full)
    logits = torch.randn(200, 5)
    torch.testing.assert_close(
        full(summaries, logits), small.from_standard(reduction(summaries), logits)
    )
