"""Conversations in, an endless stream of batches out, which can be gone on with.

As with `loader`: the batches are a function of the data, the recipe, the seed, the number of rows,
the rank and the number of ranks. `load_state_dict` of what `state_dict` gave after k batches gives
batch k + 1, bit for bit, without decoding a picture that was delivered.

A rank's conversations come in windows, which are sorted by length, or packed, and mixed each for
itself. A conversation whose picture turns out to be damaged is missing from its batch; nothing
takes its place, so what else is in the batches does not depend on it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from chiasm.errors import ImageError, InvalidRequest, UnsupportedCheckpoint
from chiasm.training.ahead import Ahead
from chiasm.training.answers import ConversationEncoder, Encoded, TooLong
from chiasm.training.blocks import Place
from chiasm.training.conversations import ConversationSource, Picture, open_conversations
from chiasm.training.conversations_recipe import ConversationsRecipe
from chiasm.training.damage import Tally, reason_of
from chiasm.training.order import Lane, generator, share_of
from chiasm.training.packing import ConversationBatch, assemble, first_fit
from chiasm.training.position import check_position, fingerprint
from chiasm.training.samples import Damage

_FORMAT = 1
_ORDER = ("shuffle", "bucket_batches", "packing", "max_tokens", "prompts")
State = dict[str, Any]
Load = Callable[[Picture], Any]
Rows = list[list[Encoded]]


class ConversationLoader:
    """Batches in a `for` loop; `iter` always goes on from where the last one stopped."""

    def __init__(
        self,
        recipe: ConversationsRecipe,
        source: ConversationSource,
        encode: ConversationEncoder,
        load: Load,
        *,
        rows: int,
        pad_id: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
    ) -> None:
        """Nothing is read before the first batch is asked for.

        load: a picture as the network takes it; may raise ImageError. rows: of a batch, on each
        rank.
        """
        self.recipe = recipe
        self.rows, self.rank, self.world_size, self.seed = rows, rank, world_size, seed
        self._source = source
        self._encode = encode
        self._load = load
        self._pad_id = pad_id
        self._state: State | None = None
        self._running: Ahead[tuple[ConversationBatch, State]] | None = None

    @property
    def skipped(self) -> Counter[str]:
        """Conversations that this rank could not use, by reason, up to the last batch delivered."""
        return Tally.of(self._state["tally"]).skipped if self._state else Counter()

    @property
    def shortened(self) -> int:
        """Conversations that lost their last turns, being too long."""
        return self._state["shortened"] if self._state else 0

    @property
    def epoch(self) -> int:
        """How often this rank has been through its share."""
        return self._state["place"][0] if self._state else 0

    def __iter__(self) -> Iterator[ConversationBatch]:
        self.close()
        running = self._running = Ahead(self._batches(self._state), self.recipe.prefetch)
        try:
            for batch, state in running:
                self._state = state
                yield batch
        finally:
            running.close()

    def close(self) -> None:
        """Stop the thread that reads ahead."""
        if self._running is not None:
            self._running.close()
            self._running = None

    # The position --------------------------------------------------------------------------------

    def state_dict(self) -> State:
        """Where this rank stands, after the last batch that was delivered; can be JSON."""
        return {
            "format": _FORMAT,
            "rank": self.rank,
            "seed": self.seed,
            "data": self._identity(),
            "order": self._order(),
            "state": self._state,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there. Raises ConfigurationError for other data or another seed.

        With another number of ranks or rows the place is carried over: what a window of each rank
        held may be seen twice in that epoch.
        """
        self.close()
        check_position(state, version=_FORMAT, seed=self.seed, data=self._identity())
        found = state["state"]
        if found is not None and (state["order"] != self._order() or state["rank"] != self.rank):
            place = Place(*found["place"])
            left = self._source.units - place.skip
            read = min(place.index * state["order"]["world_size"], left)
            carried = Place(place.epoch, skip=place.skip + read)
            found = _state(carried, 0, Tally(), 0)
        self._state = found

    def _order(self) -> State:
        order: State = {name: getattr(self.recipe, name) for name in _ORDER}
        order["prompts"] = list(self.recipe.prompts)
        return {**order, "rows": self.rows, "world_size": self.world_size}

    def _identity(self) -> str:
        return fingerprint(self._source.identity)

    # Reading -------------------------------------------------------------------------------------

    def _batches(self, state: State | None) -> Iterator[tuple[ConversationBatch, State]]:
        place = Place(*state["place"]) if state else Place()
        made = state["batches"] if state else 0
        tally = Tally.of(state["tally"]) if state else Tally()
        shortened = state["shortened"] if state else 0
        usable: int | None = 0 if place.begins_epoch and not made else None
        with ThreadPoolExecutor(
            self.recipe.threads or os.cpu_count() or 1, "chiasm-decode"
        ) as pool:
            while True:
                window = self._window(place)
                if not made:  # or it was counted before the snapshot
                    tally.add(window.tally)
                    shortened += window.shortened
                plan = self._plan(window)
                for number in range(made, len(plan)):
                    batch = self._batch(plan[number], tally, pool)
                    if batch is None:
                        continue
                    usable = None if usable is None else usable + len(batch.keys)
                    yield batch, _state(place, number + 1, tally, shortened)
                    tally.check(self.recipe.max_damaged_share)
                made = 0
                if window.ends_epoch:
                    if usable == 0:
                        raise tally.nothing(str(self.recipe.source))
                    tally.check(self.recipe.max_damaged_share, at_least=1)
                    place, usable = Place(place.epoch + 1), 0
                else:
                    tally.check(self.recipe.max_damaged_share)
                    place = Place(place.epoch, window.end, 0, place.skip)

    def _window(self, place: Place) -> _Window:
        """The conversations of a window as tokens."""
        share = share_of(
            self._source.units,
            Lane(self.rank, self.world_size),
            seed=self.seed,
            epoch=place.epoch,
            shuffle=self.recipe.shuffle,
            counts=np.empty(0, dtype=np.int64),
            skip=place.skip,
        )
        end = min(place.index + self.rows * self.recipe.bucket_batches, len(share.units))
        window = _Window(place, end, end == len(share.units), [], Tally(), 0)
        for unit in share.units[place.index : end].tolist():
            found = self._read(unit, place.epoch)
            if isinstance(found, Damage):
                window.tally.damaged(found)
                continue
            window.conversations.append(found)
            window.shortened += found.shortened
        return window

    def _read(self, unit: int, epoch: int) -> Encoded | Damage:
        found = self._source.read(unit, generator("conversation", self.seed, epoch, unit))
        if isinstance(found, Damage):
            return found
        try:
            return self._encode(found)
        except ImageError as error:
            return Damage(0, reason_of(error), f"{found.key}: {error.source}")
        except TooLong:
            return Damage(0, "too long", found.key)
        except UnsupportedCheckpoint:
            raise
        except InvalidRequest as error:
            return Damage(0, "refused by the chat template", f"{found.key}: {error.message}")

    def _plan(self, window: _Window) -> list[Rows]:
        """Which conversations make which batches."""
        found = window.conversations
        chance = generator("rows", self.seed, *window.place.state())
        lengths = [each.length for each in found]
        if self.recipe.packing:
            rows = [[found[n] for n in row] for row in first_fit(lengths, self.recipe.max_tokens)]
        else:
            order: Sequence[int] = range(len(found))
            if self.recipe.shuffle:
                order = np.argsort(np.asarray(lengths), kind="stable").tolist()
            rows = [[found[n]] for n in order]
        if self.recipe.packing and self.recipe.shuffle:
            rows = [rows[n] for n in chance.permutation(len(rows))]
        batches = [rows[start : start + self.rows] for start in range(0, len(rows), self.rows)]
        if self.recipe.shuffle:
            batches = [batches[n] for n in chance.permutation(len(batches))]
        return batches

    def _batch(
        self, rows: Rows, tally: Tally, pool: ThreadPoolExecutor
    ) -> ConversationBatch | None:
        """None if not one of its conversations can be used."""
        wanted = [picture for row in rows for each in row for picture in each.pictures]
        loaded = iter(list(pool.map(self._try, wanted)))
        kept: Rows = []
        pictures: list[list[list[Any]]] = []
        for row in rows:
            good: list[tuple[Encoded, list[Any]]] = []
            for each in row:
                found = [next(loaded) for _ in each.pictures]
                broken = [error for error in found if isinstance(error, ImageError)]
                if broken:
                    _count(tally, reason_of(broken[0]), f"{each.key}: {broken[0].source}")
                else:
                    good.append((each, found))
            if good:
                kept.append([each for each, _ in good])
                pictures.append([found for _, found in good])
                tally.seen += len(good)
        if not kept:
            return None
        return assemble(kept, pictures, pad_id=self._pad_id, packed=self.recipe.packing)

    def _try(self, picture: Picture) -> Any:
        try:
            return self._load(picture)
        except ImageError as error:
            return error


