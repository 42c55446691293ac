"""What a Flamingo remembers of a text and of the pictures in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from chiasm.models.cache import KeyValueCache
from chiasm.models.gated_cross_attention import NO_PICTURE

if TYPE_CHECKING:
    from chiasm.models.flamingo import IdeficsConfig


class FlamingoCache(KeyValueCache):
    """The decoder's cache, and what the layers of cross-attention need of the pictures so far.

    Pictures are numbered in the order in which they came, over all rows.
    """

    def __init__(self, config: IdeficsConfig, **options: Any) -> None:
        super().__init__(config, **options)
        device = self.keys.device
        # Of each layer: keys and values, [pictures, heads, latents, head width]. Never written in
        # place, so that copies of the cache may share them.
        self.pictures: list[tuple[Tensor, Tensor]] = []
        # Of each picture: which token of its row it is.
        self.places = torch.empty(0, dtype=torch.int64, device=device)
        # After each token that is held: the picture that the next one looks at.
        self.next = torch.empty(self.batch, 0, dtype=torch.int64, device=device)

    @property
    def looking(self) -> Tensor:
        """The picture that each row looks at when it goes on, int64 [batch]."""
        if not self.next.shape[1]:
            return self.next.new_full((self.batch,), NO_PICTURE)
        return self.next[:, -1]

    @property
    def nbytes(self) -> int:
        """Bytes that are allocated, those of the pictures included."""
        pictures = sum(keys.nbytes + values.nbytes for keys, values in self.pictures)
        return super().nbytes + pictures

    def joined(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's keys and values of all pictures, the new ones last. Nothing is kept yet."""
        if not self.pictures or not len(self.places):
            return keys, values
        if not len(keys):
            return self.pictures[layer]
        before_keys, before_values = self.pictures[layer]
        return torch.cat((before_keys, keys)), torch.cat((before_values, values))

    def keep(self, pictures: list[tuple[Tensor, Tensor]], images: Tensor, then: Tensor) -> None:
        """Remember a pass that is over.

        pictures: of each layer, what `joined` gave. images: bool [batch, tokens], where the new
        pictures stand. then: int64 [batch, tokens], what a token after each looks at.
        """
        self.pictures = pictures
        self.places = torch.cat((self.places, images.nonzero()[:, 1] + self.next.shape[1]))
        self.next = torch.cat((self.next, then), dim=1)

    def truncate(self, length: int) -> None:
        super().truncate(length)
        self._forget()

    def clone(self, length: int | None = None, *, capacity: int | None = None) -> Self:
        copy = super().clone(length, capacity=capacity)
        copy._forget()
        return copy

    def _forget(self) -> None:
        """Drop what came after the tokens that are held."""
        self.next = self.next[:, : self.length]
        held = self.places < self.length
        if bool(held.all()):
            return
        self.pictures = [(keys[held], values[held]) for keys, values in self.pictures]
        self.places = self.places[held]
        numbers = held.cumsum(dim=0) - 1
        self.next = torch.where(
            self.next == NO_PICTURE, NO_PICTURE, numbers[self.next.clamp_min(0)]
        )
