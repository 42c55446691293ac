"""Keys and values of prompts that were read before, for prompts that begin alike."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from chiasm.generation.engine.prompt import Unit

if TYPE_CHECKING:
    from torch import Tensor

    from chiasm.models.cache import KeyValueCache


class PrefixCache:
    """The newest conversations' keys and values, within a budget of bytes.

    A prompt is known by its units (see `Prompt.units`): a picture's tokens count as the same only
    if the pictures are, pixel for pixel. What one tenant has asked never helps another: how soon an
    answer comes would tell what others have sent.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[int, tuple[str, list[Unit], KeyValueCache]] = OrderedDict()
        self._next = 0

    def take(
        self, units: Sequence[Unit], capacity: int, *, tenant: str = ""
    ) -> KeyValueCache | None:
        """A copy of the longest known beginning of `units`, one unit short of all of them at most.

        None where nothing fits. The copy is the caller's own, with memory for `capacity` tokens.
        """
        best, shared = None, 0
        for key, (owner, known, _) in self._entries.items():
            if owner != tenant:
                continue
            length = min(_shared(known, units), len(units) - 1)
            if length > shared:
                best, shared = key, length
        if best is None:
            return None
        self._entries.move_to_end(best)
        return self._entries[best][2].clone(shared, capacity=capacity)

    def put(self, units: Sequence[Unit], cache: KeyValueCache, *, tenant: str = "") -> None:
        """Keep `cache`, which holds `units`; the oldest entries make room. The cache is given away.

        An entry that is a beginning of this one is replaced by it.
        """
        for key, (owner, known, _) in list(self._entries.items()):
            if owner == tenant and len(known) <= len(units) and _shared(known, units) == len(known):
                del self._entries[key]
        self._entries[self._next] = (tenant, list(units), cache)
        self._next += 1
        while self._entries and self.nbytes > self._max_bytes:
            self._entries.popitem(last=False)

    @property
    def nbytes(self) -> int:
        """What is held, in bytes."""
        return sum(cache.nbytes for _, _, cache in self._entries.values())


class FeatureCache:
    """Features of the newest pictures by tenant and digest, within a budget of bytes.

    Safe to use from several threads at once.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[tuple[str, str], Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, tenant: str, digest: str) -> Tensor | None:
        """The picture's features, if they are still there."""
        with self._lock:
            features = self._entries.get((tenant, digest))
            if features is not None:
                self._entries.move_to_end((tenant, digest))
            return features

    def put(self, tenant: str, digest: str, features: Tensor) -> None:
        """Keep them; the oldest make room."""
        with self._lock:
            self._entries[tenant, digest] = features
            while self._entries and sum(f.nbytes for f in self._entries.values()) > self._max_bytes:
                self._entries.popitem(last=False)


def _shared(known: Sequence[Unit], units: Sequence[Unit]) -> int:
    """How many units both begin with."""
    longest = min(len(known), len(units))
    return next((at for at in range(longest) if known[at] != units[at]), longest)
