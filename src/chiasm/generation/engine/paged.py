"""Keys and values in blocks, as torch tensors, and attention to them by many texts at once.

Texts that decode have lengths of all kinds. Their blocks are cut into segments of as many tokens
each, and all segments are attended to in one product; what a text's segments give is added up
afterwards (as in Flash-Decoding, Dao et al., 2023). So a pass costs what its texts hold, not as
many times the longest of them, and its shapes depend on two numbers alone: texts and segments.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from chiasm.generation.engine.blocks import BLOCK_TOKENS
from chiasm.generation.engine.passes import Piece
from chiasm.models.decoder import DecoderConfig, attend, causal_mask

SEGMENT_BLOCKS = 16
SEGMENT_TOKENS = SEGMENT_BLOCKS * BLOCK_TOKENS


# What a pass of many texts reads ----------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One more token of each of many texts; arrays or tensors of int64, views of one.

    ids, positions, slots: [texts], each token, its place in its text, and the slot where its keys
    and values go. owners, held: [segments], whose a segment is, and how many tokens it has.
    table: [segments, SEGMENT_BLOCKS], its blocks.
    """

    ids: Any
    positions: Any
    slots: Any
    owners: Any
    held: Any
    table: Any

    @classmethod
    def over(cls, flat: Any, texts: int, segments: int) -> Step:
        """Views of the first `size` numbers of an array or a tensor."""
        rows = flat[: 3 * texts].reshape(3, texts)
        rest = flat[3 * texts : cls.size(texts, segments)]
        owners, held, table = rest[:segments], rest[segments : 2 * segments], rest[2 * segments :]
        table = table.reshape(segments, SEGMENT_BLOCKS)
        return cls(rows[0], rows[1], rows[2], owners, held, table)

    @staticmethod
    def size(texts: int, segments: int) -> int:
        """Numbers that it takes."""
        return 3 * texts + segments * (2 + SEGMENT_BLOCKS)


