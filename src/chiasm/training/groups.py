"""Who belongs together in a batch, and the batch as tensors.

Samples of one group, samples with the same caption, and near duplicates are positives of each
other. Where that joins several groups of a batch, all of them are one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from chiasm.media.image import Pixels
from chiasm.models.preprocess import AnyPreprocessor
from chiasm.training.blocks import Place
from chiasm.training.samples import Batch, Sample, TextTokenizer, identifier, normalised

Tokens = npt.NDArray[np.int64]


@dataclass
class Entry:
    """A sample in one epoch: which of its texts are used, and their tokens.

    place, ordinal: the block that it was read in, and its number there.
    tokens: of each caption and then of each hard negative, int64 [tokens].
    """

    sample: Sample
    place: Place
    ordinal: int
    captions: tuple[str, ...]
    hard_negatives: tuple[str, ...]
    tokens: list[Tokens] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens of the longest text."""
        return max(len(each) for each in self.tokens)


def enter(
    sample: Sample,
    place: Place,
    ordinal: int,
    *,
    seed: int,
    captions: Literal["one", "all"],
    hard_negatives: int,
) -> Entry:
    """Draw the texts of a sample for the place's epoch."""
    chance = sample_chance("texts", seed, place.epoch, sample)
    chosen = sample.captions
    if captions == "one":
        chosen = (chance.choice(sample.captions),)
    negatives = sample.hard_negatives
    if len(negatives) > hard_negatives:
        negatives = tuple(chance.sample(negatives, hard_negatives))
    return Entry(sample, place, ordinal, chosen, negatives)


def together(entries: Sequence[Entry], size: int) -> list[Entry]:
    """The entries with those of one group beside each other, `size` at a time.

    Those that are left over of their group, or have none, come last. Otherwise the order stays: of
    each run, the one in which its last entry came.
    """
    waiting: dict[str, list[Entry]] = {}
    runs: list[Entry] = []
    for entry in entries:
        group = entry.sample.group
        if group is None:
            waiting.setdefault(f"no group {len(waiting)}", []).append(entry)
            continue
        run = waiting.setdefault(f"group {group}", [])
        run.append(entry)
        if len(run) == size:
            runs += run
            del waiting[f"group {group}"]
    return runs + [entry for run in waiting.values() for entry in run]


def sample_chance(purpose: str, seed: int, epoch: int, sample: Sample) -> random.Random:
    """Random numbers of one sample in one epoch: the same whatever was read before it."""
    place = f"{seed} {epoch} {sample.unit} {sample.position}"
    return random.Random(identifier(purpose, place))


def tokenise(entries: Sequence[Entry], tokenizer: TextTokenizer) -> None:
    """Fill in the tokens of all entries, in one call of the tokenizer."""
    texts = [text for entry in entries for text in (*entry.captions, *entry.hard_negatives)]
    if not texts:
        return
    batch = tokenizer(texts)
    ids, lengths = batch.ids.numpy(), batch.mask.sum(dim=1).tolist()
    # Copied, so that the padding is not kept.
    rows = iter([row[:length].copy() for row, length in zip(ids, lengths, strict=True)])
    for entry in entries:
        entry.tokens = [next(rows) for _ in (*entry.captions, *entry.hard_negatives)]


def assemble(
    entries: Sequence[Entry],
    pixels: Sequence[Pixels],
    preprocessor: AnyPreprocessor,
    tokenizer: TextTokenizer,
) -> Batch:
    """The batch of these samples and their fitted pictures."""
    groups = _groups(entries)
    rows: list[Tokens] = []
    text_groups: list[int] = []
    said: set[str] = set()
    for entry, group in zip(entries, groups, strict=True):
        rows += entry.tokens[: len(entry.captions)]
        text_groups += [group] * len(entry.captions)
        said.update(normalised(caption) for caption in entry.captions)
    taken = set(groups)
    for entry in entries:
        negatives = entry.tokens[len(entry.captions) :]
        for text, tokens in zip(entry.hard_negatives, negatives, strict=True):
            # What is some picture's caption is a negative of all others already.
            if normalised(text) in said:
                continue
            said.add(normalised(text))
            group = identifier("hard negative", normalised(text))
            while group in taken:
                group = (group + 1) % 2**63
            rows.append(tokens)
            text_groups.append(group)
    ids, mask = _padded(rows, tokenizer.pad_id)
    return Batch(
        preprocessor.batch(pixels),
        ids,
        mask,
        torch.tensor(groups, dtype=torch.int64),
        torch.tensor(text_groups, dtype=torch.int64),
        tuple(entry.sample.key for entry in entries),
    )


def _padded(rows: Sequence[Tokens], pad_id: int) -> tuple[Tensor, Tensor]:
    """int64 and bool [texts, longest]."""
    longest = max(len(row) for row in rows)
    ids = np.full((len(rows), longest), pad_id, dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=bool)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = row
        mask[number, : len(row)] = True
    return torch.from_numpy(ids), torch.from_numpy(mask)


def _groups(entries: Sequence[Entry]) -> list[int]:
    """A number for each entry, equal where they belong together.

    A sample that is joined with no other has the number of its own group or caption, which is the
    same in every batch and on every rank.
    """
    joined: dict[int, int] = {}

    def root(mark: int) -> int:
        while (above := joined.setdefault(mark, mark)) != mark:
            joined[mark] = joined[above]  # halves the path for the next one
            mark = above
        return mark

    # A key counts only where a duplicate names it: keys of foreign shards need not be unique.
    named = {entry.sample.duplicate_of for entry in entries}
    primaries = []
    for entry in entries:
        sample = entry.sample
        marks = [identifier("caption", normalised(caption)) for caption in entry.captions]
        if sample.group is not None:
            marks.insert(0, identifier("group", sample.group))
        primaries.append(marks[0])
        if sample.key in named:
            marks.append(identifier("key", sample.key))
        if sample.duplicate_of is not None:
            marks.append(identifier("key", sample.duplicate_of))
        for mark in marks[1:]:
            joined[root(mark)] = root(marks[0])
    names: dict[int, int] = {}
    for primary in primaries:
        top = root(primary)
        names[top] = min(primary, names.get(top, primary))
    return [names[root(primary)] for primary in primaries]


def carried(entries: Sequence[Entry]) -> dict[str, Any]:
    """Entries as places to read them again from, for JSON."""
    places = list(dict.fromkeys(entry.place for entry in entries))
    number = {place: index for index, place in enumerate(places)}
    return {
        "blocks": [place.state() for place in places],
        "entries": [[number[entry.place], entry.ordinal] for entry in entries],
    }
