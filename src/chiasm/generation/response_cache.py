"""Answers that were given before, for exactly the same question.

The key holds everything that can change an answer: the whole of each message, pictures by the
full-width digest of their content, every parameter, who may share it, and which models the route
has. A route uses this only where its operator says for how long.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from chiasm.generation.messages import ImagePart, Message, TextPart, ToolCall, ToolResult
from chiasm.generation.request import Completed, Event, Request, TextDelta, ToolCallDelta
from chiasm.generation.targets import Target

_MOST_BYTES = 64 * 1024 * 1024
_BYTES_AN_EVENT = 400  # an event, or a token's log-probability, without its text
_PARAMETERS = (
    "max_tokens",
    "stop",
    "choices",
    "logprobs",
    "schema",
    "schema_name",
    "schema_strict",
    "tool_choice",
    "parallel_tool_calls",
    "effort",
    "max_image_tokens",
    "max_cost",
)


def key_of(request: Request, targets: Sequence[str]) -> str:
    """64 hexadecimal digits that two requests share only if they ask exactly the same."""
    said = {
        "format": "chiasm-answer-1",
        "targets": list(targets),
        "tenant": request.tenant,
        "messages": [_message(message) for message in request.messages],
        "sampling": _plain(request.sampling),
        "tools": [_plain(tool) for tool in request.tools],
        **{name: getattr(request, name) for name in _PARAMETERS},
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=dict).encode()).hexdigest()


def _plain(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def _message(message: Message) -> list[Any]:
    return [message.role, [_part(part) for part in message.parts]]


def _part(part: TextPart | ImagePart | ToolCall | ToolResult) -> list[Any]:
    if isinstance(part, ImagePart):
        return ["image", type(part.image).__name__, part.image.digest, part.detail, part.size]
    if isinstance(part, ToolResult):
        return ["result", part.call, part.failed, [_part(each) for each in part.parts]]
    if isinstance(part, ToolCall):
        return ["call", part.id, part.name, part.arguments]
    return ["text", part.text]


Answer = tuple[Target, tuple[Event, ...]]


class ResponseCache:
    """Whole answers, the least recently used forgotten first. Used in one event loop."""

    def __init__(
        self, most_bytes: int = _MOST_BYTES, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most = most_bytes
        self._clock = clock
        self._held = 0
        self._answers: OrderedDict[str, tuple[float, int, Answer]] = OrderedDict()

    def get(self, key: str, seconds: float) -> Answer | None:
        """Who answered, and the answer's events, if it is no older than so many seconds.

        Its usage says that nothing was spent: all of the prompt was cached, nothing computed.
        """
        found = self._answers.get(key)
        if found is None:
            return None
        made, size, answer = found
        if self._clock() - made > seconds:
            del self._answers[key]
            self._held -= size
            return None
        self._answers.move_to_end(key)
        return answer

    def put(self, key: str, target: Target, events: Sequence[Event]) -> None:
        """Keep an answer that came to its end."""
        kept = tuple(_unspent(event) for event in events)
        size = sum(map(_size, kept))
        if size > self._most:
            return
        before = self._answers.pop(key, None)
        self._held += size - (before[1] if before else 0)
        self._answers[key] = (self._clock(), size, (target, kept))
        while self._held > self._most:
            _, (_, dropped, _) = self._answers.popitem(last=False)
            self._held -= dropped


def _size(event: Event) -> int:
    if isinstance(event, TextDelta):
        tokens = sum(1 + len(token.top) for token in event.tokens)
        return _BYTES_AN_EVENT * (1 + tokens) + len(event.text)
    return _BYTES_AN_EVENT + (len(event.arguments) if isinstance(event, ToolCallDelta) else 0)


def _unspent(event: Event) -> Event:
    """`Completed` with what giving the answer again costs."""
    if not isinstance(event, Completed):
        return event
    usage = replace(
        event.usage,
        cached_tokens=event.usage.prompt_tokens,
        written_tokens=0,
        vision_flops=0,
        language_flops=0,
        seconds={},
    )
    return Completed(usage)
