"""What an image tower that does not learn gives for pictures: computed together, kept on the disk.

A network that can tell its tower from what lies behind it (`SplitsVision`) runs the tower over the
pictures of a whole batch, without gradients, and need not run it twice for the same picture.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from chiasm.errors import NoSpace
from chiasm.media import Image, open_image, read_header
from chiasm.media.limits import Limits
from chiasm.models.vision_language import ImageInputs, ImageReader
from chiasm.training.conversations import Picture

_AT_ONCE = 64  # tiles


@runtime_checkable
class SplitsVision(Protocol):
    """A network whose `encode_image(inputs)` is `project(tower_features(…), inputs.size)`."""

    def tower_features(self, pixels: Tensor, mask: Tensor | None = None) -> Tensor:
        """[tiles, 3, height, width] → what the tower gives, a row a tile, each tile on its own."""
        ...

    def project(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """One picture's tiles → [image tokens, decoder width]."""
        ...


@dataclass(frozen=True)
class Loaded:
    """A picture on its way to the network: pixels, or what the tower once gave for them.

    key: under which the tower's features are kept; empty if they are not.
    """

    size: tuple[int, int]
    inputs: ImageInputs | None = None
    features: Tensor | None = None
    key: str = ""

    def to(self, device: torch.device) -> Loaded:
        """The same on another device."""
        inputs, features = self.inputs, self.features
        if inputs is not None:
            mask = None if inputs.mask is None else inputs.mask.to(device)
            inputs = replace(inputs, pixels=inputs.pixels.to(device), mask=mask)
        return replace(
            self, inputs=inputs, features=None if features is None else features.to(device)
        )


class FeatureCache:
    """The tower's features of pictures, a file each, in half precision.

    They are rounded the first time, too, so that a run does not depend on what is there already.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        """identity: of the tower and of how pictures are prepared; another one, another folder."""
        self._folder = folder / identity

    def get(self, key: str) -> Tensor | None:
        """What was kept, float16, or None. A damaged file counts as none."""
        try:
            return torch.from_numpy(np.load(self._path(key), allow_pickle=False))
        except (OSError, ValueError, EOFError):
            return None

    def put(self, key: str, features: Tensor) -> Tensor:
        """Keep [tiles, tokens, width] and give them as they were kept. Raises NoSpace."""
        rounded = features.detach().half()
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            with partial.open("wb") as file:
                np.save(file, rounded.cpu().numpy(), allow_pickle=False)
            partial.replace(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise NoSpace(
                f"{path} could not be written; the disk may be full.",
                hint="Make room, or leave features.cache out, and go on with --resume.",
            ) from None
        return rounded

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.npy"


def tower_identity(tower: nn.Module, images: ImageReader) -> str:
    """What the tower's features depend on, besides the picture."""
    hasher = hashlib.sha256()
    for name, tensor in sorted(tower.state_dict().items()):
        hasher.update(name.encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)  # whatever its strides are
        hasher.update(flat.view(torch.uint8).numpy())
    # How pictures are prepared shows on a picture of which all is known.
    ramp = np.arange(96 * 64 * 3, dtype=np.int64).reshape(64, 96, 3)
    known = Image((ramp * 7919 % 256).astype(np.uint8), original_size=(96, 64))
    hasher.update(images.prepare(known).pixels.contiguous().numpy().tobytes())
    return hasher.hexdigest()[:24]


def picture_key(picture: Picture) -> str:
    """Equal for equal bytes, or for the same file that has not been changed."""
    if isinstance(picture, Path):
        stat = picture.stat()
        picture = f"{picture.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}".encode()
    return hashlib.blake2b(picture, digest_size=16).hexdigest()


def picture_loader(
    images: ImageReader | None, limits: Limits, cache: FeatureCache | None
) -> Callable[[Picture], Loaded]:
    """A function that opens a picture for the network, or finds what the tower gave for it."""

    def load(picture: Picture) -> Loaded:
        assert images is not None  # the encoder refuses pictures otherwise
        key = ""
        if cache is not None and not (isinstance(picture, Path) and not picture.is_file()):
            key = picture_key(picture)
            if (features := cache.get(key)) is not None:
                size = read_header(picture, limits=limits).size
                return Loaded(size, features=features, key=key)
        inputs = images.prepare(open_image(picture, limits=limits))
        return Loaded(inputs.size, inputs=inputs, key=key)

    return load


def fill(model: Any, pictures: Sequence[Loaded], cache: FeatureCache | None) -> list[Loaded]:
    """The pictures with the tower's features, computed where they were not found.

    Only for a network that `SplitsVision`. cache: None if its tower learns.
    """
    missing = [number for number, each in enumerate(pictures) if each.features is None]
    found = dict(zip(missing, _tower(model, [pictures[n] for n in missing]), strict=True))
    filled = list(pictures)
    for number, features in found.items():
        if cache is not None and pictures[number].key:
            features = cache.put(pictures[number].key, features)
        filled[number] = replace(pictures[number], inputs=None, features=features)
    return filled


def _tower(model: Any, pictures: Sequence[Loaded]) -> list[Tensor]:
    """Tiles of several pictures at once, where they are of one shape."""
    groups: dict[Any, list[int]] = {}
    for number, each in enumerate(pictures):
        assert each.inputs is not None
        shape = (each.inputs.pixels.shape[1:], each.inputs.mask is None)
        groups.setdefault(shape, []).append(number)
    features: list[Any] = [None] * len(pictures)
    for numbers in groups.values():
        inputs: list[Any] = [pictures[number].inputs for number in numbers]
        pixels = torch.cat([each.pixels for each in inputs])
        masks = [each.mask for each in inputs]
        mask = None if masks[0] is None else torch.cat(masks)
        rows = torch.cat(
            [
                model.tower_features(
                    pixels[start : start + _AT_ONCE],
                    None if mask is None else mask[start : start + _AT_ONCE],
                )
                for start in range(0, len(pixels), _AT_ONCE)
            ]
        )
        counts = [len(each.pixels) for each in inputs]
        for number, part in zip(numbers, rows.split(counts), strict=True):
            features[number] = part
    return features
