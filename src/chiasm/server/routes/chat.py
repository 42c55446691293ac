"""`POST /v1/chat/completions`: questions about pictures, answered in OpenAI's shape."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pydantic_core
from fastapi import APIRouter, Request, Response

from chiasm.errors import ChiasmError
from chiasm.generation import (
    Completed,
    Finished,
    RefusalDelta,
    Restarted,
    TextDelta,
    ToolCallDelta,
)
from chiasm.server.answer_parts import beyond_vendors, tokens_of
from chiasm.server.answering import Shape, respond
from chiasm.server.asking import Answer, Question
from chiasm.server.bodies import off_the_loop, read_body
from chiasm.server.chat_schemas import ChatCompletion, ChatRequest
from chiasm.server.conversation import as_request, read_messages
from chiasm.server.errors import body_of, internal_body
from chiasm.server.openapi import body_schema, refusals
from chiasm.server.streaming import sse

if TYPE_CHECKING:
    from chiasm.generation import Event, TokenLogprob, Usage

router = APIRouter(prefix="/v1", tags=["chat"])


@router.post(
    "/chat/completions",
    operation_id="create_chat_completion",
    summary="Ask about pictures",
    response_model=ChatCompletion,
    responses=refusals(404, 413, 415, 502, 504),
    openapi_extra=body_schema(ChatRequest),
)
async def create_chat_completion(request: Request) -> Response:
    """The answer, whole or as a stream of server-sent events.

    Whoever goes away before the end stops the work.
    """
    body = await read_body(ChatRequest, request)
    caller, runtime = request.state.caller, request.app.state.runtime
    route = await runtime.route(body.model, caller)  # who answers is known before pictures are read
    fetched = await runtime.fetch(body.messages)
    messages = await off_the_loop(
        request, runtime, read_messages, body.messages, runtime.settings.media, fetched
    )
    body.messages = None  # the pictures, in base64, are not needed any more
    asked = replace(as_request(body), messages=messages)
    # What has not been sent yet can be taken back without anyone noticing.
    streamed = bool(body.stream)
    question = Question(route, asked, streamed, restart=body.restart or not streamed)
    names, with_logprobs = _Names(), asked.logprobs is not None
    with_usage = body.stream_options is not None and body.stream_options.include_usage
    shape = Shape(
        lambda answer: _whole(answer, names, with_logprobs),
        lambda answer: _said(answer, names, asked.choices, with_usage, with_logprobs),
        _trouble,
        b"data: [DONE]\n\n",
    )
    return await respond(question, shape, caller, request, runtime)


@dataclass(frozen=True)
class _Names:
    """What every piece of one answer repeats."""

    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def frame(self, kind: str, answer: Answer) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": answer.model,
            "system_fingerprint": f"fp_{answer.digest[:12]}",
        }


# Whole ------------------------------------------------------------------------------------------


@dataclass
class _Choice:
    """One answer, as it grows."""

    texts: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    tokens: list[TokenLogprob] = field(default_factory=list)
    calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    reason: str = ""

    def object(self, number: int, with_logprobs: bool) -> dict[str, Any]:
        silent = (self.calls or self.refusals) and not self.texts
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if silent else "".join(self.texts),
            "refusal": "".join(self.refusals) or None,
        }
        if self.calls:
            message["tool_calls"] = [self.calls[each] for each in sorted(self.calls)]
        return {
            "index": number,
            "message": message,
            "logprobs": _logprobs(self.tokens) if with_logprobs else None,
            "finish_reason": self.reason,
        }


async def _whole(answer: Answer, names: _Names, with_logprobs: bool) -> bytes:
    choices: dict[int, _Choice] = {}
    usage: Usage | None = None
    async with aclosing(answer.events) as events:
        async for event in events:
            if isinstance(event, Restarted):
                choices.clear()
            elif isinstance(event, Completed):
                usage = event.usage
            else:
                choice = choices.setdefault(event.choice, _Choice())
                if isinstance(event, TextDelta):
                    choice.texts.append(event.text)
                    choice.tokens.extend(event.tokens)
                elif isinstance(event, RefusalDelta):
                    choice.refusals.append(event.text)
                elif isinstance(event, ToolCallDelta):
                    call = choice.calls.setdefault(event.number, _call(event))
                    call["function"]["arguments"] += event.arguments
                elif isinstance(event, Finished):
                    choice.reason = event.reason
    assert usage is not None
    return pydantic_core.to_json(
        {
            **names.frame("chat.completion", answer),
            "choices": [each.object(n, with_logprobs) for n, each in sorted(choices.items())],
            "usage": usage_object(usage),
        }
    )


def _call(event: Any) -> dict[str, Any]:
    function = {"name": event.name, "arguments": ""}
    return {"id": event.id, "type": "function", "function": function}


# Streamed ---------------------------------------------------------------------------------------


async def _said(
    answer: Answer, names: _Names, choices: int, with_usage: bool, with_logprobs: bool
) -> AsyncGenerator[bytes]:
    frame = names.frame("chat.completion.chunk", answer)
    if with_usage:
        frame["usage"] = None
    async with aclosing(answer.events) as events:
        for choice in range(choices):
            yield _chunk(frame, choice, {"role": "assistant", "content": ""})
        async for event in events:
            if (chunk := _chunk_of(event, frame, with_usage, with_logprobs)) is not None:
                yield chunk


def _chunk_of(
    event: Event, frame: dict[str, Any], with_usage: bool, with_logprobs: bool
) -> bytes | None:
    if isinstance(event, TextDelta):
        logprobs = _logprobs(event.tokens) if with_logprobs else None
        return _chunk(frame, event.choice, {"content": event.text}, logprobs=logprobs)
    if isinstance(event, Finished):
        return _chunk(frame, event.choice, {}, event.reason)
    if isinstance(event, ToolCallDelta):
        function = {"arguments": event.arguments} | ({"name": event.name} if event.name else {})
        call = {"index": event.number, "function": function}
        call |= {"id": event.id, "type": "function"} if event.id else {}
        return _chunk(frame, event.choice, {"tool_calls": [call]})
    if isinstance(event, RefusalDelta):
        return _chunk(frame, event.choice, {"refusal": event.text})
    if isinstance(event, Restarted):
        return sse({**frame, "choices": [], "restarted": True})
    return sse({**frame, "choices": [], "usage": usage_object(event.usage)}) if with_usage else None


def _chunk(
    frame: dict[str, Any],
    choice: int,
    delta: dict[str, Any],
    reason: str | None = None,
    *,
    logprobs: dict[str, Any] | None = None,
) -> bytes:
    one = {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
    return sse({**frame, "choices": [one]})


def _trouble(error: ChiasmError | None) -> bytes:
    return sse(internal_body() if error is None else body_of(error))


# Shapes -----------------------------------------------------------------------------------------


def usage_object(usage: Usage) -> dict[str, Any]:
    """OpenAI's `usage`, and what it has no place for: pictures, cost, compute and seconds."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.answer_tokens,
        "total_tokens": usage.prompt_tokens + usage.answer_tokens,
        "prompt_tokens_details": {
            "text_tokens": usage.text_tokens,
            "image_tokens": usage.image_tokens,
            "cached_tokens": usage.cached_tokens,
            "audio_tokens": 0,
        },
        "completion_tokens_details": {"reasoning_tokens": usage.thought_tokens},
        **beyond_vendors(usage),
    }


def _logprobs(tokens: Any) -> dict[str, Any]:
    return {"content": tokens_of(tokens), "refusal": None}
