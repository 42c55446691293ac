"""What Anthropic's API means when it does not answer.

Its statuses and types are those of Anthropic's page "Claude API errors" and of the SDK's types
(`shared.ErrorType`, `shared.ErrorDetails`), read in November 2026.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from chiasm.errors import ChiasmError
from chiasm.generation.providers.refusals import (
    busy,
    failed,
    key_refused,
    no_such_model,
    nobody_there,
    refuses,
    retry_after,
    too_many_bytes,
    used_up,
)

_STATUSES: Mapping[str, int] = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "conflict_error": 409,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
"""In the middle of a stream an error has a type and no status."""

_SPENT_CODES = frozenset(
    ("contract_spend_limit_reached", "enforced_spend_limit_reached",
     "linked_organization_spend_limit_reached", "organization_on_hold")
)  # fmt: skip
_SPENT_WORDS = ("credit balance is too low", "api usage limits", "spend limit")
_CONTEXT_WORDS = ("prompt is too long", "context limit", "context window")
_PLACE = re.compile(r"(?:messages|tools|system|output_config|thinking|stop_sequences)\b[\w.]*")


def refused(
    status: int | None, error: Mapping[str, Any], model: str, headers: Mapping[str, str]
) -> ChiasmError:
    """The error that an answer of another status than 200 means; None: in the middle of a stream.

    error: Anthropic's own error object. headers: with lower-case names. model: what to call the
    model in a message.
    """
    kind, message = str(error.get("type") or ""), str(error.get("message") or "")
    details = error.get("details")
    code = str(details.get("error_code") or "") if isinstance(details, Mapping) else ""
    status = status or _STATUSES.get(kind, 500)
    lowered = message.lower()
    spent = code in _SPENT_CODES or any(word in lowered for word in _SPENT_WORDS)
    if status == 402 or (spent and 400 <= status < 500):
        return used_up(model)
    if status in (401, 403):
        return key_refused(model)
    if status in (408, 409, 429, 503, 529):
        return busy(model, retry_after(headers))
    if not 400 <= status < 500:
        return failed(model, status)
    return _callers_fault(status, kind, message, model)


def _callers_fault(status: int, kind: str, message: str, model: str) -> ChiasmError:
    lowered = message.lower()
    if status == 404 and not kind:
        return nobody_there(model, "Its base_url is what stands before /v1/messages.")
    if status == 404:
        return no_such_model(model)
    if status == 413:
        return too_many_bytes(model)
    too_long = any(word in lowered for word in _CONTEXT_WORDS)
    named = _PLACE.match(message)
    return refuses(model, message, too_long=too_long, param=named[0] if named else None)
