"""The default embedder, fine-tuned: what is written, and that it comes back the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from catalog_servers import sha256
from safetensors.torch import load_file, save_file
from torch import Tensor

from chiasm.errors import NoSpace, UnsupportedCheckpoint
from chiasm.models import aligned, catalog, checkpoint
from chiasm.models.checkpoint import DualEncoderCheckpoint, load_dual_encoder
from chiasm.retrieval import load_embedder
from chiasm.settings import Settings

CACHE = Settings.load().cache_dir
TEXTS = ["a red shoe", "a table of oak"]

pytestmark = pytest.mark.weights


def load(location: str | Path = "default", **options: Any) -> DualEncoderCheckpoint:
    return load_dual_encoder(location, cache_dir=CACHE, offline=True, **options)


def network(loaded: DualEncoderCheckpoint) -> aligned.AlignedDualEncoder:
    assert isinstance(loaded.model, aligned.AlignedDualEncoder)
    return loaded.model


def pictures() -> Tensor:
    return torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1


def outputs(loaded: DualEncoderCheckpoint) -> tuple[Tensor, Tensor]:
    batch = loaded.tokenizer(TEXTS)
    with torch.inference_mode():
        images = loaded.model.encode_image(pictures())
        return images, loaded.model.encode_text(batch.ids, batch.mask)


def close(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    """Equal but for rounding: the layout of a matrix in memory changes the order of a sum."""
    return all(torch.allclose(a, b, atol=1e-6, rtol=0) for a, b in zip(one, other, strict=True))


def same(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def train(model: aligned.AlignedDualEncoder, *parts: str) -> None:
    """One step that pulls pictures and texts together, on the named parts alone."""
    chosen = [p for name, p in model.named_parameters() if name.startswith(parts)]
    for parameter in chosen:
        parameter.requires_grad_(True)
    optimizer = torch.optim.SGD(chosen, lr=1e-3)
    ids = torch.tensor([[101, 2417, 102], [101, 2795, 102]])
    images = F.normalize(model.encode_image(pictures()), dim=1)
    texts = F.normalize(model.encode_text(ids, torch.ones_like(ids, dtype=torch.bool)), dim=1)
    F.cross_entropy(20 * images @ texts.T, torch.arange(2)).backward()
    for parameter in chosen:
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    assert sum(float(p.grad.abs().sum()) for p in chosen if p.grad is not None) > 0
    optimizer.step()
    model.requires_grad_(False)


def test_saved_as_it_is_it_gives_the_same_numbers(tmp_path: Path) -> None:
    first = load()
    aligned.save(tmp_path / "copy", network(first))
    second = load(tmp_path / "copy")
    assert same(outputs(first), outputs(second))
    assert second.preprocessor == first.preprocessor
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == [
        "config.json",
        "heads.safetensors",
    ]
    assert not any("tower" in name for name in load_file(tmp_path / "copy/heads.safetensors"))
    assert second.name == str(tmp_path / "copy")
    aligned.save(tmp_path / "again", network(second))
    assert load(tmp_path / "again").digest == second.digest


def test_new_adapters_change_nothing(tmp_path: Path) -> None:
    plain, adapted = load(), load(adapters=True)
    assert same(outputs(plain), outputs(adapted))
    added = network(adapted).state_dict().keys() - network(plain).state_dict().keys()
    assert added == {"image_head.adapter.weight", "text_head.adapter.weight"}


def test_trained_adapters_come_back_and_do_what_they_say(tmp_path: Path) -> None:
    plain, adapted = load(), load(adapters=True)
    train(network(adapted), "image_head.adapter", "text_head.adapter")
    aligned.save(tmp_path / "tuned", network(adapted))
    loaded = load(tmp_path / "tuned")
    assert same(outputs(loaded), outputs(adapted))
    assert not same(outputs(loaded), outputs(plain))
    # A second road to the adapters is none: loading with `adapters` keeps the trained ones.
    assert same(outputs(load(tmp_path / "tuned", adapters=True)), outputs(adapted))

    weights = {
        name: tensor.double().numpy()
        for name, tensor in load_file(tmp_path / "tuned/heads.safetensors").items()
    }
    with torch.inference_mode():
        described = aligned.summary(network(plain).image_tower, pictures()).double().numpy()
    standard = (described - weights["image_head.mean"]) / weights["image_head.deviation"]
    unit = np.clip(standard, -6, 6) / np.sqrt(3344)
    residual = unit @ weights["image_head.adapter.weight"].T
    images, texts = outputs(plain)
    tuned_images, tuned_texts = outputs(loaded)
    np.testing.assert_allclose((tuned_images - images).numpy(), residual, atol=1e-4)
    expected = texts.double().numpy() @ weights["text_head.adapter.weight"].T
    np.testing.assert_allclose((tuned_texts - texts).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("tower", ["image_tower", "text_tower"])
def test_a_trained_tower_is_written_beside_the_heads(tower: str, tmp_path: Path) -> None:
    tuned = load()
    train(network(tuned), tower)
    aligned.save(tmp_path / "tuned", network(tuned))
    tensors = load_file(tmp_path / "tuned/heads.safetensors")
    other = {"image_tower": "text_tower", "text_tower": "image_tower"}[tower]
    assert any(name.startswith(f"{tower}.") for name in tensors)
    assert not any(name.startswith(f"{other}.") for name in tensors)
    loaded = load(tmp_path / "tuned")
    assert close(outputs(loaded), outputs(tuned))
    assert not close(outputs(loaded), outputs(load()))
    weight = network(loaded).image_tower.head.convolution.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    # Saved once more, though nothing was trained since, the tower is not lost.
    aligned.save(tmp_path / "again", network(loaded))
    assert close(outputs(load(tmp_path / "again")), outputs(tuned))


def test_a_trained_image_tower_needs_no_download_of_the_old_one(tmp_path: Path) -> None:
    tuned = load()
    train(network(tuned), "image_tower.classifier")
    aligned.save(tmp_path / "tuned", network(tuned))
    text = catalog.pull("minilm-l6", cache_dir=CACHE, offline=True)
    (tmp_path / "cache/models").mkdir(parents=True)
    (tmp_path / "cache/models" / text.name).symlink_to(text)
    loaded = load_dual_encoder(tmp_path / "tuned", cache_dir=tmp_path / "cache", offline=True)
    assert close(outputs(loaded), outputs(tuned))


def test_a_tower_is_kept_where_the_catalogues_cannot_be_compared(tmp_path: Path) -> None:
    model = network(load())
    model.origins["image_tower"] = tmp_path / "gone.pth"
    aligned.save(tmp_path / "kept", model)
    assert json.loads((tmp_path / "kept/config.json").read_text())["stored"] == ["image_tower"]


def test_the_digest_follows_the_tensors(tmp_path: Path) -> None:
    tuned = load(adapters=True)
    aligned.save(tmp_path / "a", network(tuned))
    train(network(tuned), "text_head.adapter")
    aligned.save(tmp_path / "b", network(tuned))
    digests = {load().digest, load(tmp_path / "a").digest, load(tmp_path / "b").digest}
    assert len(digests) == 3


def test_it_serves_under_a_name_of_the_users(tmp_path: Path) -> None:
    tuned = load(adapters=True)
    train(network(tuned), "image_head.adapter")
    aligned.save(tmp_path / "tuned", network(tuned))
    flags = {"data_dir": tmp_path / "data", "cache_dir": CACHE, "embedder": "my-shoes"}
    settings = Settings.load(flags | {"offline": True, "device": "cpu"}, environment={})
    entry = catalog.add_entry(
        settings.catalog, "my-shoes", tmp_path / "tuned", description="fine-tuned"
    )
    assert entry.needs == ("efficientnet-lite0", "minilm-l6")
    assert entry.files["heads.safetensors"].sha256 == sha256(
        (tmp_path / "tuned/heads.safetensors").read_bytes()
    )
    embedder = load_embedder(settings)
    assert embedder.name == "my-shoes"
    expected = F.normalize(outputs(tuned)[1], dim=1).numpy()
    np.testing.assert_allclose(embedder.embed_texts(TEXTS), expected, atol=1e-6)


def test_damage_is_told_without_advice_to_install_again(tmp_path: Path) -> None:
    folder = tmp_path / "tuned"
    aligned.save(folder, network(load(adapters=True)))
    tensors = load_file(folder / "heads.safetensors")
    del tensors["text_head.adapter.weight"]
    save_file(tensors, folder / "heads.safetensors")
    with pytest.raises(UnsupportedCheckpoint, match="other tensors") as caught:
        load(folder)
    assert "Install" not in str(caught.value)


def test_a_full_disk_leaves_no_half_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network(load())
    aligned.save(tmp_path / "tuned", model)
    before = (tmp_path / "tuned/heads.safetensors").read_bytes()
    monkeypatch.setattr(
        checkpoint.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0)
    )
    with pytest.raises(NoSpace):
        aligned.save(tmp_path / "tuned", model)
    assert (tmp_path / "tuned/heads.safetensors").read_bytes() == before


def test_adapters_are_refused_where_there_are_no_heads(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(UnsupportedCheckpoint, match="no heads"):
        load(tmp_path, adapters=True)
