"""A body in Anthropic's shape as the generation plane's request.

Anthropic's own rules about conversations are kept where the internal shape differs: turns of one
side that follow each other are one turn; results of tools stand first in a user's message.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast, get_args

import pydantic_core

from chiasm.errors import InvalidRequest, Unsupported
from chiasm.generation import (
    ImagePart,
    Message,
    Part,
    Request,
    Sampling,
    TextPart,
    Tool,
    ToolCall,
    ToolResult,
)
from chiasm.generation.request import Effort
from chiasm.server.conversation import MOST_MESSAGES, NOTHING, Fetched, Pictures, fitted
from chiasm.server.parts import read_text, refuse

if TYPE_CHECKING:
    from chiasm.media.limits import Limits
    from chiasm.server.messages_schemas import MessagesPrompt, MessagesRequest

_MEDIA_TYPE = re.compile(r"image/[a-z0-9.+-]{1,32}")
_THOUGHTS = ("thinking", "redacted_thinking")
_RUN_BY_ANTHROPIC = "is a block that no model behind this server can read"


def read_turns(
    system: Any, messages: Any, limits: Limits, fetched: Fetched = NOTHING
) -> tuple[Message, ...]:
    """The conversation of a body. Raises InvalidRequest or ImageError naming the part at fault."""
    if not isinstance(messages, list):
        refuse("messages", "must be a list of messages")
    if not messages:
        refuse("messages", "is empty", hint="Send a question.")
    if len(messages) > MOST_MESSAGES:
        refuse("messages", f"has {len(messages):,} entries; {MOST_MESSAGES:,} are the most")
    pictures = Pictures(limits, fetched)
    found = [] if system in (None, "", []) else [Message("system", _texts(system, "system"))]
    open_turn = _open_turn(messages)
    for at, message in enumerate(messages):
        found += _message(message, f"messages[{at}]", pictures, thoughts_matter=at >= open_turn)
    return _joined(found)


def _open_turn(messages: Sequence[Any]) -> int:
    """Where the turn begins that is to be gone on with: after a user's last own words.

    Thoughts of turns before it are not needed any more, those of this one are
    (platform.claude.com/docs/en/build-with-claude/thinking, "Preserving thinking blocks").
    """
    for at in range(len(messages) - 1, -1, -1):
        message = messages[at]
        if isinstance(message, dict) and message.get("role") == "user":
            content = message.get("content")
            blocks = content if isinstance(content, list) else []
            if not any(isinstance(b, dict) and b.get("type") == "tool_result" for b in blocks):
                return at
    return 0


def _joined(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Turns of one side that follow each other as one: so Anthropic reads them."""
    joined: list[Message] = []
    for message in messages:
        before = joined[-1] if joined else None
        if before is not None and before.role == message.role and message.role != "tool":
            joined[-1] = Message(message.role, before.parts + message.parts)
        else:
            joined.append(message)
    return tuple(joined)


def _message(value: Any, place: str, pictures: Pictures, *, thoughts_matter: bool) -> list[Message]:
    if not isinstance(value, dict):
        refuse(place, "must be an object with `role` and `content`")
    role = value.get("role")
    if role not in ("user", "assistant", "system"):
        refuse(f"{place}.role", "must be user, assistant or system")
    if unknown := sorted(set(value) - {"role", "content"}):
        refuse(f"{place}.{unknown[0]}", "is not known here")
    content, place = value.get("content"), f"{place}.content"
    if role == "system":
        return [Message("system", _texts(content, place))]
    if not isinstance(content, list):
        return [Message(role, (TextPart(read_text(content, place)),))]
    if not content:
        refuse(place, "is empty", hint="Give it at least one block.")
    results: list[Message] = []
    parts: list[Part] = []
    for at, block in enumerate(content):
        part = _block(block, f"{place}[{at}]", role, pictures, thoughts_matter)
        if isinstance(part, ToolResult):
            if parts:
                refuse(f"{place}[{at}]", "is a tool's result after something else")
            results.append(Message("tool", (part,)))
        elif part is not None:
            parts.append(part)
    return [*results, Message(role, tuple(parts))] if parts else results


