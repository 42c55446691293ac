"""Encoded pictures to fitted ones, some of them ahead of time in threads."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from chiasm.errors import ImageError
from chiasm.media import open_image
from chiasm.media.image import Pixels
from chiasm.media.limits import Limits
from chiasm.models.preprocess import AnyPreprocessor
from chiasm.training.augment import Augmentation, apply, draw
from chiasm.training.groups import Entry, sample_chance


@dataclass(frozen=True)
class Decoder:
    """An entry's picture, changed at random and fitted: uint8 [height, width, 3].

    slack: see `DataRecipe.decode_slack`.
    """

    preprocessor: AnyPreprocessor
    augmentation: Augmentation
    limits: Limits
    slack: float
    seed: int

    def __call__(self, entry: Entry) -> Pixels:
        """Raises ImageError."""
        sample = entry.sample
        change = draw(
            self.augmentation, sample_chance("picture", self.seed, entry.place.epoch, sample)
        )
        side = None
        if self.slack:
            # Of a crop, the crop's pixels must suffice: the smaller it is, the larger the scale.
            needed = self.preprocessor.decode_side / 2
            side = math.ceil(self.slack * needed / min(change.width, change.height))
        image = open_image(sample.picture, limits=self.limits, shortest_side=side, name=sample.key)
        return apply(image, change, self.preprocessor)


class Decoding:
    """The pictures of one block: asked for one by one, decoded ahead by a pool of threads."""

    def __init__(
        self,
        entries: list[Entry],
        planned: Iterator[int],
        decode: Decoder,
        pool: ThreadPoolExecutor | None,
        window: int,
    ) -> None:
        """planned: the order in which they will be asked for, most likely. window: how far ahead.

        Without a pool each is decoded when it is asked for.
        """
        self._entries = entries
        self._planned = planned
        self._decode = decode
        self._pool = pool
        self._window = window
        self._ahead: dict[int, Future[Pixels]] = {}
        self._asked: set[int] = set()

    def result(self, number: int) -> Pixels | ImageError:
        """The picture of entry `number`, or why there is none. Once for each entry."""
        self._asked.add(number)
        try:
            if self._pool is None:
                return self._decode(self._entries[number])
            if number not in self._ahead:
                self._ahead[number] = self._pool.submit(self._decode, self._entries[number])
            self._fill(self._pool)
            return self._ahead.pop(number).result()
        except ImageError as error:
            return error

    def cancel(self) -> None:
        """Forget what was decoded ahead."""
        for future in self._ahead.values():
            future.cancel()
        self._ahead.clear()

    def _fill(self, pool: ThreadPoolExecutor) -> None:
        while len(self._ahead) < self._window:
            number = next(self._planned, None)
            if number is None:
                return
            if number not in self._ahead and number not in self._asked:
                self._ahead[number] = pool.submit(self._decode, self._entries[number])
