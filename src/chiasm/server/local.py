"""The model of this server as the router asks it: in its turn, with its pictures decoded then."""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

from chiasm.errors import InvalidRequest
from chiasm.generation import ImagePart, Message, Part, Request, ToolResult
from chiasm.generation.messages import images_of
from chiasm.generation.request import after_waiting
from chiasm.media.encoded import EncodedImage
from chiasm.media.transform import resize
from chiasm.server.pictures import Encoded

if TYPE_CHECKING:
    from chiasm.generation import Event
    from chiasm.generation.targets import Target
    from chiasm.media import Image
    from chiasm.server.pictures import PictureOpener
    from chiasm.server.runtime import Runtime

MOST_PICTURES = 64


async def ask_local(runtime: Runtime, target: Target, request: Request) -> AsyncGenerator[Event]:
    """The answer's events, once it is the question's turn.

    Raises what `Admission.place` and `Generator.stream` raise.
    """
    generator = await runtime.generator()
    if len(images_of(request.messages)) > MOST_PICTURES:
        raise InvalidRequest(
            f"There are {len(images_of(request.messages)):,} pictures; {generator.name} takes "
            f"{MOST_PICTURES} at most.",
            hint="Ask about fewer at once.",
            param="messages",
        )
    begun = time.monotonic()
    turn = runtime.admission(generator).place(
        priority=request.priority,
        deadline=request.deadline,
        before_waiting=lambda: runtime.run(move_to_disk, request.messages),
    )
    async with turn:
        messages = await open_messages(request.messages, runtime.pictures)
        opened = after_waiting(replace(request, messages=messages), time.monotonic() - begun)
        del messages
        answer = generator.stream(opened)
        del opened  # and with it the pictures' pixels
        async with aclosing(answer) as events:
            async for event in events:
                yield event


def move_to_disk(messages: Iterable[Message]) -> None:
    """Let the pictures wait in a file without a name, which goes when they do. Blocks."""
    images = [image for image in images_of(messages) if isinstance(image, EncodedImage)]
    if images:
        file = tempfile.TemporaryFile()  # noqa: SIM115 -- closed with the last picture that uses it
        for image in images:
            image.rest(file)


async def open_messages(messages: Iterable[Message], opener: PictureOpener) -> tuple[Message, ...]:
    """The messages with their pictures decoded in full: image tokens can depend on the size.

    Raises the first picture's ImageError.
    """
    messages = tuple(messages)
    encoded = [image for image in images_of(messages) if isinstance(image, EncodedImage)]
    images: list[Image] = []
    groups = opener.open_groups(
        [Encoded(image.name, functools.partial(_data, image)) for image in encoded],
        shortest_side=None,
    )
    async with aclosing(groups):
        async for group in groups:
            for picture in group:
                if picture.error is not None:
                    raise picture.error
                assert picture.image is not None
                images.append(picture.image)
    opened = dict(zip(map(id, encoded), images, strict=True))
    return tuple(
        replace(message, parts=tuple(_opened(part, opened) for part in message.parts))
        for message in messages
    )


def _data(image: EncodedImage) -> bytes:
    return image.data


def _opened(part: Part, images: dict[int, Image]) -> Part:
    if isinstance(part, ImagePart):
        image = images.get(id(part.image))
        return part if image is None else ImagePart(_at_size(image, part.size), part.detail)
    if isinstance(part, ToolResult):
        inside = tuple(_opened(each, images) for each in part.parts)
        return replace(part, parts=inside)  # type: ignore[arg-type]
    return part


def _at_size(image: Image, size: tuple[int, int] | None) -> Image:
    if size is None or size == image.size:
        return image
    return replace(image, pixels=resize(image, size))
