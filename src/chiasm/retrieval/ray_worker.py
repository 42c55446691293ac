"""What a worker of the Ray engine does: it loads an embedder, opens files and embeds them."""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import chiasm
from chiasm.errors import ChiasmError, ConfigurationError
from chiasm.media.limits import Limits
from chiasm.retrieval.embedder import Embedder
from chiasm.retrieval.opening import UNOPENED, Opener, read_file, reason_of
from chiasm.retrieval.prepared import Prepared, prepare
from chiasm.retrieval.store import NewItem, Vectors


def packed(number: int, path: Path, size: int, mtime_ns: int, known: str) -> bytes:
    """A file on its way to a worker; a name that is no UTF-8 survives it.

    known: SHA-256 of the bytes that the collection has of it, or nothing.
    """
    return pickle.dumps((number, os.fsencode(path), size, mtime_ns, known))


@dataclass(frozen=True)
class Found:
    """What a worker made of a file.

    digest: SHA-256 of its bytes. prepared, vector: of a picture that was opened. reason: why it
    was not. trouble: message and hint of what stops the whole run.
    """

    number: int
    digest: str = ""
    prepared: Prepared | None = None
    vector: Vectors | None = None
    reason: str | None = None
    trouble: tuple[str, str | None] | None = None


class Worker:
    """Loads the embedder once, then opens and embeds batches of files.

    What goes wrong goes back as a value, because an exception would make Ray try it again.
    """

    def __init__(
        self,
        load: Callable[[], Embedder],
        digest: str,
        limits: Limits,
        readers: int,
        host: str,
        version: str,
    ) -> None:
        """digest: of the collection's embedder. host, version: of the process that writes."""
        self._load, self._digest = load, digest
        self._limits, self._readers = limits, readers
        self._host, self._version = host, version
        self._embedder: Embedder | None = None

    def __call__(self, table: Any) -> Any:
        """A table of packed files to one of packed `Found`, both of Arrow."""
        import pyarrow as pa

        files = [pickle.loads(row) for row in table["file"].to_pylist()]
        try:
            found = self._found(self._ready(), files)
        except Exception as error:  # carried over to the process that writes
            found = [Found(number, trouble=_trouble(error)) for number, *_ in files]
        return pa.table({"found": pa.array([pickle.dumps(one) for one in found], pa.binary())})

    def _ready(self) -> Embedder:
        """The embedder. ChiasmError if it cannot be had, or is another one than it must be."""
        if self._embedder is None:
            if chiasm.__version__ != self._version:
                raise ConfigurationError(
                    f"chiasm is {chiasm.__version__} here and {self._version} where it writes.",
                    hint="Install the same version on every node.",
                )
            embedder = self._load()
            if embedder.digest != self._digest:
                raise ConfigurationError(
                    f"The embedder {embedder.name} has other weights here.",
                    hint="Give every node the same files: chiasm pull --verify.",
                )
            self._embedder = embedder
        return self._embedder

    def _found(
        self, embedder: Embedder, files: list[tuple[int, bytes, int, int, str]]
    ) -> list[Found]:
        opener = Opener(self._limits, embedder.decode_side)
        with ThreadPoolExecutor(self._readers) as pool:
            found = list(pool.map(lambda file: self._opened(opener, *file), files))
        images = [one.prepared.new.image for one in found if one.prepared is not None]
        vectors = iter(embedder.embed_images(images) if images else ())
        return [
            one
            if one.prepared is None
            else replace(one, prepared=one.prepared.without_pixels(), vector=next(vectors))
            for one in found
        ]

    def _opened(
        self, opener: Opener, number: int, name: bytes, size: int, mtime_ns: int, known: str
    ) -> Found:
        path = Path(os.fsdecode(name))
        try:
            data, file = read_file(path, size, mtime_ns)
            if file.digest == known:
                return Found(number, file.digest)
            new = NewItem(opener.open(data, path), file=file)
            prepared = prepare(new)
            small = replace(new, image=opener.shrunk(new.image))
            return Found(number, file.digest, replace(prepared, new=small))
        except FileNotFoundError as error:
            here = socket.gethostname()
            if here == self._host:
                return Found(number, reason=reason_of(error))
            return Found(
                number,
                reason=f"the worker on {here} does not see it: the folder must be there, at the "
                "same path, on every node.",
            )
        except UNOPENED as error:
            return Found(number, reason=reason_of(error))


def _trouble(error: Exception) -> tuple[str, str | None]:
    where = f"The worker on {socket.gethostname()} had to stop"
    if isinstance(error, ChiasmError):
        return f"{where}: {error.message}", error.hint
    return f"{where} with {type(error).__name__}: {error}", None
