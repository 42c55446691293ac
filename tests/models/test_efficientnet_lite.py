"""EfficientNet-Lite against golden values from an independent implementation.

The values come from `efficientnet_lite_pytorch` 0.1.0 (Apache-2.0), run on the same weights and
the same pixels; on the machine that made them, the two differed by nothing at all.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from chiasm.errors import UnsupportedCheckpoint
from chiasm.media.decode import open_image
from chiasm.models.catalog import pull
from chiasm.models.efficientnet_lite import (
    CONFIGS,
    EfficientNetLite,
    load_published,
    published_names,
)
from chiasm.models.preprocess import ImagePreprocessor
from chiasm.settings import Settings

# Scale → (trainable parameters, first six logits for `pixels(97, 130)` with `filled` weights).
GOLDEN = {
    "lite0": (4652008, [-7.03266, 6.8863, -4.143, -0.24223, 4.75196, -7.03446]),
    "lite1": (5416680, [-6.74598, 7.01427, -4.14563, -0.12844, 4.44787, -7.09145]),
    "lite2": (6092072, [-8.24756, 8.2767, -4.66, -0.56948, 5.66653, -8.59646]),
    "lite3": (8197096, [-4.33981, 4.6119, -3.30669, 0.54016, 2.52963, -4.32054]),
    "lite4": (13006568, [-9.15399, 9.06484, -5.30185, -0.38234, 6.22325, -9.29603]),
}
# (height, width) → first six logits with the published weights of Lite0.
PUBLISHED = {
    (224, 224): [-1.0308, -1.0484, -2.1502, -3.6333, -0.9432, -1.0799],
    (131, 200): [-1.3351, -1.557, -1.6486, -2.1556, -0.4405, -0.2435],
}


def pixels(height: int, width: int) -> Tensor:
    """The same picture everywhere, without a random generator's version in between."""
    i = torch.arange(3 * height * width, dtype=torch.float64)
    return torch.sin(i * 0.013 + torch.cos(i * 0.0007) * 3).float().reshape(1, 3, height, width)


def filled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every tensor from a sine over its elements, sized so that activations stay moderate."""
    tensors = {}
    for number, (name, tensor) in enumerate(sorted(state.items())):
        wave = torch.sin(torch.arange(tensor.numel(), dtype=torch.float64) * 0.7 + number)
        wave = wave.float().reshape(tensor.shape)
        if tensor.dtype == torch.int64:
            tensors[name] = tensor.clone()
        elif name.endswith("running_var"):
            tensors[name] = 1 + 0.5 * wave
        elif name.endswith("weight") and tensor.ndim == 1:
            tensors[name] = 1 + 0.3 * wave
        elif tensor.ndim >= 2:
            tensors[name] = wave * (1.5 / tensor[0].numel() ** 0.5)
        else:
            tensors[name] = 0.1 * wave
    return tensors


def published_state(model: EfficientNetLite) -> dict[str, Tensor]:
    """`filled` weights under the published names."""
    ours = model.state_dict()
    return filled({theirs: ours[name] for name, theirs in published_names(model).items()})


@pytest.mark.parametrize("scale", GOLDEN)
def test_every_scale_computes_what_the_reference_does(scale: str, tmp_path: Path) -> None:
    parameters, logits = GOLDEN[scale]
    model = EfficientNetLite(CONFIGS[scale])
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters

    torch.save(published_state(model), tmp_path / "weights.pth")
    model = load_published(tmp_path / "weights.pth", CONFIGS[scale])
    with torch.inference_mode():
        torch.testing.assert_close(
            model(pixels(97, 130))[0, :6], torch.tensor(logits), atol=1e-4, rtol=1e-4
        )
        assert model.feature_map(pixels(97, 130)).shape == (1, 1280, 4, 5)


def test_folding_batch_norms_changes_nothing_but_the_modules(tmp_path: Path) -> None:
    torch.save(published_state(EfficientNetLite()), tmp_path / "weights.pth")
    model = load_published(tmp_path / "weights.pth")
    with torch.inference_mode():
        before = model(pixels(64, 64))
        after = model.fold_batch_norms().fold_batch_norms()(pixels(64, 64))
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    torch.testing.assert_close(after, before, atol=1e-3, rtol=1e-4)


def test_stages_halve_the_map_where_the_paper_says() -> None:
    model = EfficientNetLite().eval()
    with torch.inference_mode():
        shapes = [tuple(each.shape[1:]) for each in model.stages(pixels(224, 224))]
    assert shapes == [
        (16, 112, 112),
        (24, 56, 56),
        (40, 28, 28),
        (80, 14, 14),
        (112, 14, 14),
        (192, 7, 7),
        (320, 7, 7),
        (1280, 7, 7),
    ]


def test_weights_of_another_scale_are_refused_by_what_is_missing(tmp_path: Path) -> None:
    torch.save(published_state(EfficientNetLite(CONFIGS["lite0"])), tmp_path / "weights.pth")
    with pytest.raises(UnsupportedCheckpoint, match=r"weights\.pth .* tensors are missing"):
        load_published(tmp_path / "weights.pth", CONFIGS["lite4"])


def test_a_pickle_with_code_in_it_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return open, (str(tmp_path / "sprung"), "w")

    torch.save({"_fc.weight": Trap()}, tmp_path / "weights.pth")
    with pytest.raises(UnsupportedCheckpoint, match="could not be read"):
        load_published(tmp_path / "weights.pth")
    assert not (tmp_path / "sprung").exists()


@pytest.fixture(scope="module")
def published() -> EfficientNetLite:
    folder = pull("efficientnet-lite0", cache_dir=Settings.load().cache_dir)
    return load_published(next(folder.glob("*.pth")))


@pytest.mark.weights
@pytest.mark.parametrize("size", PUBLISHED)
def test_published_weights_compute_what_the_reference_does(
    published: EfficientNetLite, size: tuple[int, int]
) -> None:
    with torch.inference_mode():
        logits = published(pixels(*size))[0, :6]
    torch.testing.assert_close(logits, torch.tensor(PUBLISHED[size]), atol=2e-4, rtol=1e-4)


@pytest.mark.weights
@pytest.mark.parametrize(
    ("name", "classes", "least"),
    [
        ("coffee.png", {967}, 0.8),  # espresso
        ("chelsea.png", {282, 285}, 0.3),  # tiger cat, Egyptian cat
        ("camera.png", {872}, 0.8),  # tripod
        ("rocket.jpg", {657}, 0.3),  # missile
        ("motorcycle_left.png", {665}, 0.3),  # moped
    ],
)
def test_published_weights_name_photographs(
    published: EfficientNetLite, name: str, classes: set[int], least: float
) -> None:
    folder = pull("scikit-image-photos", cache_dir=Settings.load().cache_dir)
    preprocess = ImagePreprocessor(
        size=(224, 224),
        shortest_edge=256,
        resample="bicubic",
        rescale_factor=1.0,
        mean=(127.0, 127.0, 127.0),
        std=(128.0, 128.0, 128.0),
    )
    with torch.inference_mode():
        probabilities = published(preprocess([open_image(folder / name)])).softmax(dim=-1)[0]
    assert int(probabilities.argmax()) in classes
    assert float(probabilities[list(classes)].sum()) >= least
