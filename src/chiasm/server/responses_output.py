"""An answer in the shape of OpenAI's Responses, whole and as its stream of events.

The sequence is the one of developers.openai.com/api/reference/resources/responses/streaming-events:
`response.created`, `response.in_progress`; for each item `output_item.added`, its pieces,
`output_item.done`; then `response.completed`, `response.incomplete` or `response.failed`. Each has
a `sequence_number`, from 0.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pydantic_core
from pydantic import BaseModel

from chiasm.server.answer_parts import Begins, Grows, Part, Parts, Step, beyond_vendors, tokens_of
from chiasm.server.errors import body_of, internal_body
from chiasm.server.streaming import sse

if TYPE_CHECKING:
    from chiasm.errors import ChiasmError
    from chiasm.generation import Event, Usage
    from chiasm.server.responses_schemas import ResponsesRequest, ResponsesTool

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


class ResponseWriter:
    """Writes one answer. body: what was asked, whose settings every object of it repeats."""

    def __init__(self, body: ResponsesRequest) -> None:
        self._frame = _frame(body)
        self._parts = Parts()
        self._ids: dict[int, str] = {}
        self._number = -1

    def whole(self, parts: Parts, model: str) -> bytes:
        """The answer as one object."""
        self._frame["model"], self._parts = model, parts
        return pydantic_core.to_json(self._ended())

    async def events(self, events: AsyncGenerator[Event], model: str) -> AsyncGenerator[bytes]:
        """The answer as server-sent events. Raises what `events` raises."""
        self._frame["model"] = model
        yield self._sent("response.created", response=self._object("in_progress"))
        yield self._sent("response.in_progress", response=self._object("in_progress"))
        async with aclosing(events) as taken:
            async for event in taken:
                for step in self._parts.take(event):
                    for sent in self._step(step):
                        yield sent
        response = self._ended()
        yield self._sent(f"response.{response['status']}", response=response)

    def trouble(self, error: ChiasmError | None) -> bytes:
        """What ends a stream that cannot go on."""
        found = (internal_body() if error is None else body_of(error))["error"]
        code = "rate_limit_exceeded" if error and error.http_status == 429 else "server_error"
        if error is not None and error.http_status == 400:
            code = "invalid_prompt"
        response = self._object("failed", error={"code": code, "message": found["message"]})
        return self._sent("response.failed", response=response)

    # Objects -----------------------------------------------------------------------------------

    def _ended(self) -> dict[str, Any]:
        reason = _INCOMPLETE.get(self._parts.reason)
        assert self._parts.usage is not None
        return self._object(
            "incomplete" if reason else "completed",
            incomplete_details={"reason": reason} if reason else None,
            completed_at=None if reason else int(time.time()),
            output=[self._item(part) for part in self._parts.all],
            usage=usage_object(self._parts.usage),
        )

    def _object(self, status: str, **more: Any) -> dict[str, Any]:
        return {
            **self._frame,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "output": [],
            "usage": None,
            **more,
        }

    def _item(self, part: Part, status: str = "") -> dict[str, Any]:
        """A part as an item; one that is not over yet has nothing in it."""
        if not status:
            cut = self._parts.reason in _INCOMPLETE and part is self._parts.all[-1]
            status = "incomplete" if cut else "completed"
        growing = status == "in_progress"
        if part.kind == "call":
            return {
                "id": self._id(part),
                "type": "function_call",
                "status": status,
                "call_id": part.id,
                "name": part.name,
                "arguments": "" if growing else part.text,
            }
        return {
            "id": self._id(part),
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": [] if growing else [_content(part, part.text)],
        }

    def _id(self, part: Part) -> str:
        kind = "fc" if part.kind == "call" else "msg"
        return self._ids.setdefault(part.index, f"{kind}_{uuid.uuid4().hex}")

    # Events ------------------------------------------------------------------------------------

    def _step(self, step: Step) -> Iterator[bytes]:
        part = step.part
        where = {"item_id": self._id(part), "output_index": part.index}
        names, inside = _NAMES[part.kind], {} if part.kind == "call" else {"content_index": 0}
        if isinstance(step, Begins):
            item = self._item(part, "in_progress")
            yield self._sent("response.output_item.added", output_index=part.index, item=item)
            if inside:
                empty = _content(part, "", tokens=False)
                yield self._sent("response.content_part.added", **where, **inside, part=empty)
        elif isinstance(step, Grows):
            logprobs = {"logprobs": tokens_of(step.tokens)} if part.kind == "text" else {}
            yield self._sent(f"{names}.delta", **where, **inside, delta=step.piece, **logprobs)
        else:
            logprobs = {"logprobs": tokens_of(part.tokens)} if part.kind == "text" else {}
            full = {_FIELDS[part.kind]: part.text}
            yield self._sent(f"{names}.done", **where, **inside, **full, **logprobs)
            if inside:
                content = _content(part, part.text)
                yield self._sent("response.content_part.done", **where, **inside, part=content)
            item = self._item(part)
            yield self._sent("response.output_item.done", output_index=part.index, item=item)

    def _sent(self, kind: str, **more: Any) -> bytes:
        self._number += 1
        return sse({"type": kind, "sequence_number": self._number, **more}, kind)


_NAMES = {
    "text": "response.output_text",
    "refusal": "response.refusal",
    "call": "response.function_call_arguments",
}
_FIELDS = {"text": "text", "refusal": "refusal", "call": "arguments"}


def usage_object(usage: Usage) -> dict[str, Any]:
    """OpenAI's `usage` of a response, and what it has no place for."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "text_tokens": usage.text_tokens,
            "image_tokens": usage.image_tokens,
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": usage.written_tokens,
        },
        "output_tokens": usage.answer_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.thought_tokens},
        "total_tokens": usage.prompt_tokens + usage.answer_tokens,
        **beyond_vendors(usage),
    }


def _content(part: Part, text: str, *, tokens: bool = True) -> dict[str, Any]:
    if part.kind == "refusal":
        return {"type": "refusal", "refusal": text}
    logprobs = tokens_of(part.tokens) if tokens else []
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


# What was asked ---------------------------------------------------------------------------------


def _frame(body: ResponsesRequest) -> dict[str, Any]:
    """What every object of an answer repeats of its question, all but the input."""
    choice = body.tool_choice
    return {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": int(time.time()),
        "background": False,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
        "service_tier": "default",
        "store": False,
        "temperature": body.temperature,
        "text": {"format": _format(body), "verbosity": "medium"},
        "tool_choice": choice.model_dump() if isinstance(choice, BaseModel) else choice or "auto",
        "tools": [_tool(each) for each in body.tools or ()],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": body.top_p,
        "truncation": "disabled",
    }


def _format(body: ResponsesRequest) -> dict[str, Any]:
    form = body.text.format if body.text else None
    if form is None or form.type != "json_schema":
        return {"type": form.type if form else "text"}
    return {
        "type": "json_schema",
        "name": form.name,
        "description": form.description,
        "schema": form.schema_,
        "strict": form.strict,
    }


def _tool(tool: ResponsesTool) -> dict[str, Any]:
    return {
        "type": "function",
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters,
        "strict": tool.strict,
    }
