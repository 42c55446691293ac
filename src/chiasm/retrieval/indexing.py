"""A folder of pictures into a collection, with all cores and the disk at work at once.

Four stages run beside each other, each with a bounded number of pieces in hand: reading and
decoding (a pool of threads), preparing and embedding (two batches: while the model works on one,
the other is resized), comparing and writing (one thread). Results keep the order of the paths, so
of two equal pictures it is always the first that stays.

What was committed stays, whatever happens afterwards; running it again goes on from there. A file
whose path, size and time of change are known is not even opened.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from chiasm.media.folder import find_images
from chiasm.media.limits import Limits
from chiasm.retrieval.captions import Caption, Captions, read_captions
from chiasm.retrieval.collection import Collection
from chiasm.retrieval.duplicates import NearDuplicates
from chiasm.retrieval.opening import UNOPENED, Opener, read_file, reason_of
from chiasm.retrieval.prepared import Prepared, check_words
from chiasm.retrieval.store import Added, Item, KnownFile, NewItem, Vectors
from chiasm.settings import Settings

if TYPE_CHECKING:
    from chiasm.retrieval.ray_engine import RayEngine

_BATCHES_IN_HAND = 2

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass
class IndexReport:
    """What became of a folder's pictures.

    total: pictures found. updated: files that had changed, or words about them. skipped: there
    already, unchanged. duplicates, near_duplicates: of other items; near ones are kept and marked
    unless they were to be skipped. failures: (path, reason). images_per_second: of those that were
    decoded and embedded.
    """

    total: int = 0
    added: int = 0
    updated: int = 0
    skipped: int = 0
    duplicates: int = 0
    near_duplicates: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    images_per_second: float = 0.0
    interrupted: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {
            "failures": [{"file": file, "reason": reason} for file, reason in self.failures]
        }


def index_folder(
    folder: Path,
    collection: Collection,
    *,
    settings: Settings,
    on_progress: Callable[[int, int], None] | None = None,
    metadata: Path | None = None,
    near_duplicates: NearDuplicates = "keep",
    stop: threading.Event | None = None,
    ray: RayEngine | None = None,
) -> IndexReport:
    """Take the pictures below a folder into a collection.

    on_progress: called with (pictures done, pictures found), from several threads but never from
    two at once. metadata: a table (see `captions`). stop: once it is set, or at KeyboardInterrupt,
    what was read is still written and the report returned, with `interrupted`. ray: opens and
    embeds the pictures on a Ray cluster instead of here.

    A picture that cannot be opened is listed in the report and stops nothing. Raises InvalidRequest
    when the folder or the table cannot be used, StoreError and NoSpace when nothing can be written.
    """
    folder = folder.absolute()
    captions = read_captions(folder, metadata)
    started = time.perf_counter()
    work = Indexing(collection, settings, captions, near_duplicates, on_progress, stop)
    unreadable: list[Path] = []
    paths = list(find_images(folder, on_unreadable=unreadable.append))
    work.report.failures += [
        (_printable(path), "the folder may not be listed.") for path in unreadable
    ]
    work.report.total = len(paths)
    try:
        if ray is None:
            work.run(paths)
        else:
            ray.run(work, paths)
    except KeyboardInterrupt:
        work.stop.set()
    report = work.report
    report.failures.sort()
    report.interrupted = work.stop.is_set() and work.done < len(paths)
    report.seconds = time.perf_counter() - started
    report.images_per_second = work.embedded / report.seconds
    if not report.interrupted:
        collection.tidy()
    return report


@dataclass(frozen=True)
class Wanted:
    """A file that has to be opened. known: what the collection has from that path."""

    path: Path
    size: int
    mtime_ns: int
    caption: Caption
    known: KnownFile | None


class Indexing:
    """One run: the stages, and what they count."""

    def __init__(
        self,
        collection: Collection,
        settings: Settings,
        captions: Captions,
        near_duplicates: NearDuplicates,
        on_progress: Callable[[int, int], None] | None,
        stop: threading.Event | None,
    ) -> None:
        self.report = IndexReport()
        self.stop = stop or threading.Event()
        self.embedded = 0
        self.collection = collection
        self.settings = settings
        self._batch_size = settings.indexing.batch_size
        self._threads = settings.indexing.decode_threads or os.cpu_count() or 1
        self._captions = captions
        self._near_duplicates = near_duplicates
        self._on_progress = on_progress
        self._known = collection.known_files()
        self._counting = threading.Lock()
        self._opener = Opener(settings.media, collection.embedder.decode_side)
        self._followed: set[str] = set()
        self.done = 0

    def run(self, paths: list[Path]) -> None:
        """Push every path through the stages."""
        readers = ThreadPoolExecutor(self._threads, thread_name_prefix="read")
        embedders = ThreadPoolExecutor(_BATCHES_IN_HAND, thread_name_prefix="embed")
        writer = ThreadPoolExecutor(1, thread_name_prefix="write")
        try:
            window = self._threads + self._batch_size
            read = _in_order(readers, self._read, paths, window)
            embedded = _in_order(embedders, self._embed, self._batches(read), _BATCHES_IN_HAND)
            for _ in _in_order(writer, self.write, embedded, _BATCHES_IN_HAND):
                pass
        except BaseException:
            self.stop.set()
            raise
        finally:
            for pool in (readers, embedders, writer):
                pool.shutdown(wait=True, cancel_futures=True)

    # Stages -------------------------------------------------------------------------------------

    def _read(self, path: Path) -> Prepared | None:
        """Decode a picture unless it is there; None when there is nothing more to do with it."""
        wanted = self.wanted(path)
        if wanted is None:
            return None
        try:
            data, file = read_file(path, wanted.size, wanted.mtime_ns)
            is_new, replaces = self.place(wanted, file.digest)
            if not is_new:
                return None
            image = self._opener.open(data, path)
            text, words = _words(wanted.caption, replaces)
            new = NewItem(image, text=text, metadata=words, file=file)
            prepared = self.collection.prepare(new, replaces=replaces)
            return replace(prepared, new=replace(new, image=self._opener.shrunk(image)))
        except UNOPENED as error:
            self.fail(path, reason_of(error))
        return None

    def _batches(self, prepared: Iterable[Prepared | None]) -> Iterator[list[Prepared]]:
        batch: list[Prepared] = []
        for one in prepared:
            if one is not None:
                batch.append(one)
            if len(batch) == self._batch_size:
                yield batch
                batch = []
        if batch:
            yield batch

    def _embed(self, batch: list[Prepared]) -> tuple[list[Prepared], Vectors]:
        vectors = self.collection.embedder.embed_images([one.new.image for one in batch])
        return [one.without_pixels() for one in batch], vectors

    def write(self, embedded: tuple[list[Prepared], Vectors]) -> None:
        """Into the collection. vectors: float32 [batch, dimension]."""
        batch, vectors = embedded
        added = self.collection.commit(batch, vectors, near_duplicates=self._near_duplicates)
        for one in added:
            self._count(_counter_of(one))
        with self._counting:
            self.embedded += len(batch)

    # Pieces -------------------------------------------------------------------------------------

    def wanted(self, path: Path) -> Wanted | None:
        """The file, unless it is unchanged, unreadable, or nobody wants it any more."""
        if self.stop.is_set():
            return None
        try:
            caption = self._captions.of(path)
            status = path.stat()
            known = self._known.get(str(path))
            if known and (known.size, known.mtime_ns) == (status.st_size, status.st_mtime_ns):
                self._keep(known, caption)
                return None
        except UNOPENED as error:
            self.fail(path, reason_of(error))
            return None
        if status.st_size > self.settings.media.max_bytes:
            self.fail(path, _too_many_bytes(status.st_size, self.settings.media))
            return None
        return Wanted(path, status.st_size, status.st_mtime_ns, caption, known)

    def place(self, wanted: Wanted, digest: str) -> tuple[bool, Item | None]:
        """Whether a file with these bytes is to be taken in, and the item that it succeeds."""
        if wanted.known is not None:
            if wanted.known.digest == digest:
                self._keep(wanted.known, wanted.caption)
                return False, None
            return True, wanted.known.item
        twin = self._twin(digest)
        if twin is not None and not self._was_moved(twin):
            self._count("duplicates")
            return False, None
        return True, twin

    def worded(self, prepared: Prepared, wanted: Wanted, replaces: Item | None) -> Prepared:
        """One that was prepared without its words. InvalidRequest where it cannot have them."""
        text, words = _words(wanted.caption, replaces)
        check_words(text, words)
        return replace(
            prepared, new=replace(prepared.new, text=text, metadata=words), replaces=replaces
        )

    def fail(self, path: Path, reason: str) -> None:
        """List a file that could not be taken in."""
        with self._counting:
            self.report.failures.append((_printable(path), reason))
        self._count(None)

    def _keep(self, known: KnownFile, caption: Caption) -> None:
        """The picture is there already; perhaps there are new words about it."""
        text, words = _words(caption, known.item)
        if (text, words) == (known.item.text, known.item.metadata):
            self._count("skipped")
        else:
            self.collection.update(known.item.id, text=text, metadata=words)
            self._count("updated")

    def _twin(self, file_digest: str) -> Item | None:
        store = self.collection.store
        id = store.with_digest("", file_digest)
        return None if id is None else store.get([id]).get(id)

    def _was_moved(self, twin: Item) -> bool:
        """Whether the file of an item is gone, so that the item follows it to its new place."""
        if self.collection.store.picture(twin.id) == "stored" or Path(twin.source).exists():
            return False
        with self._counting:  # of several copies one takes the item along
            first = twin.id not in self._followed
            self._followed.add(twin.id)
        return first

    def _count(self, counter: str | None) -> None:
        with self._counting:
            if counter is not None:
                setattr(self.report, counter, getattr(self.report, counter) + 1)
            self.done += 1
            if self._on_progress is not None:
                self._on_progress(self.done, self.report.total)


def _in_order(
    pool: Executor, function: Callable[[In], Out], inputs: Iterable[In], window: int
) -> Iterator[Out]:
    """Like `map`, in the pool's threads, with at most `window` of them begun and not yet taken."""
    begun: deque[Future[Out]] = deque()
    for one in inputs:
        begun.append(pool.submit(function, one))
        if len(begun) >= window:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()


def _words(caption: Caption, item: Item | None) -> tuple[str, dict[str, Any]]:
    """Text and metadata: what the folder says; where it says nothing, what the item has."""
    text = caption.text if caption.text is not None else (item.text if item else "")
    metadata = caption.metadata if caption.metadata is not None else (item.metadata if item else {})
    return text, dict(metadata)


def _counter_of(added: Added) -> str:
    if added.status == "duplicate":
        return "duplicates"
    return "near_duplicates" if added.status == "near_duplicate" else added.status


def _printable(path: Path) -> str:
    """A path whose bytes are no UTF-8 still has to be printed."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def _too_many_bytes(size: int, limits: Limits) -> str:
    return f"{size:,} bytes is more than the limit of {limits.max_bytes:,}."
