"""Conversations, tools and schemas in the words of OpenAI's chat API, which many servers speak."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from chiasm.errors import InvalidRequest, Unsupported
from chiasm.generation.messages import ImagePart, Message, TextPart, ToolCall, ToolResult
from chiasm.generation.providers.json_body import JsonBody
from chiasm.generation.request import Request, Tool
from chiasm.media.encoded import EncodedImage
from chiasm.media.limits import Limits
from chiasm.media.sending import SENDABLE, Sent, for_sending

Encode = Callable[[ImagePart], Sent]

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
"""The schema of JSON mode: an object, whatever it holds."""

_FAILED = "Error: "  # these APIs have no field for a tool that failed; its result says so


def check_parts(messages: Sequence[Message], *, pictures_from_tools: bool, model: str) -> None:
    """Raise InvalidRequest for a part that stands in a message where it means nothing.

    pictures_from_tools: whether a tool's result may hold pictures. The order of the messages is
    left to whoever answers: vendors allow more than models that run here.
    """
    if not messages:
        raise InvalidRequest("There are no messages.", hint="Send a question.", param="messages")
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not message.parts:
            raise InvalidRequest(f"{where} is empty.", param=f"{where}.content")
        for part in message.parts:
            _check_part(part, message.role, where)
        if message.role == "tool" and message.images and not pictures_from_tools:
            raise Unsupported(
                f"{where} has a picture in a tool's result, which {model} does not read.",
                hint="Send the picture in a user's message after the tool's.",
                param=f"{where}.content",
            )


def _check_part(part: object, role: str, where: str) -> None:
    if isinstance(part, ImagePart) and role != "user":
        raise InvalidRequest(
            f"{where} has a picture, but its role is {role}.",
            hint="Pictures belong in a user's message.",
            param=f"{where}.content",
        )
    if isinstance(part, ToolCall) and role != "assistant":
        raise InvalidRequest(
            f"{where} calls a tool, but its role is {role}.",
            hint="Only an assistant calls tools.",
            param=f"{where}.tool_calls",
        )
    if isinstance(part, ToolResult) != (role == "tool"):
        raise InvalidRequest(
            f"{where}: the results of tools, and nothing else, stand in messages of the role tool.",
            param=f"{where}.content",
        )


# Pictures ---------------------------------------------------------------------------------------


def sender(limits: Limits, max_bytes: int | None = None) -> Encode:
    """How a picture is made ready; may take a while, see `goes_as_it_is`."""

    def encode(part: ImagePart) -> Sent:
        size = part.size if part.size != part.image.size else None
        return for_sending(part.image, max_bytes=max_bytes, max_size=size, limits=limits)

    return encode


def goes_as_it_is(part: ImagePart, max_bytes: int | None = None) -> bool:
    """Whether a picture is sent in its caller's own base64, so that no thread is needed for it."""
    image = part.image
    return (
        isinstance(image, EncodedImage)
        and image.travels
        and image.base64 is not None
        and image.format in SENDABLE
        and part.size in (None, image.size)
        and (max_bytes is None or len(image.base64) <= max_bytes)
    )


# Messages ---------------------------------------------------------------------------------------


def chat_messages(
    messages: Sequence[Message], body: JsonBody, encode: Encode, *, joined: bool = False
) -> list[dict[str, Any]]:
    """`messages` of a chat request. A message with the results of several tools becomes several.

    joined: texts that stand next to each other in a message without pictures become one, for
    servers that would put a line between them. Encodes pictures: may take a while.
    """
    return [each for message in messages for each in _message(message, body, encode, joined)]


def _message(
    message: Message, body: JsonBody, encode: Encode, joined: bool
) -> Iterator[dict[str, Any]]:
    if message.role == "tool":
        for part in message.parts:
            if isinstance(part, ToolResult):
                yield {"role": "tool", "tool_call_id": part.call, "content": result_text(part)}
        return
    said: dict[str, Any] = {"role": message.role}
    texts = [part for part in message.parts if isinstance(part, TextPart)]
    if not message.images and (joined or len(texts) < 2 or message.role == "assistant"):
        said["content"] = message.text or (None if message.role == "assistant" else "")
    else:
        said["content"] = [
            _picture(part, body, encode)
            if isinstance(part, ImagePart)
            else {"type": "text", "text": part.text}
            for part in message.parts
            if isinstance(part, TextPart | ImagePart)
        ]
    calls = [part for part in message.parts if isinstance(part, ToolCall)]
    if calls:
        said["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in calls
        ]
    yield said


def _picture(part: ImagePart, body: JsonBody, encode: Encode) -> dict[str, Any]:
    url: dict[str, Any] = {"url": body.data_url(encode(part))}
    if part.detail != "auto":
        url["detail"] = part.detail
    return {"type": "image_url", "image_url": url}


def result_text(result: ToolResult) -> str:
    """A tool's result as one text, marked where the tool has failed."""
    text = "".join(part.text for part in result.parts if isinstance(part, TextPart))
    return f"{_FAILED}{text}" if result.failed else text


# What may be asked of an answer -----------------------------------------------------------------


def chat_tools(request: Request) -> dict[str, Any]:
    """The fields of a chat request that are about tools; none where there are no tools."""
    if not request.tools:
        return {}
    fields: dict[str, Any] = {"tools": [_tool(each) for each in request.tools]}
    if request.tool_choice in ("none", "required"):
        fields["tool_choice"] = request.tool_choice
    elif request.tool_choice != "auto":
        fields["tool_choice"] = {"type": "function", "function": {"name": request.tool_choice}}
    if request.parallel_tool_calls is not None:
        fields["parallel_tool_calls"] = request.parallel_tool_calls
    return fields


def _tool(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    function["parameters"] = tool.parameters
    if tool.strict:
        function["strict"] = True
    return {"type": "function", "function": function}


def response_format(request: Request) -> dict[str, Any] | None:
    """What a chat answer must look like; None: it is free."""
    if request.schema is None:
        return None
    if request.schema == ANY_OBJECT:
        return {"type": "json_object"}
    return {
        "type": "json_schema",
        "json_schema": {
            "name": request.schema_name,
            "schema": request.schema,
            "strict": request.schema_strict,
        },
    }
