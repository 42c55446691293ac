"""`POST /v1/messages`: questions about pictures in Anthropic's shape."""

from __future__ import annotations

from dataclasses import replace

from fastapi import APIRouter, Request, Response

from chiasm.server.answer_parts import gather
from chiasm.server.answering import Shape, respond
from chiasm.server.asking import Answer, Question
from chiasm.server.bodies import off_the_loop, read_body
from chiasm.server.counting import count_tokens
from chiasm.server.messages_input import as_request, prompt_request, read_turns
from chiasm.server.messages_output import message_events, trouble, whole_message
from chiasm.server.messages_schemas import (
    CountRequest,
    MessagesAnswer,
    MessagesError,
    MessagesRequest,
    TokenCount,
)
from chiasm.server.openapi import EVERYWHERE, body_schema, refusals

router = APIRouter(prefix="/v1/messages", tags=["messages"])


@router.post(
    "",
    operation_id="create_message",
    summary="Ask about pictures, as Anthropic's Messages",
    response_model=MessagesAnswer,
    responses=refusals(*EVERYWHERE, 404, 413, 415, 502, 504, model=MessagesError),
    openapi_extra=body_schema(MessagesRequest),
)
async def create_message(request: Request) -> Response:
    """The answer, whole or as a stream of server-sent events.

    Whoever goes away before the end stops the work.
    """
    body = await read_body(MessagesRequest, request)
    caller, runtime = request.state.caller, request.app.state.runtime
    route = await runtime.route(body.model, caller)  # who answers is known before pictures are read
    fetched = await runtime.fetch(body.messages)
    messages = await off_the_loop(
        request, runtime, read_turns, body.system, body.messages, runtime.settings.media, fetched
    )
    body.messages = None  # the pictures, in base64, are not needed any more
    asked = replace(as_request(body), messages=messages)
    streamed = bool(body.stream)
    # What has not been sent yet can be taken back without anyone noticing.
    question = Question(route, asked, streamed, restart=not streamed)

    async def whole(answer: Answer) -> bytes:
        return whole_message(await gather(answer.events), answer.model)

    shape = Shape(
        whole,
        lambda answer: message_events(answer.events, answer.model, answer.planned),
        lambda error: trouble(error, request.state.request_id),
    )
    return await respond(question, shape, caller, request, runtime)


@router.post(
    "/count_tokens",
    operation_id="count_message_tokens",
    summary="Count a prompt's tokens, as Anthropic's Messages",
    responses=refusals(*EVERYWHERE, 404, 413, 415, model=MessagesError),
    openapi_extra=body_schema(CountRequest),
)
async def count_message_tokens(request: Request) -> TokenCount:
    """How many tokens the prompt has, pictures included, by plan. Nothing is sent to a model."""
    body = await read_body(CountRequest, request)
    caller, runtime = request.state.caller, request.app.state.runtime
    route = await runtime.route(body.model, caller)  # who answers is known before pictures are read
    fetched = await runtime.fetch(body.messages)
    messages = await off_the_loop(
        request, runtime, read_turns, body.system, body.messages, runtime.settings.media, fetched
    )
    asked = replace(prompt_request(body), messages=messages)
    return TokenCount(input_tokens=await count_tokens(route, asked, caller, runtime))
