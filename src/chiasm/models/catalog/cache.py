"""The cache of unpacked, verified files: a folder an entry, complete or absent.

Beside an entry's files stands a manifest, written after every digest was compared. It holds each
file's size and time of change, so that opening an entry later costs a few `stat` calls and no
hashing: a file whose size or time is another one is hashed again, and fetched again if it is not
what the catalogue promises.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chiasm.errors import DigestMismatch, NoSpace, WeightsError
from chiasm.models.catalog.entry import Entry
from chiasm.models.catalog.progress import Progress

MANIFEST = ".manifest.json"
CHUNK = 1 << 20  # bytes read at a time
FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


def entry_folder(cache_dir: Path, entry: Entry) -> Path:
    """Where an entry's files are kept; another set of digests is another folder."""
    return model_folder(cache_dir, entry.name, entry.digest[:12])


def model_folder(cache_dir: Path, name: str, key: str) -> Path:
    """Where the files of one model are kept. key: tells it from others of that name."""
    return cache_dir / "models" / f"{name}-{key}"


# Is it there and whole? -------------------------------------------------------------------------


def is_whole(
    folder: Path, digests: Mapping[str, str], *, verify: bool = False, manifest: Path | None = None
) -> bool:
    """Whether `folder` holds every file with the digest it must have.

    digests: path → digest as `digest_of` writes it.
    verify: hash every file, whatever the manifest says.
    manifest: where the manifest is, if not in the folder.
    """
    manifest = manifest or folder / MANIFEST
    recorded = _read_manifest(manifest)
    states: dict[str, dict[str, Any]] = {}
    for path, digest in digests.items():
        try:
            status = (folder / path).stat()
        except OSError:
            return False
        state = {"bytes": status.st_size, "changed": status.st_mtime_ns, "digest": digest}
        known = recorded.get(path)
        if (verify or known != state) and digest_of(folder / path, digest) != digest:
            return False
        states[path] = state
    if states != recorded:
        _refresh_manifest(manifest, states)
    return True


def write_manifest(
    folder: Path, digests: Mapping[str, str], *, manifest: Path | None = None
) -> None:
    """Record files whose digests were compared just now."""
    states = {}
    for path, digest in digests.items():
        status = (folder / path).stat()
        states[path] = {"bytes": status.st_size, "changed": status.st_mtime_ns, "digest": digest}
    write_atomically(manifest or folder / MANIFEST, json.dumps(states, indent=1).encode())


def recorded_digests(folder: Path, *, unchanged: bool = False) -> dict[str, str]:
    """Path → digest, as the folder's manifest has them; empty if there is none.

    unchanged: only files that still have the size and the time of change they had then.
    """
    digests = {}
    for path, state in _read_manifest(folder / MANIFEST).items():
        if not isinstance(state, dict) or not isinstance(state.get("digest"), str):
            continue
        if unchanged:
            try:
                status = (folder / path).stat()
            except OSError:
                continue
            if (status.st_size, status.st_mtime_ns) != (state.get("bytes"), state.get("changed")):
                continue
        digests[path] = state["digest"]
    return digests


def _refresh_manifest(manifest: Path, states: dict[str, dict[str, Any]]) -> None:
    try:
        write_atomically(manifest, json.dumps(states, indent=1).encode())
    except OSError:
        # The manifest only saves hashing: in a cache that may not be written (a read-only
        # image, say) the files were hashed and are good, and will be hashed next time too.
        return


def _read_manifest(path: Path) -> dict[str, dict[str, Any]]:
    try:
        read = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}  # no manifest, or a damaged one: the files are hashed instead
    return read if isinstance(read, dict) else {}


def digest_of(path: Path, like: str = "") -> str:
    """A file's digest, written as `like` is: 64 hexadecimal digits of SHA-256, or git's blob id.

    The hub states SHA-256 for large files and git's blob id (`git:` and 40 hexadecimal digits
    of SHA-1 over "blob <size>\\0" and the content) for small ones.
    """
    if like.startswith("git:"):
        hasher = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    else:
        hasher = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            hasher.update(chunk)
    return f"git:{hasher.hexdigest()}" if like.startswith("git:") else hasher.hexdigest()


# Putting files in -------------------------------------------------------------------------------


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder`, to be filled and given to `commit`; gone afterwards.

    The caller holds the lock, so whatever stands there was left by a process that was killed.
    """
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def commit(temporary: Path, folder: Path, digests: Mapping[str, str]) -> None:
    """Put verified files in use, all at once, or one by one where they mend a damaged folder."""
    for path in digests:
        _sync(temporary / path)
    write_manifest(temporary, digests)
    if not folder.exists():
        temporary.rename(folder)
    else:
        for path in (*digests, MANIFEST):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (temporary / path).replace(folder / path)
    _sync(folder.parent)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a small file so that it is seen whole or not at all, even after a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows has no descriptor of a folder to sync
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_digest(path: Path, name: str, expected: str) -> None:
    """Remove `path` and raise DigestMismatch unless it has the digest `expected`."""
    got = digest_of(path, expected)
    if got != expected:
        path.unlink(missing_ok=True)
        raise mismatch(name, expected, got)


def mismatch(name: str, expected: str, got: str, *, removed: bool = True) -> DigestMismatch:
    """The error for a file that is not what was promised."""
    end = " The bad file was removed." if removed else ""
    return DigestMismatch(
        f"{name}: expected the digest {expected}, got {got}.{end}",
        hint="Pull it again. If it stays so, the source serves another file than the catalogue's.",
    )


# One at a time, and what the disk can say -------------------------------------------------------


@contextmanager
def locked(folder: Path, label: str, progress: Progress) -> Iterator[None]:
    """Hold `folder`'s lock, against other processes too. A killed process lets go of it."""
    import filelock

    lock = filelock.FileLock(folder.with_name(f".{folder.name}.lock"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        progress.start(f"{label}: another process is fetching it", None)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def disk_errors(cache_dir: Path) -> Iterator[None]:
    """Turn what the operating system says about the cache's disk into errors for a user."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise no_space(cache_dir) from error
        if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}:
            raise WeightsError(
                f"The cache folder {cache_dir} cannot be written.",
                hint="Make it writable, or name another one in CHIASM_CACHE_DIR.",
            ) from error
        raise


def require_space(folder: Path, needed: int, cache_dir: Path) -> None:
    """Raise NoSpace when `folder`'s disk has less than `needed` bytes left."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise no_space(cache_dir, needed=needed, free=free)


def no_space(cache_dir: Path, *, needed: int | None = None, free: int | None = None) -> NoSpace:
    """The error for a full disk."""
    detail = "."
    if needed is not None and free is not None:
        detail = f": {needed / 1e6:,.1f} MB are needed, {free / 1e6:,.1f} MB are free."
    return NoSpace(
        f"There is no space left for weights in {cache_dir}{detail}",
        hint="Free some space, or name a folder on a larger disk in CHIASM_CACHE_DIR.",
    )
