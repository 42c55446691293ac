"""An answer in Anthropic's shape, whole and as its stream of events.

The sequence is the one of platform.claude.com/docs/en/build-with-claude/streaming: `message_start`;
for each block `content_block_start`, deltas, `content_block_stop`; `message_delta` with the reason
and the usage; `message_stop`.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pydantic_core

from chiasm.errors import GeneratorFailed
from chiasm.server.answer_parts import Begins, Grows, Part, Parts, Step, beyond_vendors
from chiasm.server.errors import body_of, internal_body, messages_body
from chiasm.server.streaming import sse

if TYPE_CHECKING:
    from chiasm.errors import ChiasmError
    from chiasm.generation import Event, Usage

_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}
_NOTHING_YET = {
    "input_tokens": 0,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 0,
    "output_tokens": 0,
}


def whole_message(parts: Parts, model: str) -> bytes:
    """The answer as one object. Raises GeneratorFailed for arguments of a call that are no JSON."""
    assert parts.usage is not None
    content = [_block(part, parts) for part in parts.all if part.kind != "refusal"]
    return pydantic_core.to_json(
        {**_message(model, content), **_ending(parts), "usage": usage_object(parts.usage)}
    )


async def message_events(
    events: AsyncGenerator[Event], model: str, planned: int
) -> AsyncGenerator[bytes]:
    """The answer as server-sent events. planned: tokens of the prompt, as they were expected.

    Raises what `events` raises.
    """
    parts, written = Parts(), _Blocks()
    yield sse(
        {
            "type": "message_start",
            # What the prompt takes is known for certain at the end; `message_delta` says it.
            "message": {
                **_message(model, []),
                **_ENDLESS,
                "usage": {**_NOTHING_YET, "input_tokens": planned},
            },
        },
        "message_start",
    )
    async with aclosing(events) as taken:
        async for event in taken:
            for step in parts.take(event):
                if sent := written.event(step):
                    yield sent
    assert parts.usage is not None
    ending = {"type": "message_delta", "delta": _ending(parts), "usage": usage_object(parts.usage)}
    yield sse(ending, "message_delta")
    yield sse({"type": "message_stop"}, "message_stop")


def trouble(error: ChiasmError | None, request_id: str) -> bytes:
    """What ends a stream that cannot go on."""
    status = 500 if error is None else error.http_status
    body = internal_body() if error is None else body_of(error)
    return sse(messages_body(body, status, request_id), "error")


def usage_object(usage: Usage) -> dict[str, Any]:
    """Anthropic's `usage`, and what it has no place for.

    `input_tokens` are those that no cache held or took up: the three together are the prompt.
    """
    kept = usage.cached_tokens + usage.written_tokens
    return {
        "input_tokens": max(0, usage.prompt_tokens - kept),
        "cache_creation_input_tokens": usage.written_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.answer_tokens,
        "output_tokens_details": {"thinking_tokens": usage.thought_tokens},
        "text_tokens": usage.text_tokens,
        "image_tokens": usage.image_tokens,
        **beyond_vendors(usage),
    }


# Pieces -----------------------------------------------------------------------------------------

_ENDLESS = {"stop_reason": None, "stop_sequence": None, "stop_details": None}


def _message(model: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
    }


def _ending(parts: Parts) -> dict[str, Any]:
    refusals = [part.text for part in parts.all if part.kind == "refusal"]
    refused = bool(refusals) or parts.reason == "content_filter"
    details = {"type": "refusal", "category": None, "explanation": "".join(refusals) or None}
    reason = "refusal" if refused else _REASONS[parts.reason]
    at_a_text = reason == "end_turn" and parts.stop is not None
    return {
        "stop_reason": "stop_sequence" if at_a_text else reason,
        "stop_sequence": parts.stop if at_a_text else None,
        "stop_details": details if refused else None,
    }


def _block(part: Part, parts: Parts) -> dict[str, Any]:
    if part.kind == "text":
        return {"type": "text", "text": part.text}
    return {"type": "tool_use", "id": part.id, "name": part.name, "input": _input(part, parts)}


def _input(part: Part, parts: Parts) -> dict[str, Any]:
    """A call's arguments as an object; of an answer that was cut off, as far as they came."""
    cut = parts.reason == "length" and part is parts.all[-1]
    try:
        found = pydantic_core.from_json(part.text or "{}", allow_partial=cut)
    except ValueError:
        found = {} if cut else None
    if not isinstance(found, dict):
        raise GeneratorFailed("The model called a tool with arguments that are no JSON object.")
    return found


class _Blocks:
    """Steps as events. Refusals are no block: they stand in `stop_details`."""

    def __init__(self) -> None:
        self._index = -1

    def event(self, step: Step) -> bytes:
        if step.part.kind == "refusal":
            return b""
        if isinstance(step, Begins):
            self._index += 1
            return self._sent("content_block_start", content_block=_opened(step.part))
        if isinstance(step, Grows):
            return self._sent("content_block_delta", delta=_delta(step))
        return self._sent("content_block_stop")

    def _sent(self, kind: str, **more: Any) -> bytes:
        return sse({"type": kind, "index": self._index, **more}, kind)


def _opened(part: Part) -> dict[str, Any]:
    if part.kind == "text":
        return {"type": "text", "text": ""}
    return {"type": "tool_use", "id": part.id, "name": part.name, "input": {}}


def _delta(step: Grows) -> dict[str, Any]:
    if step.part.kind == "text":
        return {"type": "text_delta", "text": step.piece}
    return {"type": "input_json_delta", "partial_json": step.piece}
