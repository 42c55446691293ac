"""One embedder for many callers: what waits together is embedded together.

The network uses every core by itself, so two forward passes at once are slower than one after the
other, and one of sixteen inputs is much cheaper than sixteen of one. A single thread therefore
does all the embedding. While it works, further calls queue up, and its next batch is taken from
all of them. Nobody waits for a batch to fill, and a call with a thousand pictures holds back one
with a single sentence by a batch at most: pictures and texts take turns, and so do callers.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from chiasm.errors import NotReady

if TYPE_CHECKING:
    from chiasm.media import Image
    from chiasm.retrieval import Embedder

Vectors = npt.NDArray[np.float32]


@dataclass(eq=False)
class _Call:
    """One caller's inputs, and how far they have come."""

    inputs: Sequence[Any]
    taken: int = 0
    parts: list[Vectors] = field(default_factory=list)
    done: Future[Vectors] = field(default_factory=Future)


@dataclass
class _Lane:
    """The calls that wait for one kind of input."""

    embed: Callable[[Sequence[Any]], Vectors]
    batch_size: int
    waiting: deque[_Call] = field(default_factory=deque)


class BatchingEmbedder:
    """An `Embedder` around another one; may be called from any number of threads.

    batch_size: images in one forward pass at most; texts are smaller, so four times as many.
    """

    def __init__(self, embedder: Embedder, *, batch_size: int = 16) -> None:
        self._embedder = embedder
        self.name = embedder.name
        self.digest = embedder.digest
        self.dimension = embedder.dimension
        self.decode_side = embedder.decode_side
        self._images = _Lane(embedder.embed_images, batch_size)
        self._texts = _Lane(embedder.embed_texts, 4 * batch_size)
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="embedding", daemon=True)
        self._thread.start()

    def embed_images(self, images: Sequence[Image]) -> Vectors:
        """Unit-length vectors, float32 [n, d]; blocks until they are there."""
        return self._submit(self._images, images)

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """Unit-length vectors, float32 [n, d]; blocks until they are there."""
        return self._submit(self._texts, texts)

    def count_tokens(self, text: str) -> int:
        """How many tokens the text tower reads for `text`."""
        return self._embedder.count_tokens(text)

    def close(self) -> None:
        """Finish what waits, refuse what comes."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _submit(self, lane: _Lane, inputs: Sequence[Any]) -> Vectors:
        if not inputs:
            return np.zeros((0, self.dimension), dtype=np.float32)
        call = _Call(inputs)
        with self._changed:
            if self._closed:
                raise NotReady("The server is stopping.")
            lane.waiting.append(call)
            self._changed.notify()
        return call.done.result()

    def _work(self) -> None:
        lane, other = self._texts, self._images
        while True:
            with self._changed:
                while not (lane.waiting or other.waiting or self._closed):
                    self._changed.wait()
                if not lane.waiting:
                    lane, other = other, lane
                if not lane.waiting:
                    return
                shares = _next_batch(lane)
            _embed(lane, shares)
            lane, other = other, lane  # the kinds take turns


def _next_batch(lane: _Lane) -> list[tuple[_Call, Sequence[Any]]]:
    """Equal shares of one batch to the calls that wait, the longest-waiting first."""
    room = lane.batch_size
    shares = []
    while room and lane.waiting:
        call = lane.waiting.popleft()
        share = max(1, room // (len(lane.waiting) + 1))
        chunk = call.inputs[call.taken : call.taken + share]
        call.taken += len(chunk)
        room -= len(chunk)
        shares.append((call, chunk))
        if call.taken < len(call.inputs):
            lane.waiting.append(call)
    return shares


def _embed(lane: _Lane, shares: Sequence[tuple[_Call, Sequence[Any]]]) -> None:
    """One forward pass for all; one for each where that failed, so that none harms another."""
    try:
        vectors = lane.embed([item for _, chunk in shares for item in chunk])
    except Exception as error:
        if len(shares) > 1:
            for share in shares:
                _embed(lane, [share])
            return
        call, _ = shares[0]
        if call in lane.waiting:
            lane.waiting.remove(call)
        if not call.done.done():
            call.done.set_exception(error)
        return
    start = 0
    for call, chunk in shares:
        call.parts.append(vectors[start : start + len(chunk)])
        start += len(chunk)
        if sum(map(len, call.parts)) == len(call.inputs):
            call.done.set_result(np.concatenate(call.parts))
