"""One reader's endless stream of batches, and the place in it that each batch leaves behind.

Read a block, draw its texts, tokenise them, plan its batches, decode, put together. Samples that
fill no batch go over into the next block. The state after a batch names the block, how many of its
batches were made, which of its pictures turned out to be damaged, and where the samples lie that
came over from blocks before; from that, the same next batch is made again without decoding those
that were delivered.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from chiasm.errors import ImageError
from chiasm.media.image import Pixels
from chiasm.models.preprocess import AnyPreprocessor
from chiasm.training.ahead import Ahead
from chiasm.training.blocks import Block, Place, Reading, block_at, blocks
from chiasm.training.composing import Composer
from chiasm.training.damage import Tally, reason_of
from chiasm.training.data_recipe import DataRecipe
from chiasm.training.decoding import Decoder, Decoding
from chiasm.training.groups import Entry, assemble, carried, enter, together, tokenise
from chiasm.training.order import generator
from chiasm.training.samples import Batch, Damage, TextTokenizer
from chiasm.training.sources import Source

State = dict[str, Any]


@dataclass
class LaneReader:
    """What a lane needs to make batches. threads: that decode; 1 decodes in the calling one."""

    source: Source
    name: str
    reading: Reading
    recipe: DataRecipe
    preprocessor: AnyPreprocessor
    tokenizer: TextTokenizer
    batch_size: int
    threads: int

    def batches(self, state: Mapping[str, Any] | None = None) -> Iterator[tuple[Batch, State]]:
        """Batches from `state` on, each with the state after it.

        Raises UnusableData when nothing can be read.
        """
        tally = Tally.of(state["tally"]) if state else Tally()
        place = Place(*state["place"]) if state else Place()
        over = self._carried(state) if state else []
        decoder = Decoder(
            self.preprocessor,
            self.recipe.augment,
            self.recipe.limits,
            self.recipe.decode_slack,
            self.reading.seed,
        )
        pool = ThreadPoolExecutor(self.threads, "chiasm-decode") if self.threads > 1 else None
        stream = Ahead(blocks(self.source, self.reading, place), 1)
        usable_in_epoch: int | None = 0 if place.begins_epoch else None
        try:
            for block in stream:
                if block.place.begins_epoch:
                    usable_in_epoch = 0
                work = _BlockWork(self, block, over, tally, decoder, pool)
                yield from work.batches(state)
                state = None
                over = work.over
                if usable_in_epoch is not None:
                    usable_in_epoch += work.usable
                self._check(block, work, tally, usable_in_epoch)
        finally:
            stream.close()
            if pool is not None:
                pool.shutdown(cancel_futures=True)

    def _check(self, block: Block, work: _BlockWork, tally: Tally, usable: int | None) -> None:
        """Look at what nobody else sees: the loader checks the share whenever a batch arrives."""
        if block.ends_epoch and usable == 0:
            raise tally.nothing(self.name)
        if not work.made:
            tally.check(self.recipe.max_damaged_share)

    def _carried(self, state: Mapping[str, Any]) -> list[Entry]:
        """The samples that came over from blocks before, read again."""
        over = state["over"]
        read = [block_at(self.source, self.reading, place) for place in over["blocks"]]
        return [self.enter(read[number], ordinal) for number, ordinal in over["entries"]]

    def enter(self, block: Block, ordinal: int) -> Entry:
        """A sample of a block as an entry of this epoch."""
        return enter(
            block.samples[ordinal],
            block.place,
            ordinal,
            seed=self.reading.seed,
            captions=self.recipe.captions,
            hard_negatives=self.recipe.hard_negatives,
        )


class _BlockWork:
    """The batches of one block.

    over: the entries that are left. made: batches. usable: pictures that could be read, or may
    still be.
    """

    def __init__(
        self,
        reader: LaneReader,
        block: Block,
        over: list[Entry],
        tally: Tally,
        decoder: Decoder,
        pool: ThreadPoolExecutor | None,
    ) -> None:
        self._reader = reader
        self._block = block
        self._tally = tally
        self._decoder = decoder
        self._pool = pool
        self._before = carried(over)
        self._entries = [*over, *self._entered()]
        if reader.recipe.per_group > 1:
            self._entries = together(self._entries, reader.recipe.per_group)
        self._pixels: dict[int, Pixels] = {}
        self._broken: list[int] = []
        self.made = 0
        self.over = over
        self.usable = 0

    def batches(self, state: Mapping[str, Any] | None) -> Iterator[tuple[Batch, State]]:
        """state: of a run that is resumed in this block."""
        if state is None:
            self._tally.add(self._block.tally)
        tokenise([entry for entry in self._entries if not entry.tokens], self._reader.tokenizer)
        composer = self._composer()
        if state is not None:
            self._replay(composer, state)
        window = 2 * self._reader.threads + 2
        decoding = Decoding(self._entries, composer.planned(), self._decoder, self._pool, window)
        try:
            while (
                chosen := composer.next(lambda number: self._good(decoding, number))
            ) is not None:
                self.made += 1
                yield self._batch(chosen), self._state()
        finally:
            decoding.cancel()
        self.usable += len(composer.leftover)
        self.over = [self._entries[number] for number in composer.leftover]

    def _entered(self) -> list[Entry]:
        """The block's samples, mixed."""
        order: Any = range(len(self._block.samples))
        if self._reader.reading.shuffle:
            order = self._chance("samples").permutation(len(self._block.samples)).tolist()
        return [self._reader.enter(self._block, ordinal) for ordinal in order]

    def _composer(self) -> Composer:
        return Composer(
            self._lengths(),
            self._reader.batch_size,
            bucket_batches=self._reader.recipe.bucket_batches,
            chance=self._chance("batches") if self._reader.reading.shuffle else None,
        )

    def _lengths(self) -> list[int]:
        """By which batches are sorted: of neighbours that shall stay together, the longest."""
        lengths = [entry.length for entry in self._entries]
        size = self._reader.recipe.per_group
        if size > 1:
            for start in range(0, len(lengths), size):
                run = slice(start, start + size)
                lengths[run] = [max(lengths[run])] * len(lengths[run])
        return lengths

    def _chance(self, purpose: str) -> Any:
        return generator(self._reader.reading.seed, *self._block.place.state(), purpose)

    def _replay(self, composer: Composer, state: Mapping[str, Any]) -> None:
        """Go past the batches that were delivered, without decoding them."""
        broken = set(state["broken"])
        for _ in range(state["batches"]):
            composer.next(lambda number: number not in broken)
        self.made, self._broken = state["batches"], sorted(broken)
        self.usable = self.made * self._reader.batch_size

    def _good(self, decoding: Decoding, number: int) -> bool:
        result = decoding.result(number)
        if isinstance(result, ImageError):
            self._broken.append(number)
            sample = self._entries[number].sample
            tally = Tally()
            tally.damaged(Damage(sample.position, reason_of(result), sample.key))
            self._tally.add(tally)
            return False
        self._tally.seen += 1
        self._pixels[number] = result
        self.usable += 1
        return True

    def _batch(self, chosen: list[int]) -> Batch:
        return assemble(
            [self._entries[number] for number in chosen],
            [self._pixels.pop(number) for number in chosen],
            self._reader.preprocessor,
            self._reader.tokenizer,
        )

    def _state(self) -> State:
        return {
            "place": self._block.place.state(),
            "batches": self.made,
            "broken": sorted(self._broken),
            "over": self._before,
            "tally": self._tally.state(),
        }
