"""What Google's Gemini API means when it does not answer.

Its statuses are those of Google's guide "Troubleshooting", its details those of `google.rpc`
(`error_details.proto`), read in November 2026.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from chiasm.errors import (
    ChiasmError,
    ContextExceeded,
    GeneratorFailed,
    GeneratorUnreachable,
    ImageTooLarge,
    InvalidRequest,
    ProviderBusy,
    ProviderKeyRefused,
    ProviderQuotaSpent,
    UnknownModel,
)
from chiasm.generation.providers.refusals import duration, retry_after, shown

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
        return ProviderKeyRefused(
            f"The provider of {model} does not take this server's key.",
            hint="Its operator must put a right one into the environment.",
        )
    if status == 429 and any(word in message.lower() for word in _SPENT_WORDS):
        return ProviderQuotaSpent(
            f"This server's account with the provider of {model} is used up.",
            hint="Its operator must add credit there or raise the limit.",
        )
    if status in (408, 409, 429, 503):
        return ProviderBusy(
            f"The provider of {model} takes no more requests for now.",
            retry_after=_retry_after(error, headers),
            hint="Try again in a moment.",
        )
    if not 400 <= status < 500:
        return GeneratorFailed(f"The provider of {model} failed (status {status}).")
    return _callers_fault(status, error, message, model)


def _callers_fault(status: int, error: Mapping[str, Any], message: str, model: str) -> ChiasmError:
    if status == 404 and not error:
        return GeneratorUnreachable(
            f"Nobody answers questions at the address of the provider of {model}.",
            hint="Its base_url is what stands before /v1beta/models.",
        )
    if status == 404:
        return UnknownModel(
            f"The provider of {model} serves no model of that name to this server.",
            hint="Look the name up in the provider's list of models.",
            param="model",
        )
    if status == 413:
        return ImageTooLarge(
            "The request",
            f"it has more bytes than the provider of {model} takes.",
            hint="Send fewer or smaller pictures.",
            param="messages",
        )
    fields = [
        str(violation.get("field"))
        for detail in _details(error)
        for violation in detail.get("fieldViolations") or ()
        if isinstance(violation, Mapping) and violation.get("field")
    ]
    return (ContextExceeded if _CONTEXT.search(message) else InvalidRequest)(
        f"The provider of {model} refuses the request: {shown(message)}",
        param=fields[0] if fields else "messages",
    )


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
