"""The keys and values of the tokens that a decoder has already read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

if TYPE_CHECKING:
    from chiasm.models.decoder import DecoderConfig


class KeyValueCache:
    """Keys and values of every layer, in memory that is allocated ahead and grows by doubling.

    Rows are sequences. A token counts as held when the last layer has appended it, so a forward
    pass that is given up half-way leaves the cache as it was. For inference: it is written in
    place, and no gradient flows through it.
    """

    def __init__(
        self,
        config: DecoderConfig,
        *,
        batch: int = 1,
        capacity: int = 256,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config = config
        self.length = 0
        layers, heads = config.num_hidden_layers, config.num_key_value_heads
        shape = (layers, batch, heads, max(capacity, 1), config.head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)

    @property
    def batch(self) -> int:
        """How many sequences it holds."""
        return self.keys.shape[1]

    @property
    def capacity(self) -> int:
        """How many tokens of each sequence there is memory for."""
        return self.keys.shape[3]

    @property
    def nbytes(self) -> int:
        """Bytes that are allocated, used or not."""
        return self.keys.nbytes + self.values.nbytes

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keep a layer's new keys and values, [batch, key heads, tokens, head width]; return all.

        The layers of one forward pass append in their order, the same number of tokens each.
        """
        start = self.length
        end = start + keys.shape[2]
        if end > self.capacity:
            self.reserve(end)
        all_keys, all_values = self.keys[layer, :, :, :end], self.values[layer, :, :, :end]
        all_keys[:, :, start:] = keys
        all_values[:, :, start:] = values
        if layer == len(self.keys) - 1:
            self.length = end
        return all_keys, all_values

    def reserve(self, capacity: int) -> None:
        """Make room for so many tokens, and for twice as many as now if that is more."""
        if capacity > self.capacity:
            capacity = max(capacity, 2 * self.capacity)
            self.keys, self.values = (
                self._enlarged(self.keys, capacity),
                self._enlarged(self.values, capacity),
            )

    def truncate(self, length: int) -> None:
        """Forget every token after the first `length`."""
        if not 0 <= length <= self.length:
            raise ValueError(f"a cache of {self.length} tokens cannot be cut to {length}")
        self.length = length

    def clone(self, length: int | None = None, *, capacity: int | None = None) -> Self:
        """A copy of the first tokens, all of them if `length` is None, that shares no memory.

        capacity: tokens that the copy has memory for; no more than it holds if None.
        """
        held = self.length if length is None else min(length, self.length)
        copy = self.__class__.__new__(self.__class__)
        copy.__dict__.update(self.__dict__)
        copy.length = held
        room = max(held, capacity or 0, 1)
        shape = (*self.keys.shape[:3], room, self.keys.shape[4])
        copy.keys, copy.values = self.keys.new_empty(shape), self.values.new_empty(shape)
        copy.keys[..., :held, :] = self.keys[..., :held, :]
        copy.values[..., :held, :] = self.values[..., :held, :]
        return copy

    def _enlarged(self, tensor: Tensor, capacity: int) -> Tensor:
        larger = tensor.new_empty((*tensor.shape[:3], capacity, tensor.shape[4]))
        # The whole old memory: layers of a pass that is under way have gone beyond `length`.
        larger[..., : tensor.shape[3], :] = tensor
        return larger
