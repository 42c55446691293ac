"""What goes into the data road, a `Sample`, and what comes out of it, a `Batch`."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # writing shards needs no torch
    import torch
    from torch import Tensor

    from chiasm.models.tokenizer import TokenBatch


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture that is not decoded yet, and what is said about it.

    key: its name. unit, position: its place in the data: the shard and the sample's number in it,
        or the row of a table and 0. With the seed and the epoch they determine every random number
        that is drawn for it.
    picture: encoded bytes, or the path of a file.
    captions: at least one, none of them empty.
    hard_negatives: texts that look right for the picture and are not.
    group: samples of one group are never each other's negatives. label: what a measure may count.
    duplicate_of: key of the sample that this one is a near duplicate of.
    contaminated_by: the picture of an evaluation set that this one resembles.
    """

    key: str
    unit: int
    position: int
    picture: bytes | Path
    captions: tuple[str, ...]
    hard_negatives: tuple[str, ...] = ()
    group: str | None = None
    label: str | None = None
    duplicate_of: str | None = None
    contaminated_by: str | None = None

    @property
    def nbytes(self) -> int:
        """Memory that the encoded picture takes."""
        return len(self.picture) if isinstance(self.picture, bytes) else 0


@dataclass(frozen=True, slots=True)
class Damage:
    """A sample that could not be read. reason: one of few words, to be counted.

    count: how many were lost, where a shard is cut short and its manifest says what it held.
    """

    position: int
    reason: str
    name: str
    count: int = 1


@dataclass(frozen=True)
class Batch:
    """What a training step reads.

    pixels: as the checkpoint's preprocessor gives: float32 [n, 3, height, width], or `PatchBatch`.
    ids: int64 [m, tokens], padded to this batch's longest text only. mask: bool [m, tokens].
    image_groups: int64 [n]. text_groups: int64 [m]. A picture and a text belong together where
        their groups are equal; the group of a hard negative equals no picture's.
    keys: the names of the n samples.

    The first texts are the pictures' own: with one caption a picture, text i is of picture i, and
    hard negatives follow from text n on.
    """

    pixels: Any
    ids: Tensor
    mask: Tensor
    image_groups: Tensor
    text_groups: Tensor
    keys: tuple[str, ...]

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return Batch(
            self.pixels.to(device),
            self.ids.to(device),
            self.mask.to(device),
            self.image_groups.to(device),
            self.text_groups.to(device),
            self.keys,
        )


class TextTokenizer(Protocol):
    """What is needed of a tokenizer; `chiasm.models.tokenizer.Tokenizer` is one."""

    pad_id: int

    def __call__(self, texts: Sequence[str]) -> TokenBatch:
        """Padded on the right."""
        ...


def identifier(kind: str, text: str) -> int:
    """A number of 63 bits for a text: not negative, so that it fits in an int64 tensor.

    kind: keeps apart what is equal by chance, such as a caption and a key.
    """
    digest = hashlib.blake2b(f"{kind}\0{text}".encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "big") >> 1


def normalised(caption: str) -> str:
    """A caption without what does not change its meaning: compatibility forms, case, spaces."""
    return " ".join(unicodedata.normalize("NFKC", caption).casefold().split())
