"""`POST /v1/responses`: questions about pictures in the shape of OpenAI's Responses."""

from __future__ import annotations

from dataclasses import replace

from fastapi import APIRouter, Request, Response

from chiasm.server.answer_parts import gather
from chiasm.server.answering import Shape, respond
from chiasm.server.asking import Answer, Question
from chiasm.server.bodies import off_the_loop, read_body
from chiasm.server.counting import count_tokens
from chiasm.server.openapi import body_schema, refusals
from chiasm.server.responses_input import as_request, prompt_request, read_input
from chiasm.server.responses_output import ResponseWriter
from chiasm.server.responses_schemas import (
    InputTokenCount,
    ResponseObject,
    ResponsesCount,
    ResponsesRequest,
)

router = APIRouter(prefix="/v1/responses", tags=["responses"])


@router.post(
    "",
    operation_id="create_response",
    summary="Ask about pictures, as OpenAI's Responses",
    response_model=ResponseObject,
    responses=refusals(404, 413, 415, 502, 504),
    openapi_extra=body_schema(ResponsesRequest),
)
async def create_response(request: Request) -> Response:
    """The answer, whole or as a stream of server-sent events. Nothing is stored.

    Whoever goes away before the end stops the work.
    """
    body = await read_body(ResponsesRequest, request)
    caller, runtime = request.state.caller, request.app.state.runtime
    route = await runtime.route(body.model, caller)  # who answers is known before pictures are read
    fetched = await runtime.fetch(body.input, "input")
    messages = await off_the_loop(
        request, runtime, read_input, body.instructions, body.input, runtime.settings.media, fetched
    )
    body.input = None  # the pictures, in base64, are not needed any more
    asked = replace(as_request(body), messages=messages)
    streamed = bool(body.stream)
    # What has not been sent yet can be taken back without anyone noticing.
    question = Question(route, asked, streamed, restart=not streamed)
    writer = ResponseWriter(body)

    async def whole(answer: Answer) -> bytes:
        return writer.whole(await gather(answer.events), answer.model)

    shape = Shape(whole, lambda answer: writer.events(answer.events, answer.model), writer.trouble)
    return await respond(question, shape, caller, request, runtime)


@router.post(
    "/input_tokens",
    operation_id="count_input_tokens",
    summary="Count a prompt's tokens, as OpenAI's Responses",
    responses=refusals(404, 413, 415),
    openapi_extra=body_schema(ResponsesCount),
)
async def count_input_tokens(request: Request) -> InputTokenCount:
    """How many tokens the prompt has, pictures included, by plan. Nothing is sent to a model."""
    body = await read_body(ResponsesCount, request)
    caller, runtime = request.state.caller, request.app.state.runtime
    route = await runtime.route(body.model, caller)  # who answers is known before pictures are read
    fetched = await runtime.fetch(body.input, "input")
    messages = await off_the_loop(
        request, runtime, read_input, body.instructions, body.input, runtime.settings.media, fetched
    )
    asked = replace(prompt_request(body), messages=messages)
    return InputTokenCount(input_tokens=await count_tokens(route, asked, caller, runtime))
