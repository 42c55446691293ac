"""What Google's Gemini API means when it does not answer.

Its statuses are those of Google's guide "Troubleshooting", its details those of `google.rpc`
(`error_details.proto`), read in November 2026.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from chiasm.errors import ChiasmError
from chiasm.generation.providers.refusals import (
    busy,
    duration,
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
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}

_SPENT_WORDS = ("credits are depleted", "spending cap", "spend cap")
_CONTEXT = re.compile(r"token count.{0,40}exceeds", re.IGNORECASE)


def refused(
    status: int | None, error: Mapping[str, Any], model: str, headers: Mapping[str, str]
) -> ChiasmError:
    """The error that an answer of another status than 200 means; None: in the middle of a stream.

    error: Google's own error object. headers: with lower-case names. model: what to call the model
    in a message.
    """
    name, message = str(error.get("status") or ""), str(error.get("message") or "")
    if status is None:
        code = error.get("code")
        status = code if isinstance(code, int) else _STATUSES.get(name, 500)
    reasons = {str(detail.get("reason") or "") for detail in _details(error)}
    # Where Google's terms do not reach, and where nobody pays, it is the request that fails.
    operators = name == "FAILED_PRECONDITION" or any(r.startswith("API_KEY") for r in reasons)
    if status in (401, 403) or operators:
        return key_refused(model)
    if status == 429 and any(word in message.lower() for word in _SPENT_WORDS):
        return used_up(model)
    if status in (408, 409, 429, 503):
        return busy(model, _retry_after(error, headers))
    if not 400 <= status < 500:
        return failed(model, status)
    return _callers_fault(status, error, message, model)


def _callers_fault(status: int, error: Mapping[str, Any], message: str, model: str) -> ChiasmError:
    if status == 404 and not error:
        return nobody_there(model, "Its base_url is what stands before /v1beta/models.")
    if status == 404:
        return no_such_model(model)
    if status == 413:
        return too_many_bytes(model)
    fields = [
        str(violation.get("field"))
        for detail in _details(error)
        for violation in detail.get("fieldViolations") or ()
        if isinstance(violation, Mapping) and violation.get("field")
    ]
    too_long = _CONTEXT.search(message) is not None
    return refuses(model, message, too_long=too_long, param=fields[0] if fields else None)


def _details(error: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    details = error.get("details")
    for each in details if isinstance(details, list) else ():
        if isinstance(each, Mapping):
            yield each


def _retry_after(error: Mapping[str, Any], headers: Mapping[str, str]) -> float | None:
    """Seconds, by `google.rpc.RetryInfo` or by the header."""
    for detail in _details(error):
        if str(detail.get("@type") or "").endswith("google.rpc.RetryInfo"):
            seconds = duration(str(detail.get("retryDelay") or ""))
            if seconds is not None:
                return seconds
    return retry_after(headers)
