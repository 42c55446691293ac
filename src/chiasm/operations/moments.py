"""Moments as the tables hold them: whole microseconds since 1970, UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY = 86_400_000_000
_MICROSECOND = timedelta(microseconds=1)


def microseconds(moment: datetime) -> int:
    """moment: with its time zone."""
    return (moment - EPOCH) // _MICROSECOND


def moment(microseconds: int) -> datetime:
    """In UTC."""
    return EPOCH + timedelta(microseconds=microseconds)


def now() -> datetime:
    """In UTC."""
    return datetime.now(UTC)
