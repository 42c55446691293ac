"""What a server of OpenAI's APIs means when it does not answer.

Callers hear fixed sentences, and the server's own words only where it refuses what they have asked
for. Its statuses and codes are those of OpenAI's guide "Error codes" and of the SDK's types
(`responses.ResponseError`), read in November 2026; of other servers what they were seen to send.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from chiasm.errors import (
    ChiasmError,
    ContentRefused,
    ContextExceeded,
    GeneratorFailed,
    GeneratorUnreachable,
    InvalidRequest,
    ProviderBusy,
    ProviderKeyRefused,
    ProviderQuotaSpent,
    UnknownModel,
)

LONGEST_MESSAGE = 300
_HALF_A_WORD = 100

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
        return ProviderKeyRefused(
            f"The provider of {model} does not take this server's key.",
            hint="Its operator must put a right one into the environment.",
        )
    if codes & _QUOTA:
        return ProviderQuotaSpent(
            f"This server's account with the provider of {model} is used up.",
            hint="Its operator must add credit there or raise the limit.",
        )
    if status in (408, 409, 429) or codes & _BUSY:
        return ProviderBusy(
            f"The provider of {model} takes no more requests for now.",
            retry_after=retry_after(headers or {}),
            hint="Try again in a moment.",
        )
    if codes & _SERVER or not 400 <= status < 500:
        return GeneratorFailed(f"The provider of {model} failed (status {status}).")
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
        return GeneratorUnreachable(
            f"Nobody answers questions at the address of the provider of {model}.",
            hint="A base_url usually ends with /v1.",
        )
    if status == 404:
        return UnknownModel(
            f"The provider of {model} serves no model of that name to this server.",
            hint="Look the name up in the provider's list of models.",
            param="model",
        )
    too_long = codes & _CONTEXT or any(word in message.lower() for word in _CONTEXT_WORDS)
    kind = ContextExceeded if too_long else InvalidRequest
    return kind(
        f"The provider of {model} refuses the request: {shown(message)}",
        param=param if isinstance(param, str) else "messages",
    )


def _about_content(codes: set[str], message: str) -> bool:
    if codes & _CONTENT:
        return True
    # The same code is used for a prompt that is malformed.
    lowered = message.lower()
    return "invalid_prompt" in codes and any(word in lowered for word in _FORBIDDEN_WORDS)


def error_in(body: object) -> dict[str, Any]:
    """The error object of an answer; some servers send its fields without a name around them."""
    if not isinstance(body, Mapping):
        return {}
    error = body.get("error", body)
    if isinstance(error, str):
        return {**body, "message": error}
    return dict(error) if isinstance(error, Mapping) else {}


def status_in(error: Mapping[str, Any]) -> int:
    """The status that an error in the middle of a stream would have had at its beginning."""
    for name in ("code", "status", "status_code"):
        value = error.get(name)
        if isinstance(value, int | str) and re.fullmatch(r"[45]\d\d", str(value)):
            return int(value)
    codes = {str(error.get("code") or ""), str(error.get("type") or "")}
    blamed = codes & (_CONTENT | _CONTEXT | {"invalid_request_error", "invalid_prompt"})
    return 400 if blamed or any("image" in code for code in codes) else 500


def shown(message: object) -> str:
    """A server's own words, short and printable; for callers without what `private` takes out."""
    text = "".join(letter for letter in str(message or "") if letter.isprintable())
    text = text or "it does not say why."
    if len(text) <= LONGEST_MESSAGE:
        return text
    words, space, rest = text[:LONGEST_MESSAGE].rpartition(" ")
    # The beginning of an address or of a key would not be recognised.
    return f"{words} …" if space and len(rest) < _HALF_A_WORD else f"{text[:LONGEST_MESSAGE]}…"


# When to come back ------------------------------------------------------------------------------

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|h|m|s)")
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, as RFC 9110 section 10.2.3 or OpenAI's own headers have them."""
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    stated = headers.get("retry-after")
    if stated is not None:
        seconds = _number(stated)
        return _until(stated) if seconds is None else seconds
    waits = [
        seconds
        for what in ("requests", "tokens")
        if headers.get(f"x-ratelimit-remaining-{what}") == "0"
        and (seconds := duration(headers.get(f"x-ratelimit-reset-{what}", ""))) is not None
    ]
    return max(waits, default=None)


def duration(text: str) -> float | None:
    """`6m0s` or `20ms` in seconds; None for what is no such thing."""
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 <= value < float("inf") else None


def _until(date: str) -> float | None:
    try:
        return max(0.0, parsedate_to_datetime(date).timestamp() - time.time())
    except ValueError:
        return None
