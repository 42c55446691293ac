"""The default embedder as it ships: its files, its arithmetic, and what it finds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file
from safetensors.torch import save_file

from chiasm.errors import UnsupportedCheckpoint
from chiasm.media.decode import open_image
from chiasm.media.image import Image
from chiasm.models import aligned
from chiasm.models.catalog import pull
from chiasm.models.checkpoint import DualEncoderCheckpoint, load_dual_encoder
from chiasm.settings import Settings

CACHE = Settings.load().cache_dir
MANDATORY = {
    "a cup of coffee": "coffee",
    "a cat": "chelsea",
    "a rocket": "rocket",
    "a motorcycle": "motorcycle_left",
}


@pytest.fixture(scope="module")
def embedder() -> DualEncoderCheckpoint:
    return load_dual_encoder("default", cache_dir=CACHE)


def unit_texts(embedder: DualEncoderCheckpoint, texts: list[str]) -> torch.Tensor:
    batch = embedder.tokenizer(texts)
    with torch.inference_mode():
        return F.normalize(embedder.model.encode_text(batch.ids, batch.mask), dim=-1)


def test_what_ships_is_small_and_comes_with_its_card() -> None:
    assert (aligned.SHIPPED / aligned.HEADS).stat().st_size <= 8_000_000
    card = (aligned.SHIPPED / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "R@10" in card
    assert "GPL" in card


@pytest.mark.weights
def test_photographs_are_found_by_words(embedder: DualEncoderCheckpoint) -> None:
    folder = pull("scikit-image-photos", cache_dir=CACHE)
    paths = sorted(path for path in folder.iterdir() if path.suffix in {".png", ".jpg"})
    pixels = embedder.preprocessor([open_image(path) for path in paths])
    assert isinstance(pixels, torch.Tensor)
    with torch.inference_mode():
        pictures = F.normalize(embedder.model.encode_image(pixels), dim=-1)
    best = (unit_texts(embedder, list(MANDATORY)) @ pictures.T).argmax(dim=1)
    assert [paths[i].stem for i in best] == list(MANDATORY.values())


@pytest.mark.weights
def test_a_picture_is_looked_at_whole_and_in_its_own_proportions(
    embedder: DualEncoderCheckpoint,
) -> None:
    wide = np.zeros((100, 400, 3), np.uint8)
    pixels = embedder.preprocessor([Image(wide, original_size=(400, 100))])
    assert isinstance(pixels, torch.Tensor)
    black = (pixels == -127 / 128).all(dim=1)[0]  # [224, 224]
    assert (black.sum(dim=0) == 56).all()
    assert black.any(dim=1).nonzero()[[0, -1], 0].tolist() == [84, 139]
    assert (pixels[0, :, ~black] == 1).all()


@pytest.mark.weights
def test_image_head_does_what_its_formula_says(embedder: DualEncoderCheckpoint) -> None:
    heads = {
        name: tensor.astype(np.float64)
        for name, tensor in load_file(aligned.SHIPPED / aligned.HEADS).items()
    }
    random = np.random.default_rng(0)
    width = heads["image_head.mean"].size
    summary = (
        heads["image_head.mean"]
        + 2 * random.normal(size=(3, width)) * (heads["image_head.deviation"])
    )
    logits = 4 * random.normal(size=(3, 1000))

    standard = np.clip((summary - heads["image_head.mean"]) / heads["image_head.deviation"], -6, 6)
    reduced = standard @ heads["image_head.reduce.weight"].T
    centres = heads["image_head.centres"]
    distances = np.array([[((row - centre) ** 2).sum() for centre in centres] for row in reduced])
    nearness = np.exp(-distances / heads["image_head.reach"])
    expected = nearness @ heads["image_head.answers.weight"].T + heads["image_head.answers.bias"]
    scores = logits / heads["image_head.class_temperature"] + heads["image_head.class_bias"]
    powers = np.exp(scores)
    named = powers / powers.sum(axis=1, keepdims=True) @ heads["image_head.class_embeddings"]
    expected = expected + heads["image_head.class_share"] * named

    with torch.inference_mode():
        got = embedder.model.image_head(  # type: ignore[operator]
            torch.from_numpy(summary).float(), torch.from_numpy(logits).float()
        )
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-4)


@pytest.mark.weights
def test_text_road_agrees_with_transformers(embedder: DualEncoderCheckpoint) -> None:
    transformers = pytest.importorskip("transformers")
    folder = pull("minilm-l6", cache_dir=CACHE)
    texts = ["a cat", "Coins, seen from above, on a dark table.", "x"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tower = transformers.AutoModel.from_pretrained(folder).eval()
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        tokens = tower(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    sentence = F.normalize((tokens * mask).sum(dim=1) / mask.sum(dim=1), dim=-1).double().numpy()

    heads = load_file(aligned.SHIPPED / aligned.HEADS)
    heads = {name: tensor.astype(np.float64) for name, tensor in heads.items()}
    centred = sentence - heads["text_head.mean"]
    expected = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    np.testing.assert_allclose(unit_texts(embedder, texts).numpy(), expected, atol=1e-4)


@pytest.mark.weights
def test_a_text_does_not_change_with_its_neighbours_in_the_batch(
    embedder: DualEncoderCheckpoint,
) -> None:
    alone = unit_texts(embedder, ["a cat"])
    together = unit_texts(embedder, ["a cat", "a very long text about nothing at all " * 10])
    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=0)


@pytest.mark.weights
def test_digest_follows_the_heads(embedder: DualEncoderCheckpoint, tmp_path: Path) -> None:
    copy = tmp_path / "heads"
    shutil.copytree(aligned.SHIPPED, copy)
    assert aligned.load(cache_dir=CACHE, shipped=copy).digest == embedder.digest
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"note": "changed"}))
    assert aligned.load(cache_dir=CACHE, shipped=copy).digest != embedder.digest


@pytest.mark.weights
def test_heads_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    copy = tmp_path / "heads"
    shutil.copytree(aligned.SHIPPED, copy)
    save_file({"image_head.mean": torch.zeros(3)}, copy / aligned.HEADS)
    with pytest.raises(UnsupportedCheckpoint, match=r"heads\.safetensors holds other tensors"):
        aligned.load(cache_dir=CACHE, shipped=copy)
    (copy / aligned.HEADS).write_bytes(b"not tensors")
    with pytest.raises(UnsupportedCheckpoint, match=r"heads\.safetensors could not be read"):
        aligned.load(cache_dir=CACHE, shipped=copy)
    (copy / "config.json").write_text("{}")
    with pytest.raises(UnsupportedCheckpoint, match="does not describe an embedder"):
        aligned.load(cache_dir=CACHE, shipped=copy)
