"""Conversations: messages whose parts are texts and pictures, in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from chiasm.errors import InvalidRequest
from chiasm.media import Image

if TYPE_CHECKING:
    from chiasm.media.encoded import EncodedImage

Role = Literal["system", "user", "assistant", "tool"]
Detail = Literal["auto", "low", "high", "original"]
DETAILS: tuple[Detail, ...] = get_args(Detail)

Picture: TypeAlias = "Image | EncodedImage"
"""Pixels, or a file whose header alone was read: models elsewhere need no pixels from here."""


@dataclass(frozen=True)
class TextPart:
    """Words."""

    text: str


@dataclass(frozen=True)
class ImagePart:
    """A picture.

    detail: how closely a model looks at it, where its vendor lets one choose.
    size: (width, height) in pixels at which it is to be read; None: as it is. Never enlarged.
    """

    image: Picture
    detail: Detail = "auto"
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class ToolCall:
    """An assistant's part: it wants a tool to be used. arguments: JSON, as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class ToolResult:
    """A part of a `tool` message: what came of the call with that id, texts and pictures."""

    call: str
    parts: tuple[TextPart | ImagePart, ...]
    failed: bool = False


Part = TextPart | ImagePart | ToolCall | ToolResult


@dataclass(frozen=True)
class Message:
    """What one side said, its parts in their order."""

    role: Role
    parts: tuple[Part, ...]

    @classmethod
    def user(cls, *parts: str | Image) -> Message:
        """A user's message of texts and pictures."""
        return cls(
            "user", tuple(TextPart(p) if isinstance(p, str) else ImagePart(p) for p in parts)
        )

    @property
    def image_parts(self) -> list[ImagePart]:
        """Its pictures with their detail, in order, those in results of tools as well."""
        found: list[ImagePart] = []
        for part in self.parts:
            if isinstance(part, ImagePart):
                found.append(part)
            elif isinstance(part, ToolResult):
                found += [each for each in part.parts if isinstance(each, ImagePart)]
        return found

    @property
    def images(self) -> list[Picture]:
        """Its pictures, in order."""
        return [part.image for part in self.image_parts]

    @property
    def text(self) -> str:
        """Its texts, joined."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))


def images_of(messages: Iterable[Message]) -> list[Picture]:
    """Every picture of a conversation, in order."""
    return [image for message in messages for image in message.images]


def pixels_of(messages: Iterable[Message]) -> list[Image]:
    """Every picture of a conversation, in order, where whoever asks has opened all of them."""
    images = [image for image in images_of(messages) if isinstance(image, Image)]
    if len(images) < len(images_of(messages)):
        raise TypeError("a model that runs here is given pictures whose pixels are not decoded")
    return images


def check_conversation(messages: Sequence[Message]) -> None:
    """Raise InvalidRequest, naming the message at fault, unless a model can answer this.

    A system message comes first and has no pictures; then users and assistants speak in turns, a
    user first and last; a user may send several messages in a row. An assistant sends no pictures.
    Of tools nothing is known here.
    """
    if not messages:
        raise InvalidRequest("There are no messages.", hint="Send a question.", param="messages")
    before: str | None = None
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if message.role == "tool" or any(
            isinstance(part, ToolCall | ToolResult) for part in message.parts
        ):
            raise InvalidRequest(
                f"{where} uses tools, which this model does not.",
                hint="Ask a model that calls tools.",
                param=f"{where}.role",
            )
        if message.role not in get_args(Role):
            raise InvalidRequest(
                f"{where} has the role {message.role!r}, which is not known here.",
                hint="Roles are system, user and assistant.",
                param=f"{where}.role",
            )
        if message.role == "system" and index:
            raise InvalidRequest(
                f"{where} is a system message that does not come first.",
                hint="Put the instructions into the first message.",
                param=f"{where}.role",
            )
        if message.role == "assistant" and before != "user":
            raise InvalidRequest(
                f"{where} is an assistant's, and no user's message stands before it.",
                hint="Users and assistants speak in turns, a user first.",
                param=f"{where}.role",
            )
        if message.role != "user" and message.images:
            raise InvalidRequest(
                f"{where} has a picture in {_ARTICLE[message.role]} message.",
                hint="Pictures belong in a user's message.",
                param=f"{where}.content",
            )
        if not message.parts:
            raise InvalidRequest(f"{where} is empty.", param=f"{where}.content")
        before = message.role
    if before != "user":
        raise InvalidRequest(
            f"The last message is {_ARTICLE[str(before)]}, so there is nothing to answer.",
            hint="End with a user's message.",
            param=f"messages[{len(messages) - 1}].role",
        )


_ARTICLE = {"system": "a system", "assistant": "an assistant's", "user": "a user's"}
