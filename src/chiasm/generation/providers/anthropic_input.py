"""A request in the words of Anthropic's Messages API, version 2026-10-21.

Read in November 2026: Anthropic's API reference of messages, its guides "Thinking", "Effort",
"Structured outputs", "Vision" and "Mid-conversation system messages", and the SDK's types.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from chiasm.errors import ImageTooLarge, InvalidRequest, Unsupported
from chiasm.generation.messages import ImagePart, Message, TextPart, ToolCall, ToolResult
from chiasm.generation.providers.chat_messages import ANY_OBJECT, Encode
from chiasm.generation.providers.json_arguments import arguments_of
from chiasm.generation.providers.json_body import JsonBody
from chiasm.generation.request import Request, Tool

DEFAULT_MAX_TOKENS = 4096  # the API asks for a number, and thoughts count against it
MOST_IMAGES = 600
MOST_IMAGES_OF_SMALL_CONTEXT = 100
SMALL_CONTEXT = 200_000
LONGEST_SIDE = 8000
LONGEST_SIDE_OF_MANY = 2000
MANY_IMAGES = 20
MOST_IMAGE_BYTES = 10 * 1024 * 1024  # of base64
MOST_BYTES = 32 * 1024 * 1024

_EFFORTS = ("low", "medium", "high", "xhigh", "max")


def messages_body(request: Request, model: str, encode: Encode) -> list[bytes]:
    """What is posted to `/v1/messages`, in pieces. What was not asked for is not sent.

    Encodes pictures: may take a while. Raises InvalidRequest for a conversation that the API has no
    words for.
    """
    written, sampling = JsonBody(), request.sampling
    system, rest = _system(request.messages)
    asked: dict[str, Any] = {
        "system": system,
        "stop_sequences": list(request.stop) or None,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or None,
        "output_config": _output(request) or None,
        "thinking": {"type": "disabled"} if request.effort == "none" else None,
        **_tools(request),
    }
    pieces = written.pieces(
        {
            "model": model,
            "max_tokens": request.max_tokens or DEFAULT_MAX_TOKENS,
            "messages": list(_turns(rest, len(request.messages) - len(rest), written, encode)),
            "stream": True,
            **{name: value for name, value in asked.items() if value is not None},
        }
    )
    size = sum(map(len, pieces))
    if size > MOST_BYTES:
        raise ImageTooLarge(
            "The request",
            f"it has {size:,} bytes, of which Anthropic takes {MOST_BYTES:,}.",
            hint="Send fewer or smaller pictures.",
            param="messages",
        )
    return pieces


def check_request(request: Request, name: str, context: int) -> None:
    """Raise InvalidRequest for what the API cannot do, as far as that is seen without sending it.

    name: of the model, in messages. context: its tokens; 0: not known.
    """
    temperature, effort = request.sampling.temperature, request.effort
    if temperature is not None and temperature > 1:
        raise InvalidRequest(
            f"`temperature` is {temperature}; {name} takes at most 1.", param="temperature"
        )
    if effort not in (None, "none", *_EFFORTS):
        raise Unsupported(
            f"`reasoning_effort` {effort!r} is not supported by {name}.",
            hint=f"It knows none, {', '.join(_EFFORTS[:-1])} and {_EFFORTS[-1]}.",
            param="reasoning_effort",
        )
    if request.schema == ANY_OBJECT:
        raise Unsupported(
            f"Any JSON object is no schema that {name} can be held to.",
            hint="Give the schema of the object, with its properties.",
            param="response_format",
        )
    _check_pictures([p for m in request.messages for p in m.image_parts], name, context)


def _check_pictures(pictures: Sequence[ImagePart], name: str, context: int) -> None:
    most = MOST_IMAGES_OF_SMALL_CONTEXT if 0 < context <= SMALL_CONTEXT else MOST_IMAGES
    if len(pictures) > most:
        raise InvalidRequest(
            f"There are {len(pictures)} pictures; {name} reads up to {most}.",
            hint="Send fewer, or ask about them in several requests.",
            param="messages",
        )
    longest = LONGEST_SIDE_OF_MANY if len(pictures) > MANY_IMAGES else LONGEST_SIDE
    for part in pictures:
        if part.detail == "low":
            raise Unsupported(
                f"`detail` is not supported by {name}: it looks at every picture closely.",
                hint="Leave it out; `max_image_tokens` makes pictures smaller.",
                param="detail",
            )
        side = max(part.size or part.image.size)
        if side > longest:
            among = f" of more than {MANY_IMAGES} pictures" if longest < LONGEST_SIDE else ""
            raise ImageTooLarge(
                part.image.name,
                f"its longer side has {side:,} pixels, of which {name} takes {longest:,}{among}.",
                hint="Make it smaller.",
                param="messages",
            )


# Messages ---------------------------------------------------------------------------------------


def _system(messages: Sequence[Message]) -> tuple[Any, Sequence[Message]]:
    """What stands in `system`: the system's messages before all others; and the others."""
    count = 0
    while count < len(messages) and messages[count].role == "system":
        count += 1
    texts = [text for message in messages[:count] for text in _texts(message.parts)]
    if count == len(messages):
        raise InvalidRequest(
            "There is nothing to answer: all messages are a system's.",
            hint="Send a question.",
            param="messages",
        )
    if len(texts) < 2:
        return (texts[0]["text"] if texts else None), messages[count:]
    return texts, messages[count:]


