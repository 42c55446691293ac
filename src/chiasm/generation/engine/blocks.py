"""Blocks of the key and value cache: who uses which, and which hold a known beginning.

The memory for keys and values is cut into blocks of as many tokens each (Kwon et al., 2023,
arXiv:2309.06180). A text owns a list of them. A block that is full is known by all that was read up
to its end, so that a text that begins alike can share it. When nobody uses it any more it stays
until its memory is wanted, the one that was left longest ago first.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

from chiasm.generation.engine.prompt import Unit

BLOCK_TOKENS = 16
"""Tokens whose keys, or values, lie together."""


def first_key(scope: str) -> bytes:
    """What the keys of all texts of a scope, such as a tenant, begin with."""
    return hashlib.sha256(b"scope" + scope.encode()).digest()


def next_key(before: bytes, units: Sequence[Unit]) -> bytes:
    """The key of a block that holds `units` behind the block with key `before`.

    The full 256 bits of a hash: two texts with the same key have read the same.
    """
    hashed = hashlib.sha256(before)
    for unit in units:
        if isinstance(unit, int):
            hashed.update(b"t%d;" % unit)
        else:
            digest, place = unit
            hashed.update(b"p%d:%s%d;" % (len(digest), digest.encode(), place))
    return hashed.digest()


class Blocks:
    """Hands out the blocks 0 … count − 1. Not safe to use from several threads at once."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._empty = list(range(count - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # known, unused; oldest first
        self._users = [0] * count
        self._keys: list[bytes | None] = [None] * count
        self._known: dict[bytes, int] = {}
        # Of known blocks: the key of the one before, and what they hold; and the other way round.
        self._held: dict[int, tuple[bytes, tuple[Unit, ...]]] = {}
        self._behind: dict[bytes, list[int]] = {}

    @property
    def available(self) -> int:
        """Blocks that can be taken."""
        return len(self._empty) + len(self._idle)

    @property
    def known(self) -> int:
        """Blocks that hold a known beginning, in use or not."""
        return len(self._known)

    def take(self) -> int:
        """A block for one user. Raises IndexError when none is available."""
        if self._empty:
            block = self._empty.pop()
        elif self._idle:
            block, _ = self._idle.popitem(last=False)
            key = self._keys[block]
            assert key is not None
            del self._known[key]
            self._keys[block] = None
            before, _ = self._held.pop(block)
            self._behind[before].remove(block)
            if not self._behind[before]:
                del self._behind[before]
        else:
            raise IndexError("no block is left")
        self._users[block] = 1
        return block

    def share(self, block: int) -> None:
        """One more user for a block that is known or in use."""
        self._idle.pop(block, None)
        self._users[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """One user fewer for each; a text's last block is the first to be given to others."""
        for block in reversed(blocks):
            self._users[block] -= 1
            if self._users[block] == 0:
                if self._keys[block] is None:
                    self._empty.append(block)
                else:
                    self._idle[block] = None

    def learn(self, block: int, before: bytes, units: Sequence[Unit]) -> bytes:
        """A block in use is full of `units`, behind the block with the key `before`; its own key.

        If another holds the same, that one stays the known one.
        """
        key = next_key(before, units)
        if key not in self._known and self._keys[block] is None:
            self._known[key] = block
            self._keys[block] = key
            self._held[block] = before, tuple(units)
            self._behind.setdefault(before, []).append(block)
        return key

    def find(self, key: bytes) -> int | None:
        """The block with this key."""
        return self._known.get(key)

    def find_similar(self, before: bytes, units: Sequence[Unit]) -> tuple[int, int] | None:
        """A known block behind `before` that begins as `units` do, and how many they share."""
        best, most = None, 0
        for block in self._behind.get(before, ()):
            shared = 0
            for here, there in zip(self._held[block][1], units, strict=False):
                if here != there:
                    break
                shared += 1
            if shared > most:
                best, most = block, shared
        return None if best is None else (best, most)

    def forget(self) -> None:
        """Know nothing any more, so that every later text is read from its beginning."""
        for block in self._idle:
            self._empty.append(block)
        self._idle.clear()
        self._known.clear()
        self._held.clear()
        self._behind.clear()
        self._keys = [None] * self.count
