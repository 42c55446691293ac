"""Pictures as LLaVA-1.5 and LLaVA-NeXT read them, and the image tokens that stand for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from chiasm.errors import UnsupportedCheckpoint
from chiasm.media.image import Image, Pixels
from chiasm.media.transform import resize
from chiasm.models.preprocess import ImagePreprocessor
from chiasm.models.processor_files import ProcessorFiles, positive
from chiasm.models.tiling import best_resolution, fitted, unpadded
from chiasm.models.vision_language import ImageInputs

IMAGE = "<image>"


@dataclass(frozen=True)
class PatchTokens:
    """How many image tokens a tile becomes.

    patch_size: pixels. extra: tokens of the tower that are no patch, 1 for CLIP's class token.
    strategy: `default` leaves one token out, `full` none.
    """

    patch_size: int
    extra: int
    strategy: str

    def of(self, height: int, width: int) -> int:
        """Tokens of a tile of so many pixels."""
        rows, columns = height // self.patch_size, width // self.patch_size
        return rows * columns + self.extra - int(self.strategy == "default")

    @classmethod
    def from_files(cls, files: ProcessorFiles) -> PatchTokens:
        """As the processor's file says; the network's where that leaves something out."""
        patch_size = files.processor.get("patch_size") or files.tower.get("patch_size")
        extra = files.processor.get("num_additional_image_tokens")
        if extra is None:
            extra = int(files.tower.get("model_type", "clip_vision_model") == "clip_vision_model")
        strategy = (
            files.processor.get("vision_feature_select_strategy")
            or files.network.get("vision_feature_select_strategy")
            or "default"
        )
        if strategy not in {"default", "full"}:
            raise UnsupportedCheckpoint(
                f"vision_feature_select_strategy is {strategy!r}.",
                hint="Known are default and full.",
            )
        return cls(positive(patch_size, "patch_size"), int(extra), strategy)

    def to_config(self) -> dict[str, Any]:
        """The entries of a `processor_config.json` that mean the same."""
        return {
            "patch_size": self.patch_size,
            "num_additional_image_tokens": self.extra,
            "vision_feature_select_strategy": self.strategy,
        }


# LLaVA-1.5 --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LLaVAReader:
    """Every picture becomes one square and the same number of tokens.

    pad: a picture that is not square is padded to one with the mean colour before it is scaled.
    """

    preprocessor: ImagePreprocessor
    tokens: PatchTokens
    image_token: str = IMAGE
    pad: bool = False

    @property
    def mark(self) -> str:
        """What the chat template writes for a picture."""
        return self.image_token

    def prepare(self, image: Image) -> ImageInputs:
        """The picture as one tile."""
        pixels = self.preprocessor([self._square(image) if self.pad else image])
        return ImageInputs(pixels, image.size)

    def placeholder(self, width: int, height: int) -> str:
        """As many image tokens as there are features, without markers."""
        return self.image_token * self.count(width, height)

    def count(self, width: int, height: int) -> int:
        """The same for every size."""
        return self.tokens.of(*self.preprocessor.size)

    @classmethod
    def from_files(cls, files: ProcessorFiles) -> LLaVAReader:
        """From a checkpoint's files. Raises UnsupportedCheckpoint."""
        return cls(
            ImagePreprocessor.from_config(files.image_processor),
            PatchTokens.from_files(files),
            files.token("image_token", IMAGE),
            pad=_kind(files) == "LlavaImageProcessor" and bool(files.image_processor.get("do_pad")),
        )

    def to_config(self) -> dict[str, Any]:
        """The entries of a `preprocessor_config.json` that means the same."""
        padding = {"do_pad": True} if self.pad else {}
        return {**self.preprocessor.to_config(), **padding, "processor_class": "LlavaProcessor"}

    def processor_config(self) -> dict[str, Any]:
        """The entries of a `processor_config.json` that means the same."""
        return {
            **self.tokens.to_config(),
            "image_token": self.image_token,
            "processor_class": "LlavaProcessor",
        }

    def _square(self, image: Image) -> Image:
        side = max(image.size)
        colour = [int(255 * channel) for channel in self.preprocessor.mean]
        pixels = np.empty((side, side, 3), dtype=np.uint8)
        pixels[:] = colour
        left, top = (side - image.width) // 2, (side - image.height) // 2
        pixels[top : top + image.height, left : left + image.width] = image.pixels
        return Image(pixels, original_size=image.original_size, name=image.name)


