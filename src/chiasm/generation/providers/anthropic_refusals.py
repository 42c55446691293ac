"""What Anthropic's API means when it does not answer.

Its statuses and types are those of Anthropic's page "Claude API errors" and of the SDK's types
(`shared.ErrorType`, `shared.ErrorDetails`), read in November 2026.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
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
from chiasm.generation.providers.refusals import retry_after, shown

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
        return ProviderQuotaSpent(
            f"This server's account with the provider of {model} is used up.",
            hint="Its operator must add credit there or raise the limit.",
        )
    if status in (401, 403):
        return ProviderKeyRefused(
            f"The provider of {model} does not take this server's key.",
            hint="Its operator must put a right one into the environment.",
        )
    if status in (408, 409, 429, 503, 529):
        return ProviderBusy(
            f"The provider of {model} takes no more requests for now.",
            retry_after=retry_after(headers),
            hint="Try again in a moment.",
        )
    if not 400 <= status < 500:
        return GeneratorFailed(f"The provider of {model} failed (status {status}).")
    return _callers_fault(status, kind, message, model)


def _callers_fault(status: int, kind: str, message: str, model: str) -> ChiasmError:
    lowered = message.lower()
    if status == 404 and not kind:
        return GeneratorUnreachable(
            f"Nobody answers questions at the address of the provider of {model}.",
            hint="Its base_url is what stands before /v1/messages.",
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
    too_long = any(word in lowered for word in _CONTEXT_WORDS)
    named = _PLACE.match(message)
    return (ContextExceeded if too_long else InvalidRequest)(
        f"The provider of {model} refuses the request: {shown(message)}",
        param=named[0] if named else "messages",
    )
