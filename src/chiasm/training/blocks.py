"""Samples as they are read, in blocks that are mixed and bucketed each for itself.

Where a block ends follows from where it begins and from the data, so a place in the data is enough
to read the same block once more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from chiasm.training.damage import Tally
from chiasm.training.order import Lane, Share, share_of
from chiasm.training.samples import Damage, Sample
from chiasm.training.sources import Source


@dataclass(frozen=True)
class Place:
    """Where a lane stands: in an epoch, at a unit of its share, at a sample of that unit.

    skip: units of this epoch that were read before the number of lanes changed; see `share_of`.
    """

    epoch: int = 0
    index: int = 0
    position: int = 0
    skip: int = 0

    def state(self) -> list[int]:
        """For JSON."""
        return [self.epoch, self.index, self.position, self.skip]

    @property
    def begins_epoch(self) -> bool:
        """Whether a whole epoch lies before it."""
        return self.index == self.position == self.skip == 0


@dataclass(frozen=True)
class Reading:
    """What decides about order and blocks.

    size: samples in a block, damaged ones included. nbytes: of its encoded pictures, at which it
    ends sooner. leave_out: marks.
    """

    lane: Lane
    seed: int
    shuffle: bool
    size: int
    nbytes: int
    leave_out: tuple[str, ...]

    def share(self, source: Source, place: Place) -> Share:
        """What the lane reads in the place's epoch."""
        return share_of(
            source.units,
            self.lane,
            seed=self.seed,
            epoch=place.epoch,
            shuffle=self.shuffle,
            counts=source.counts,
            skip=place.skip,
        )


@dataclass
class Block:
    """Samples that lie beside each other in a lane's share, and what could not be read of them.

    tally: knows nothing yet of the pictures, which are not decoded.
    """

    place: Place
    samples: list[Sample] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    ends_epoch: bool = False
    _read: int = 0
    _nbytes: int = 0

    def take(self, found: Sample | Damage, leave_out: tuple[str, ...]) -> None:
        self._read += 1
        if isinstance(found, Damage):
            self.tally.damaged(found)
            return
        for mark, value in (
            ("contaminated", found.contaminated_by),
            ("duplicates", found.duplicate_of),
        ):
            if value is not None and mark in leave_out:
                self.tally.left_out[mark] += 1
                return
        self.samples.append(found)
        self._nbytes += found.nbytes

    def full(self, reading: Reading) -> bool:
        return self._read >= reading.size or self._nbytes >= reading.nbytes


def blocks(source: Source, reading: Reading, place: Place) -> Iterator[Block]:
    """All that follows from `place` on, epoch after epoch, without end. No block spans two."""
    while True:
        share = reading.share(source, place)
        block = Block(place)
        position = place.position
        for index in range(place.index, len(share.units)):
            start = max(position, int(share.first[index]))
            for found in source.read(int(share.units[index]), start):
                if found.position >= share.end[index]:
                    break
                if not share.takes(index, found.position):
                    continue
                block.take(found, reading.leave_out)
                if block.full(reading):
                    yield block
                    block = Block(Place(place.epoch, index, found.position + 1, place.skip))
            position = 0
        block.ends_epoch = True
        yield block
        place = Place(place.epoch + 1)


def block_at(source: Source, reading: Reading, place: list[Any]) -> Block:
    """One block again, from what `Place.state` gave."""
    stream = blocks(source, reading, Place(*place))
    try:
        return next(stream)
    finally:
        stream.close()  # type: ignore[attr-defined]
