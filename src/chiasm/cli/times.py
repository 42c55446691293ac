"""Moments as people type them: `30d`, `12h`, `2026-12-31`, `2026-12-31T18:00+01:00`."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from chiasm.errors import InvalidRequest

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_SPAN = re.compile(r"(\d{1,6})\s*([mhdw])")


def span(text: str, option: str) -> timedelta:
    """`90m`, `12h`, `30d`, `2w`. Raises InvalidRequest."""
    found = _SPAN.fullmatch(text.strip())
    if found is None:
        raise InvalidRequest(
            f"{option} cannot be {text!r}.", hint="Write a time such as 90m, 12h, 30d or 2w."
        )
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def moment(text: str, option: str, *, ahead: bool = False) -> datetime:
    """A date or time, UTC where no zone is said; or a span before now, `ahead` after it."""
    try:
        if _SPAN.fullmatch(text.strip()):
            length = span(text, option)
            return datetime.now(UTC) + (length if ahead else -length)
        found = datetime.fromisoformat(text.strip())
        found = found if found.tzinfo else found.replace(tzinfo=UTC)
        return found.astimezone(UTC)
    except (ValueError, OverflowError):
        raise InvalidRequest(
            f"{option} cannot be {text!r}.",
            hint="Write a date such as 2026-12-31, with or without a time, or a span such as 30d.",
        ) from None


def shown(when: datetime | None) -> str:
    """To the second, UTC."""
    return "" if when is None else when.strftime("%Y-%m-%d %H:%M:%S")


def iso(when: datetime | None) -> str | None:
    """For programs."""
    return None if when is None else when.isoformat().replace("+00:00", "Z")
