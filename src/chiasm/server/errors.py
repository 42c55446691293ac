"""Errors in OpenAI's shape, whatever went wrong and wherever; in Anthropic's for its clients.

`{"error": {"message", "type", "param", "code"}}` is all that a caller ever sees: fixed sentences
from `chiasm.errors`, from the table below, or pydantic's own about a field. What was sent is never
repeated (it may be somebody's picture), and nor is what a library says about its insides.
"""

from __future__ import annotations

import logging
import math
import re
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import Scope

from chiasm.errors import (
    BudgetExceeded,
    ChiasmError,
    NotReady,
    Overloaded,
    ProviderBusy,
    StoreError,
    TimedOut,
)

log = logging.getLogger("chiasm.server")

INTERNAL = "The server met an error that it does not know."
STORE = "The collection's files could not be read or written."
INTERNAL_HINT = "The server's log says more under this answer's x-request-id."
RETRY_AFTER_SECONDS = 2

_LONGEST_PARAM = 120
_BASE64 = re.compile(r"base64,[^\s'\"]+")
_PLACES = {"body", "query", "path", "header", "cookie"}
_BY_STATUS = {
    404: ("There is nothing at {path}.", "not_found"),
    405: ("{path} does not answer to {method}.", "method_not_allowed"),
}


def error_body(
    message: str,
    *,
    kind: str = "invalid_request_error",
    param: str | None = None,
    code: str | None = None,
) -> dict[str, Any]:
    """OpenAI's error object."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def body_of(error: ChiasmError, *, param: str | None = None) -> dict[str, Any]:
    """OpenAI's error object for one of ours; `param` stands in where the error names none."""
    return error_body(str(error), kind=error.kind, param=error.param or param, code=error.code)


def internal_body() -> dict[str, Any]:
    """What a caller learns of an error that nobody foresaw."""
    return error_body(f"{INTERNAL} {INTERNAL_HINT}", kind="server_error", code="internal_error")


_MESSAGES = "/v1/messages"
_MESSAGES_KINDS = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
}
_BUSY = ("overloaded", "not_ready")


def speaks_messages(scope: Scope) -> bool:
    """Whether a request is for Anthropic's API, or comes from one of its clients."""
    path: str = scope["path"]
    return (
        path == _MESSAGES
        or path.startswith(f"{_MESSAGES}/")
        or "anthropic-version" in Headers(scope=scope)
    )


def messages_body(body: dict[str, Any], status: int, request_id: str) -> dict[str, Any]:
    """OpenAI's error object as Anthropic's (platform.claude.com/docs/en/api/errors)."""
    error = body["error"]
    kind = "invalid_request_error" if status < 500 else "api_error"
    if status == 503 and error["code"] in _BUSY:
        kind = "overloaded_error"
    return {
        "type": "error",
        "error": {"type": _MESSAGES_KINDS.get(status, kind), "message": error["message"]},
        "request_id": request_id,
    }


def error_response(
    scope: Scope, body: dict[str, Any], status: int, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """The answer that carries an error object, in the shape of the API that was asked."""
    if speaks_messages(scope):
        body = messages_body(body, status, scope["state"]["request_id"])
    return JSONResponse(body, status, headers=headers)


def install(app: FastAPI) -> None:
    """Let every error of `app` be answered here."""
    app.add_exception_handler(ChiasmError, _chiasm_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)


def log_unexpected(error: BaseException, request_id: str) -> None:
    """The whole trace into the log, without any base64 that an exception might quote."""
    trace = "".join(traceback.format_exception(error))
    log.error("%s: unexpected error\n%s", request_id, _BASE64.sub("base64,…", trace))


async def _chiasm_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ChiasmError)
    body = body_of(error)
    if isinstance(error, StoreError):
        # Its words are for who runs the server: they name folders.
        body = error_body(f"{STORE} {INTERNAL_HINT}", kind=error.kind, code=error.code)
    if error.http_status >= 500 and not isinstance(error, NotReady | TimedOut):
        log.error("%s: %s", request.state.request_id, error)
    seconds = RETRY_AFTER_SECONDS if error.http_status == 503 else None
    if isinstance(error, Overloaded | ProviderBusy) and error.retry_after is not None:
        seconds = math.ceil(error.retry_after)
    headers = {} if seconds is None else {"retry-after": str(seconds)}
    if isinstance(error, BudgetExceeded):
        headers["x-should-retry"] = "false"  # clients of both vendors try 429 again without it
    return error_response(request.scope, body, error.http_status, headers)


async def _http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code in _BY_STATUS:
        sentence, code = _BY_STATUS[error.status_code]
        message = sentence.format(path=shown(request.url.path), method=request.method)
    else:
        # What is left is a body that the framework could not read; it has a sentence for each.
        message, code = f"{str(error.detail).rstrip('.')}.", "invalid_body"
    body = error_body(message, code=code)
    return error_response(request.scope, body, error.status_code, error.headers)


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return error_response(request.scope, validation_body(error.errors()), 400)


def validation_body(errors: Sequence[Any]) -> dict[str, Any]:
    """What pydantic found, as one error object: the first in full, the others counted."""
    first = errors[0]
    param = shown(_path(first["loc"]))
    match first["type"]:
        case "missing" if not param:
            message, code = "The request has no body; a JSON object is needed.", "missing_body"
        case "missing":
            message, code = f"{param} is required.", "missing_required_parameter"
        case "extra_forbidden":
            message, code = f"There is no argument called {param}.", "unknown_parameter"
        case "json_invalid":
            return error_body("The body is not valid JSON.", code="invalid_json")
        case "model_attributes_type" | "dict_type" if not param:
            return error_body("The body must be one JSON object.", code="invalid_json")
        case _:
            text = str(first["msg"]).removeprefix("Value error, ").rstrip(".")
            message = f"{param or 'The body'}: {text[:1].lower()}{text[1:]}."
            code = "invalid_value"
    if len(errors) > 1:
        message += f" ({len(errors) - 1} more problem{'s' if len(errors) > 2 else ''} in it.)"
    return error_body(message, param=param or None, code=code)


def _path(location: Sequence[Any]) -> str:
    """('body', 'items', 0, 'text') → 'items[0].text'."""
    path = ""
    for part in location[1:] if location and location[0] in _PLACES else location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path


def shown(text: str) -> str:
    """`text` as it may stand in a message: printable and short."""
    text = "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
    return text if len(text) <= _LONGEST_PARAM else f"{text[:_LONGEST_PARAM]}…"