# Blocks -----------------------------------------------------------------------------------------


def _block(
    value: Any, place: str, role: str, pictures: Pictures, thoughts_matter: bool
) -> Part | None:
    """A block as a part; None for thoughts that are over."""
    kind = _kind(value, place)
    if kind in ("text", "image"):
        return _shown(value, place, pictures)
    if kind in _THOUGHTS:
        if thoughts_matter:
            refuse(
                f"{place}.type",
                "holds a model's thoughts in the middle of its turn, which cannot be passed on",
                hint='Ask without them from the start: "thinking": {"type": "disabled"}.',
            )
        return None
    if kind == "tool_use":
        if role != "assistant":
            refuse(f"{place}.type", "belongs in an assistant's message")
        return _call(value, place)
    if kind != "tool_result":
        refuse(f"{place}.type", _RUN_BY_ANTHROPIC, hint="Send pictures of pages, or their text.")
    if role != "user":
        refuse(f"{place}.type", "belongs in a user's message")
    return _result(value, place, pictures)


def _kind(value: Any, place: str) -> str:
    if not isinstance(value, dict):
        refuse(place, "must be a block: an object with a `type`")
    kind = value.get("type")
    if not isinstance(kind, str):
        refuse(f"{place}.type", "must be text, image, tool_use or tool_result")
    return kind


def _only(value: Mapping[str, Any], place: str, *known: str) -> None:
    """Refuse what is not known of a block; what is null says nothing."""
    given = {name for name, what in value.items() if what is not None}
    if unknown := sorted(given - {"type", "cache_control", *known}):
        refuse(f"{place}.{unknown[0]}", "is not known here")


def _shown(value: Mapping[str, Any], place: str, pictures: Pictures) -> TextPart | ImagePart:
    if value.get("type") == "image":
        return _picture(value, place, pictures)
    if value.get("citations"):
        refuse(f"{place}.citations", "cannot be passed on")
    _only(value, place, "text", "citations")
    return TextPart(read_text(value.get("text"), f"{place}.text"))


def _texts(value: Any, place: str) -> tuple[TextPart, ...]:
    if not isinstance(value, list):
        return (TextPart(read_text(value, place)),)
    found = []
    for at, block in enumerate(value):
        where = f"{place}[{at}]"
        if _kind(block, where) != "text":
            refuse(f"{where}.type", 'must be "text"')
        _only(block, where, "text", "citations")
        found.append(TextPart(read_text(block.get("text"), f"{where}.text")))
    if not found:
        refuse(place, "is empty", hint="Give it at least one block.")
    return tuple(found)


def _picture(value: Mapping[str, Any], place: str, pictures: Pictures) -> ImagePart:
    _only(value, place, "source", "transformations")
    if (value.get("transformations") or {}) not in ({}, {"oversized_image": "downsize"}):
        refuse(f"{place}.transformations", 'may only be {"oversized_image": "downsize"}')
    source, place = value.get("source"), f"{place}.source"
    if not isinstance(source, dict):
        refuse(place, "must be an object with a `type`")
    kind, data = source.get("media_type"), source.get("data")
    if source.get("type") == "url":
        return pictures.read(source.get("url"), f"{place}.url")
    if source.get("type") == "file":
        refuse(f"{place}.type", "names a file; none are kept here", hint="Send it as base64.")
    if source.get("type") != "base64":
        refuse(f"{place}.type", "must be base64 or url")
    if not isinstance(kind, str) or not _MEDIA_TYPE.fullmatch(kind):
        refuse(f"{place}.media_type", "must be image/jpeg, image/png, image/gif or image/webp")
    if not isinstance(data, str):
        refuse(f"{place}.data", "must be a picture's bytes in base64")
    return pictures.read(f"data:{kind};base64,{data}", f"{place}.data")