def _kind(files: ProcessorFiles) -> str:
    named = str(files.image_processor.get("image_processor_type") or "")
    return named.removesuffix("Fast").removesuffix("Pil")


# LLaVA-NeXT -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LLaVANeXTReader:
    """A picture squashed to one tile, then, keeping its aspect, in several.

    preprocessor: what is done to a tile. resolutions: the (height, width) in pixels that the
    tiles may fill together.
    """

    preprocessor: ImagePreprocessor
    tokens: PatchTokens
    resolutions: tuple[tuple[int, int], ...]
    image_token: str = IMAGE

    @property
    def mark(self) -> str:
        """What the chat template writes for a picture."""
        return self.image_token

    def prepare(self, image: Image) -> ImageInputs:
        """The whole picture and its tiles, row by row."""
        resolution = best_resolution(image.size, self.resolutions)
        scaled = resize(image, fitted(image.size, resolution), resample=self._resample)
        padded = _centred(scaled, *resolution)
        whole, side = resize(image, self._whole, resample=self._resample), self.preprocessor.size[0]
        pieces = [
            padded[top : top + side, left : left + side]
            for top in range(0, resolution[0], side)
            for left in range(0, resolution[1], side)
        ]
        tiles = [Image(each, original_size=image.size) for each in (whole, *pieces)]
        return ImageInputs(self.preprocessor(tiles), image.size)

    def placeholder(self, width: int, height: int) -> str:
        """As many image tokens as there are features; newlines are features among them."""
        return self.image_token * self.count(width, height)

    def count(self, width: int, height: int) -> int:
        """The whole picture's tokens, and what is left of the tiles' without their padding."""
        tile = self.preprocessor.size
        resolution = best_resolution((width, height), self.resolutions)
        rows, columns = (
            (length // side) * (side // self.tokens.patch_size)
            for length, side in zip(resolution, tile, strict=True)
        )
        seen = unpadded((width, height), rows, columns)
        return self.tokens.of(*tile) + seen.rows * (seen.columns + 1)

    @classmethod
    def from_files(cls, files: ProcessorFiles) -> LLaVANeXTReader:
        """From a checkpoint's files. Raises UnsupportedCheckpoint."""
        preprocessor = ImagePreprocessor.from_config(files.image_processor)
        name = "image_grid_pinpoints"
        stated = files.image_processor.get(name) or files.network.get(name) or _RESOLUTIONS
        side = preprocessor.size[0]
        try:
            resolutions = tuple((int(height), int(width)) for height, width in stated)
        except (TypeError, ValueError):
            raise UnsupportedCheckpoint(f"{name} must be pairs of numbers.") from None
        if preprocessor.size != (side, side) or any(
            length < side or length % side for pair in resolutions for length in pair
        ):
            raise UnsupportedCheckpoint(
                f"{name} must be multiples of a square tile, which is "
                f"{preprocessor.size[1]}×{side} pixels."
            )
        tokens = PatchTokens.from_files(files)
        return cls(preprocessor, tokens, resolutions, files.token("image_token", IMAGE))

    def to_config(self) -> dict[str, Any]:
        """The entries of a `preprocessor_config.json` that means the same."""
        return {
            **self.preprocessor.to_config(),
            "do_pad": True,
            "image_grid_pinpoints": [list(pair) for pair in self.resolutions],
            "processor_class": "LlavaNextProcessor",
        }

    def processor_config(self) -> dict[str, Any]:
        """The entries of a `processor_config.json` that means the same."""
        return {
            **self.tokens.to_config(),
            "image_token": self.image_token,
            "processor_class": "LlavaNextProcessor",
        }

    @property
    def _resample(self) -> Any:
        return self.preprocessor.resample

    @property
    def _whole(self) -> tuple[int, int]:
        """(width, height) of the whole picture before it is treated as a tile."""
        height, width = self.preprocessor.size
        edge = self.preprocessor.shortest_edge
        return (width, height) if edge is None else (edge, edge)


# What LlavaNextImageProcessor means by silence.
_RESOLUTIONS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))


def _centred(pixels: Pixels, height: int, width: int) -> Pixels:
    """`pixels` in the middle of height × width, the rest black; an odd line goes below, right."""
    missing = height - pixels.shape[0], width - pixels.shape[1]
    widths = [(number // 2, number - number // 2) for number in missing]
    return np.pad(pixels, [*widths, (0, 0)])
