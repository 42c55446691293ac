"""A tar archive read once from its beginning to its end, wherever it comes from.

The reader knows POSIX ustar, pax and GNU headers (IEEE Std 1003.1, "pax", section Extended
Description; GNU tar manual, "Basic Tar Format"), as far as names and sizes go. It yields what is
whole and says where the rest begins to be damaged; a member that is not asked for is passed over
without being read, if the stream can seek.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO

_BLOCK = 512
_LARGEST_EXTENSION = 1024 * 1024  # a pax header or a long name
_CHUNK = 1024 * 1024


class CutShort(Exception):
    """The archive ends inside a member, or what should be a header is none."""


class NotClosed(CutShort):
    """The archive ends after a whole member, but without the empty block that should close it.

    Some programs write no other. It may also have been cut just there.
    """


class Member:
    """One file of the archive. `read` only until the next one is asked for."""

    def __init__(self, name: str, size: int, reader: _Reader) -> None:
        self.name = name
        self.size = size
        self._reader = reader
        self._data: bytes | None = None

    def read(self) -> bytes:
        """The file's bytes. Raises CutShort."""
        if self._data is None:
            self._data = self._reader.take(self.size)
        return self._data


def members(stream: BinaryIO) -> Iterator[Member]:
    """The ordinary files of an archive, in order. Raises CutShort where it is damaged."""
    reader = _Reader(stream)
    long_name: str | None = None
    long_size: int | None = None
    while True:
        header = reader.header()
        if header is None:
            return
        kind = header[156:157]
        size = _number(header[124:136])
        if kind in (b"x", b"L"):
            if size > _LARGEST_EXTENSION:
                raise CutShort
            data = reader.take(size)
            reader.pad(size)
            if kind == b"L":
                long_name = _text(data.rstrip(b"\0"))
            else:
                fields = _pax(data)
                if b"path" in fields:
                    long_name = _text(fields[b"path"])
                if b"size" in fields:
                    long_size = _decimal(fields[b"size"])
            continue
        if long_size is not None:
            size = long_size
        if kind in (b"0", b"\0", b"7"):
            before = reader.position
            member = Member(long_name or _name(header), size, reader)
            yield member
            if reader.position == before:
                reader.skip(size)
            reader.pad(size)
        elif kind in (b"g", b"K", b"S", b"V", b"M", b"D", b"N"):
            reader.skip(size)
            reader.pad(size)
        # Links, folders and devices have no data, whatever their size field says.
        long_name = long_size = None


class _Reader:
    """Counts what it reads, and tells a full block from what is left of one."""

    def __init__(self, stream: BinaryIO) -> None:
        self.position = 0
        self._stream = stream
        self._end = _length(stream)

    def header(self) -> bytes | None:
        """The next header block; None at the end of the archive."""
        block = self._read(_BLOCK)
        if not block:
            raise NotClosed
        if not block.strip(b"\0"):
            return None
        if len(block) < _BLOCK or not _checks(block):
            raise CutShort
        return block

    def take(self, size: int) -> bytes:
        """Exactly `size` bytes."""
        if self._end is not None and self.position + size > self._end:
            raise CutShort  # before memory is asked for
        data = self._read(size)
        if len(data) < size:
            raise CutShort
        return data

    def skip(self, size: int) -> None:
        if self._end is not None:
            if self.position + size > self._end:
                raise CutShort
            self._stream.seek(size, io.SEEK_CUR)
            self.position += size
            return
        while size:
            size -= len(self.take(min(size, _CHUNK)))

    def pad(self, size: int) -> None:
        """Go on to the next block. The last one of an archive may have lost its padding."""
        rest = -size % _BLOCK
        if self._end is not None:
            self.skip(min(rest, self._end - self.position))
        else:
            self._read(rest)

    def _read(self, size: int) -> bytes:
        pieces, wanted = [], size
        while wanted:
            piece = self._stream.read(wanted)
            if not piece:
                break
            pieces.append(piece)
            wanted -= len(piece)
        self.position += size - wanted
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _length(stream: BinaryIO) -> int | None:
    """Bytes in a stream that stands at its beginning; None if it cannot seek cheaply."""
    try:
        # Others have a `seek`, too, that reads: a compressed stream, one over the network.
        if isinstance(stream, io.BufferedReader | io.BytesIO) and stream.seekable():
            end = stream.seek(0, io.SEEK_END)
            stream.seek(0)
            return end
    except OSError:
        pass
    return None


def _checks(block: bytes) -> bool:
    """Whether the header's check sum is right: the sum of its bytes, its own field as spaces."""
    try:
        stated = int(block[148:156].replace(b"\0", b" ").split()[0], 8)
    except (ValueError, IndexError):
        return False
    return stated == sum(block[:148]) + 8 * 32 + sum(block[156:])


def _number(field: bytes) -> int:
    """Octal digits, or GNU's base 256 where the first bit is set."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    digits = field.replace(b"\0", b" ").strip()
    try:
        number = int(digits, 8) if digits else 0
    except ValueError:
        raise CutShort from None
    if number < 0:
        raise CutShort
    return number


def _decimal(field: bytes) -> int:
    if not field.isdigit():
        raise CutShort
    return int(field)


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0")[0]
    if header[257:263] == b"ustar\0":
        prefix = header[345:500].split(b"\0")[0]
        if prefix:
            name = prefix + b"/" + name
    return _text(name)


def _text(name: bytes) -> str:
    return name.decode("utf-8", errors="replace")


def _pax(data: bytes) -> dict[bytes, bytes]:
    """Records of the form "length key=value\\n"."""
    fields = {}
    while data:
        digits, _, _ = data.partition(b" ")
        if not digits.isdigit() or not len(digits) < int(digits) <= len(data):
            raise CutShort
        record, data = data[: int(digits)], data[int(digits) :]
        key, _, value = record[len(digits) + 1 : -1].partition(b"=")
        fields[key] = value
    return fields
