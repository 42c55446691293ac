"""Conversations: messages whose parts are texts and pictures, in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from chiasm.errors import InvalidRequest
from chiasm.media import Image

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class TextPart:
    """Words."""

    text: str


@dataclass(frozen=True)
class ImagePart:
    """A picture."""

    image: Image


Part = TextPart | ImagePart


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
    def images(self) -> list[Image]:
        """Its pictures, in order."""
        return [part.image for part in self.parts if isinstance(part, ImagePart)]

    @property
    def text(self) -> str:
        """Its texts, joined."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))


def images_of(messages: Iterable[Message]) -> list[Image]:
    """Every picture of a conversation, in order."""
    return [image for message in messages for image in message.images]


def check_conversation(messages: Sequence[Message]) -> None:
    """Raise InvalidRequest, naming the message at fault, unless a model can answer this.

    A system message comes first and has no pictures; then users and assistants speak in turns, a
    user first and last; a user may send several messages in a row. An assistant sends no pictures.
    """
    if not messages:
        raise InvalidRequest("There are no messages.", hint="Send a question.", param="messages")
    before: str | None = None
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
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
