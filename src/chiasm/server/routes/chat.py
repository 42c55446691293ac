"""`POST /v1/chat/completions`: questions about pictures, answered in OpenAI's shape."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import anyio
import pydantic_core
from fastapi import APIRouter, Depends, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from pydantic import ValidationError
from starlette.types import Receive, Scope, Send

from chiasm.errors import ChiasmError
from chiasm.server.chat_schemas import ChatCompletion, ChatRequest
from chiasm.server.conversation import as_request, move_to_disk, open_messages, read_messages
from chiasm.server.dependencies import LoadedGenerator, State, find_generator
from chiasm.server.errors import body_of, internal_body, log_unexpected
from chiasm.server.openapi import body_schema, refusals

if TYPE_CHECKING:
    from chiasm.generation import Event, TokenLogprob, Usage

router = APIRouter(prefix="/v1", tags=["chat"])

T = TypeVar("T")


async def _body(request: Request) -> ChatRequest:
    """The body, read here and then let go: FastAPI would hold on to it until the answer's end."""
    try:
        asked = ChatRequest.model_validate_json(await request.body() or b"null")
    except ValidationError as error:
        found = [{**each, "loc": ("body", *each["loc"])} for each in error.errors()]
        raise RequestValidationError(found) from None
    finally:
        request._body = b""
    return asked


@router.post(
    "/chat/completions",
    operation_id="create_chat_completion",
    summary="Ask about pictures",
    response_model=ChatCompletion,
    responses=refusals(404, 413, 415, 429, 504),
    openapi_extra=body_schema(ChatRequest),
)
async def create_chat_completion(
    body: Annotated[ChatRequest, Depends(_body)],
    generator: LoadedGenerator,
    runtime: State,
    request: Request,
) -> Response:
    """The answer, whole or as a stream of server-sent events.

    Whoever goes away before the end stops the work.
    """
    model = generator.name if body.model is None else find_generator(body.model, generator, runtime)
    read = await runtime.run(read_messages, body.messages, runtime.settings.media)
    body.messages.clear()  # the pictures, in base64, are not needed any more
    asked = as_request(body)
    names = _Names(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), model, generator.digest)
    place = AsyncExitStack()

    async def ask() -> AsyncGenerator[Event]:
        """The answer's events, once it is the question's turn."""
        begun = time.monotonic()
        await place.enter_async_context(
            runtime.admission(generator).place(
                priority=asked.priority,
                deadline=asked.deadline,
                before_waiting=lambda: runtime.run(move_to_disk, read),
            )
        )
        return generator.stream(
            replace(
                asked,
                messages=await open_messages(read, runtime.pictures),
                deadline=_left(asked.deadline, time.monotonic() - begun),
            )
        )

    async def streamed() -> tuple[Event, AsyncGenerator[Event]]:
        answer = await ask()
        return await _first(answer), answer

    async def whole() -> bytes:
        return await _whole(await ask(), names, asked.logprobs is not None)

    try:
        if body.stream:
            begun = await _while_connected(request, streamed)
            if begun is None:
                return Response(status_code=499)
            with_usage = body.stream_options is not None and body.stream_options.include_usage
            chunks = _chunks(*begun, names, asked.choices, with_usage, asked.logprobs is not None)
            return _Stream(_sent(chunks, request), begun[1], place.pop_all())
        answer = await _while_connected(request, whole)
    finally:
        await place.aclose()
    if answer is None:
        return Response(status_code=499)  # nobody is left to receive it
    return Response(answer, media_type="application/json")


def _left(deadline: float | None, waited: float) -> float | None:
    """What is left of a request's seconds; never nothing, for the engine to end it."""
    return None if deadline is None else max(deadline - waited, 1e-3)


_STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


@dataclass(frozen=True)
class _Names:
    """What every piece of one answer repeats."""

    id: str
    created: int
    model: str
    digest: str

    def frame(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": f"fp_{self.digest[:12]}",
        }


async def _while_connected(request: Request, work: Callable[[], Awaitable[T]]) -> T | None:
    """What `work` gives; None, and `work` cancelled, if the client goes away before that."""
    outcome: T | None = None
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            tasks.cancel_scope.cancel()

        tasks.start_soon(watch)
        try:
            outcome = await work()
        except Exception as error:  # raised below: a task group would wrap it
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return outcome


# Whole ------------------------------------------------------------------------------------------


