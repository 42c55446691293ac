"""The recipe's own arithmetic: how the split is made and how recall is counted."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from chiasm.media.decode import open_image
from chiasm.models.aligned import SHIPPED
from chiasm.models.preprocess import ImagePreprocessor

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
    nothing = torch.zeros(0)
    classifier = torch.zeros(3, 1280), torch.zeros(3)
    cache = Cache([], nothing, [], {}, nothing, {}, nothing, [], [], classifier)
    covariance = torch.cov(seen[:, :1280].T) + 1e-2 * torch.eye(1280)
    weight = torch.linalg.solve(covariance, (means - means.mean(dim=0))[:, :1280].T).T
    cache.classifier = (weight, torch.zeros(3))
    anchors, logits = class_summaries(cache, seen, strength=1.0)
    assert logits.argmax(dim=1).tolist() == [0, 1, 2]
    nearest = torch.cdist(anchors[:, :3], means[:, :3]).argmin(dim=1)
    assert nearest.tolist() == [0, 1, 2]


def test_class_bias_makes_all_classes_alike_over_the_pictures_it_was_made_from() -> None:
    """For logits that differ between pictures by less than between classes, to first order."""
    from train import class_bias

    torch.manual_seed(0)
    prior = torch.tensor([0.7, 0.2, 0.1])
    logits = 2 * prior.log() + 1e-3 * torch.randn(500, 3)
    bias = class_bias(logits, torch.tensor(2.0), 1.0)
    torch.testing.assert_close(bias - bias[0], (prior[0] / prior).log(), atol=1e-3, rtol=0)
    after = (logits / 2 + bias).softmax(dim=1).mean(dim=0)
    torch.testing.assert_close(after, torch.full((3,), 1 / 3), atol=1e-3, rtol=0)
    assert (class_bias(logits, torch.tensor(2.0), 0.0) == 0).all()


def test_classes_are_said_with_what_they_are_kinds_of(tmp_path: Path) -> None:
    """Lines in the formats of `wndb(5WN)` and of timm's tables."""
    from phrases import imagenet_kinds
    from wordnet import Nouns

    (tmp_path / "data.noun").write_text(
        "  1 This is the licence.\n"
        "00000001 03 n 01 entity 0 000 | that which is\n"
        "00000002 05 n 02 water_bird 0 waterbird 0 001 @ 00000001 n 0000 | a bird\n"
        "00000003 05 n 01 egret 0 002 @ 00000002 n 0000 ~ 00000009 n 0000 | a white heron\n"
    )
    for name in ("index.noun", "cntlist.rev"):
        (tmp_path / name).write_text("")
    (tmp_path / "imagenet_synsets.txt").write_text("n00000003\n")
    (tmp_path / "imagenet_synset_to_lemma.txt").write_text("n00000003\tegret, Egretta\n")
    (tmp_path / "imagenet_synset_to_definition.txt").write_text("n00000003\ta white heron\n")
    [said] = imagenet_kinds(tmp_path, Nouns(tmp_path))
    assert [phrase.text for phrase in said] == [
        "egret, a kind of water bird",
        "egret (water bird, entity)",
        "an egret is a water bird",
        "egret, a white heron",
    ]


@pytest.mark.parametrize("size", [(300, 200), (37, 41), (90, 1000)], ids=str)
def test_what_is_trained_on_is_what_the_embedder_makes_of_the_file(
    size: tuple[int, int], tmp_path: Path
) -> None:
    from views import letterboxed

    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    cutout = PIL.Image.fromarray(pixels, "RGBA")
    cutout.save(tmp_path / "cutout.png")
    config = json.loads((SHIPPED / "config.json").read_text(encoding="utf-8"))
    preprocessor = ImagePreprocessor.from_config(config["preprocessor"])
    fitted = preprocessor.fit(open_image(tmp_path / "cutout.png"))
    difference = fitted.astype(int) - np.asarray(letterboxed(cutout, 224)).astype(int)
    assert abs(difference).max() <= 1


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
