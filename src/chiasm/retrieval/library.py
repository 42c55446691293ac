"""All collections of a data folder.

Each is a folder, `<data_dir>/collections/<name>/`, with

- `collection.json`: what it is, and which embedder made it,
- `items.lance/`: the table,
- `pictures/`: full pictures that were uploaded,
- `lock`: held by whoever writes.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shutil
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from chiasm.errors import (
    ChiasmError,
    CollectionExists,
    CollectionNotFound,
    EmbedderMismatch,
    InvalidRequest,
    NoSpace,
    StoreError,
)
from chiasm.media.limits import Limits
from chiasm.retrieval.collection import Collection
from chiasm.retrieval.embedder import Embedder
from chiasm.retrieval.file_lock import FileLock

SCHEMA_VERSION = 1

_ABOUT = "collection.json"
_log = logging.getLogger(__name__)
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True)
class EmbedderInfo:
    """Whose vectors a collection holds."""

    name: str
    digest: str
    dimension: int


@dataclass(frozen=True)
class CollectionInfo:
    """What a collection is. created_at: UTC, ISO 8601. uid: differs even where names do not."""

    name: str
    items: int
    embedder: EmbedderInfo
    created_at: str
    uid: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Library:
    """The collections of one data folder, opened with one embedder. Safe for threads.

    root: the data folder (`Settings.data_dir`). limits: for pictures that are read again from the
    files they were indexed from.
    """

    def __init__(self, root: Path, embedder: Embedder, *, limits: Limits | None = None) -> None:
        self.root = root
        self.embedder = embedder
        self._limits = limits
        self._opened: dict[str, Collection] = {}
        self._lock = threading.Lock()

    def collections(self) -> list[CollectionInfo]:
        """All of them, by name, those of other embedders included."""
        return list_collections(self.root)

    def create(self, name: str, *, exist_ok: bool = False, recreate: bool = False) -> Collection:
        """Make an empty collection.

        exist_ok: open it if it is there. recreate: delete it first if it is there; this is how a
        collection moves to another embedder. Raises CollectionExists otherwise.
        """
        folder = _folder(self.root, name)
        if recreate:
            self._forget(name)
            _remove(folder, name)
        elif exist_ok and folder.exists():
            return self.open(name)
        if folder.exists() or not self._make(folder, name):
            if exist_ok:  # another process was faster
                return self.open(name)
            raise CollectionExists(
                f"There is a collection {name!r} already.",
                hint="Choose another name, or delete it first.",
                param="name",
            )
        return self.open(name)

    def open(self, name: str) -> Collection:
        """The collection of that name. CollectionNotFound, EmbedderMismatch."""
        folder = _folder(self.root, name)
        about = _read(folder, name)
        self._check_embedder(about)
        with self._lock:
            held = self._opened.get(name)
            if held is not None and held.uid == about.uid:
                return held
            from chiasm.retrieval.lance_store import LanceStore

            store = LanceStore(folder, about.embedder.dimension)
            collection = Collection(folder, about, store, self.embedder, limits=self._limits)
            self._opened[name] = collection
        collection.tidy_in_background()
        return collection

    def delete(self, name: str) -> None:
        """Delete a collection with all it holds. CollectionNotFound."""
        self._forget(name)
        delete_collection(self.root, name)

    def close(self) -> None:
        """Release what the opened collections hold in memory."""
        with self._lock:
            opened, self._opened = self._opened, {}
        for collection in opened.values():
            collection.close()

    def _forget(self, name: str) -> None:
        with self._lock:
            self._opened.pop(name, None)

    def _make(self, folder: Path, name: str) -> bool:
        """Build it aside and rename it into place, so that nobody meets half of one."""
        from chiasm.retrieval.lance_store import LanceStore

        about = {
            "schema_version": SCHEMA_VERSION,
            "uid": secrets.token_hex(16),
            "name": name,
            "created_at": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            "embedder": {
                "name": self.embedder.name,
                "digest": self.embedder.digest,
                "dimension": self.embedder.dimension,
            },
        }
        aside = folder.with_name(f".new-{secrets.token_hex(6)}")
        try:
            aside.mkdir(parents=True)
            LanceStore.create(aside, self.embedder.dimension)
            with (aside / _ABOUT).open("w", encoding="utf-8") as file:
                json.dump(about, file, indent=2)
                file.flush()
                os.fsync(file.fileno())
            aside.rename(folder)
        except OSError as error:
            shutil.rmtree(aside, ignore_errors=True)
            if folder.exists():
                return False
            if error.errno == 28:  # ENOSPC
                raise NoSpace(f"The disk is full: the collection {name!r} was not made.") from error
            raise StoreError(
                f"The collection {name!r} could not be made below {self.root}.",
                hint="May the folder be written?",
            ) from error
        return True

    def _check_embedder(self, about: CollectionInfo) -> None:
        made_by = about.embedder
        if (made_by.digest, made_by.dimension) == (self.embedder.digest, self.embedder.dimension):
            return
        raise EmbedderMismatch(
            f"The collection {about.name!r} was made by the embedder {made_by.name!r} "
            f"({made_by.digest[:12]}), not by {self.embedder.name!r} "
            f"({self.embedder.digest[:12]}); their vectors cannot be compared.",
            hint=f"Embed it again with `chiasm index FOLDER --collection {about.name} --recreate`, "
            f"or go back to the embedder that made it.",
            param="collection",
        )


def list_collections(
    root: Path, *, on_damaged: Callable[[str, ChiasmError], None] | None = None
) -> list[CollectionInfo]:
    """The collections of a data folder, by name. Needs no embedder and loads no vector.

    on_damaged: told the name and the error of each that cannot be read; it is left out of the
    list. By default that is logged.
    """
    from chiasm.retrieval.lance_table import count_rows

    infos = []
    home = root / "collections"
    for folder in sorted(home.iterdir()) if home.is_dir() else []:
        if not _NAME.fullmatch(folder.name) or not (folder / _ABOUT).is_file():
            continue
        try:
            infos.append(replace(_read(folder, folder.name), items=count_rows(folder)))
        except CollectionNotFound:  # deleted this moment
            continue
        except StoreError as error:
            (on_damaged or _log_damaged)(folder.name, error)
    return infos


def _log_damaged(name: str, error: ChiasmError) -> None:
    _log.warning("%s The collection %r is left out.", error, name)


def delete_collection(root: Path, name: str) -> None:
    """Delete a collection with all it holds. CollectionNotFound. Needs no embedder."""
    folder = _folder(root, name)
    if not _remove(folder, name):
        raise _not_found(name)


def _remove(folder: Path, name: str) -> bool:
    """Rename it out of the way while nobody writes, then remove it. False: there is none."""
    if not folder.is_dir():
        return False
    aside = folder.with_name(f".deleted-{secrets.token_hex(6)}")
    try:
        with FileLock(folder / "lock").held():
            folder.rename(aside)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StoreError(
            f"The collection {name!r} could not be deleted.", hint="May the folder be written?"
        ) from error
    shutil.rmtree(aside, ignore_errors=True)
    return True


def _folder(root: Path, name: str) -> Path:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"{name!r} cannot be a collection's name.",
            hint="Use 1 to 64 lower-case letters, digits and . _ - and begin with a letter or "
            "a digit.",
            param="name",
        )
    return root / "collections" / name


def _read(folder: Path, name: str) -> CollectionInfo:
    try:
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        version = about["schema_version"]
        info = CollectionInfo(
            name=name,
            items=0,
            embedder=EmbedderInfo(**about["embedder"]),
            created_at=about["created_at"],
            uid=about["uid"],
        )
    except (FileNotFoundError, NotADirectoryError):
        raise _not_found(name) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"The description of the collection {name!r} cannot be read.",
            hint=f"Look at {folder / _ABOUT}.",
        ) from error
    if version != SCHEMA_VERSION:
        raise StoreError(
            f"The collection {name!r} has the layout {version}; this version of chiasm reads "
            f"{SCHEMA_VERSION}.",
            hint="Use the version of chiasm that made it, or index it again.",
        )
    return info


def _not_found(name: str) -> CollectionNotFound:
    return CollectionNotFound(
        f"There is no collection {name!r}.",
        hint=f"Make it with `chiasm index FOLDER --collection {name}`.",
        param="collection",
    )
