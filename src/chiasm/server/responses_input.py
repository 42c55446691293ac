"""A body in the shape of OpenAI's Responses as the generation plane's request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast, get_args

from chiasm.errors import InvalidRequest, Unsupported
from chiasm.generation import (
    ImagePart,
    Message,
    Request,
    Sampling,
    TextPart,
    Tool,
    ToolCall,
    ToolResult,
)
from chiasm.generation.request import Effort
from chiasm.server.conversation import (
    MOST_MESSAGES,
    NOTHING,
    Fetched,
    Pictures,
    fitted,
    read_detail,
)
from chiasm.server.parts import read_text, refuse
from chiasm.server.responses_schemas import AllowedTools, NamedFunction

if TYPE_CHECKING:
    from chiasm.media.limits import Limits
    from chiasm.server.responses_schemas import ResponsesPrompt, ResponsesRequest

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_TEXTS = ("input_text", "output_text", "text")
_LOGPROBS = "message.output_text.logprobs"
_INCLUDED = {
    _LOGPROBS,
    "reasoning.encrypted_content",
    "message.input_image.image_url",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
}


def read_input(
    instructions: str | None, value: Any, limits: Limits, fetched: Fetched = NOTHING
) -> tuple[Message, ...]:
    """The conversation of a body. Raises InvalidRequest or ImageError naming the part at fault."""
    found = []
    if instructions:
        found.append(Message("system", (TextPart(read_text(instructions, "instructions")),)))
    if not isinstance(value, list):
        return (*found, Message("user", (TextPart(read_text(value, "input")),)))
    if not value:
        refuse("input", "is empty", hint="Send a question.")
    if len(value) > MOST_MESSAGES:
        refuse("input", f"has {len(value):,} entries; {MOST_MESSAGES:,} are the most")
    pictures = Pictures(limits, fetched, "input")
    open_turn = _open_turn(value)
    items = [
        _item(item, f"input[{at}]", pictures, thoughts_matter=at > open_turn)
        for at, item in enumerate(value)
    ]
    return tuple(found + _joined([each for each in items if each is not None]))


def _open_turn(items: Sequence[Any]) -> int:
    """Where the turn begins that is to be gone on with: a user's last own words.

    Thoughts of turns before it are not needed any more, those of this one are
    (developers.openai.com/api/docs/guides/reasoning, "Keeping reasoning items in context").
    """
    users = [at for at, each in enumerate(items) if isinstance(each, dict) and _is_users(each)]
    return users[-1] if users else -1


def _is_users(item: Mapping[str, Any]) -> bool:
    return item.get("role") == "user"


def _joined(messages: Sequence[Message]) -> list[Message]:
    """An assistant's words and the calls that follow them as the one message that they are."""
    joined: list[Message] = []
    for message in messages:
        before = joined[-1] if joined else None
        calls = all(isinstance(part, ToolCall) for part in message.parts)
        if before is not None and before.role == message.role == "assistant" and calls:
            joined[-1] = Message("assistant", before.parts + message.parts)
        else:
            joined.append(message)
    return joined


# Items ------------------------------------------------------------------------------------------


def _item(value: Any, place: str, pictures: Pictures, *, thoughts_matter: bool) -> Message | None:
    """An item as a message; None for thoughts that are over."""
    if not isinstance(value, dict):
        refuse(place, "must be an item: an object with a `role` or a `type`")
    kind = value.get("type") or "message"
    if kind == "message":
        return _message(value, place, pictures)
    if kind == "function_call":
        return Message("assistant", (_call(value, place),))
    if kind == "function_call_output":
        return Message("tool", (_result(value, place, pictures),))
    if kind == "item_reference":
        refuse(place, "names an item; none are stored here", hint="Send the item itself.")
    if kind != "reasoning":
        refuse(f"{place}.type", "is an item that no model behind this server can read")
    if thoughts_matter:
        refuse(
            place, "holds a model's thoughts in the middle of its turn, which cannot be passed on"
        )
    return None


def _only(value: Mapping[str, Any], place: str, *known: str) -> None:
    """Refuse what is not known of an item; what is null says nothing."""
    given = {name for name, what in value.items() if what is not None}
    taken = {"type", "id", "status", "phase", "prompt_cache_breakpoint", *known}
    if unknown := sorted(given - taken):
        refuse(f"{place}.{unknown[0]}", "is not known here")


def _message(value: Mapping[str, Any], place: str, pictures: Pictures) -> Message:
    _only(value, place, "role", "content")
    role, content = value.get("role"), value.get("content")
    if not isinstance(role, str) or role not in _ROLES:
        refuse(f"{place}.role", "must be user, assistant, system or developer")
    parts = _content(content, f"{place}.content", pictures)
    return Message(cast("Any", _ROLES[role]), tuple(parts))


def _content(value: Any, place: str, pictures: Pictures) -> Sequence[TextPart | ImagePart]:
    if not isinstance(value, list):
        return [TextPart(read_text(value, place))]
    if not value:
        refuse(place, "is empty", hint="Give it at least one part.")
    return [_part(part, f"{place}[{at}]", pictures) for at, part in enumerate(value)]


