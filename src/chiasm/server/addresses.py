"""The addresses among a body's pictures, and what lies there: fetched before the body is read.

So that reading a body, in whichever vendor's shape, stays plain work without waiting, and one
place alone ever fetches anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import anyio

from chiasm.errors import InvalidRequest
from chiasm.media.fetch import Fetcher
from chiasm.server.pictures import is_address

MOST_ADDRESSES = 64
_AT_ONCE = 8  # of one request, so that others have their turn
_DEEPEST = 12  # a picture in a tool's result in a message is at six


async def fetch_pictures(
    fetcher: Fetcher, body: Any, *, where: str, max_bytes: int
) -> Mapping[str, bytes]:
    """What is found at the addresses of a body's pictures, by address.

    where: the argument that `body` is, for messages. max_bytes: of all of them together.

    Raises the first failing picture's ImageError, and InvalidRequest for too many.
    """
    places: dict[str, str] = {}
    for place, url in picture_addresses(body, where):
        places.setdefault(url, place)
    if not places:
        return {}
    if len(places) > MOST_ADDRESSES:
        raise InvalidRequest(
            f"{where} has pictures at {len(places):,} addresses; {MOST_ADDRESSES} are the most.",
            hint="Send the pictures themselves, or fewer at once.",
            param=where,
        )
    found: dict[str, bytes] = {}
    errors: list[Exception] = []
    lane = anyio.Semaphore(_AT_ONCE)

    async def one(url: str, place: str) -> None:
        async with lane:
            try:
                found[url] = await fetcher.fetch(url, name=place)
                if sum(map(len, found.values())) > max_bytes:
                    raise InvalidRequest(
                        f"The pictures at the addresses in {where} are more than"
                        f" {max_bytes:,} bytes together.",
                        hint="Ask about fewer at once.",
                        param=where,
                    )
            except InvalidRequest as error:
                # Raised below: a task group would wrap it.
                errors.append(error)
                tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        for url, place in places.items():
            tasks.start_soon(one, url, place)
    if errors:
        raise errors[0]
    return found


def picture_addresses(body: Any, where: str) -> Iterator[tuple[str, str]]:
    """(place, address) of each picture that is one, in the shapes of all routes, in order.

    OpenAI's `image_url` (a text, or an object with `url`), Anthropic's `source` with `url`.
    """
    waiting: list[tuple[str, Any, int]] = [(where, body, 0)]
    while waiting:
        place, value, depth = waiting.pop()
        if depth > _DEEPEST:
            continue
        if isinstance(value, list):
            entries = [(f"{place}[{at}]", entry, depth + 1) for at, entry in enumerate(value)]
            waiting += reversed([entry for entry in entries if isinstance(entry[1], list | dict)])
        elif isinstance(value, dict):
            found = _address(value)
            if found is not None:
                yield f"{place}.{found[0]}", found[1]
            inside = ("content", "output")  # of a message, of a tool's result
            waiting += [(f"{place}.{key}", value[key], depth + 1) for key in inside if key in value]


def _address(part: Mapping[Any, Any]) -> tuple[str, str] | None:
    """Where in a part an address stands, and the address."""
    if part.get("type") in ("image_url", "input_image"):
        image, key = part.get("image_url"), "image_url"
    elif part.get("type") == "image":
        image, key = part.get("source"), "source"
        if not isinstance(image, dict) or image.get("type") != "url":
            return None
    else:
        return None
    if isinstance(image, dict):
        image, key = image.get("url"), f"{key}.url"
    return (key, image) if isinstance(image, str) and is_address(image) else None