async def _whole(events: AsyncGenerator[Event], names: _Names, with_logprobs: bool) -> bytes:
    from chiasm.generation import Completed, Finished, TextDelta

    texts: dict[int, list[str]] = {}
    tokens: dict[int, list[TokenLogprob]] = {}
    reasons: dict[int, str] = {}
    usage: Usage | None = None
    async with aclosing(events):
        async for event in events:
            if isinstance(event, TextDelta):
                texts.setdefault(event.choice, []).append(event.text)
                tokens.setdefault(event.choice, []).extend(event.tokens)
            elif isinstance(event, Finished):
                reasons[event.choice] = event.reason
            elif isinstance(event, Completed):
                usage = event.usage
    assert usage is not None
    choices = [
        {
            "index": choice,
            "message": {
                "role": "assistant",
                "content": "".join(texts.get(choice, ())),
                "refusal": None,
            },
            "logprobs": _logprobs(tokens.get(choice, [])) if with_logprobs else None,
            "finish_reason": reason,
        }
        for choice, reason in sorted(reasons.items())
    ]
    return pydantic_core.to_json(
        {**names.frame("chat.completion"), "choices": choices, "usage": usage_object(usage)}
    )


# Streamed ---------------------------------------------------------------------------------------


async def _first(events: AsyncGenerator[Event]) -> Event:
    """The first event: what is wrong with the request shows here, before a status is sent."""
    try:
        return await anext(events)
    except BaseException:
        await events.aclose()
        raise


async def _chunks(
    first: Event,
    events: AsyncGenerator[Event],
    names: _Names,
    choices: int,
    with_usage: bool,
    with_logprobs: bool,
) -> AsyncGenerator[dict[str, Any]]:
    from chiasm.generation import Completed, Finished, TextDelta

    frame = names.frame("chat.completion.chunk")
    if with_usage:
        frame["usage"] = None

    def chunk(choice: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        one = {"index": choice, "delta": delta, "logprobs": None, "finish_reason": reason}
        return {**frame, "choices": [one]}

    for choice in range(choices):
        yield chunk(choice, {"role": "assistant", "content": ""})
    event: Event | None = first
    async with aclosing(events):
        while event is not None:
            if isinstance(event, TextDelta):
                piece = chunk(event.choice, {"content": event.text})
                if with_logprobs:
                    piece["choices"][0]["logprobs"] = _logprobs(event.tokens)
                yield piece
            elif isinstance(event, Finished):
                yield chunk(event.choice, {}, event.reason)
            elif isinstance(event, Completed) and with_usage:
                yield {**frame, "choices": [], "usage": usage_object(event.usage)}
            event = await anext(events, None)


class _Stream(StreamingResponse):
    """Server-sent events. Ends the work and gives the place back, even if nobody takes any."""

    def __init__(
        self, sent: AsyncGenerator[bytes], events: AsyncGenerator[Event], place: AsyncExitStack
    ) -> None:
        super().__init__(sent, media_type="text/event-stream", headers=_STREAM_HEADERS)
        self._sent, self._events, self._place = sent, events, place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                # A generator that was never begun would not run to its own end.
                await self._sent.aclose()
                await self._events.aclose()
                await self._place.aclose()


async def _sent(chunks: AsyncGenerator[dict[str, Any]], request: Request) -> AsyncGenerator[bytes]:
    """Server-sent events; what goes wrong after the status is an event as well."""
    async with aclosing(chunks):
        try:
            async for chunk in chunks:
                yield _event(chunk)
        except ChiasmError as error:
            yield _event(body_of(error))
        except Exception as error:
            log_unexpected(error, request.state.request_id)
            yield _event(internal_body())
        yield b"data: [DONE]\n\n"


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + pydantic_core.to_json(body) + b"\n\n"


# Shapes -----------------------------------------------------------------------------------------


def usage_object(usage: Usage) -> dict[str, Any]:
    """OpenAI's `usage`, and what it has no place for: pictures, compute and seconds by stage."""
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
        "images": usage.images,
        "compute": {"vision_flops": usage.vision_flops, "language_flops": usage.language_flops},
        "seconds": {stage: round(took, 6) for stage, took in usage.seconds.items()},
    }


def _logprobs(tokens: Any) -> dict[str, Any]:
    return {
        "content": [
            {**_token(token), "top_logprobs": [_token(other) for other in token.top]}
            for token in tokens
        ],
        "refusal": None,
    }


def _token(token: TokenLogprob) -> dict[str, Any]:
    # JSON has no minus infinity; OpenAI writes −9999 for what cannot come.
    return {
        "token": token.token,
        "logprob": max(token.logprob, -9999.0),
        "bytes": list(token.bytes),
    }
