"""Catalogue entries: what a name stands for, where its files come from, and their digests."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from chiasm.errors import ConfigurationError, UnknownModel

_SHIPPED_CATALOG = Path(__file__).with_name("catalog.toml")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HUB_REPOSITORY = re.compile(r"(?:[\w-][\w.-]*/)?[\w-][\w.-]*")
_PINNED_PACKAGE = re.compile(r"([A-Za-z0-9][\w.-]*)==([\w.!+-]+)")

Scheme = Literal["pypi", "hf", "file"]


@dataclass(frozen=True, slots=True)
class Source:
    """One place an entry's files can come from.

    scheme, location: the two halves of `pypi:package==version`, `hf:owner/name@revision` or
        `file:path`; a file's location is absolute.
    folder: where the files stand inside the wheel, the repository or the folder.
    in_place: the files are verified and used where they stand, not copied; of a `file:` folder.
    """

    scheme: Scheme
    location: str
    folder: str = ""
    in_place: bool = False

    def __str__(self) -> str:
        return f"{self.scheme}:{self.location}"

    def path_of(self, file: str) -> str:
        """Where `file` stands inside this source, with forward slashes."""
        return f"{self.folder}/{file}" if self.folder else file

    def package(self) -> tuple[str, str]:
        """(package, version) of a `pypi:` source."""
        name, version = self.location.split("==")
        return name, version

    def repository(self) -> tuple[str, str | None]:
        """(owner/name, revision or None) of an `hf:` source."""
        name, _, revision = self.location.partition("@")
        return name, revision or None


@dataclass(frozen=True, slots=True)
class File:
    """A file an entry unpacks to: its size in bytes and the digest it must have."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A name of the catalogue.

    bytes: what has to be fetched, with what the entry needs; rounded for hub entries.
    files: path → size and digest of the unpacked files. Empty for hub entries, whose commit and
        digests are recorded on first use, and for entries that only name others.
    needs: names of entries that are fetched with this one.
    shipped: a folder of this package that holds the entry's own files.
    convert: what the one file is, if it is to be turned into a checkpoint folder: `gguf` or "".
    """

    name: str
    kind: str
    licence: str
    bytes: int
    description: str
    sources: tuple[Source, ...] = ()
    files: Mapping[str, File] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    shipped: Path | None = None
    convert: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 over the files' names and digests: two entries with equal files share it."""
        table = {path: file.sha256 for path, file in self.files.items()}
        return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()

    @property
    def unpacked_bytes(self) -> int:
        """What the entry's own files take on the disk, in bytes."""
        return sum(file.bytes for file in self.files.values())

    def as_dict(self) -> dict[str, Any]:
        """The entry as JSON has it."""
        return {
            "name": self.name,
            "kind": self.kind,
            "licence": self.licence,
            "size": self.bytes,
            "description": self.description,
            "sources": [str(source) for source in self.sources],
            "files": {path: file.sha256 for path, file in self.files.items()},
            "needs": list(self.needs),
        }


def entries(catalogs: Sequence[Path] = ()) -> list[Entry]:
    """Every entry, sorted by name. `catalogs`: further files; a later one wins over an earlier."""
    return sorted(_table(catalogs).values(), key=lambda entry: entry.name)


def find(name: str, catalogs: Sequence[Path] = ()) -> Entry:
    """The entry called `name`, or one made on the spot for `hf:owner/name[@revision]`.

    Raises UnknownModel, with the nearest names, when there is none.
    """
    if name.startswith("hf:"):
        return _hub_entry(name)
    table = _table(catalogs)
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name, table, n=3, cutoff=0.4)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"There are: {', '.join(table)}."
    if "/" in name:
        hint = f"For a repository on the Hugging Face hub write hf:{name}."
    raise UnknownModel(f"The catalogue has no entry called {name!r}.", hint=hint, param="name")


def _hub_entry(name: str) -> Entry:
    source = _source({"from": name}, name, Path())
    return Entry(name, "checkpoint", "see the repository", 0, f"{name}, by address", (source,))


# Reading a catalogue ----------------------------------------------------------------------------


def _table(catalogs: Sequence[Path]) -> dict[str, Entry]:
    table: dict[str, Entry] = {}
    for path in (_SHIPPED_CATALOG, *catalogs):
        try:
            status = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            continue  # a user's own catalogue is optional
        table |= _read(path, (status.st_mtime_ns, status.st_size, status.st_ino))
    return table


