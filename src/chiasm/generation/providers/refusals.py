"""What providers mean when they do not answer, in the words that callers hear.

They are fixed sentences; a provider's own words are added only where it refuses what a caller has
asked for. Which of them is meant each vendor's module says: `openai_refusals`,
`anthropic_refusals`, `gemini_refusals`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from chiasm.errors import (
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

LONGEST_MESSAGE = 300
_HALF_A_WORD = 100

# The sentences. model: what to call the model in a message --------------------------------------


def key_refused(model: str) -> ProviderKeyRefused:
    """A key of this server that is none for the provider."""
    return ProviderKeyRefused(
        f"The provider of {model} does not take this server's key.",
        hint="Its operator must put a right one into the environment.",
    )


def used_up(model: str) -> ProviderQuotaSpent:
    """Nothing is left to spend there."""
    return ProviderQuotaSpent(
        f"This server's account with the provider of {model} is used up.",
        hint="Its operator must add credit there or raise the limit.",
    )


def busy(model: str, seconds: float | None) -> ProviderBusy:
    """For now. seconds: until it takes requests again, where it says so."""
    return ProviderBusy(
        f"The provider of {model} takes no more requests for now.",
        retry_after=seconds,
        hint="Try again in a moment.",
    )


def failed(model: str, status: int) -> GeneratorFailed:
    """It is its own fault."""
    return GeneratorFailed(f"The provider of {model} failed (status {status}).")


def nobody_there(model: str, hint: str) -> GeneratorUnreachable:
    """The address is another's. hint: what a right one looks like."""
    return GeneratorUnreachable(
        f"Nobody answers questions at the address of the provider of {model}.", hint=hint
    )


def no_such_model(model: str) -> UnknownModel:
    """The provider does not know the name."""
    return UnknownModel(
        f"The provider of {model} serves no model of that name to this server.",
        hint="Look the name up in the provider's list of models.",
        param="model",
    )


def too_many_bytes(model: str) -> ImageTooLarge:
    """Of the whole request."""
    return ImageTooLarge(
        "The request",
        f"it has more bytes than the provider of {model} takes.",
        hint="Send fewer or smaller pictures.",
        param="messages",
    )


def refuses(model: str, message: object, *, too_long: bool, param: str | None) -> InvalidRequest:
    """It does not do what it is asked for, as it says in its own words."""
    return (ContextExceeded if too_long else InvalidRequest)(
        f"The provider of {model} refuses the request: {shown(message)}",
        param=param or "messages",
    )


# What it says -----------------------------------------------------------------------------------


def error_in(body: object) -> dict[str, Any]:
    """The error object of an answer; some servers send its fields without a name around them."""
    if not isinstance(body, Mapping):
        return {}
    error = body.get("error", body)
    if isinstance(error, str):
        return {**body, "message": error}
    return dict(error) if isinstance(error, Mapping) else {}


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
