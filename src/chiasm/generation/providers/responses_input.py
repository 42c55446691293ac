"""A request in the words of OpenAI's Responses API."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from chiasm.generation.messages import ImagePart, Message, TextPart, ToolCall, ToolResult
from chiasm.generation.providers.chat_messages import ANY_OBJECT, Encode, result_text
from chiasm.generation.providers.json_body import JsonBody
from chiasm.generation.request import Request, Tool


def responses_body(request: Request, model: str, encode: Encode) -> list[bytes]:
    """What is posted to `/responses`, in pieces. What was not asked for is not sent.

    Nothing is kept there (`store`): a conversation is sent whole each time. Encodes pictures: may
    take a while.
    """
    written = JsonBody()
    instructions, rest = _instructions(request.messages)
    asked: dict[str, Any] = {
        "instructions": instructions,
        "max_output_tokens": request.max_tokens,
        "temperature": request.sampling.temperature,
        "top_p": request.sampling.top_p,
        "reasoning": None if request.effort is None else {"effort": request.effort},
        "text": None if request.schema is None else {"format": _format(request)},
        "top_logprobs": request.logprobs,
        "include": None if request.logprobs is None else ["message.output_text.logprobs"],
        **_tools(request),
    }
    return written.pieces(
        {
            "model": model,
            "input": [item for message in rest for item in _items(message, written, encode)],
            "stream": True,
            "store": False,
            **{name: value for name, value in asked.items() if value is not None},
        }
    )


def _instructions(messages: Sequence[Message]) -> tuple[str | None, Sequence[Message]]:
    """The first message, where it is a system's, and the others."""
    if messages[0].role == "system" and len(messages) > 1:
        return messages[0].text, messages[1:]
    return None, messages


def _items(message: Message, body: JsonBody, encode: Encode) -> Iterator[dict[str, Any]]:
    """A message as input items: calls of tools and their results stand beside what was said."""
    if message.role == "user":
        content = [_content(part, body, encode) for part in message.parts]
        yield {"role": "user", "content": content}
        return
    for part in message.parts:
        if isinstance(part, TextPart):
            yield {"role": message.role, "content": part.text}
        elif isinstance(part, ToolCall):
            yield {
                "type": "function_call",
                "call_id": part.id,
                "name": part.name,
                "arguments": part.arguments,
            }
        elif isinstance(part, ToolResult):
            yield {
                "type": "function_call_output",
                "call_id": part.call,
                "output": _output(part, body, encode),
            }


def _content(part: object, body: JsonBody, encode: Encode) -> dict[str, Any]:
    if isinstance(part, ImagePart):
        url = body.data_url(encode(part))
        return {"type": "input_image", "image_url": url, "detail": part.detail}
    assert isinstance(part, TextPart)
    return {"type": "input_text", "text": part.text}


def _output(result: ToolResult, body: JsonBody, encode: Encode) -> str | list[dict[str, Any]]:
    if not any(isinstance(part, ImagePart) for part in result.parts):
        return result_text(result)
    marked = ToolResult(result.call, (), failed=result.failed)
    mark = result_text(marked)
    first = [{"type": "input_text", "text": mark}] if mark else []
    return [*first, *(_content(part, body, encode) for part in result.parts)]


def _format(request: Request) -> dict[str, Any]:
    if request.schema == ANY_OBJECT:
        return {"type": "json_object"}
    return {
        "type": "json_schema",
        "name": request.schema_name,
        "schema": request.schema,
        "strict": request.schema_strict,
    }


def _tools(request: Request) -> dict[str, Any]:
    if not request.tools:
        return {}
    fields: dict[str, Any] = {"tools": [_tool(each) for each in request.tools]}
    if request.tool_choice in ("none", "required"):
        fields["tool_choice"] = request.tool_choice
    elif request.tool_choice != "auto":
        fields["tool_choice"] = {"type": "function", "name": request.tool_choice}
    if request.parallel_tool_calls is not None:
        fields["parallel_tool_calls"] = request.parallel_tool_calls
    return fields


def _tool(tool: Tool) -> dict[str, Any]:
    """Here `strict` must be said: left out it would be true."""
    fields: dict[str, Any] = {
        "type": "function",
        "name": tool.name,
        "parameters": tool.parameters,
        "strict": tool.strict,
    }
    if tool.description:
        fields["description"] = tool.description
    return fields
