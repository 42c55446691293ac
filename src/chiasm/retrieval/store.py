"""What a store of a collection must do, and the values that pass in and out of it.

A store holds the rows of *one* collection: a unit vector each, the item's text and metadata, a
thumbnail, and what is needed to know the picture again. `tests/retrieval/conformance.py` asks
every store the same questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from chiasm.media import Image
from chiasm.retrieval.filters import Filter

Vectors = npt.NDArray[np.float32]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Status = Literal["added", "updated", "duplicate", "near_duplicate"]


def timestamp(microseconds: int) -> str:
    """UTC in ISO 8601 from microseconds since 1970."""
    moment = _EPOCH + timedelta(microseconds=microseconds)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def microseconds(timestamp: str) -> int:
    """The inverse of `timestamp`."""
    return (datetime.fromisoformat(timestamp) - _EPOCH) // timedelta(microseconds=1)


@dataclass(frozen=True)
class Item:
    """One picture of a collection.

    digest: SHA-256 of the decoded pixels (see `Image.digest`).
    source: where it came from: a path for a picture that was indexed from a folder.
    width, height: of the upright picture, in pixels, at full size.
    added_at: UTC, ISO 8601, microseconds.
    duplicate_of: the id of an earlier item that looks the same, where there is one.
    """

    id: str
    digest: str
    source: str
    text: str
    metadata: Mapping[str, Any]
    width: int
    height: int
    added_at: str
    duplicate_of: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class SourceFile:
    """A file on this machine that a picture was read from. Never taken from a request."""

    path: Path
    size: int
    mtime_ns: int
    digest: str  # SHA-256 of the file's bytes


@dataclass(frozen=True)
class NewItem:
    """A decoded picture on its way in.

    metadata: any JSON object. id: one is made when it is None.
    file_digest: SHA-256 of the encoded bytes, where they are known; the same file is then known
        again even where it was decoded at another scale.
    file: set by `index_folder` alone. The picture then stays where it is; otherwise the collection
        keeps a copy of it.
    """

    image: Image
    text: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    id: str | None = None
    file_digest: str = ""
    file: SourceFile | None = None


@dataclass(frozen=True)
class Added:
    """What became of one new item.

    `added` and `updated` items are in the collection and safe from a killed process. `duplicate`:
    the picture `of` was there already and nothing was written. `near_duplicate`: it looks the same
    as `of`; `stored` says whether it was kept.
    """

    id: str
    status: Status
    of: str | None = None
    stored: bool = True

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Hit:
    """An item that was found. score: cosine, -1 … 1."""

    item: Item
    score: float

    @property
    def id(self) -> str:
        """The item's id."""
        return self.item.id

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"id": self.item.id, "score": self.score, "item": self.item.as_dict()}


@dataclass(frozen=True)
class Page:
    """Some items in the order of their adding; `next` is what to pass as `after`, or None."""

    items: list[Item]
    next: str | None

    @property
    def has_more(self) -> bool:
        """Whether another page follows."""
        return self.next is not None


@dataclass(frozen=True)
class SearchResult:
    """The hits, best first, and where the time went, in seconds."""

    hits: list[Hit]
    embed_seconds: float
    search_seconds: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "data": [hit.as_dict() for hit in self.hits],
            "timing": {
                "embed_seconds": self.embed_seconds,
                "search_seconds": self.search_seconds,
            },
        }


@dataclass(frozen=True)
class Record:
    """An item as a store keeps it.

    vector: float32 [dimension], unit length. perceptual_hash: 64 bits.
    picture: "source" when the full picture is the file at `item.source`, "stored" when the
        collection keeps it. The file_* fields describe the file it was read from, or are empty.
    """

    item: Item
    vector: Vectors
    thumbnail: bytes
    perceptual_hash: int
    picture: Literal["source", "stored"]
    file_digest: str = ""
    file_size: int = 0
    file_mtime_ns: int = 0


@dataclass(frozen=True)
class KnownFile:
    """What the store remembers of a file that was indexed."""

    item: Item
    size: int
    mtime_ns: int
    digest: str


class Store(Protocol):
    """The rows of one collection. Safe to use from several threads and several processes.

    Every method sees all that was committed before it was called, by any process. A write is
    atomic and has been handed to the disk when the method returns. StoreError when the store
    cannot be read or written; NoSpace when the disk is full.
    """

    dimension: int

    def writing(self) -> AbstractContextManager[None]:
        """While it is held, no other thread or process writes: look, decide, write. Reentrant."""
        ...

    def next_moment(self) -> int:
        """A time for a new item, in microseconds since 1970: now, but after every other item's."""
        ...

    def insert(self, records: Sequence[Record], *, replacing: Sequence[str] = ()) -> None:
        """Write records in one commit; those whose id is in `replacing` take that item's place."""
        ...

    def update(
        self, id: str, *, text: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> Item:
        """Replace the text, the metadata, or both. ItemNotFound."""
        ...

    def delete(self, ids: Sequence[str]) -> list[str]:
        """Delete items; returns the ids that were there."""
        ...

    def get(self, ids: Sequence[str]) -> dict[str, Item]:
        """Those of the items that are there, by id."""
        ...

    def page(
        self,
        *,
        limit: int,
        after: str | None = None,
        condition: Filter | None = None,
        newest_first: bool = False,
    ) -> Page:
        """Items in the order they were added, or in the reverse of it, from a cursor on.

        A cursor is a moment and goes with either order: what is added or deleted later moves no
        item from one page to another.
        """
        ...

    def count(self, condition: Filter | None = None) -> int:
        """How many items satisfy the filter."""
        ...

    def search(
        self,
        vector: Vectors,
        *,
        limit: int,
        offset: int = 0,
        condition: Filter | None = None,
        exclude: Sequence[str] = (),
    ) -> list[Hit]:
        """Nearest items by cosine, best first. vector: float32 [dimension], unit length."""
        ...

    def vectors(self, ids: Sequence[str]) -> Vectors:
        """float32 [len(ids), dimension]. ItemNotFound when one is missing."""
        ...

    def thumbnail(self, id: str) -> bytes:
        """JPEG bytes. ItemNotFound."""
        ...

    def picture(self, id: str) -> Literal["source", "stored"]:
        """Where the full picture is (see `Record.picture`). ItemNotFound."""
        ...

    def with_digest(self, digest: str, file_digest: str = "") -> str | None:
        """The id of an item with these pixels, or read from a file with these bytes."""
        ...

    def alike(self, perceptual_hash: int, max_distance: int) -> list[str]:
        """Ids of items whose perceptual hash differs in few bits, the nearest few first."""
        ...

    def known_files(self) -> dict[str, KnownFile]:
        """By source: the items whose picture is a file."""
        ...

    def stored_digests(self) -> Iterator[str]:
        """Digests of the items whose full picture the collection keeps."""
        ...

    def tidy(self) -> bool:
        """Maintenance worth doing now: compaction, an index. Returns whether there was any."""
        ...

    def close(self) -> None:
        """Release what is held; the store may not be used afterwards."""
        ...
