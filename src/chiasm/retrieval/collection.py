"""A collection: pictures in, pictures found.

A picture's way in has three steps, so that they can overlap (see `indexing`): `prepare` makes what
is kept of it (any thread), `embed` runs the model, `commit` compares it with what is there and
writes, one writer at a time. `add` is the three in a row.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from chiasm.errors import (
    ChiasmError,
    CollectionNotFound,
    InvalidRequest,
    ItemExists,
    ItemNotFound,
    PictureMissing,
)
from chiasm.media import Image
from chiasm.media.decode import open_image
from chiasm.media.encode import encode_jpeg
from chiasm.media.limits import Limits
from chiasm.retrieval import filters
from chiasm.retrieval.duplicates import Candidate, NearDuplicates, Verdict, examine
from chiasm.retrieval.embedder import Embedder
from chiasm.retrieval.pictures import PictureFiles
from chiasm.retrieval.prepared import (
    PICTURE_QUALITY,
    Prepared,
    check_words,
    id_of,
    prepare,
    record_of,
)
from chiasm.retrieval.store import (
    Added,
    Item,
    KnownFile,
    NewItem,
    Page,
    Record,
    SearchResult,
    Store,
    Vectors,
)

if TYPE_CHECKING:
    from chiasm.retrieval.library import CollectionInfo

MAX_LIMIT = 1000

_COMMITS_BETWEEN_TIDYING = 16

_log = logging.getLogger(__name__)


class Collection:
    """Pictures, texts and metadata that are searched together. Safe for threads and processes.

    Made by `Library.create` and `Library.open`.
    """

    def __init__(
        self,
        folder: Path,
        info: CollectionInfo,
        store: Store,
        embedder: Embedder,
        *,
        limits: Limits | None = None,
    ) -> None:
        self.name = info.name
        self.uid = info.uid
        self.embedder = embedder
        self.store = store
        self._info = info
        self._limits = limits or Limits()
        self._pictures = PictureFiles(folder / "pictures")
        self._tidying = threading.Lock()
        self._commits = 0

    def info(self) -> CollectionInfo:
        """Name, number of items, embedder, time of creation."""
        return replace(self._info, items=self.store.count())

    # Pictures in --------------------------------------------------------------------------------

    def add(
        self, images: Sequence[NewItem], *, near_duplicates: NearDuplicates = "keep"
    ) -> list[Added]:
        """Add decoded pictures; what is returned as added is safe from a killed process.

        A picture that is there already is not written again. One that looks the same as another is
        kept and marked with `duplicate_of`, or with "skip" left out.

        Raises InvalidRequest for an item that cannot be kept, ItemExists for an id that is taken;
        nothing is written then.
        """
        prepared = [self.prepare(new) for new in images]
        if not prepared:
            return []
        vectors = self.embedder.embed_images([new.image for new in images])
        return self.commit(prepared, vectors, near_duplicates=near_duplicates)

    def prepare(self, new: NewItem, *, replaces: Item | None = None) -> Prepared:
        """Check an item and make its thumbnail, its hash and its digest. InvalidRequest."""
        return prepare(new, replaces=replaces)

    def commit(
        self,
        prepared: Sequence[Prepared],
        vectors: Vectors,
        *,
        near_duplicates: NearDuplicates = "keep",
    ) -> list[Added]:
        """Write what is new, in one commit. vectors: float32 [len(prepared), dimension].

        A file that changed always takes the place of its item, even where it now looks like
        another one.
        """
        ids = [id_of(one) for one in prepared]
        self._check_ids_differ(ids)
        with self.store.writing():
            self._check_ids_are_free(prepared)
            candidates = [
                Candidate(
                    id=id,
                    digest=one.digest,
                    file_digest=one.file_digest,
                    perceptual_hash=one.perceptual_hash,
                    vector=vector,
                    replaces=one.replaces.id if one.replaces else None,
                )
                for id, one, vector in zip(ids, prepared, vectors, strict=True)
            ]
            verdicts = examine(self.store, candidates, near_duplicates=near_duplicates)
            records, added = self._records(
                ids, prepared, vectors, verdicts, keep_near=near_duplicates == "keep"
            )
            for one, result in zip(prepared, added, strict=True):
                if result.stored and one.picture is not None:
                    self._pictures.write(one.digest, one.picture)
            replaced = [one.replaces.id for one in prepared if one.replaces]
            there = self.store.get(replaced)
            self.store.insert(records, replacing=list(there))
        if records:
            self._tidy_now_and_then()
        return added

    def _records(
        self,
        ids: Sequence[str],
        prepared: Sequence[Prepared],
        vectors: Vectors,
        verdicts: Sequence[Verdict],
        *,
        keep_near: bool,
    ) -> tuple[list[Record], list[Added]]:
        moment = self.store.next_moment()
        records: list[Record] = []
        added: list[Added] = []
        for id, one, vector, verdict in zip(ids, prepared, vectors, verdicts, strict=True):
            near = verdict.kind == "near_duplicate"
            if one.replaces is None and (verdict.kind == "duplicate" or (near and not keep_near)):
                kind: Literal["duplicate", "near_duplicate"] = (
                    "near_duplicate" if near else "duplicate"
                )
                added.append(Added(verdict.of or id, kind, verdict.of, stored=False))
                continue
            records.append(record_of(id, one, vector, verdict.of, moment + len(records)))
            if one.replaces is not None:
                added.append(Added(id, "updated", verdict.of))
            else:
                added.append(Added(id, "near_duplicate" if near else "added", verdict.of))
        return records, added

    def _check_ids_differ(self, ids: Sequence[str]) -> None:
        if len(set(ids)) < len(ids):
            twice = next(id for id in ids if ids.count(id) > 1)
            raise InvalidRequest(f"The id {twice!r} is given to two items.", param="id")

    def _check_ids_are_free(self, prepared: Sequence[Prepared]) -> None:
        given = [one.new.id for one in prepared if one.new.id is not None and not one.replaces]
        for id in self.store.get(given):
            raise ItemExists(
                f"There is an item {id!r} in the collection {self.name!r} already.",
                hint="Delete it first, or give another id.",
                param="id",
            )

    # Items --------------------------------------------------------------------------------------

    def get(self, id: str) -> Item:
        """One item. ItemNotFound."""
        found = self.store.get([id])
        if id not in found:
            raise self._missing(id)
        return found[id]

    def items(
        self,
        limit: int = 50,
        after: str | None = None,
        filter: Mapping[str, Any] | None = None,
        *,
        newest_first: bool = False,
    ) -> Page:
        """Items in the order they were added, or newest first. after: `next` of the page before."""
        _check_range(limit, 0)
        condition = filters.parse(filter)
        return self.store.page(
            limit=limit, after=after, condition=condition, newest_first=newest_first
        )

    def count(self, filter: Mapping[str, Any] | None = None) -> int:
        """How many items satisfy the filter."""
        return self.store.count(filters.parse(filter))

    def update(
        self, id: str, *, text: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> Item:
        """Replace the text, the metadata (as a whole), or both. ItemNotFound, InvalidRequest."""
        check_words(text or "", metadata or {})
        return self.store.update(id, text=text, metadata=metadata)

    def delete(self, ids: Sequence[str] | str) -> list[str]:
        """Delete items; returns the ids that were there. Files indexed from a folder stay."""
        wanted = [ids] if isinstance(ids, str) else list(ids)
        with self.store.writing():
            digests = {
                item.digest
                for item in self.store.get(wanted).values()
                if self.store.picture(item.id) == "stored"
            }
            gone = self.store.delete(wanted)
            if digests:
                for digest in digests.difference(self.store.stored_digests()):
                    self._pictures.remove(digest)
        return gone

    def picture(self, id: str, kind: Literal["thumbnail", "full"]) -> tuple[bytes, str]:
        """The picture as a file's bytes, and their media type. Pixels only, whatever the original.

        Raises ItemNotFound; PictureMissing when the file it was indexed from is no longer there.
        """
        if kind == "thumbnail":
            return self.store.thumbnail(id), "image/jpeg"
        item = self.get(id)
        if self.store.picture(id) == "stored":
            data = self._pictures.read(item.digest)
        else:
            data = self._from_source(item)
        if data is None:
            raise PictureMissing(
                f"The picture of the item {id!r} is gone: {item.source or item.digest}.",
                hint="Its thumbnail is still there. Index the folder again, or delete the item.",
            )
        return data, "image/jpeg"

    def _from_source(self, item: Item) -> bytes | None:
        path = Path(item.source)
        if not path.is_file():
            return None
        return encode_jpeg(open_image(path, limits=self._limits), quality=PICTURE_QUALITY)

    def known_files(self) -> dict[str, KnownFile]:
        """By path: the items that were indexed from files."""
        return self.store.known_files()

    # Search -------------------------------------------------------------------------------------

    def search(
        self,
        *,
        text: str | None = None,
        image: Image | None = None,
        item: str | None = None,
        filter: Mapping[str, Any] | None = None,
        limit: int = 10,
        offset: int = 0,
    ) -> SearchResult:
        """The nearest pictures, best first.

        Of text, image and item at least one; where several are given, the query is the mean of
        their vectors. item: the id of one whose neighbours are wanted; it is not among them.
        """
        _check_range(limit, offset)
        condition = filters.parse(filter)
        started = time.perf_counter()
        query = self._query(text, image, item)
        embedded = time.perf_counter()
        hits = self.store.search(
            query,
            limit=limit,
            offset=offset,
            condition=condition,
            exclude=[item] if item is not None else [],
        )
        done = time.perf_counter()
        return SearchResult(hits, embedded - started, done - embedded)

    def _query(self, text: str | None, image: Image | None, item: str | None) -> Vectors:
        parts = []
        if text is not None and text.strip():
            parts.append(self.embedder.embed_texts([text])[0])
        if image is not None:
            parts.append(self.embedder.embed_images([image])[0])
        if item is not None:
            parts.append(self.store.vectors([item])[0])
        if not parts:
            raise InvalidRequest(
                "There is nothing to search for.",
                hint="Give text, an image or an item.",
                param="text",
            )
        mean = np.mean(parts, axis=0)
        length = float(np.linalg.norm(mean))
        if length == 0:  # opposite queries cancel out; any direction is as good as another
            mean, length = parts[0], 1.0
        vector: Vectors = (mean / length).astype(np.float32)
        return vector

    # Maintenance --------------------------------------------------------------------------------

    def tidy(self) -> None:
        """Maintenance now, unless a thread of this process is at it already.

        No answer depends on it, so what goes wrong is logged and tried again another time.
        """
        if self._tidying.acquire(blocking=False):
            try:
                self.store.tidy()
            except CollectionNotFound:  # deleted meanwhile
                pass
            except ChiasmError as error:
                _log.warning("%s", error)
            finally:
                self._tidying.release()

    def tidy_in_background(self) -> None:
        """The same, in a thread of its own."""
        threading.Thread(target=self.tidy, name=f"tidy {self.name}", daemon=True).start()

    def _tidy_now_and_then(self) -> None:
        self._commits += 1
        if self._commits % _COMMITS_BETWEEN_TIDYING == 0:
            self.tidy_in_background()

    def close(self) -> None:
        """Release what is held in memory."""
        self.store.close()

    def _missing(self, id: str) -> ItemNotFound:
        return ItemNotFound(f"There is no item {id!r} in the collection {self.name!r}.", param="id")


def _check_range(limit: int, offset: int) -> None:
    if not 1 <= limit <= MAX_LIMIT:
        raise InvalidRequest(f"limit must be 1 to {MAX_LIMIT}, not {limit}.", param="limit")
    if offset < 0:
        raise InvalidRequest(f"offset must not be negative, but is {offset}.", param="offset")
