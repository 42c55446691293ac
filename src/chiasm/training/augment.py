"""Random changes of a picture on its way into a batch.

All numbers come from a generator that is made for one sample in one epoch, so a sample's picture
does not depend on which samples came before it.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from chiasm.media import Image
from chiasm.media.image import Pixels
from chiasm.media.transform import resize

if TYPE_CHECKING:  # a recipe is read without torch
    from chiasm.models.preprocess import AnyPreprocessor

_GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random changes of the pictures.

    crop_area: the smallest share of a picture that a random crop keeps; the largest is all of it.
        1 for no random crop. CLIP was trained with 0.9 in open_clip, ImageNet networks with 0.08.
    crop_aspect: a crop's width over its height is at most so much, and at least its inverse,
        times the picture's.
    flip: probability of a mirror image. Not for pictures with writing, or with a left and a right.
    brightness, contrast, saturation: each is multiplied by a factor between 1 - x and 1 + x.
    """

    crop_area: Annotated[float, Field(gt=0, le=1)] = 1.0
    crop_aspect: Annotated[float, Field(ge=1)] = 4 / 3
    flip: Annotated[float, Field(ge=0, le=1)] = 0.0
    brightness: Annotated[float, Field(ge=0, lt=1)] = 0.0
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.0
    saturation: Annotated[float, Field(ge=0, lt=1)] = 0.0


@dataclass(frozen=True)
class Change:
    """What chance decided for one sample, before its size was known.

    width, height: sides of the crop as shares of the picture's. across, down: where it lies, from
    0 (left, top) to 1. factors: of brightness, contrast and saturation.
    """

    width: float = 1.0
    height: float = 1.0
    across: float = 0.5
    down: float = 0.5
    flip: bool = False
    factors: tuple[float, float, float] = (1.0, 1.0, 1.0)


def draw(augmentation: Augmentation, chance: random.Random) -> Change:
    """Decide. As many numbers are drawn whatever is switched on."""
    area = chance.uniform(augmentation.crop_area, 1.0)
    limit = math.log(augmentation.crop_aspect)
    aspect = math.exp(chance.uniform(-limit, limit))
    across, down, mirrored = chance.random(), chance.random(), chance.random()
    width = height = 1.0
    if augmentation.crop_area < 1:
        # A side that would be longer than the picture's is cut off; the area is then smaller.
        width = min(1.0, math.sqrt(area * aspect))
        height = min(1.0, math.sqrt(area / aspect))
    spreads = (augmentation.brightness, augmentation.contrast, augmentation.saturation)
    first, second, third = (1 + spread * chance.uniform(-1, 1) for spread in spreads)
    return Change(width, height, across, down, mirrored < augmentation.flip, (first, second, third))


def apply(image: Image, change: Change, preprocessor: AnyPreprocessor) -> Pixels:
    """The changed picture as `preprocessor.batch` takes it: uint8 [height, width, 3]."""
    pixels = _fitted(image, change, preprocessor)
    if change.flip:
        pixels = pixels[:, ::-1]
    if change.factors != (1.0, 1.0, 1.0):
        pixels = _coloured(pixels, *change.factors)
    return pixels


def _fitted(image: Image, change: Change, preprocessor: AnyPreprocessor) -> Pixels:
    if change.width == change.height == 1.0:
        return preprocessor.fit(image)
    width, height = change.width * image.width, change.height * image.height
    left, top = change.across * (image.width - width), change.down * (image.height - height)
    box = (left, top, left + width, top + height)
    from chiasm.models.preprocess import ImagePreprocessor

    if isinstance(preprocessor, ImagePreprocessor) and not preprocessor.letterbox:
        # The crop is the whole of what is seen: nothing is cut out of its middle once more.
        rows, columns = preprocessor.size
        return resize(image, (columns, rows), resample=preprocessor.resample, box=box)
    part = image.pixels[round(top) : round(top + height), round(left) : round(left + width)]
    if part.size == 0:
        return preprocessor.fit(image)
    return preprocessor.fit(Image(part, original_size=image.original_size, name=image.name))


def _coloured(pixels: Pixels, brightness: float, contrast: float, saturation: float) -> Pixels:
    """In the stored values: brightness from black, contrast from the mean, colour from grey."""
    values = pixels.astype(np.float32) * brightness
    mean = float((values @ _GREY).mean())
    values = mean + (values - mean) * contrast
    grey = (values @ _GREY)[..., None]
    values = grey + (values - grey) * saturation
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
