"""A chat request's body as the generation plane's request: messages read, pictures opened."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Literal, cast

from chiasm.errors import InvalidRequest
from chiasm.generation import ImagePart, Message, Request, Sampling, TextPart
from chiasm.generation import Part as MessagePart
from chiasm.server.parts import Part, read_part, read_text, refuse
from chiasm.server.pictures import Encoded, on_disk

if TYPE_CHECKING:
    from chiasm.media import Image
    from chiasm.media.limits import Limits
    from chiasm.server.chat_schemas import ChatRequest
    from chiasm.server.pictures import PictureOpener

MOST_MESSAGES = 1024
MOST_PICTURES = 64

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_FIELDS = {"role", "content", "name", "refusal", "annotations", "audio", "tool_calls"}

Read = tuple[Literal["system", "user", "assistant"], list[Part]]
"""A message whose pictures are not open yet."""


def read_messages(value: Any, limits: Limits) -> list[Read]:
    """The messages of a body. Raises InvalidRequest or ImageError naming the part at fault."""
    if not isinstance(value, list):
        refuse("messages", "must be a list of messages")
    if not value:
        refuse("messages", "is empty", hint="Send a question.")
    if len(value) > MOST_MESSAGES:
        refuse("messages", f"has {len(value):,} entries; {MOST_MESSAGES:,} are the most")
    messages = [_message(entry, f"messages[{at}]", limits) for at, entry in enumerate(value)]
    pictures = sum(isinstance(part, Encoded) for _, parts in messages for part in parts)
    if pictures > MOST_PICTURES:
        refuse(
            "messages",
            f"have {pictures:,} pictures; {MOST_PICTURES} are the most",
            hint="Ask about fewer at once.",
        )
    return messages


def _message(value: Any, place: str, limits: Limits) -> Read:
    if not isinstance(value, dict):
        refuse(place, "must be an object with `role` and `content`")
    role = value.get("role")
    if role in ("tool", "function") or value.get("tool_calls") or value.get("audio"):
        refuse(place, "uses tools or sound, which the models here do not")
    if not isinstance(role, str) or role not in _ROLES:
        refuse(f"{place}.role", "must be system, user or assistant")
    if unknown := sorted(set(value) - _FIELDS):
        refuse(f"{place}.{unknown[0]}", "is not known here")
    content, place = value.get("content"), f"{place}.content"
    if isinstance(content, list):
        if not content:
            refuse(place, "is empty", hint="Give it at least one part.")
        parts = [read_part(part, f"{place}[{at}]", limits) for at, part in enumerate(content)]
    else:
        parts = [read_text(content, place)]
    return cast("Any", _ROLES[role]), parts


def move_to_disk(messages: list[Read]) -> None:
    """Let the pictures wait on the disk instead of in memory. Blocks.

    Raises ImageError for one that cannot be read.
    """
    pictures = [part for _, parts in messages for part in parts if isinstance(part, Encoded)]
    moved = iter(on_disk(pictures))
    for _, parts in messages:
        parts[:] = [next(moved) if isinstance(part, Encoded) else part for part in parts]


async def open_messages(messages: list[Read], opener: PictureOpener) -> tuple[Message, ...]:
    """The messages with their pictures decoded in full: image tokens can depend on the size.

    Raises the first picture's ImageError.
    """
    encoded = [part for _, parts in messages for part in parts if isinstance(part, Encoded)]
    images: list[Image] = []
    groups = opener.open_groups(encoded, shortest_side=None)
    async with aclosing(groups):
        async for group in groups:
            for picture in group:
                if picture.error is not None:
                    raise picture.error
                assert picture.image is not None
                images.append(picture.image)
    opened = iter(images)

    def part_of(part: Part) -> MessagePart:
        return ImagePart(next(opened)) if isinstance(part, Encoded) else TextPart(part)

    return tuple(Message(role, tuple(map(part_of, parts))) for role, parts in messages)


def as_request(body: ChatRequest) -> Request:
    """All of the body but its messages. Raises InvalidRequest for what cannot be done as asked."""
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("`top_logprobs` needs `logprobs`.", param="top_logprobs")
    limits = [n for n in (body.max_tokens, body.max_completion_tokens) if n is not None]
    if len(set(limits)) > 1:
        raise InvalidRequest(
            "`max_tokens` and `max_completion_tokens` differ.", hint="Send one.", param="max_tokens"
        )
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    return Request(
        messages=(),
        max_tokens=limits[0] if limits else None,
        sampling=Sampling(
            temperature=body.temperature,
            top_p=body.top_p,
            top_k=body.top_k or 0,
            seed=body.seed,
            frequency_penalty=body.frequency_penalty or 0.0,
            presence_penalty=body.presence_penalty or 0.0,
        ),
        stop=tuple(stop),
        choices=1 if body.n is None else body.n,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        schema=_schema(body),
        priority=body.priority or 0,
        deadline=body.deadline,
        tenant=body.cache_salt or "",
    )


def _schema(body: ChatRequest) -> dict[str, Any] | None:
    wanted = body.response_format
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return {"type": "object"}
    if wanted.json_schema is None or wanted.json_schema.schema_ is None:
        raise InvalidRequest(
            "`response_format` of type json_schema needs `json_schema.schema`.",
            param="response_format.json_schema",
        )
    return wanted.json_schema.schema_