@lru_cache(maxsize=16)
def _read(path: Path, state: tuple[int, ...]) -> dict[str, Entry]:
    """Every entry of one catalogue. `state` changes when the file does: the key of this cache."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise ConfigurationError(f"The catalogue {path} could not be read as text.") from None
    return parse(text, path)


def parse(text: str, path: Path) -> dict[str, Entry]:
    """Every entry of a catalogue whose file is, or will be, `path`. Raises ConfigurationError."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path} is not valid TOML: {error}.") from None
    read: dict[str, Entry] = {}
    for name, table in tables.items():
        where = f"{path}, entry {name!r}"
        if not isinstance(table, dict) or not is_name(name):
            raise ConfigurationError(f"{where}: an entry is a table with a plain name.")
        read[name] = _entry(name, table, where, path.parent)
    return read


def _entry(name: str, table: dict[str, Any], where: str, home: Path) -> Entry:
    table = dict(table)
    texts = {key: _taken(table, key, str, where) for key in ("kind", "licence", "description")}
    size = _taken(table, "bytes", int, where)
    sources = tuple(
        _source(source, where, home) for source in _taken(table, "sources", list, where, [])
    )
    files = {
        _safe_path(file, where): _file(stated, f"{where}, file {file!r}")
        for file, stated in _taken(table, "files", dict, where, {}).items()
    }
    needs = tuple(_taken(table, "needs", list, where, []))
    shipped = _taken(table, "shipped", str, where, "")
    convert = _taken(table, "convert", str, where, "")
    if table:
        raise ConfigurationError(f"{where}: there is no field called {next(iter(table))!r}.")
    if not files and any(source.scheme != "hf" for source in sources):
        raise ConfigurationError(
            f"{where}: it has no `files`.",
            hint="State the size and the SHA-256 of each file it unpacks to.",
        )
    if convert not in ("", "gguf") or (convert and len(files) != 1):
        raise ConfigurationError(f'{where}: `convert` is "gguf", for an entry of one file.')
    if not (sources or needs or shipped):
        raise ConfigurationError(f"{where}: it names no source and no other entry.")
    folder = (home / shipped).resolve() if shipped else None
    return Entry(
        name,
        **texts,
        bytes=size,
        sources=sources,
        files=files,
        needs=needs,
        shipped=folder,
        convert=convert,
    )


def _taken(table: dict[str, Any], key: str, kind: type, where: str, default: Any = None) -> Any:
    """`table[key]`, taken out of the table and checked."""
    value = table.pop(key, default)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ConfigurationError(f"{where}: `{key}` must be given as {kind.__name__}.")
    return value


def _source(stated: object, where: str, home: Path) -> Source:
    if not isinstance(stated, dict) or not isinstance(stated.get("from"), str):
        raise ConfigurationError(f'{where}: a source is a table with `from = "…"`.')
    scheme, _, location = stated["from"].partition(":")
    folder = stated.get("folder", "")
    if scheme not in get_args(Scheme):
        raise ConfigurationError(
            f"{where}: {stated['from']!r} is no source.",
            hint="A source begins with pypi:, hf: or file:.",
        )
    if scheme == "pypi" and not _PINNED_PACKAGE.fullmatch(location):
        raise ConfigurationError(f"{where}: write pypi:package==version, not {stated['from']!r}.")
    if scheme == "hf" and not _HUB_REPOSITORY.fullmatch(location.partition("@")[0]):
        raise ConfigurationError(f"{where}: write hf:owner/name, not {stated['from']!r}.")
    if scheme == "file":
        location = str((home / Path(location).expanduser()).resolve())
    in_place = stated.get("in_place", False)
    if in_place not in (True, False) or (in_place and scheme != "file"):
        raise ConfigurationError(f"{where}: `in_place` is true or false, and for file: alone.")
    return Source(scheme, location, _safe_path(folder, where) if folder else "", in_place)


def _file(stated: object, where: str) -> File:
    if (
        not isinstance(stated, dict)
        or not isinstance(stated.get("bytes"), int)
        or not _SHA256.fullmatch(str(stated.get("sha256")))
    ):
        raise ConfigurationError(
            f'{where}: write {{ bytes = …, sha256 = "…" }} with 64 hexadecimal digits.'
        )
    return File(stated["bytes"], stated["sha256"])


def is_name(name: str) -> bool:
    """Whether an entry can be called that."""
    return _NAME.fullmatch(name) is not None


def is_safe_path(path: str) -> bool:
    """Whether `path`, from a catalogue or an archive, stays inside the folder it is put in."""
    pure = PurePosixPath(path)
    return (
        bool(pure.parts)
        and not pure.is_absolute()
        and ".." not in pure.parts
        and not any(mark in path for mark in ("\\", ":", "\0"))
    )


def _safe_path(path: str, where: str) -> str:
    if not is_safe_path(path):
        raise ConfigurationError(f"{where}: {path!r} leads out of the entry's own folder.")
    return path
