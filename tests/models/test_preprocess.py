"""Preprocessing against transformers' own image processors, on Pillow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import torch
from transformers.image_processing_base import ImageProcessingMixin
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from chiasm.errors import UnsupportedCheckpoint
from chiasm.media.image import Image
from chiasm.models.preprocess import (
    ImagePreprocessor,
    NaFlexPreprocessor,
    patch_grid,
    preprocessor_from_config,
)

# (width, height): square, wide, tall, odd by one pixel, smaller than the target, a single row.
SIZES = [
    (224, 224), (225, 223), (640, 427), (427, 640), (1000, 90), (31, 500),
    (17, 16), (1, 1), (64, 1), (3, 40), (449, 448), (255, 257),
]  # fmt: skip

PROCESSORS: dict[str, Any] = {
    "CLIP": lambda: CLIPImageProcessorPil(),
    "CLIP, 336 pixels": lambda: CLIPImageProcessorPil(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}
    ),
    "CLIP, crop smaller than resize": lambda: CLIPImageProcessorPil(
        size={"shortest_edge": 73}, crop_size={"height": 64, "width": 64}
    ),
    "CLIP, crop larger than resize": lambda: CLIPImageProcessorPil(
        size={"shortest_edge": 60}, crop_size={"height": 71, "width": 64}
    ),
    "SigLIP": lambda: SiglipImageProcessorPil(),
    "SigLIP, not square": lambda: SiglipImageProcessorPil(size={"height": 96, "width": 160}),
    "ViT": lambda: ViTImageProcessorPil(),
    "ViT, not normalised": lambda: ViTImageProcessorPil(do_normalize=False),
    "ConvNeXt, 384": lambda: ConvNextImageProcessorPil(),
    "ConvNeXt, 224": lambda: ConvNextImageProcessorPil(size={"shortest_edge": 224}, crop_pct=0.875),
    "ConvNeXt, 96": lambda: ConvNextImageProcessorPil(size={"shortest_edge": 96}, crop_pct=0.9),
}


def picture(width: int, height: int) -> Image:
    """Noise over a gradient: sharp enough that a filter or a shift of half a pixel shows."""
    random = np.random.default_rng(width * 7919 + height)
    ramp = np.linspace(0, 180, width)[None, :, None] + np.linspace(0, 60, height)[:, None, None]
    noise = random.integers(0, 76, (height, width, 3))
    pixels = np.clip(ramp + noise, 0, 255).astype(np.uint8)
    return Image(pixels, original_size=(width, height))


def theirs(processor: Any, images: list[Image]) -> torch.Tensor:
    return torch.cat(
        [
            processor(np.array(image.pixels), input_data_format="channels_last",
                      return_tensors="pt")["pixel_values"]
            for image in images
        ]
    )  # fmt: skip


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_equal_those_of_transformers(name: str) -> None:
    processor = PROCESSORS[name]()
    ours = preprocessor_from_config(processor.to_dict())
    images = [picture(*size) for size in SIZES]
    expected = theirs(processor, images)
    actual = ours(images)
    assert isinstance(actual, torch.Tensor)
    assert actual.dtype == torch.float32
    assert actual.shape == expected.shape
    for size, mine, their in zip(SIZES, actual, expected, strict=True):
        assert (mine - their).abs().max() <= 1e-5, size


@pytest.mark.parametrize("name", PROCESSORS)
def test_what_is_written_means_the_same_to_transformers(name: str, tmp_path: Path) -> None:
    ours = preprocessor_from_config(PROCESSORS[name]().to_dict())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(ours.to_config()))
    reopened: ImageProcessingMixin = type(PROCESSORS[name]()).from_pretrained(tmp_path)
    images = [picture(*size) for size in ((640, 427), (200, 300))]
    assert (ours(images) - theirs(reopened, images)).abs().max() <= 1e-5
    assert preprocessor_from_config(ours.to_config()) == ours


def test_files_from_before_sizes_were_objects() -> None:
    old = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "crop_size": 224,
           "do_resize": True, "do_center_crop": True, "do_normalize": True, "resample": 3,
           "image_mean": [0.48145466, 0.4578275, 0.40821073],
           "image_std": [0.26862954, 0.26130258, 0.27577711]}  # fmt: skip
    assert ImagePreprocessor.from_config(old) == ImagePreprocessor.from_config(
        CLIPImageProcessorPil().to_dict()
    )
    vit = {"feature_extractor_type": "ViTFeatureExtractor", "size": 384, "resample": 2}
    assert ImagePreprocessor.from_config(vit).size == (384, 384)
    assert ImagePreprocessor.from_config(vit).shortest_edge is None


@pytest.mark.parametrize("max_patches", [16, 256, 1024])
def test_naflex_patches_equal_those_of_transformers(max_patches: int) -> None:
    processor = Siglip2ImageProcessorPil(max_num_patches=max_patches, patch_size=16)
    ours = preprocessor_from_config(processor.to_dict())
    assert isinstance(ours, NaFlexPreprocessor)
    images = [picture(*size) for size in SIZES]
    batch = ours(images)
    for number, image in enumerate(images):
        expected = processor(
            np.array(image.pixels), input_data_format="channels_last", return_tensors="pt"
        )
        assert batch.shapes[number].tolist() == expected["spatial_shapes"][0].tolist()
        kept = expected["pixel_attention_mask"][0].bool()
        assert int(batch.mask[number].sum()) == int(kept.sum())
        actual = batch.patches[number][batch.mask[number]]
        assert (actual - expected["pixel_values"][0][kept]).abs().max() <= 1e-5, image.size
    assert preprocessor_from_config(ours.to_config()) == ours


def test_patch_grid_equals_that_of_transformers_for_many_sizes() -> None:
    from transformers.models.siglip2 import image_processing_pil_siglip2 as oracle

    random = np.random.default_rng(0)
    for width, height in random.integers(1, 4000, (300, 2)).tolist():
        expected = oracle.get_image_size_for_max_num_patches(height, width, 16, 256)
        rows, columns = patch_grid((width, height), 16, 256)
        assert (rows * 16, columns * 16) == expected, (width, height)


def test_a_thread_of_a_picture_does_not_fill_the_memory() -> None:
    ours = ImagePreprocessor.from_config(CLIPImageProcessorPil().to_dict())
    strip = Image(np.full((1, 32_000, 3), 200, np.uint8), original_size=(32_000, 1))
    pixels = ours([strip])  # scaled whole, it would be 7 million pixels wide
    expected = theirs(CLIPImageProcessorPil(), [Image(np.full((9, 9, 3), 200, np.uint8), (9, 9))])
    assert (pixels - expected).abs().max() <= 1e-5


def test_a_strip_differs_by_a_grey_level_at_most() -> None:
    ours = ImagePreprocessor.from_config(CLIPImageProcessorPil().to_dict())
    strip = picture(1800, 20)
    difference = (ours([strip]) - theirs(CLIPImageProcessorPil(), [strip])).abs().max()
    assert difference <= 1.01 / 255 / 0.26


LETTERBOX = {
    "image_processor_type": "ViTImageProcessor", "size": {"height": 96, "width": 160},
    "resample": 3, "letterbox": [255, 128, 0], "image_mean": [0, 0, 0], "image_std": [1, 1, 1],
}  # fmt: skip


@pytest.mark.parametrize("size", [size for size in SIZES if size != (64, 1)], ids=str)
def test_a_letterboxed_picture_lies_whole_in_the_middle_of_its_colour(
    size: tuple[int, int],
) -> None:
    image = picture(*size)
    whole = PIL.Image.fromarray(np.array(image.pixels))
    inside = PIL.ImageOps.contain(whole, (160, 96), PIL.Image.Resampling.BICUBIC)
    expected = PIL.Image.new("RGB", (160, 96), (255, 128, 0))
    expected.paste(inside, ((160 - inside.width) // 2, (96 - inside.height) // 2))
    fitted = ImagePreprocessor.from_config(LETTERBOX).fit(image)
    np.testing.assert_array_equal(fitted, np.asarray(expected))


def test_a_letterboxed_strip_keeps_one_row_of_pixels() -> None:
    strip = Image(np.full((1, 5000, 3), 200, np.uint8), original_size=(5000, 1))
    fitted = ImagePreprocessor.from_config(LETTERBOX).fit(strip)
    rows = (fitted == 200).all(axis=(1, 2)).nonzero()[0]
    assert rows.tolist() == [47]
    assert (np.delete(fitted, rows, axis=0) == (255, 128, 0)).all()


def test_a_letterbox_is_written_as_it_was_read() -> None:
    ours = ImagePreprocessor.from_config(LETTERBOX)
    assert ours.to_config()["letterbox"] == [255, 128, 0]
    assert preprocessor_from_config(ours.to_config()) == ours
    squashing = {key: value for key, value in LETTERBOX.items() if key != "letterbox"}
    assert "letterbox" not in ImagePreprocessor.from_config(squashing).to_config()


def test_an_empty_batch_has_the_right_shape() -> None:
    assert ImagePreprocessor.from_config(CLIPImageProcessorPil().to_dict())([]).shape == (
        0, 3, 224, 224,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"image_processor_type": "PixtralImageProcessor"}, "PixtralImageProcessor"),
        ({}, "The image processor is ''"),
        ({"image_processor_type": "CLIPImageProcessor", "do_resize": False}, "do_resize is off"),
        ({"image_processor_type": "CLIPImageProcessor", "do_center_crop": False}, "same height"),
        ({"image_processor_type": "CLIPImageProcessor", "resample": 0}, "resample is 0"),
        ({"image_processor_type": "CLIPImageProcessor", "image_mean": [0.5]}, "three numbers"),
        ({"image_processor_type": "CLIPImageProcessor", "letterbox": [0, 0, 0]}, "a crop is asked"),
        (LETTERBOX | {"letterbox": "white"}, "three numbers from 0 to 255, not 'white'"),
        (LETTERBOX | {"letterbox": [0, 0, 256]}, "three numbers from 0 to 255"),
    ],
)
def test_what_cannot_be_done_is_refused_in_words(config: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedCheckpoint, match=words):
        preprocessor_from_config(config)


def test_decode_side_leaves_twice_the_pixels_that_are_needed() -> None:
    config = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size=336).to_dict()
    assert ImagePreprocessor.from_config(config).decode_side == 672
