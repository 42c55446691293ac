"""A request in the words of Google's Gemini API.

Read in November 2026: Google's reference of `generateContent`, its guides "Thought signatures",
"Gemini thinking", "Media resolution", "Function calling" and "OpenAI compatibility", and the SDK's
types.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from chiasm.errors import ImageTooLarge, InvalidRequest, Unsupported
from chiasm.generation.messages import ImagePart, Message, TextPart, ToolCall, ToolResult
from chiasm.generation.providers.chat_messages import ANY_OBJECT, Encode
from chiasm.generation.providers.json_arguments import arguments_of
from chiasm.generation.providers.json_body import JsonBody
from chiasm.generation.request import Request, Tool

MOST_IMAGES = 3600
MOST_BYTES = 100 * 1024 * 1024

SignatureOf = Callable[[str], "str | None"]
"""The signature with which a call of that id came; None: it is not known."""

_UNSIGNED = "skip_thought_signature_validator"
"""What Google wants in place of a signature that was lost, or that another model never made."""

_VERSION = re.compile(r"(?:models/)?gemini-(\d+)")
_LEVELS = ("minimal", "low", "medium", "high", "xhigh")
_BUDGETS: Mapping[str, int] = {
    "none": 0,
    "minimal": 1024,
    "low": 1024,
    "medium": 8192,
    "high": 24576,
}
"""Tokens, of models before Gemini 3, as Google's own translation of OpenAI's API has them."""

_RESOLUTIONS: Mapping[str, str] = {
    "low": "MEDIA_RESOLUTION_LOW",
    "high": "MEDIA_RESOLUTION_HIGH",
    "original": "MEDIA_RESOLUTION_ULTRA_HIGH",
}


def is_newer(model: str) -> bool:
    """Whether it is of Gemini 3 or later, as are names without a number, `gemini-flash-latest`."""
    found = _VERSION.match(model)
    return found is None or int(found[1]) >= 3


def content_body(
    request: Request, model: str, encode: Encode, signature_of: SignatureOf
) -> list[bytes]:
    """What is posted to `:streamGenerateContent`, in pieces. What was not asked for is not sent.

    Encodes pictures: may take a while. Raises InvalidRequest for a conversation that the API has no
    words for.
    """
    written, newer = JsonBody(), is_newer(model)
    system, rest = _system(request.messages)
    contents = _Contents(written, encode, signature_of, newer)
    asked: dict[str, Any] = {
        "systemInstruction": system,
        "generationConfig": _config(request, newer) or None,
        **_tools(request),
    }
    pieces = written.pieces(
        {
            "contents": list(contents.turns(rest, len(request.messages) - len(rest))),
            **{name: value for name, value in asked.items() if value is not None},
        }
    )
    size = sum(map(len, pieces))
    if size > MOST_BYTES:
        raise ImageTooLarge(
            "The request",
            f"it has {size:,} bytes, of which Gemini takes {MOST_BYTES:,}.",
            hint="Send fewer or smaller pictures.",
            param="messages",
        )
    return pieces


def check_request(request: Request, model: str, name: str) -> None:
    """Raise InvalidRequest for what the API cannot do, as far as that is seen without sending it.

    name: what to call the model in messages.
    """
    newer, effort = is_newer(model), request.effort
    efforts = _LEVELS if newer else tuple(_BUDGETS)
    if effort is not None and effort not in efforts:
        raise Unsupported(
            f"`reasoning_effort` {effort!r} is not supported by {name}.",
            hint=f"It knows {', '.join(efforts[:-1])} and {efforts[-1]}.",
            param="reasoning_effort",
        )
    if request.tools and request.parallel_tool_calls is False:
        raise Unsupported(
            f"{name} cannot be kept to one call of a tool at once.",
            hint="Leave `parallel_tool_calls` out.",
            param="parallel_tool_calls",
        )
    pictures = [part for message in request.messages for part in message.image_parts]
    if len(pictures) > MOST_IMAGES:
        raise InvalidRequest(
            f"There are {len(pictures)} pictures; {name} reads up to {MOST_IMAGES}.",
            hint="Send fewer, or ask about them in several requests.",
            param="messages",
        )
    details = {part.detail for part in pictures}
    if not newer and (len(details) > 1 or "original" in details):
        raise Unsupported(
            f"{name} reads all pictures of a request at one `detail`, low or high.",
            hint="Give all of them the same, or leave it out.",
            param="detail",
        )


# Messages ---------------------------------------------------------------------------------------


def _system(messages: Sequence[Message]) -> tuple[dict[str, Any] | None, Sequence[Message]]:
    """What stands in `systemInstruction`, the system's messages before all others; and these."""
    count = 0
    while count < len(messages) and messages[count].role == "system":
        count += 1
    if count == len(messages):
        raise InvalidRequest(
            "There is nothing to answer: all messages are a system's.",
            hint="Send a question.",
            param="messages",
        )
    parts = [
        {"text": part.text}
        for message in messages[:count]
        for part in message.parts
        if isinstance(part, TextPart) and part.text
    ]
    return ({"parts": parts} if parts else None), messages[count:]


