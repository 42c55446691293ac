"""Conversations as rows of tokens: one a row, or several packed into a row.

In a packed row each conversation sees itself alone and counts its positions from zero, so its loss
and its gradients are those it has in a row of its own. What packing saves is padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chiasm.training.answers import Encoded


def first_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Which conversations share a row of `capacity` tokens, as numbers of `lengths`.

    Each goes into the first row that has room, the longest first, which needs at most 11/9 of the
    fewest rows possible and two thirds of a row more (Dósa 2007).
    """
    rows: list[list[int]] = []
    left: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        length = lengths[number]
        row = next((n for n, room in enumerate(left) if room >= length), None)
        if row is None:
            rows.append([])
            left.append(capacity)
            row = len(rows) - 1
        rows[row].append(number)
        left[row] -= length
    return rows


@dataclass(frozen=True)
class ConversationBatch:
    """What a training step reads.

    ids: int64 [rows, tokens], padded on the right to this batch's longest row.
    learned: bool [rows, tokens], the tokens whose prediction counts.
    segments: int64 [rows, tokens], 1, 2, … for the conversations of a packed row and 0 for padding;
        None where each row is one conversation.
    lengths: tokens of each row without its padding.
    pictures: row by row, as the loader loaded them. picture_counts: how many each row has.
    keys: the names of the conversations.
    """

    ids: Tensor
    learned: Tensor
    segments: Tensor | None
    lengths: tuple[int, ...]
    pictures: tuple[Any, ...]
    picture_counts: tuple[int, ...]
    keys: tuple[str, ...]

    @property
    def answer_tokens(self) -> int:
        """Tokens that are learned."""
        return int(self.learned.sum())

    @property
    def padding(self) -> float:
        """The share of the tokens that is padding."""
        return 1 - sum(self.lengths) / self.ids.numel()

    def parts(self, size: int) -> list[ConversationBatch]:
        """At most `size` rows at a time, each trimmed to its own longest. 0 is all at once."""
        rows = len(self.ids)
        size = size or rows
        parts = []
        before = 0
        for start in range(0, rows, size):
            chosen = slice(start, start + size)
            longest = max(self.lengths[chosen])
            counts = self.picture_counts[chosen]
            parts.append(
                ConversationBatch(
                    self.ids[chosen, :longest],
                    self.learned[chosen, :longest],
                    None if self.segments is None else self.segments[chosen, :longest],
                    self.lengths[chosen],
                    self.pictures[before : before + sum(counts)],
                    counts,
                    self.keys,
                )
            )
            before += sum(counts)
        return parts


def assemble(
    rows: Sequence[Sequence[Encoded]],
    pictures: Sequence[Sequence[Sequence[Any]]],
    *,
    pad_id: int,
    packed: bool,
) -> ConversationBatch:
    """Rows of conversations as tensors.

    pictures: of each row, of each of its conversations, what was loaded.
    """
    lengths = [sum(each.length for each in row) for row in rows]
    shape = (len(rows), max(lengths))
    ids = torch.full(shape, pad_id, dtype=torch.int64)
    learned = torch.zeros(shape, dtype=torch.bool)
    segments = torch.zeros(shape, dtype=torch.int64)
    for number, row in enumerate(rows):
        start = 0
        for segment, each in enumerate(row, start=1):
            place = slice(start, start + each.length)
            ids[number, place] = torch.from_numpy(each.ids)
            learned[number, place] = torch.from_numpy(each.learned)
            segments[number, place] = segment
            start += each.length
    return ConversationBatch(
        ids,
        learned,
        segments if packed else None,
        tuple(lengths),
        tuple(picture for row in pictures for each in row for picture in each),
        tuple(sum(len(each) for each in row) for row in pictures),
        tuple(each.key for row in rows for each in row),
    )


def positions_in(segments: Tensor) -> Tensor:
    """Positions that begin anew with each conversation: int64 [rows, tokens]."""
    place = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    begins = torch.ones_like(segments, dtype=torch.bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    first = torch.where(begins, place, 0).cummax(dim=1).values
    return place - first


def attention_mask(segments: Tensor) -> Tensor:
    """Who may look at whom: bool [rows, 1, queries, keys], earlier tokens of the same conversation.

    Padding looks at padding, since a row of attention with nothing to look at is no number.
    """
    same = segments[:, :, None] == segments[:, None, :]
    return same.tril().unsqueeze(1)
