"""The OpenAPI document, and a page that shows it without asking a foreign server for anything."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from chiasm.server.chat_schemas import ChatRequest
from chiasm.server.messages_schemas import CountRequest, MessagesRequest
from chiasm.server.plan_schemas import PlanRequest
from chiasm.server.responses_schemas import ResponsesCount, ResponsesRequest
from chiasm.server.schemas import ErrorResponse, ImagePart, ImageUrl, NewItems, TextPart

_REFUSALS = {
    400: "The request cannot be done as asked.",
    403: "The request came from a foreign page, or to a foreign Host.",
    404: "There is nothing of that name.",
    401: "No key, or one that is not valid.",
    405: "The path does not answer to that method.",
    409: "It is in conflict with what is there.",
    413: "The body or a picture is larger than its limit.",
    429: "Too many questions wait already, or the key has had what it may; `retry-after` says when"
    " to ask again.",
    415: "The body's type is not one that is read here.",
    502: "The provider that was answering failed.",
    500: "The server met an error that it does not know.",
    503: "The server is still starting, or is stopping.",
    504: "The request's own deadline has passed.",
}
EVERYWHERE = (400, 401, 403, 429, 500, 503)

DESCRIPTION = """\
Find pictures with words, with pictures, and with both; and ask about them.

`/v1/chat/completions`, `/v1/responses`, `/v1/embeddings` and `/v1/models` have OpenAI's shape:
point the `openai` client's `base_url` at this server's `/v1`. Every error is
`{"error": {"message", "type", "param", "code"}}`, and every answer has an `x-request-id`.

`/v1/messages` has Anthropic's shape, and so have its errors, and `/v1/models` for a client that
sends `anthropic-version`: point the `anthropic` client's `base_url` at this server.
"""


_REFERRED_TO = (
    TextPart,
    ImagePart,
    ImageUrl,
    NewItems,
    ChatRequest,
    ResponsesRequest,
    ResponsesCount,
    MessagesRequest,
    CountRequest,
    PlanRequest,
)


def refusals(
    *statuses: int, model: type[BaseModel] = ErrorResponse
) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that can answer with these error statuses. model: their body."""
    return {status: {"model": model, "description": _REFUSALS[status]} for status in statuses}


def body_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The `openapi_extra` of a route that reads its JSON body by itself; see `describe`."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def describe(app: FastAPI) -> None:
    """Make `app.openapi()` the document that says what the server does.

    Two things FastAPI cannot see by itself: errors of validation are answered with 400 in
    OpenAI's shape, never with its own 422; and a few schemas are referred to by hand.
    """
    generated = app.openapi

    def openapi() -> dict[str, Any]:
        document = generated()
        schemas = document["components"]["schemas"]
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        schemas.update(_schemas_of(*_REFERRED_TO))
        for operations in document["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _schemas_of(*models: type[BaseModel]) -> dict[str, Any]:
    """The models' schemas and those they refer to, by name."""
    _, document = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    found: dict[str, Any] = document["$defs"]
    return found
