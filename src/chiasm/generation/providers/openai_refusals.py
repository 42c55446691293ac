"""What a server of OpenAI's APIs means when it does not answer.

Its statuses and codes are those of OpenAI's guide "Error codes" and of the SDK's types
(`responses.ResponseError`), read in November 2026; of other servers what they were seen to send.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from chiasm.errors import ChiasmError, ContentRefused
from chiasm.generation.providers.refusals import (
    busy,
    failed,
    key_refused,
    no_such_model,
    nobody_there,
    refuses,
    retry_after,
    used_up,
)

_QUOTA = frozenset(
    ("insufficient_quota", "credit_balance_exhausted", "billing_hard_limit_reached",
     "billing_not_active")
)  # fmt: skip
_BUSY = frozenset(("rate_limit_exceeded", "slow_down", "server_is_overloaded", "overloaded_error"))
_CONTENT = frozenset(
    ("content_filter", "content_policy_violation", "moderation_blocked", "bio_policy",
     "image_content_policy_violation", "misalignment_policy_violation")
)  # fmt: skip
_CONTEXT = frozenset(
    ("context_length_exceeded", "exceed_context_size_error", "string_above_max_length")
)
_CONTEXT_WORDS = ("context length", "context window", "context size", "maximum context")
_FORBIDDEN_WORDS = ("safety", "usage policy", "usage policies")
_SERVER = frozenset(("server_error", "internal_error", "internal_server_error"))


def refused(
    status: int, error: Mapping[str, Any], model: str, *, headers: Mapping[str, str] | None = None
) -> ChiasmError:
    """The error that an answer of another status than 200 means.

    error: the server's own error object, as far as it sends one. headers: with lower-case names.
    model: what to call the model in a message.
    """
    codes = {str(error.get("code") or ""), str(error.get("type") or "")}
    if status == 401 or (status == 403 and not codes & _CONTENT):
        return key_refused(model)
    if codes & _QUOTA:
        return used_up(model)
    if status in (408, 409, 429) or codes & _BUSY:
        return busy(model, retry_after(headers or {}))
    if codes & _SERVER or not 400 <= status < 500:
        return failed(model, status)
    return _callers_fault(status, codes, error, model)


def _callers_fault(
    status: int, codes: set[str], error: Mapping[str, Any], model: str
) -> ChiasmError:
    message, param = str(error.get("message") or ""), error.get("param")
    if _about_content(codes, message):
        return ContentRefused(
            f"The provider of {model} does not answer this: its rules forbid it.",
            hint="Ask otherwise, or with other pictures.",
            param="messages",
        )
    if status == 404 and not error:
        return nobody_there(model, "A base_url usually ends with /v1.")
    if status == 404:
        return no_such_model(model)
    too_long = bool(codes & _CONTEXT) or any(word in message.lower() for word in _CONTEXT_WORDS)
    place = param if isinstance(param, str) else None
    return refuses(model, message, too_long=too_long, param=place)


def _about_content(codes: set[str], message: str) -> bool:
    if codes & _CONTENT:
        return True
    # The same code is used for a prompt that is malformed.
    lowered = message.lower()
    return "invalid_prompt" in codes and any(word in lowered for word in _FORBIDDEN_WORDS)


def status_in(error: Mapping[str, Any]) -> int:
    """The status that an error in the middle of a stream would have had at its beginning."""
    for name in ("code", "status", "status_code"):
        value = error.get(name)
        if isinstance(value, int | str) and re.fullmatch(r"[45]\d\d", str(value)):
            return int(value)
    codes = {str(error.get("code") or ""), str(error.get("type") or "")}
    blamed = codes & (_CONTENT | _CONTEXT | {"invalid_request_error", "invalid_prompt"})
    return 400 if blamed or any("image" in code for code in codes) else 500
