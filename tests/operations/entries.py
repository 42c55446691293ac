"""Rows for the tests of the ledger."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from chiasm.operations.ledger import Entry

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)


def entry(**changes: Any) -> Entry:
    usual = {
        "time": NOON,
        "request_id": "req_1",
        "route": "/v1/chat/completions",
        "alias": "fast",
        "provider": "openai",
        "model": "gpt-5-mini",
    }
    return Entry(**(usual | changes))