def _part(value: Any, place: str, pictures: Pictures) -> TextPart | ImagePart:
    if not isinstance(value, dict):
        refuse(place, "must be a part: an object with a `type`")
    kind = value.get("type")
    if kind in _TEXTS:
        if value.get("annotations"):
            refuse(f"{place}.annotations", "cannot be passed on")
        _only(value, place, "text", "annotations", "logprobs")
        return TextPart(read_text(value.get("text"), f"{place}.text"))
    if kind == "refusal":
        _only(value, place, "refusal")
        return TextPart(read_text(value.get("refusal"), f"{place}.refusal"))
    if kind in ("input_file", "input_audio"):
        refuse(
            f"{place}.type",
            "must be input_text or input_image: files and sound are not read here",
            hint="Send pictures of pages, or their text.",
        )
    if kind != "input_image":
        refuse(f"{place}.type", "must be input_text or input_image")
    if value.get("file_id") is not None:
        refuse(f"{place}.file_id", "names a file; none are kept here", hint="Send a data URL.")
    _only(value, place, "image_url", "detail")
    detail = read_detail(value.get("detail"), f"{place}.detail")
    return pictures.read(value.get("image_url"), f"{place}.image_url", detail)


def _call(value: Mapping[str, Any], place: str) -> ToolCall:
    if value.get("caller") not in (None, {"type": "direct"}) or value.get("async"):
        refuse(place, "was not called directly: no program of a model's is run here")
    _only(value, place, "call_id", "name", "arguments", "caller", "async")
    fields = value.get("call_id"), value.get("name"), value.get("arguments")
    if not all(isinstance(each, str) for each in fields) or not all(fields[:2]):
        refuse(place, "needs texts as `call_id`, `name` and `arguments`")
    return ToolCall(str(fields[0]), str(fields[1]), str(fields[2]))


def _result(value: Mapping[str, Any], place: str, pictures: Pictures) -> ToolResult:
    _only(value, place, "call_id", "output", "name")
    call, output = value.get("call_id"), value.get("output")
    if not isinstance(call, str) or not call:
        refuse(f"{place}.call_id", "must name the call that this is the result of")
    parts = () if output in ("", []) else _content(output, f"{place}.output", pictures)
    return ToolResult(call, tuple(parts))


# All but the input ------------------------------------------------------------------------------


def as_request(body: ResponsesRequest) -> Request:
    """All of the body but its input. Raises InvalidRequest for what cannot be done as asked."""
    if body.restart and body.stream:
        raise Unsupported(
            "A stream of Responses cannot take back what it has said.",
            hint="Leave `restart` out, or do not stream.",
            param="restart",
        )
    for at, wanted in enumerate(body.include or ()):
        if wanted not in _INCLUDED:
            refuse(f"include[{at}]", "is not known here")
    with_logprobs = _LOGPROBS in (body.include or ()) or bool(body.top_logprobs)
    return replace(
        prompt_request(body),
        max_tokens=body.max_output_tokens,
        sampling=Sampling(body.temperature, body.top_p),
        logprobs=(body.top_logprobs or 0) if with_logprobs else None,
    )


def prompt_request(body: ResponsesPrompt) -> Request:
    """What counting tokens needs of a body, all but its input."""
    for name in ("previous_response_id", "conversation"):
        if getattr(body, name) is not None:
            raise Unsupported(
                f"`{name}` cannot be followed: nothing is stored here.",
                hint="Send the whole conversation as `input`.",
                param=name,
            )
    form = body.text.format if body.text else None
    asked = Request(
        messages=(),
        schema=_schema(body),
        schema_name=form.name if form else "answer",
        schema_strict=form is None or form.strict is not False,
        tools=_tools(body),
        tool_choice=_tool_choice(body),
        parallel_tool_calls=body.parallel_tool_calls,
        effort=_effort(body),
    )
    return fitted(asked, body)


def _tools(body: ResponsesPrompt) -> tuple[Tool, ...]:
    choice = body.tool_choice
    allowed = {tool.name for tool in choice.tools} if isinstance(choice, AllowedTools) else None
    return tuple(
        Tool(
            each.name,
            each.description or "",
            each.parameters or {"type": "object", "properties": {}},
            bool(each.strict),
        )
        for each in body.tools or ()
        if allowed is None or each.name in allowed
    )


def _tool_choice(body: ResponsesPrompt) -> str:
    choice = body.tool_choice
    if choice is None:
        return "auto"
    if not body.tools and choice in ("auto", "none"):
        return choice
    if not body.tools:
        raise InvalidRequest("`tool_choice` needs `tools`.", param="tool_choice")
    if isinstance(choice, str):
        return choice
    names = [tool.name for tool in body.tools]
    wanted = [choice] if isinstance(choice, NamedFunction) else choice.tools
    if not wanted or any(each.name not in names for each in wanted):
        raise InvalidRequest(
            "`tool_choice` names a function that is not among the tools.", param="tool_choice"
        )
    return choice.name if isinstance(choice, NamedFunction) else choice.mode


def _schema(body: ResponsesPrompt) -> dict[str, Any] | None:
    form = body.text.format if body.text else None
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return {"type": "object"}
    if form.schema_ is None:
        raise InvalidRequest(
            "`text.format` of type json_schema needs `schema`.", param="text.format.schema"
        )
    return form.schema_


def _effort(body: ResponsesPrompt) -> Effort | None:
    wanted = body.reasoning.effort if body.reasoning else None
    if wanted is not None and wanted not in get_args(Effort):
        refuse("reasoning.effort", f"must be one of {', '.join(get_args(Effort))}")
    return cast("Effort | None", wanted)
