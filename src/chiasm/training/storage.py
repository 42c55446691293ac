"""Files on the local disk or, through fsspec, in object storage: listed, and opened for reading.

An address has "://" in it; anything else is a path of this machine.
"""

from __future__ import annotations

import glob
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from chiasm.errors import ConfigurationError, UnusableData

Options = Mapping[str, Any]

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_WILD = re.compile(r"[*?\[]")
_MOST_EXPANDED = 10_000_000


def is_address(name: str) -> bool:
    """Whether fsspec must open it."""
    return "://" in name


def expand(patterns: Sequence[str], suffixes: tuple[str, ...], options: Options) -> list[str]:
    """Names of files: braces are written out, wild cards looked up, folders listed.

    suffixes: what the files of a folder must end in. Braces are not looked up, so that a hundred
    thousand names cost nothing. Raises UnusableData for a pattern without a file.
    """
    names: list[str] = []
    for pattern in patterns:
        found: list[str] = []
        for name in braces(pattern):
            found += _listed(name, suffixes, options)
        if not found:
            raise UnusableData(f"No file matches {pattern}.", param="data.source")
        names += found
    return names


def braces(pattern: str) -> Iterator[str]:
    """`a{0..2}b` and `a{x,y}b` as a shell would write them out; zeros at the front are kept."""
    found = _BRACES.search(pattern)
    if found is None:
        yield pattern
        return
    before, after = pattern[: found.start()], pattern[found.end() :]
    choices: Iterator[str]
    numbers = _RANGE.fullmatch(found[1])
    if numbers:
        first, last = int(numbers[1]), int(numbers[2])
        if abs(last - first) >= _MOST_EXPANDED:
            raise UnusableData(f"{pattern} stands for too many files.", param="data.source")
        width = len(numbers[1]) if numbers[1].startswith("0") else 0
        step = 1 if last >= first else -1
        choices = (f"{number:0{width}d}" for number in range(first, last + step, step))
    else:
        choices = iter(found[1].split(","))
    for choice, rest in itertools.product(choices, list(braces(after))):
        yield before + choice + rest


def _listed(name: str, suffixes: tuple[str, ...], options: Options) -> list[str]:
    if is_address(name):
        wild = bool(_WILD.search(name))
        if not wild and name.endswith(suffixes):
            return [name]
        system, path = _system(name, options)
        with _remote(name):
            if wild:
                found = system.glob(path)
            else:
                found = [each for each in system.ls(path, detail=False) if each.endswith(suffixes)]
        return sorted(str(system.unstrip_protocol(each)) for each in found)
    if _WILD.search(name) and not Path(name).exists():
        return sorted(glob.glob(name, recursive=True))  # noqa: PTH207 (absolute patterns too)
    folder = Path(name)
    if folder.is_dir():
        return sorted(str(each) for each in folder.iterdir() if each.name.endswith(suffixes))
    return [name]


@contextmanager
def opened(name: str, options: Options) -> Iterator[BinaryIO]:
    """A stream over a file's bytes. Raises OSError, whatever the storage."""
    if not is_address(name):
        with Path(name).open("rb") as file:
            yield file
        return
    system, path = _system(name, options)
    with _as_os_error(name):
        stream = system.open(path, "rb")
    with stream:
        yield cast(BinaryIO, _Remote(stream, name))


def read_bytes(name: str, limit: int, options: Options) -> bytes:
    """A whole file, or its first `limit` + 1 bytes. Raises OSError."""
    with opened(name, options) as stream:
        return stream.read(limit + 1)


def exists(name: str, options: Options) -> bool:
    """Whether there is such a file. Never raises."""
    if not is_address(name):
        return Path(name).is_file()
    try:
        system, path = _system(name, options)
        return bool(system.isfile(path))
    except Exception:
        return False  # asked only about files that may be missing


class _Remote:
    """A remote file that reads as `BinaryIO` does and fails as files fail."""

    def __init__(self, stream: Any, name: str) -> None:
        self._stream = stream
        self._name = name

    def read(self, size: int = -1) -> bytes:
        with _as_os_error(self._name):
            return self._stream.read(size)


def _system(name: str, options: Options) -> tuple[Any, str]:
    try:
        import fsspec  # type: ignore[import-untyped]
    except ImportError:
        raise ConfigurationError(
            f"{name} is in remote storage, which needs fsspec.",
            hint='pip install "chiasm[train]"',
        ) from None
    try:
        return fsspec.core.url_to_fs(name, **options)
    except ImportError:
        protocol = name.partition("://")[0]
        raise ConfigurationError(
            f"{name}: fsspec's part for {protocol}:// is not installed.",
            hint=f'pip install "fsspec[{protocol}]"',
        ) from None
    except ValueError:
        raise ConfigurationError(f"{name} is an address of a kind that fsspec lacks.") from None


@contextmanager
def _remote(name: str) -> Iterator[None]:
    try:
        with _as_os_error(name):
            yield
    except OSError as error:
        raise UnusableData(
            f"{name} could not be listed ({type(error.__cause__ or error).__name__}).",
            hint="Check the address, and the credentials in the environment.",
        ) from error


@contextmanager
def _as_os_error(name: str) -> Iterator[None]:
    """Storage libraries raise classes of their own for what a disk says with OSError."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise OSError(f"{name}: {type(error).__name__}") from error