class _Contents:
    """Messages as `contents`."""

    def __init__(
        self, body: JsonBody, encode: Encode, signature_of: SignatureOf, newer: bool
    ) -> None:
        self._body = body
        self._encode = encode
        self._signature_of = signature_of
        self._newer = newer
        self._names: dict[str, str] = {}  # of tools, by the ids of their calls

    def turns(self, messages: Sequence[Message], first: int) -> Iterator[dict[str, Any]]:
        """One for each message; the results of tools that follow each other make one.

        The API wants as many results in a turn as there were calls in the one before. first: the
        number of the first message, for errors.
        """
        results: list[dict[str, Any]] = []
        for number, message in enumerate(messages, first):
            where = f"messages[{number}]"
            if message.role == "system":
                raise InvalidRequest(
                    f"{where} is a system message that does not come first.",
                    hint="Put the instructions into the first message.",
                    param=f"{where}.role",
                )
            parts = list(self._parts(message.parts, where))
            if message.role == "tool":
                results += parts
                continue
            if results:
                yield {"role": "user", "parts": results}
                results = []
            if not parts:
                raise InvalidRequest(f"{where} has no words.", param=f"{where}.content")
            yield {"role": "model" if message.role == "assistant" else "user", "parts": parts}
        if results:
            yield {"role": "user", "parts": results}

    def _parts(self, parts: Sequence[object], where: str) -> Iterator[dict[str, Any]]:
        signed = False
        for part in parts:
            if isinstance(part, TextPart) and part.text:
                yield {"text": part.text}
            elif isinstance(part, ImagePart):
                yield self._picture(part)
            elif isinstance(part, ToolCall):
                yield self._call(part, where, first=not signed)
                signed = True
            elif isinstance(part, ToolResult):
                yield self._result(part, where)

    def _picture(self, part: ImagePart) -> dict[str, Any]:
        sent = self._encode(part)
        data = {"mimeType": sent.media_type, "data": self._body.base64(sent)}
        picture: dict[str, Any] = {"inlineData": data}
        if self._newer and part.detail in _RESOLUTIONS:
            picture["mediaResolution"] = {"level": _RESOLUTIONS[part.detail]}
        return picture

    def _call(self, call: ToolCall, where: str, *, first: bool) -> dict[str, Any]:
        self._names[call.id] = call.name
        said = {"id": call.id, "name": call.name, "args": arguments_of(call, where)}
        part: dict[str, Any] = {"functionCall": said}
        # Of calls that were made at once the first is signed; Gemini 3 refuses one that is not.
        signature = self._signature_of(call.id)
        if signature is None and first and self._newer:
            signature = _UNSIGNED
        if signature is not None:
            part["thoughtSignature"] = signature
        return part

    def _result(self, result: ToolResult, where: str) -> dict[str, Any]:
        name = self._names.get(result.call)
        if name is None:
            raise InvalidRequest(
                f"{where} is the result of a call that no message before it makes.",
                hint="Send the assistant's message with the call before its result.",
                param=f"{where}.tool_call_id",
            )
        text = "".join(part.text for part in result.parts if isinstance(part, TextPart))
        said: dict[str, Any] = {
            "id": result.call,
            "name": name,
            "response": {"error" if result.failed else "output": text},
        }
        pictures = [self._picture(part) for part in result.parts if isinstance(part, ImagePart)]
        if pictures:
            said["parts"] = pictures
        return {"functionResponse": said}


# What may be asked of an answer -----------------------------------------------------------------


def _config(request: Request, newer: bool) -> dict[str, Any]:
    sampling = request.sampling
    asked: dict[str, Any] = {
        "maxOutputTokens": request.max_tokens,
        "candidateCount": request.choices if request.choices > 1 else None,
        "temperature": sampling.temperature,
        "topP": sampling.top_p,
        "topK": sampling.top_k or None,
        "seed": sampling.seed,
        "frequencyPenalty": sampling.frequency_penalty or None,
        "presencePenalty": sampling.presence_penalty or None,
        "stopSequences": list(request.stop) or None,
        "responseLogprobs": None if request.logprobs is None else True,
        "logprobs": request.logprobs or None,
        "thinkingConfig": _thinking(request.effort, newer),
    }
    if request.schema is not None:
        asked["responseMimeType"] = "application/json"
        if request.schema != ANY_OBJECT:
            asked["responseJsonSchema"] = request.schema
    if not newer:
        details = {part.detail for message in request.messages for part in message.image_parts}
        asked["mediaResolution"] = next(map(_RESOLUTIONS.get, details), None)
    return {name: value for name, value in asked.items() if value is not None}


def _thinking(effort: str | None, newer: bool) -> dict[str, Any] | None:
    if effort is None:
        return None
    return {"thinkingLevel": effort.upper()} if newer else {"thinkingBudget": _BUDGETS[effort]}


def _tools(request: Request) -> dict[str, Any]:
    if not request.tools:
        return {}
    fields: dict[str, Any] = {
        "tools": [{"functionDeclarations": [_tool(each) for each in request.tools]}]
    }
    choice: dict[str, Any] | None = None
    if request.tool_choice == "none":
        choice = {"mode": "NONE"}
    elif request.tool_choice == "required":
        choice = {"mode": "ANY"}
    elif request.tool_choice != "auto":
        choice = {"mode": "ANY", "allowedFunctionNames": [request.tool_choice]}
    elif any(tool.strict for tool in request.tools):
        choice = {"mode": "VALIDATED"}
    if choice is not None:
        fields["toolConfig"] = {"functionCallingConfig": choice}
    return fields


def _tool(tool: Tool) -> dict[str, Any]:
    fields: dict[str, Any] = {"name": tool.name, "parametersJsonSchema": tool.parameters}
    if tool.description:
        fields["description"] = tool.description
    return fields
