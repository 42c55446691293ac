"""The loader: captioned pictures in, an endless stream of batches out, which can be gone on with.

What is guaranteed

- The batches are a function of the data, the recipe, the seed, the batch size, the rank, the number
  of ranks and the number of workers. Threads, prefetching and timing change nothing. `workers = 0`
  and `workers = 1` give the same batches.
- In an epoch each sample belongs to exactly one rank and worker. The stream has no end: what fills
  no batch at the end of an epoch begins the next one, so nothing is dropped and nothing repeated.
  Ranks can never disagree about how many batches there are. With `epochs`, every rank gives
  `epochs` times `batches_per_epoch` batches, which is rounded down from all samples; a rank with
  less to read than that begins its next epoch early.
- `load_state_dict` of what `state_dict` gave after k batches, on the same rank, gives batch k + 1,
  bit for bit, without decoding a picture that was delivered.
- With another number of ranks or workers, or another batch size, the position is carried over as
  far as can be: whole shards or rows that had all been read are not read again in that epoch. A
  block of samples for each reader may be seen twice, and fewer than a batch may not be seen in
  that epoch. From the next epoch on everything is exact again.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from chiasm.errors import ChiasmError, ConfigurationError
from chiasm.models.preprocess import AnyPreprocessor
from chiasm.training.ahead import Ahead
from chiasm.training.blocks import Place, Reading
from chiasm.training.damage import Tally
from chiasm.training.data_recipe import DataRecipe
from chiasm.training.lane import LaneReader, State
from chiasm.training.order import Lane
from chiasm.training.position import check_position, fingerprint
from chiasm.training.samples import Batch, TextTokenizer
from chiasm.training.sources import Source, open_source

_FORMAT = 1
# What changes the order in which samples come, besides the seed.
_ORDER = (
    "shuffle", "shuffle_buffer", "shuffle_megabytes", "bucket_batches", "per_group", "captions",
    "hard_negatives", "leave_out",
)  # fmt: skip


def open_loader(
    recipe: DataRecipe,
    *,
    preprocessor: AnyPreprocessor,
    tokenizer: TextTokenizer,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
    epochs: int | None = None,
) -> Loader:
    """Open the data that `recipe` names. Nothing is decoded before the first batch is asked for.

    batch_size: pictures in a batch, on each rank. epochs: None for a stream without end.

    Raises UnusableData if there is no data or a column is missing, ConfigurationError if `epochs`
    is given for several ranks and nobody knows how many samples there are.
    """
    source = open_source(recipe, count=epochs is not None)
    if epochs is not None and source.samples is None:
        raise ConfigurationError(
            "How many samples an epoch has is not known, so ranks could not agree on its end.",
            hint="Train for a number of steps, or put shards.json beside the shards.",
        )
    return Loader(
        recipe, source, preprocessor, tokenizer, batch_size, rank, world_size, seed, epochs
    )


class Loader:
    """Batches in a `for` loop; `iter` always goes on from where the last one stopped."""

    def __init__(
        self,
        recipe: DataRecipe,
        source: Source,
        preprocessor: AnyPreprocessor,
        tokenizer: TextTokenizer,
        batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
        epochs: int | None,
    ) -> None:
        self.recipe = recipe
        self.batch_size = batch_size
        self.rank, self.world_size, self.seed, self.epochs = rank, world_size, seed, epochs
        self._source = source
        self._preprocessor, self._tokenizer = preprocessor, tokenizer
        self._own_lanes = max(1, recipe.workers)
        self._states: list[State | None] = [None] * self._own_lanes
        self._delivered = 0
        self._next = 0  # the lane whose turn it is
        self._running: Iterator[tuple[int, Batch, State]] | None = None

    @property
    def samples(self) -> int | None:
        """Samples in an epoch, over all ranks, damaged and left out ones included; if known."""
        return self._source.samples

    @property
    def batches_per_epoch(self) -> int | None:
        """Batches of each rank in an epoch, if known; rounded down, but at least 1."""
        if self.samples is None:
            return None
        return max(1, self.samples // (self.batch_size * self.world_size))

    @property
    def skipped(self) -> Counter[str]:
        """Damaged samples that this rank met, by reason, up to the last batch delivered."""
        return sum((tally.skipped for tally in self._tallies()), Counter())

    @property
    def left_out(self) -> Counter[str]:
        """Samples that this rank left out for their marks, up to the last batch delivered."""
        return sum((tally.left_out for tally in self._tallies()), Counter())

    @property
    def epoch(self) -> int:
        """The epoch that the reader furthest behind is in, from 0."""
        return min(state["place"][0] if state else 0 for state in self._states)

    def __iter__(self) -> Iterator[Batch]:
        self.close()
        running = self._read_here() if not self.recipe.workers else self._read_in_workers()
        self._running = running
        try:
            while not self._ended():
                number, batch, state = next(running)
                epoch = self.epoch
                self._states[number] = state
                self._check(ends_epoch=self.epoch > epoch)
                self._next = (number + 1) % self._own_lanes
                self._delivered += 1
                yield batch
            self._check(ends_epoch=True)
        finally:
            running.close()  # type: ignore[attr-defined]

    def close(self) -> None:
        """Stop threads and workers; an iterator that is still around ends."""
        if self._running is not None:
            self._running.close()  # type: ignore[attr-defined]
            self._running = None

    # The position --------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Where this rank stands, after the last batch that was delivered; can be JSON."""
        return {
            "format": _FORMAT,
            "rank": self.rank,
            "seed": self.seed,
            "data": self._identity(),
            "order": self._order(),
            "delivered": self._delivered,
            "next": self._next,
            "lanes": list(self._states),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there. Raises ConfigurationError for other data or another seed."""
        self.close()
        check_position(state, version=_FORMAT, seed=self.seed, data=self._identity())
        self._delivered = state["delivered"]
        if state["order"] == self._order() and state["rank"] == self.rank:
            self._states, self._next = list(state["lanes"]), state["next"]
            return
        place = self._carried_over(state)
        tally = Tally().state()
        fresh = {"place": place.state(), "batches": 0, "broken": [], "tally": tally}
        fresh["over"] = {"blocks": [], "entries": []}
        self._states, self._next = [dict(fresh) for _ in range(self._own_lanes)], 0
        if state["order"]["batch_size"] != self.batch_size:
            before = state["order"]["batch_size"] * state["order"]["world_size"]
            self._delivered = self._delivered * before // (self.batch_size * self.world_size)

    def _carried_over(self, state: Mapping[str, Any]) -> Place:
        """The furthest place that all lanes of another arrangement had reached."""
        places = [Place(*lane["place"]) if lane else Place() for lane in state["lanes"]]
        epoch = min(place.epoch for place in places)
        behind = min(
            (place for place in places if place.epoch == epoch), key=lambda place: place.index
        )
        lanes = state["order"]["world_size"] * len(places)
        left = self._source.units - behind.skip
        counts = self._source.counts
        if counts is None or len(counts):
            # Only what was dealt whole is known to have been read by someone.
            left = max(0, left // lanes - (counts is not None)) * lanes
        return Place(epoch, skip=behind.skip + min(behind.index * lanes, left))

    def _order(self) -> dict[str, Any]:
        order = {name: getattr(self.recipe, name) for name in _ORDER}
        order["leave_out"] = sorted(self.recipe.leave_out)
        return {
            **order,
            "batch_size": self.batch_size,
            "world_size": self.world_size,
            "lanes": self._own_lanes,
            "counted": self._source.counts is not None,
        }

    def _identity(self) -> str:
        return fingerprint(self._source.identity)

    def _tallies(self) -> Iterator[Tally]:
        return (Tally.of(state["tally"]) for state in self._states if state)

    def _check(self, *, ends_epoch: bool) -> None:
        """Stop if too much is damaged: of many samples, or of all those of a whole epoch."""
        if any(state and state["tally"]["skipped"] for state in self._states):
            total = Tally()
            for tally in self._tallies():
                total.add(tally, quiet=True)
            enough = {"at_least": 1} if ends_epoch else {}
            total.check(self.recipe.max_damaged_share, **enough)

    def _ended(self) -> bool:
        if self.epochs is None:
            return False
        assert self.batches_per_epoch is not None  # open_loader looked
        return self._delivered >= self.epochs * self.batches_per_epoch

    # Reading -------------------------------------------------------------------------------------

    def _reader(self, number: int, threads: int) -> LaneReader:
        recipe = self.recipe
        reading = Reading(
            Lane(self.rank * self._own_lanes + number, self.world_size * self._own_lanes),
            self.seed,
            recipe.shuffle,
            max(recipe.shuffle_buffer, self.batch_size * recipe.bucket_batches),
            recipe.shuffle_megabytes * 1_000_000,
            recipe.leave_out,
        )
        name = recipe.source if isinstance(recipe.source, str) else ", ".join(recipe.source)
        return LaneReader(
            self._source,
            name,
            reading,
            recipe,
            self._preprocessor,
            self._tokenizer,
            self.batch_size,
            threads,
        )

    def _read_here(self) -> Iterator[tuple[int, Batch, State]]:
        threads = self.recipe.threads or _cores()
        batches = self._reader(0, threads).batches(self._states[0])
        ahead = Ahead(batches, self.recipe.prefetch)
        try:
            for batch, state in ahead:
                yield 0, batch, state
        finally:
            ahead.close()

    def _read_in_workers(self) -> Iterator[tuple[int, Batch, State]]:
        """Processes of a DataLoader, which takes from them in turns; ours begins with `_next`."""
        turns = [(self._next + worker) % self._own_lanes for worker in range(self._own_lanes)]
        lanes = [(number, self._reader(number, 1), self._states[number]) for number in turns]
        loader: DataLoader[Any] = DataLoader(
            _Lanes(lanes),
            batch_size=None,
            num_workers=len(lanes),
            prefetch_factor=self.recipe.prefetch,
            collate_fn=_unchanged,
            # Or it would take a number from the generator that training draws from.
            generator=torch.Generator(),
        )
        stream = iter(loader)
        try:
            for found in stream:
                if isinstance(found, BaseException):
                    raise found
                yield found
        finally:
            del stream  # which ends the processes


class _Lanes(IterableDataset[Any]):
    """What a DataLoader copies into its workers: a lane for each."""

    def __init__(self, lanes: list[tuple[int, LaneReader, State | None]]) -> None:
        self._lanes = lanes

    def __iter__(self) -> Iterator[tuple[int, Batch, State] | BaseException]:
        worker = get_worker_info()
        assert worker is not None
        # One process a core is enough; tokenizers would start threads in each.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        number, reader, state = self._lanes[worker.id]
        try:
            for batch, after in reader.batches(state):
                yield number, batch, after
        except ChiasmError as error:
            yield _portable(error)
        except Exception as error:
            yield ChiasmError(
                f"A process that loads data met {type(error).__name__}: {error}",
                hint="With data.workers = 0 the error is shown where it happens.",
            )


def _portable(error: ChiasmError) -> ChiasmError:
    """An error that survives the way to another process, whatever its class needs to be made."""
    kind = type(error) if type(error).__init__ is ChiasmError.__init__ else ChiasmError
    carried = kind(str(error))
    carried.__cause__ = None
    return carried


def _cores() -> int:
    """That this process may use, where the system says so."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _unchanged(found: Any) -> Any:
    return found
