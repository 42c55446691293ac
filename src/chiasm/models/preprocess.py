"""Pictures to the tensors an image tower reads: resize, crop, rescale, normalise.

Read from and written to `preprocessor_config.json`, whose classes differ in what they leave
unsaid; `_DEFAULTS` holds what each class means by silence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from chiasm.errors import UnsupportedCheckpoint
from chiasm.media.image import Image, Pixels
from chiasm.media.transform import resize
from chiasm.models.patches import PatchBatch, patchify

Resample = Literal["bilinear", "bicubic", "lanczos"]
Triple = tuple[float, float, float]
Colour = tuple[int, int, int]

# Above this many times the crop's area, a picture is not scaled whole before it is cropped.
_LARGEST_EXCESS = 64

# The numbers are Pillow's, which the files use.
_RESAMPLES: dict[int, Resample] = {1: "lanczos", 2: "bilinear", 3: "bicubic"}

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_HALF = (0.5, 0.5, 0.5)
_SHARED_DEFAULTS: dict[str, Any] = {
    "rescale_factor": 1 / 255,
    "image_mean": _HALF,
    "image_std": _HALF,
}
_CLIP_DEFAULTS: dict[str, Any] = {
    "size": {"shortest_edge": 224},
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "resample": 3,
    "image_mean": _CLIP_MEAN,
    "image_std": _CLIP_STD,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "CLIPImageProcessor": _CLIP_DEFAULTS,
    # What these do besides is in `llava_reader`.
    "LlavaImageProcessor": _CLIP_DEFAULTS,
    "LlavaNextImageProcessor": _CLIP_DEFAULTS,
    "SiglipImageProcessor": {"size": {"height": 224, "width": 224}, "resample": 3},
    "ViTImageProcessor": {"size": {"height": 224, "width": 224}, "resample": 2},
    "ConvNextImageProcessor": {
        "size": {"shortest_edge": 384},
        "resample": 3,
        "crop_pct": 224 / 256,
    },
    "IdeficsImageProcessor": {
        "size": {"height": 224, "width": 224},
        "resample": 3,
        "image_mean": _CLIP_MEAN,
        "image_std": _CLIP_STD,
    },
    "Siglip2ImageProcessor": {"resample": 2, "patch_size": 16, "max_num_patches": 256},
}


@dataclass(frozen=True)
class ImagePreprocessor:
    """Every picture becomes one fixed height × width.

    size: (height, width) that leaves the preprocessor.
    shortest_edge: None squashes the picture to `size`; a number scales its shorter side to that
        many pixels, keeping the aspect, and cuts `size` out of the middle.
    rescale_factor, mean, std: a channel value v becomes (v · rescale_factor − mean) / std.
    kind: the class that the file names.
    letterbox: a colour (red, green, blue, each 0 to 255) scales the picture to lie within `size`
        whole, keeping the aspect, and fills what is left with that colour. An entry of our own
        (`"letterbox": [255, 255, 255]`) that no published class reads.
    """

    size: tuple[int, int]
    shortest_edge: int | None
    resample: Resample
    rescale_factor: float
    mean: Triple
    std: Triple
    kind: str = "CLIPImageProcessor"
    letterbox: Colour | None = None

    @property
    def decode_side(self) -> int:
        """The `shortest_side` to open pictures with: twice what is needed, so nothing is lost."""
        return 2 * max(*self.size, self.shortest_edge or 0)

    def __call__(self, images: Sequence[Image]) -> Tensor:
        """float32 [batch, 3, height, width]."""
        return self.batch([self.fit(image) for image in images])

    def batch(self, fitted: Sequence[Pixels]) -> Tensor:
        """What `fit` gave, as one batch: float32 [batch, 3, height, width]."""
        height, width = self.size
        pixels = np.empty((len(fitted), height, width, 3), dtype=np.uint8)
        for row, each in zip(pixels, fitted, strict=True):
            row[:] = each
        channels_first = torch.from_numpy(pixels).permute(0, 3, 1, 2)  # [batch, 3, height, width]
        return _normalised(channels_first, self.rescale_factor, self.mean, self.std, dim=1)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ImagePreprocessor:
        """From the entries of `preprocessor_config.json`.

        Raises UnsupportedCheckpoint for a class that is not known here, or one set up so that
        pictures leave it in different sizes.
        """
        kind = _kind(config)
        if kind == "Siglip2ImageProcessor":
            raise UnsupportedCheckpoint(
                "The image processor cuts patches in varying number (NaFlex), not pictures of one "
                "size."
            )
        entries = {**_SHARED_DEFAULTS, **_DEFAULTS[kind], **_given(config)}
        if not entries.get("do_resize", True):
            raise UnsupportedCheckpoint(
                "do_resize is off; pictures of many sizes cannot share a batch."
            )
        size, shortest_edge = _target(entries, kind)
        letterbox = _colour(entries["letterbox"]) if "letterbox" in entries else None
        if letterbox and shortest_edge is not None:
            raise UnsupportedCheckpoint(
                "letterbox keeps the whole picture, but a crop is asked for as well.",
                hint="Give `size` a height and a width, and no `crop_size`.",
            )
        return cls(size, shortest_edge, *_numbers(entries), kind=kind, letterbox=letterbox)

    def to_config(self) -> dict[str, Any]:
        """The entries of a `preprocessor_config.json` that means the same."""
        height, width = self.size
        exact = {"height": height, "width": width}
        config = _shared_config(self)
        if self.kind == "ConvNextImageProcessor":
            config["size"] = {"shortest_edge": height}
            if self.shortest_edge is not None:
                # The class takes a floor here; half a pixel more keeps it from landing one short.
                config["crop_pct"] = height / (self.shortest_edge + 0.5)
        elif self.shortest_edge is None:
            config |= {"size": exact, "do_center_crop": False}
        else:
            size = {"shortest_edge": self.shortest_edge}
            config |= {"size": size, "do_center_crop": True, "crop_size": exact}
        if self.letterbox:
            config["letterbox"] = list(self.letterbox)
        return config

    def fit(self, image: Image) -> Pixels:
        """One picture at the size of the batch: uint8 [height, width, 3]."""
        height, width = self.size
        if self.letterbox:
            return self._letterboxed(image, self.letterbox)
        if self.shortest_edge is None:
            return resize(image, (width, height), resample=self.resample)
        shorter = min(image.size)
        full_width, full_height = (self.shortest_edge * side // shorter for side in image.size)
        left, right = _middle(full_width, width)
        top, bottom = _middle(full_height, height)
        if full_width * full_height <= _LARGEST_EXCESS * width * height:
            scaled = resize(image, (full_width, full_height), resample=self.resample)
            return _padded(scaled[top:bottom, left:right], height, width)
        # Scaled whole, a strip one pixel high and ten thousand wide would be two million pixels
        # wide. Computing only what is kept differs by a grey level here and there.
        across, down = image.width / full_width, image.height / full_height
        box = (left * across, top * down, right * across, bottom * down)
        kept = resize(image, (right - left, bottom - top), resample=self.resample, box=box)
        return _padded(kept, height, width)

    def _letterboxed(self, image: Image, colour: Colour) -> Pixels:
        height, width = self.size
        scale = min(width / image.width, height / image.height)
        across, down = (max(1, round(side * scale)) for side in image.size)
        left, top = (width - across) // 2, (height - down) // 2
        pixels = np.empty((height, width, 3), dtype=np.uint8)
        pixels[:] = colour
        pixels[top : top + down, left : left + across] = resize(
            image, (across, down), resample=self.resample
        )
        return pixels


# SigLIP 2, NaFlex -------------------------------------------------------------------------------


@dataclass(frozen=True)
class NaFlexPreprocessor:
    """Each picture is scaled to fill at most `max_patches` patches, keeping its aspect.

    Source: SigLIP 2 (arXiv 2502.14786, section 2.4.2, after NaViT and FlexiViT).
    """

    patch_size: int
    max_patches: int
    resample: Resample
    rescale_factor: float
    mean: Triple
    std: Triple
    kind: str = "Siglip2ImageProcessor"

    @property
    def decode_side(self) -> int:
        """The `shortest_side` to open pictures with: twice a square picture's side."""
        return 2 * math.isqrt(self.max_patches) * self.patch_size

    def __call__(self, images: Sequence[Image]) -> PatchBatch:
        """One row of patches a picture, padded to the batch's longest."""
        return self.batch([self.fit(image) for image in images])

    def fit(self, image: Image) -> Pixels:
        """One picture at its own whole number of patches: uint8 [height, width, 3]."""
        rows, columns = patch_grid(image.size, self.patch_size, self.max_patches)
        size = (columns * self.patch_size, rows * self.patch_size)
        return resize(image, size, resample=self.resample)

    def batch(self, fitted: Sequence[Pixels]) -> PatchBatch:
        """What `fit` gave, as one batch, padded to its longest row of patches."""
        rows, shapes = [], []
        for each in fitted:
            height, width = each.shape[:2]
            pixels = torch.from_numpy(each.copy())
            values = _normalised(pixels, self.rescale_factor, self.mean, self.std, dim=-1)
            rows.append(patchify(values, self.patch_size))
            shapes.append((height // self.patch_size, width // self.patch_size))
        longest = max((len(row) for row in rows), default=0)
        patches = torch.zeros(len(rows), longest, 3 * self.patch_size**2)
        mask = torch.zeros(len(rows), longest, dtype=torch.bool)
        for number, row in enumerate(rows):
            patches[number, : len(row)] = row
            mask[number, : len(row)] = True
        return PatchBatch(patches, mask, torch.tensor(shapes, dtype=torch.int64).reshape(-1, 2))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> NaFlexPreprocessor:
        """From the entries of `preprocessor_config.json`."""
        defaults = _DEFAULTS["Siglip2ImageProcessor"]
        entries = {**_SHARED_DEFAULTS, **defaults, **_given(config)}
        return cls(int(entries["patch_size"]), int(entries["max_num_patches"]), *_numbers(entries))

    def to_config(self) -> dict[str, Any]:
        """The entries of a `preprocessor_config.json` that means the same."""
        return _shared_config(self) | {
            "patch_size": self.patch_size,
            "max_num_patches": self.max_patches,
        }


def patch_grid(size: tuple[int, int], patch_size: int, max_patches: int) -> tuple[int, int]:
    """Rows and columns of patches for a picture of `size` (width, height).

    The largest scale is sought, by bisection, at which both sides rounded up to whole patches
    together need at most `max_patches`. The bounds and the tolerance are the published
    processor's: they decide the border cases.
    """

    def grid(scale: float) -> tuple[int, int]:
        width, height = size
        return (
            max(1, math.ceil(height * scale / patch_size)),
            max(1, math.ceil(width * scale / patch_size)),
        )

    tolerance = 1e-5
    fits, too_large = tolerance / 10, 100.0
    while too_large - fits >= tolerance:
        scale = (fits + too_large) / 2
        if math.prod(grid(scale)) <= max_patches:
            fits = scale
        else:
            too_large = scale
    return grid(fits)


AnyPreprocessor = ImagePreprocessor | NaFlexPreprocessor


def preprocessor_from_config(config: Mapping[str, Any]) -> AnyPreprocessor:
    """Whichever of the two the file describes."""
    if _kind(config) == "Siglip2ImageProcessor":
        return NaFlexPreprocessor.from_config(config)
    return ImagePreprocessor.from_config(config)


# Reading the file -------------------------------------------------------------------------------


def _kind(config: Mapping[str, Any]) -> str:
    """The processor's class, without the suffixes that name its age or its backend."""
    named = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    for suffix in ("Fast", "Pil"):
        named = named.removesuffix(suffix)
    named = named.replace("FeatureExtractor", "ImageProcessor")
    if named not in _DEFAULTS:
        raise UnsupportedCheckpoint(
            f"The image processor is {named!r}, which is not known here.",
            hint=f"Known are {', '.join(_DEFAULTS)}.",
        )
    return named


def _given(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if value is not None}


def _target(entries: Mapping[str, Any], kind: str) -> tuple[tuple[int, int], int | None]:
    """((height, width), shortest edge or None) from `size`, `crop_size` and `crop_pct`."""
    size = entries["size"]
    if isinstance(size, int):  # files from before 2022
        square = kind in {"ViTImageProcessor", "SiglipImageProcessor"}
        size = {"height": size, "width": size} if square else {"shortest_edge": size}
    if kind == "ConvNextImageProcessor":
        side = int(size["shortest_edge"])
        # From 384 pixels up, the class squashes; below, it crops a share of a larger resize.
        return (side, side), (int(side / entries["crop_pct"]) if side < 384 else None)
    crop = entries.get("crop_size") if entries.get("do_center_crop") else None
    if isinstance(crop, int):
        crop = {"height": crop, "width": crop}
    if "height" in size and "width" in size and crop in (None, size):
        return (int(size["height"]), int(size["width"])), None
    if set(size) == {"shortest_edge"} and crop is not None:
        return (int(crop["height"]), int(crop["width"])), int(size["shortest_edge"])
    raise UnsupportedCheckpoint(
        f"size {size} with crop {crop} does not give every picture the same height and width.",
        hint="Give `size` a height and a width, or a shortest_edge together with a `crop_size`.",
    )


def _numbers(entries: Mapping[str, Any]) -> tuple[Resample, float, Triple, Triple]:
    resample = _RESAMPLES.get(entries["resample"])
    if resample is None:
        raise UnsupportedCheckpoint(
            f"resample is {entries['resample']!r}, which is no filter known here.",
            hint=f"Known are {', '.join(f'{n} ({name})' for n, name in _RESAMPLES.items())}.",
        )
    factor = float(entries["rescale_factor"]) if entries.get("do_rescale", True) else 1.0
    if not entries.get("do_normalize", True):
        return resample, factor, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return resample, factor, _triple(entries["image_mean"]), _triple(entries["image_std"])


def _triple(values: Any) -> Triple:
    try:
        red, green, blue = (float(value) for value in values)
    except (TypeError, ValueError):
        raise UnsupportedCheckpoint(
            f"image_mean and image_std need three numbers, not {values!r}."
        ) from None
    return red, green, blue


def _colour(values: Any) -> Colour:
    try:
        red, green, blue = (int(value) for value in values)
        if not all(0 <= value <= 255 for value in (red, green, blue)):
            raise ValueError
    except (TypeError, ValueError):
        raise UnsupportedCheckpoint(
            f"letterbox needs a colour of three numbers from 0 to 255, not {values!r}."
        ) from None
    return red, green, blue


def _shared_config(preprocessor: AnyPreprocessor) -> dict[str, Any]:
    numbers = {name: number for number, name in _RESAMPLES.items()}
    return {
        "image_processor_type": preprocessor.kind,
        "do_resize": True,
        "resample": numbers[preprocessor.resample],
        "do_rescale": True,
        "rescale_factor": preprocessor.rescale_factor,
        "do_normalize": True,
        "image_mean": list(preprocessor.mean),
        "image_std": list(preprocessor.std),
        "do_convert_rgb": True,
    }


# Pixels -----------------------------------------------------------------------------------------


def _middle(length: int, kept: int) -> tuple[int, int]:
    """Where the middle `kept` of `length` pixels begin and end; all of them if there are fewer."""
    start = max(0, (length - kept) // 2)
    return start, min(length, start + kept)


def _padded(pixels: Pixels, height: int, width: int) -> Pixels:
    """`pixels` in the middle of height × width, the rest black."""
    missing = height - pixels.shape[0], width - pixels.shape[1]
    if not any(missing):
        return pixels
    # An odd row or column goes above or to the left.
    widths = [(number - number // 2, number // 2) for number in missing]
    return np.pad(pixels, [*widths, (0, 0)])


def _normalised(pixels: Tensor, factor: float, mean: Triple, std: Triple, *, dim: int) -> Tensor:
    """(pixels · factor − mean) / std along the channels in `dim`, contiguous float32."""
    shape = [1] * pixels.ndim
    shape[dim] = 3
    scale = torch.tensor([factor / each for each in std], dtype=torch.float32).reshape(shape)
    shift = torch.tensor([m / s for m, s in zip(mean, std, strict=True)]).reshape(shape)
    floats = pixels.contiguous().to(torch.float32)
    return floats.mul_(scale).sub_(shift)
