"""Who reads what in which order: a function of seed, epoch and place, of nothing else.

All processes that read are lanes: `world_size` ranks times as many workers as each has. In every
epoch the units of a source, shards or rows, are permuted, and dealt to the lanes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]

_OPEN = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Lane:
    """One reader among `lanes`."""

    number: int
    lanes: int


@dataclass(frozen=True)
class Share:
    """What a lane reads in an epoch.

    units, first, end: int64; of each unit the samples from position `first` to before `end`.
    whole: so many of the units are read by no other lane. striped: of the others the lane takes
    only samples whose position modulo `lane.lanes` is `lane.number`.
    """

    units: Numbers
    first: Numbers
    end: Numbers
    whole: int
    striped: bool
    lane: Lane

    def takes(self, index: int, position: int) -> bool:
        """Whether sample `position` of the unit at `index` is this lane's."""
        if self.striped and index >= self.whole:
            return position % self.lane.lanes == self.lane.number
        return bool(self.first[index] <= position < self.end[index])


def share_of(
    units: int,
    lane: Lane,
    *,
    seed: int,
    epoch: int,
    shuffle: bool,
    counts: Numbers | None,
    skip: int = 0,
) -> Share:
    """A lane's share of an epoch. Over all lanes, each sample belongs to exactly one.

    Whole units are dealt in turns. If it is known how many samples each holds (`counts`), the last
    rounds, between one and two units a lane, are cut so that all lanes have equally many samples.
    If not, the last ones, fewer than there are lanes, are read by all, each taking every so-manieth
    sample. A unit of a table is one sample and never cut: `counts` is empty.

    skip: units at the front of the permutation that were read before the number of lanes changed.
    """
    order = np.arange(units, dtype=np.int64)
    if shuffle:
        order = generator(seed, epoch, "units").permutation(units)
    order = order[skip:]
    if counts is not None and not len(counts):
        return _dealt(order[lane.number :: lane.lanes], order[:0], lane)
    rounds = len(order) // lane.lanes
    if counts is not None:
        rounds = max(0, rounds - 1)
    mine = order[: rounds * lane.lanes][lane.number :: lane.lanes]
    rest = order[rounds * lane.lanes :]
    if counts is None:
        return _dealt(mine, rest, lane)
    dealt = counts[order[: rounds * lane.lanes]].reshape(rounds, lane.lanes).sum(axis=0)
    return _cut(mine, rest, lane, dealt, counts)


def _dealt(mine: Numbers, striped: Numbers, lane: Lane) -> Share:
    units = np.concatenate([mine, striped])
    ends = np.full(len(units), _OPEN)
    return Share(units, np.zeros_like(ends), ends, len(mine), len(striped) > 0, lane)


def _cut(mine: Numbers, rest: Numbers, lane: Lane, dealt: Numbers, counts: Numbers) -> Share:
    """`mine`, and a part of the samples of `rest`, laid in a row, that makes all lanes equal.

    dealt: [lanes], samples that each lane has already.
    """
    sizes = counts[rest]
    total = int(sizes.sum())
    bounds = _bounds(dealt, total)
    begin, stop = int(bounds[lane.number]), int(bounds[lane.number + 1])
    starts = np.concatenate([[0], np.cumsum(sizes)])
    touched = [n for n in range(len(rest)) if starts[n] < stop and starts[n + 1] > begin]
    first = [max(0, begin - int(starts[n])) for n in touched]
    # Open where a unit is read to its end: the count may be too small.
    end = [stop - int(starts[n]) if stop < starts[n + 1] else _OPEN for n in touched]
    units = np.concatenate([mine, rest[touched]]).astype(np.int64)
    return Share(
        units,
        np.array([0] * len(mine) + first, dtype=np.int64),
        np.array([_OPEN] * len(mine) + end, dtype=np.int64),
        len(mine),
        False,
        lane,
    )


def _bounds(dealt: Numbers, total: int) -> Numbers:
    """[lanes + 1]: where in a row of `total` samples each lane's part begins, so that all are even.

    A lane that was dealt more than its part gets nothing.
    """
    lanes = len(dealt)
    needs = np.zeros(lanes, dtype=np.int64)
    # Poured like water over steps: the level rises until everything is spent.
    order = np.argsort(dealt, kind="stable")
    for among in range(lanes, 0, -1):
        lowest = order[:among]
        level, over = divmod(int(dealt[lowest].sum()) + total, among)
        if level >= dealt[lowest].max():
            needs[lowest] = level - dealt[lowest]
            needs[lowest[:over]] += 1
            break
    return np.concatenate([[0], np.cumsum(needs)])


def generator(*parts: int | str) -> np.random.Generator:
    """Random numbers for one purpose, independent of those for any other."""
    return np.random.default_rng([_number(part) for part in parts])


def _number(part: Any) -> int:
    if isinstance(part, str):
        return int.from_bytes(part.encode(), "big")
    return int(part) % 2**64