def _call(value: Mapping[str, Any], place: str) -> ToolCall:
    if value.get("caller") not in (None, {"type": "direct"}):
        refuse(f"{place}.caller", "must be direct: no program of a model's is run here")
    _only(value, place, "id", "name", "input", "caller")
    given, fields = value.get("input"), (value.get("id"), value.get("name"))
    if not all(isinstance(each, str) and each for each in fields):
        refuse(place, "needs texts as `id` and `name`")
    if not isinstance(given, dict):
        refuse(f"{place}.input", "must be an object")
    return ToolCall(str(fields[0]), str(fields[1]), pydantic_core.to_json(given).decode())


def _result(value: Mapping[str, Any], place: str, pictures: Pictures) -> ToolResult:
    _only(value, place, "tool_use_id", "content", "is_error")
    call, content = value.get("tool_use_id"), value.get("content")
    if not isinstance(call, str) or not call:
        refuse(f"{place}.tool_use_id", "must name the call that this is the result of")
    failed = value.get("is_error") or False
    if not isinstance(failed, bool):
        refuse(f"{place}.is_error", "must be true or false")
    place = f"{place}.content"
    if content in (None, "", []):
        return ToolResult(call, (), failed)
    if not isinstance(content, list):
        return ToolResult(call, (TextPart(read_text(content, place)),), failed)
    found = []
    for at, block in enumerate(content):
        where = f"{place}[{at}]"
        if _kind(block, where) not in ("text", "image"):
            refuse(f"{where}.type", "must be text or image in a tool's result")
        found.append(_shown(block, where, pictures))
    return ToolResult(call, tuple(found), failed)


# All but the messages ---------------------------------------------------------------------------


def as_request(body: MessagesRequest) -> Request:
    """All of the body but its messages. Raises InvalidRequest for what cannot be done as asked."""
    if body.restart and body.stream:
        raise Unsupported(
            "A stream in Anthropic's shape cannot take back what it has said.",
            hint="Leave `restart` out, or do not stream.",
            param="restart",
        )
    return replace(
        prompt_request(body),
        max_tokens=body.max_tokens,
        sampling=Sampling(body.temperature, body.top_p, body.top_k or 0),
        stop=tuple(body.stop_sequences or ()),
    )


def prompt_request(body: MessagesPrompt) -> Request:
    """What counting tokens needs of a body, all but its messages."""
    form = body.output_config.format if body.output_config else None
    choice = body.tool_choice
    asked = Request(
        messages=(),
        schema=form.schema_ if form else None,
        tools=tuple(
            Tool(each.name, each.description or "", each.input_schema, bool(each.strict))
            for each in body.tools or ()
        ),
        tool_choice=_tool_choice(body),
        parallel_tool_calls=False if choice and choice.disable_parallel_tool_use else None,
        effort=_effort(body),
    )
    return fitted(asked, body)


_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def _tool_choice(body: MessagesPrompt) -> str:
    choice = body.tool_choice
    if choice is None:
        return "auto"
    if not body.tools:
        raise InvalidRequest("`tool_choice` needs `tools`.", param="tool_choice")
    if choice.type != "tool":
        return _CHOICES[choice.type]
    if choice.name not in [tool.name for tool in body.tools]:
        raise InvalidRequest(
            "`tool_choice` does not name one of the tools.", param="tool_choice.name"
        )
    return str(choice.name)


def _effort(body: MessagesPrompt) -> Effort | None:
    wanted = body.output_config.effort if body.output_config else None
    off = body.thinking is not None and body.thinking.type == "disabled"
    if wanted is None:
        return "none" if off else None
    if off:
        raise InvalidRequest(
            "`thinking` is disabled, and `output_config.effort` asks for some.",
            hint="Send one of them.",
            param="output_config.effort",
        )
    known = [each for each in get_args(Effort) if each not in ("none", "minimal")]
    if wanted not in known:
        refuse("output_config.effort", f"must be one of {', '.join(known)}")
    return cast("Effort", wanted)
