"""From what a request carries to `Image`s, a bounded amount at once.

A picture of a few kilobytes can decode to hundreds of megabytes. So headers are read first, each
picture is charged for what its pixels will take, and it is decoded only when the budget that all
requests share has room for it. The budget is given back when the caller is done with the pixels.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from chiasm.errors import ImageError, ImageTooLarge
from chiasm.media import read_header
from chiasm.media.limits import Limits
from chiasm.media.sandbox import open_in_time
from chiasm.media.source import decode_data_url, is_data_url

if TYPE_CHECKING:
    from starlette.datastructures import UploadFile

    from chiasm.media import Header, Image

DECODED_BYTES = 1024 * 1024 * 1024
"""What the pixels of all pictures under way may take together; one picture is always let in."""

_BYTES_A_PIXEL = 8  # three in the `Image`, four in the decoder, and a little
_MOST_AT_ONCE = 16
_INLINE = 'Send the picture itself: "data:image/jpeg;base64,…".'


@dataclass(frozen=True)
class Encoded:
    """A picture as it came.

    name: what to call it in a message.
    read: gives the encoded bytes; raises `ImageError`; may block.
    """

    name: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Opened:
    """A picture that was decoded: `image`, or the `error` that it ended with."""

    image: Image | None = None
    error: ImageError | None = None
    data: bytes = b""

    @property
    def file_digest(self) -> str:
        """SHA-256 of the encoded bytes."""
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True)
class _Charged:
    """A picture whose header was read: its bytes and its price, or why it has none."""

    name: str
    data: bytes = b""
    header: Header | None = None
    cost: int = 0
    error: ImageError | None = None

    def open(self, limits: Limits, shortest_side: int | None) -> Opened:
        if self.header is None:
            return Opened(error=self.error)
        try:
            image = open_in_time(
                self.data,
                kind=self.header.format,
                size=self.header.size,
                limits=limits,
                shortest_side=shortest_side,
                name=self.name,
            )
        except ImageError as error:
            return Opened(error=error)
        return Opened(image, data=self.data)


def from_data_url(url: str, *, limits: Limits, name: str) -> Encoded:
    """The picture in a data URL; anything else is refused: no path, no address."""
    if not is_data_url(url):
        raise (
            not_fetched(name)
            if is_address(url)
            else ImageError(name, "this is not a data URL.", hint=_INLINE)
        )
    return Encoded(name, lambda: decode_data_url(url, limits, name))


def is_address(url: str) -> bool:
    """Whether a text is meant as an address on the web."""
    return url.lstrip()[:8].lower().startswith(("http:", "https:"))


def not_fetched(name: str) -> ImageError:
    """What an address gets, unless the operator allows its host."""
    return ImageError(name, "pictures are not fetched from addresses here.", hint=_INLINE)


def from_upload(file: UploadFile, *, limits: Limits, name: str) -> Encoded:
    """A part of a multipart body, which waits in memory or in a temporary file."""

    def read() -> bytes:
        data = file.file.read(limits.max_bytes + 1)
        if len(data) > limits.max_bytes:
            raise ImageTooLarge(
                name,
                f"it is larger than the limit of {limits.max_bytes:,} bytes.",
                hint="Make the picture smaller, or raise the setting media.max_bytes.",
            )
        return data

    return Encoded(name, read)


class PictureOpener:
    """Opens the pictures of all requests, within one budget of memory and of threads."""

    def __init__(self, limits: Limits, *, decoded_bytes: int = DECODED_BYTES) -> None:
        self._limits = limits
        self._budget = _Budget(decoded_bytes)
        self._threads = anyio.CapacityLimiter(max(2, os.cpu_count() or 2))

    async def open_groups(
        self, pictures: Sequence[Encoded], *, shortest_side: int | None
    ) -> AsyncGenerator[list[Opened]]:
        """What became of each of `pictures`, in their order, in groups that fit the budget.

        The memory of a group is charged until the next one is asked for; its list is then emptied.
        Consume this within `contextlib.aclosing`.
        """
        for start in range(0, len(pictures), _MOST_AT_ONCE):
            charged = await anyio.to_thread.run_sync(
                self._charge,
                pictures[start : start + _MOST_AT_ONCE],
                shortest_side,
                limiter=self._threads,
            )
            while charged:
                group, charged = _affordable(charged, self._budget.total)
                async with self._budget.reserve(sum(picture.cost for picture in group)):
                    opened = await self._decode(group, shortest_side)
                    yield opened
                    opened.clear()  # what is charged no longer is held no longer

    def _charge(self, pictures: Sequence[Encoded], shortest_side: int | None) -> list[_Charged]:
        """Read the encoded bytes and their headers."""
        charged = []
        for picture in pictures:
            try:
                data = picture.read()
                header = read_header(data, limits=self._limits, name=picture.name)
            except ImageError as error:
                charged.append(_Charged(picture.name, error=error))
                continue
            width, height = header.size
            scale = 1
            if header.format == "JPEG" and shortest_side is not None:
                scale = next((s for s in (8, 4, 2) if min(width, height) >= s * shortest_side), 1)
            cost = _BYTES_A_PIXEL * (width // scale + 1) * (height // scale + 1)
            charged.append(_Charged(picture.name, data, header, cost))
        return charged

    async def _decode(self, group: Sequence[_Charged], shortest_side: int | None) -> list[Opened]:
        opened = [Opened()] * len(group)

        async def into(place: int, picture: _Charged) -> None:
            opened[place] = await anyio.to_thread.run_sync(
                picture.open, self._limits, shortest_side, limiter=self._threads
            )

        async with anyio.create_task_group() as tasks:
            for place, picture in enumerate(group):
                tasks.start_soon(into, place, picture)
        return opened


def _affordable(charged: list[_Charged], total: int) -> tuple[list[_Charged], list[_Charged]]:
    """The longest beginning that costs no more than half of `total` (one picture at least)."""
    cost, end = charged[0].cost, 1
    while end < len(charged) and cost + charged[end].cost <= total // 2:
        cost += charged[end].cost
        end += 1
    return charged[:end], charged[end:]


class _Budget:
    """So many bytes for everybody, handed out in the order of asking."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._used = 0
        self._door = anyio.Lock()  # fair: whoever came first is served first
        self._freed = anyio.Event()

    @asynccontextmanager
    async def reserve(self, amount: int) -> AsyncIterator[None]:
        amount = min(amount, self.total)
        async with self._door:
            while self._used + amount > self.total:
                self._freed = anyio.Event()
                await self._freed.wait()
            self._used += amount
        try:
            yield
        finally:
            self._used -= amount
            self._freed.set()