def shape_of(pieces: Sequence[Piece]) -> tuple[int, int]:
    """Texts and segments of the step that has room for these pieces of one token: powers of two.

    So few that each can be prepared for; what is too much is filled up with texts of nothing.
    """
    texts = _power_of_two(len(pieces))
    segments = sum(-(-(piece.start + 1) // SEGMENT_TOKENS) for piece in pieces)
    return texts, _power_of_two(segments + texts - len(pieces))


def _power_of_two(count: int) -> int:
    return 1 << max(count - 1, 0).bit_length()


def laid_out(pieces: Sequence[Piece], texts: int, segments: int, spare: int) -> npt.NDArray[Any]:
    """The numbers of a `Step`. spare: the block that belongs to no text."""
    flat = np.zeros(Step.size(texts, segments), np.int64)
    step = Step.over(flat, texts, segments)
    step.slots[:] = spare * BLOCK_TOKENS
    step.table[:] = spare
    first = 0
    for number, piece in enumerate(pieces):
        blocks = np.asarray(piece.blocks, np.int64)[: piece.start // BLOCK_TOKENS + 1]
        step.ids[number], step.positions[number] = piece.ids[0], piece.start
        step.slots[number] = blocks[-1] * BLOCK_TOKENS + piece.start % BLOCK_TOKENS
        count = -(-len(blocks) // SEGMENT_BLOCKS)
        mine = slice(first, first + count)
        whole = np.full(count * SEGMENT_BLOCKS, spare, np.int64)
        whole[: len(blocks)] = blocks
        step.table[mine] = whole.reshape(count, SEGMENT_BLOCKS)
        step.owners[mine] = number
        step.held[mine] = SEGMENT_TOKENS
        step.held[first + count - 1] = piece.start + 1 - (count - 1) * SEGMENT_TOKENS
        first += count
    # A text of nothing looks at its own token, or its softmax would be of nothing; segments that
    # are left hold no token of whoever they are given to.
    nothing = texts - len(pieces)
    step.owners[first : first + nothing] = np.arange(len(pieces), texts)
    step.held[first : first + nothing] = 1
    return flat


# Memory -----------------------------------------------------------------------------------------


Kept = tuple[Tensor, Tensor]
"""Keys and values of one layer, [key heads · (blocks + 1), BLOCK_TOKENS · head width] each."""


class BlockPool:
    """A block of one head is one row, which is gathered in one go. The last block is the spare."""

    def __init__(
        self, config: DecoderConfig, blocks: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        layers, heads = config.num_hidden_layers, config.num_key_value_heads
        self.spare, self.device = blocks, device
        shape = (layers, heads, blocks + 1, BLOCK_TOKENS * config.head_dim)
        # Of numbers, whatever memory held before: what is masked out is multiplied by zero.
        self._keys = torch.zeros(shape, dtype=dtype, device=device)
        self._values = torch.zeros(shape, dtype=dtype, device=device)
        self._head_rows = torch.arange(heads, device=device) * (blocks + 1)

    def layers(self) -> Iterator[Kept]:
        """What each layer keeps."""
        for keys, values in zip(self._keys, self._values, strict=True):
            yield keys.flatten(0, 1), values.flatten(0, 1)

    def copy(self, source: int, target: int) -> None:
        """One block into another."""
        for each in (self._keys, self._values):
            each[:, :, target] = each[:, :, source]

    def rows_of(self, blocks: Tensor) -> Tensor:
        """int64 [n, blocks] → a layer's rows, for each head of keys: [n · heads · blocks]."""
        return (blocks[:, None, :] + self._head_rows[:, None]).flatten()

    def places_of(self, slots: Tensor) -> Tensor:
        """int64 [tokens] → where `keep` puts them, [tokens · heads]."""
        return (slots[:, None] + self._head_rows * BLOCK_TOKENS).flatten()


def keep(kept: Kept, places: Tensor, keys: Tensor, values: Tensor) -> None:
    """Write keys and values [tokens, heads, head width]. places: of `BlockPool.places_of`."""
    width = keys.shape[-1]
    for memory, new in zip(kept, (keys, values), strict=True):
        memory.view(-1, width).index_copy_(0, places, new.reshape(-1, width))


def gathered(kept: Kept, rows: Tensor, tokens: int) -> Kept:
    """Keys and values [n · heads, tokens, head width]. rows: of `BlockPool.rows_of`."""
    keys, values = kept
    width = keys.shape[1] // BLOCK_TOKENS
    return (
        keys.index_select(0, rows).view(-1, tokens, width),
        values.index_select(0, rows).view(-1, tokens, width),
    )


# Attention --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Segments:
    """What a step's attention needs in every layer.

    rows: of the pool. owners: int64 [segments]. hidden: bool [segments, 1, 1, SEGMENT_TOKENS],
    True where there is no token. mine: bool [texts, segments].
    """

    rows: Tensor
    owners: Tensor
    hidden: Tensor
    mine: Tensor

    @classmethod
    def of(cls, step: Step, pool: BlockPool) -> Segments:
        """From a step of tensors."""
        device = step.owners.device
        tokens = torch.arange(SEGMENT_TOKENS, device=device)
        texts = torch.arange(len(step.ids), device=device)
        return cls(
            rows=pool.rows_of(step.table),
            owners=step.owners.clone(),  # no view: a compiler would look where it lies
            hidden=(tokens >= step.held[:, None])[:, None, None],
            mine=texts[:, None] == step.owners,
        )


def attend_to_segments(queries: Tensor, kept: Kept, segments: Segments) -> Tensor:
    """[texts, heads, head width] → the same. Scores and sums are float32, in a fixed order."""
    keys, values = gathered(kept, segments.rows, SEGMENT_TOKENS)
    texts, heads, width = queries.shape
    count = len(segments.owners)
    shared = len(keys) // count  # heads of keys
    group = heads // shared
    asked = queries.view(texts, shared, group, width).index_select(0, segments.owners)
    asked = asked.view(count * shared, group, width)
    scores = _product(asked, keys.transpose(1, 2)) * width**-0.5
    scores = scores.view(count, shared, group, SEGMENT_TOKENS)
    scores = scores.masked_fill(segments.hidden, float("-inf"))
    highest = scores.amax(dim=-1).flatten(1)  # [segments, heads]
    highest = torch.where(segments.mine[..., None], highest, float("-inf")).amax(dim=1)
    highest = highest.index_select(0, segments.owners).view(count, shared, group, 1)
    weights = (scores - highest).exp()
    parts = _product(weights.to(values.dtype).flatten(0, 1), values)
    # Of all segments of a text: a product with zeros and ones adds in the same order every time.
    mine = segments.mine.float()
    mixed = (mine @ parts.view(count, -1)).view(texts, heads, width)
    total = (mine @ weights.sum(dim=-1).view(count, -1)).view(texts, heads, 1)
    return torch.div(mixed, total).to(queries.dtype)


@dataclass(frozen=True)
class Part:
    """A piece of a prompt among the rows of a pass. rows: of the pool, up to the piece's end.

    first, end: of the pass's rows. tokens: of the text, up to the piece's end. mask: bool
    [1, 1, end − first, tokens], None where the piece begins the text.
    """

    first: int
    end: int
    tokens: int
    rows: Tensor
    mask: Tensor | None

    @classmethod
    def of(cls, piece: Piece, first: int, pool: BlockPool) -> Part:
        """For a piece whose rows begin at `first`."""
        count, device = len(piece.ids), pool.device
        tokens = piece.start + count
        blocks = torch.tensor([piece.blocks[: -(-tokens // BLOCK_TOKENS)]], device=device)
        masked = piece.start > 0 and count > 1
        mask = causal_mask(tokens, count, device=device) if masked else None
        return cls(first, first + count, tokens, pool.rows_of(blocks), mask)


def attend_to_part(queries: Tensor, kept: Kept, part: Part) -> Tensor:
    """[tokens of the piece, heads, head width] → the same."""
    whole = -(-part.tokens // BLOCK_TOKENS) * BLOCK_TOKENS
    keys, values = (each[None, :, : part.tokens] for each in gathered(kept, part.rows, whole))
    causal = part.mask is None and len(queries) > 1
    return attend(queries.transpose(0, 1)[None], keys, values, part.mask, causal)[0].transpose(0, 1)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Of [n, a, b] and [n, b, c] in float32, whatever they are in."""
    if left.dtype == torch.float32:
        return torch.bmm(left, right)
    if left.device.type == "cuda":
        return torch.bmm(left, right, out_dtype=torch.float32)
    return torch.bmm(left.float(), right.float())