@dataclass
class _Window:
    """Conversations from `place` to before number `end` of the rank's share."""

    place: Place
    end: int
    ends_epoch: bool
    conversations: list[Encoded]
    tally: Tally
    shortened: int


def _count(tally: Tally, reason: str, name: str) -> None:
    found = Tally()
    found.damaged(Damage(0, reason, name))
    tally.add(found)


def _state(place: Place, batches: int, tally: Tally, shortened: int) -> State:
    return {
        "place": place.state(),
        "batches": batches,
        "tally": tally.state(),
        "shortened": shortened,
    }


def conversations_in_order(
    recipe: ConversationsRecipe,
    encode: ConversationEncoder,
    load: Load,
    *,
    rows: int,
    pad_id: int,
    limit: int,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[ConversationBatch]:
    """A rank's share of the first `limit` conversations, once; damaged ones are left out."""
    still = replace(recipe, shuffle=False, bucket_batches=1, packing=False)
    source = open_conversations(recipe)
    first = _First(source, limit)
    if rank >= first.units:
        return
    loader = ConversationLoader(
        still, first, encode, load, rows=rows, pad_id=pad_id, rank=rank, world_size=world_size
    )
    for batch in loader:
        if loader.epoch > 0:
            break
        yield batch
    loader.close()


class _First:
    """The beginning of a source."""

    def __init__(self, source: ConversationSource, limit: int) -> None:
        self.units = min(limit, source.units)
        self.identity = source.identity
        self.read = source.read
