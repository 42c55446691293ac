"""Pictures of a whole batch at once, and what the tower gave for them, kept."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

import parity
from parity_pictures import SIZES, _filled, _noise

from chiasm.models.checkpoint import load_model
from chiasm.models.vision_language import ImageInputs
from chiasm.training.answer_network import AnswerNetwork
from chiasm.training.picture_features import FeatureCache, Loaded, SplitsVision, fill

TILES = {
    "LLaVA, CLIP and Llama": (1, 1, 1),
    "LLaVA-NeXT, CLIP and Llama": (5, 4, 3),
    "Idefics3": (5, 1, 3),
    "Idefics3, tiles filled in part": (5, 1, 3),
}


@pytest.mark.parametrize("name", TILES)
@torch.no_grad()
def test_pictures_together_have_the_features_of_each_alone(tmp_path: Path, name: str) -> None:
    parity.cases()[name]().reference.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    assert isinstance(model, SplitsVision)
    masked = name.endswith("in part")
    pictures = [
        ImageInputs(_noise(count, size), size, _filled(count) if masked else None)
        for count, size in zip(TILES[name], SIZES, strict=True)
    ]
    alone = torch.cat([model.encode_image(picture) for picture in pictures])
    loaded = [Loaded(picture.size, picture) for picture in pictures]
    together = AnswerNetwork(model).features(loaded)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_what_was_kept_is_what_is_used_the_first_time(tmp_path: Path) -> None:
    name = "LLaVA, CLIP and Llama"
    parity.cases()[name]().reference.save_pretrained(tmp_path / "model")
    model = load_model(tmp_path / "model")
    size = SIZES[0]
    picture = Loaded(size, ImageInputs(_noise(1, size), size), key="abcdef")
    cache = FeatureCache(tmp_path / "cache", "tower")
    assert cache.get("abcdef") is None
    (first,) = fill(model, [picture], cache)
    kept = cache.get("abcdef")
    assert first.features is not None
    assert kept is not None
    assert torch.equal(first.features, kept)
    assert kept.dtype == torch.float16
    assert FeatureCache(tmp_path / "cache", "another tower").get("abcdef") is None
    assert not list(tmp_path.rglob("*.partial"))
