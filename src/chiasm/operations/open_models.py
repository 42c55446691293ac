"""What open models compute to read a prompt, counted from their published configurations.

As in `chiasm.models.flops`: a multiplication and an addition are two operations, norms and
activations are left out. Only what a forward pass needs is counted: one output layer's row, the
last token's, and of a mixture of experts those that a token meets.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chiasm.operations.tokens import ImageCost


@dataclass(frozen=True)
class Tower:
    """An image tower: blocks of attention and a perceptron over patches.

    patch: pixels of a patch's side. merge: patches of a side that become one image token.
    gated: the perceptron has three matrices and not two. extra: tokens beside the patches, such as
    a class token. side: pixels of every crop's side; 0: the picture has the size of its cost.
    window: patches of a side within which attention stays, but for the blocks of `full`. joined:
    widths of the projector's layers, from the merged patches' to the language model's. blind: last
    blocks whose output is not used and that are not run.
    """

    width: int
    blocks: int
    inner: int
    patch: int
    merge: int = 1
    gated: bool = False
    extra: int = 0
    side: int = 0
    channels: int = 3
    frames: int = 1
    window: int = 0
    full: int = 0
    joined: tuple[int, ...] = ()
    joined_times: int = 1
    blind: int = 0

    def flops(self, crops: int, columns: int, rows: int) -> int:
        """Of so many crops of [columns × rows] patches."""
        tokens = columns * rows + self.extra
        width, blocks = self.width, self.blocks - self.blind
        embed = columns * rows * width * self.channels * self.frames * self.patch**2
        weights = 4 * width * width + (3 if self.gated else 2) * width * self.inner
        pairs = tokens * tokens
        if self.window:
            near = _windowed(columns, rows, self.window)
            attention = self.full * pairs + (blocks - self.full) * near
        else:
            attention = blocks * pairs
        merged = columns * rows // self.merge**2
        chain = [width * self.merge**2, *self.joined] if self.joined else []
        projector = merged * sum(a * b for a, b in pairwise(chain))
        one = embed + blocks * tokens * weights + 2 * width * attention
        return 2 * crops * (one + self.joined_times * projector)


def _windowed(columns: int, rows: int, window: int) -> int:
    """Pairs of patches that share a window."""

    def pieces(length: int) -> list[int]:
        return [window] * (length // window) + ([length % window] if length % window else [])

    return sum((a * b) ** 2 for a in pieces(columns) for b in pieces(rows))


@dataclass(frozen=True)
class Decoder:
    """A language model of gated perceptrons. head: the width of one; 0 is width ÷ heads.

    inner: of all perceptrons that a token meets in a block, experts together.
    """

    width: int
    blocks: int
    inner: int
    heads: int
    groups: int
    vocabulary: int
    head: int = 0

    def flops(self, tokens: int) -> int:
        """To read so many tokens, and say the first of the answer."""
        head = self.head or self.width // self.heads
        queries, keys = self.heads * head, self.groups * head
        weights = self.width * (2 * queries + 2 * keys + 3 * self.inner)
        pairs = tokens * (tokens + 1) // 2
        block = tokens * weights + pairs * 2 * queries
        return 2 * (self.blocks * block + self.width * self.vocabulary)


@dataclass(frozen=True)
class OpenModel:
    """vision: of one picture, where the tower is no transformer: a constant, in `picture_flops`."""

    name: str
    context: int | None
    source: str
    decoder: Decoder
    tower: Tower | None = None
    picture_flops: int = 0

    def vision_flops(self, images: Sequence[ImageCost]) -> int:
        """To encode pictures that cost so much."""
        if self.tower is None:
            return self.picture_flops * len(images)
        total = 0
        for image in images:
            columns, rows = self._patches(self.tower, image)
            total += self.tower.flops(image.tiles, columns, rows)
        return total

    def _patches(self, tower: Tower, image: ImageCost) -> tuple[int, int]:
        width, height = (tower.side, tower.side) if tower.side else image.size
        return math.ceil(width / tower.patch), math.ceil(height / tower.patch)

    def language_flops(self, tokens: int) -> int:
        """To read a prompt of so many tokens."""
        return self.decoder.flops(tokens)


def find(name: str) -> OpenModel | None:
    """The published sizes of a model, by its name."""
    lower = name.lower()
    return next((each for pattern, each in _models() if fnmatchcase(lower, pattern)), None)


@cache
def _models() -> tuple[tuple[str, OpenModel], ...]:
    text = (files("chiasm.operations") / "open_models.toml").read_text(encoding="utf-8")
    table = tomllib.loads(text)
    towers = {name: _made(Tower, entry) for name, entry in table["towers"].items()}
    decoders = {name: _made(Decoder, entry) for name, entry in table["decoders"].items()}
    found = []
    for name, entry in table["models"].items():
        tower = towers[entry["tower"]] if "tower" in entry else None
        if tower is not None and "tower_with" in entry:
            tower = _made(Tower, {**_entries(tower), **entry["tower_with"]})
        model = OpenModel(
            name,
            entry.get("context"),
            entry["source"],
            _made(
                Decoder, {**_entries(decoders[entry["decoder"]]), **entry.get("decoder_with", {})}
            ),
            tower,
            int(entry.get("picture_flops", 0)),
        )
        found += [(pattern, model) for pattern in entry["patterns"]]
    return tuple(found)


def _made(kind: Any, entry: Mapping[str, Any]) -> Any:
    values = {
        key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()
    }
    return kind(**values)


def _entries(made: Any) -> dict[str, Any]:
    return {field.name: getattr(made, field.name) for field in fields(made)}