def _turns(
    messages: Sequence[Message], first: int, body: JsonBody, encode: Encode
) -> Iterator[dict[str, Any]]:
    """`messages`. The results of tools that follow each other are put together.

    The API wants those of one turn together; other neighbours of one role it joins by itself. A
    system's message stands where it stood: newer models read it there, older ones refuse it.
    first: the number of the first message, for errors.
    """
    results: list[dict[str, Any]] = []
    for number, message in enumerate(messages, first):
        blocks = list(_blocks(message.parts, f"messages[{number}]", body, encode))
        if message.role == "tool":
            results += blocks
            continue
        if results:
            yield {"role": "user", "content": results}
            results = []
        if not blocks:
            raise InvalidRequest(
                f"messages[{number}] has no words.", param=f"messages[{number}].content"
            )
        words = len(blocks) == 1 and blocks[0]["type"] == "text"
        yield {"role": message.role, "content": blocks[0]["text"] if words else blocks}
    if results:
        yield {"role": "user", "content": results}


def _blocks(
    parts: Sequence[object], where: str, body: JsonBody, encode: Encode
) -> Iterator[dict[str, Any]]:
    for part in parts:
        if isinstance(part, ImagePart):
            yield _picture(part, body, encode)
        elif isinstance(part, ToolCall):
            yield {
                "type": "tool_use",
                "id": part.id,
                "name": part.name,
                "input": arguments_of(part, where),
            }
        elif isinstance(part, ToolResult):
            yield _result(part, where, body, encode)
        else:
            yield from _texts((part,))


def _texts(parts: Sequence[object]) -> list[dict[str, Any]]:
    """The API refuses texts without a letter, which say nothing."""
    return [
        {"type": "text", "text": part.text}
        for part in parts
        if isinstance(part, TextPart) and part.text
    ]


def _picture(part: ImagePart, body: JsonBody, encode: Encode) -> dict[str, Any]:
    sent = encode(part)
    source = {"type": "base64", "media_type": sent.media_type, "data": body.base64(sent)}
    return {"type": "image", "source": source}


def _result(result: ToolResult, where: str, body: JsonBody, encode: Encode) -> dict[str, Any]:
    block: dict[str, Any] = {"type": "tool_result", "tool_use_id": result.call}
    content = list(_blocks(result.parts, where, body, encode))
    if len(content) == 1 and content[0]["type"] == "text":
        block["content"] = content[0]["text"]
    elif content:
        block["content"] = content
    if result.failed:
        block["is_error"] = True
    return block


# What may be asked of an answer -----------------------------------------------------------------


def _output(request: Request) -> dict[str, Any]:
    config: dict[str, Any] = {}
    if request.effort in _EFFORTS:
        config["effort"] = request.effort
    if request.schema is not None:
        config["format"] = {"type": "json_schema", "schema": request.schema}
    return config


def _tools(request: Request) -> dict[str, Any]:
    if not request.tools:
        return {}
    fields: dict[str, Any] = {"tools": [_tool(each) for each in request.tools]}
    choice: dict[str, Any] = _CHOICES.get(request.tool_choice, {"type": "tool"}).copy()
    if choice["type"] == "tool":
        choice["name"] = request.tool_choice
    if request.parallel_tool_calls is not None and choice["type"] != "none":
        choice["disable_parallel_tool_use"] = not request.parallel_tool_calls
    if choice != _CHOICES["auto"]:
        fields["tool_choice"] = choice
    return fields


_CHOICES: Mapping[str, dict[str, Any]] = {
    "auto": {"type": "auto"},
    "none": {"type": "none"},
    "required": {"type": "any"},
}


def _tool(tool: Tool) -> dict[str, Any]:
    fields: dict[str, Any] = {"name": tool.name, "input_schema": tool.parameters}
    if tool.description:
        fields["description"] = tool.description
    if tool.strict:
        fields["strict"] = True
    return fields
