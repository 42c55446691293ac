"""A chat request's body as the generation plane's request: messages read, pictures looked at.

Pictures are not decoded here: a model elsewhere is sent their bytes, and for one of this server
`chiasm.server.local` decodes them when it is their turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from chiasm.errors import AnimatedImage, InvalidRequest
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
from chiasm.generation.messages import DETAILS, Detail
from chiasm.media.encoded import read_encoded
from chiasm.server.parts import read_text, refuse
from chiasm.server.pictures import is_address, not_fetched

if TYPE_CHECKING:
    from chiasm.media.limits import Limits
    from chiasm.server.chat_schemas import ChatRequest, Fitting

MOST_MESSAGES = 1024
MOST_PICTURES = 600  # what the most generous vendor takes; each has its own limit

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_FIELDS = {"role", "content", "name", "refusal", "annotations", "audio", "tool_calls"}
_TOOL_FIELDS = {"role", "content", "tool_call_id", "name"}

Fetched = Mapping[str, bytes]
"""What was found at the addresses of pictures, for hosts that the operator allows."""

NOTHING: Fetched = MappingProxyType({})


def read_messages(value: Any, limits: Limits, fetched: Fetched = NOTHING) -> tuple[Message, ...]:
    """The messages of a body. Raises InvalidRequest or ImageError naming the part at fault."""
    if not isinstance(value, list):
        refuse("messages", "must be a list of messages")
    if not value:
        refuse("messages", "is empty", hint="Send a question.")
    if len(value) > MOST_MESSAGES:
        refuse("messages", f"has {len(value):,} entries; {MOST_MESSAGES:,} are the most")
    pictures = Pictures(limits, fetched)
    return tuple(_message(entry, f"messages[{at}]", pictures) for at, entry in enumerate(value))


class Pictures:
    """Reads a body's pictures, and counts them before it reads one too many.

    where: the argument that holds them.
    """

    def __init__(self, limits: Limits, fetched: Fetched, where: str = "messages") -> None:
        self._limits = limits
        self._fetched = fetched
        self._where = where
        self._count = 0

    def read(self, url: Any, place: str, detail: Detail = "auto") -> ImagePart:
        """As `read_picture`. Raises InvalidRequest for one too many."""
        self._count += 1
        if self._count > MOST_PICTURES:
            refuse(
                self._where,
                f"has more than {MOST_PICTURES} pictures",
                hint="Ask about fewer at once.",
            )
        return read_picture(url, place, self._limits, detail, self._fetched)


def read_picture(
    url: Any, place: str, limits: Limits, detail: Detail = "auto", fetched: Fetched = NOTHING
) -> ImagePart:
    """A picture that was sent as a data URL, or lay at an address that was fetched before.

    Raises ImageError naming `place`: AnimatedImage for one with several frames, since a model
    would see one of them, and nobody could tell which was meant.
    """
    if not isinstance(url, str):
        refuse(place, "must be a data URL")
    if is_address(url) and url not in fetched:
        raise not_fetched(place)
    image = read_encoded(fetched.get(url, url), limits=limits, name=place)
    if image.frames > 1:
        raise AnimatedImage(place, image.frames)
    return ImagePart(image, detail)


def read_detail(value: Any, place: str) -> Detail:
    """How closely a picture shall be looked at."""
    if value is None:
        return "auto"
    if value not in DETAILS:
        refuse(place, f"must be one of {', '.join(DETAILS)}")
    return cast("Detail", value)


# Messages ---------------------------------------------------------------------------------------


def _message(value: Any, place: str, pictures: Pictures) -> Message:
    if not isinstance(value, dict):
        refuse(place, "must be an object with `role` and `content`")
    role = value.get("role")
    if role == "tool":
        return _tool_message(value, place, pictures)
    if role == "function" or value.get("audio"):
        refuse(place, "uses sound, or functions in their old form, which is not known here")
    if not isinstance(role, str) or role not in _ROLES:
        refuse(f"{place}.role", "must be system, user, assistant or tool")
    if unknown := sorted(set(value) - _FIELDS):
        refuse(f"{place}.{unknown[0]}", "is not known here")
    calls = _tool_calls(value.get("tool_calls"), f"{place}.tool_calls")
    if calls and role != "assistant":
        refuse(f"{place}.tool_calls", "belongs in an assistant's message")
    content = value.get("content")
    parts: list[Part] = []
    if not (calls and content in (None, "", [])):
        parts += _content(content, f"{place}.content", pictures)
    return Message(cast("Any", _ROLES[role]), (*parts, *calls))


def _tool_message(value: Mapping[str, Any], place: str, pictures: Pictures) -> Message:
    if unknown := sorted(set(value) - _TOOL_FIELDS):
        refuse(f"{place}.{unknown[0]}", "is not known here")
    call = value.get("tool_call_id")
    if not isinstance(call, str) or not call:
        refuse(f"{place}.tool_call_id", "must name the call that this is the result of")
    content = value.get("content")
    parts = () if content in ("", []) else _content(content, f"{place}.content", pictures)
    return Message("tool", (ToolResult(call, tuple(parts)),))


def _tool_calls(value: Any, place: str) -> list[ToolCall]:
    if value is None:
        return []
    if not isinstance(value, list):
        refuse(place, "must be a list of calls")
    calls = []
    for at, call in enumerate(value):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or call.get("type", "function") != "function":
            refuse(f"{place}[{at}]", "must be a call of a function, with `id` and `function`")
        named: Any = call.get("id"), function.get("name"), function.get("arguments")
        if not all(isinstance(each, str) for each in named):
            refuse(f"{place}[{at}]", "needs texts as `id`, `function.name`, `function.arguments`")
        calls.append(ToolCall(*named))
    return calls


def _content(value: Any, place: str, pictures: Pictures) -> list[TextPart | ImagePart]:
    if not isinstance(value, list):
        return [TextPart(read_text(value, place))]
    if not value:
        refuse(place, "is empty", hint="Give it at least one part.")
    return [_part(part, f"{place}[{at}]", pictures) for at, part in enumerate(value)]


def _part(value: Any, place: str, pictures: Pictures) -> TextPart | ImagePart:
    if isinstance(value, str):
        return TextPart(read_text(value, place))
    if not isinstance(value, dict):
        refuse(place, "must be a text or a part")
    if value.get("type") == "text":
        return TextPart(read_text(value.get("text"), f"{place}.text"))
    if value.get("type") != "image_url":
        refuse(f"{place}.type", 'must be "text" or "image_url"')
    image, place = value.get("image_url"), f"{place}.image_url"
    if not isinstance(image, dict):
        return pictures.read(image, place)
    detail = read_detail(image.get("detail"), f"{place}.detail")
    return pictures.read(image.get("url"), f"{place}.url", detail)


# All but the messages ---------------------------------------------------------------------------


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
    schema = _schema(body)
    described = body.response_format.json_schema if body.response_format else None
    asked = Request(
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
        schema=schema,
        schema_name=described.name if described else "answer",
        schema_strict=described is None or described.strict is not False,
        tools=tuple(
            Tool(each.name, each.description or "", each.parameters, bool(each.strict))
            for each in (tool.function for tool in body.tools or ())
        ),
        tool_choice=_tool_choice(body),
        parallel_tool_calls=body.parallel_tool_calls,
        effort=body.reasoning_effort,
    )
    return fitted(asked, body)


def fitted(request: Request, body: Fitting) -> Request:
    """The request with what any vendor's body may say here on top of that vendor's own fields."""
    return replace(
        request,
        max_image_tokens=body.max_image_tokens,
        max_cost=body.max_cost,
        priority=body.priority or 0,
        deadline=body.deadline,
        tenant=body.cache_salt or "",
    )


def _tool_choice(body: ChatRequest) -> str:
    wanted = body.tool_choice
    if wanted is None:
        return "auto"
    if not body.tools:
        raise InvalidRequest("`tool_choice` needs `tools`.", param="tool_choice")
    if isinstance(wanted, str):
        return wanted
    names = [tool.function.name for tool in body.tools]
    if wanted.function.name not in names:
        raise InvalidRequest(
            f"`tool_choice` names {wanted.function.name!r}, which is not among the tools.",
            param="tool_choice",
        )
    return wanted.function.name


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
