"""What callers cannot do at the gateway: learn what is not theirs, or ask more than they may."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.generation.providers.fake_openai import Reply
from tests.server.conftest import error_of
from tests.server.test_gateway import (
    Gateway,
    gateway,
    keyed,
    module_gateway,
)

__all__ = ["gateway", "keyed", "module_gateway"]

ASKED: Any = [{"role": "user", "content": "What is it?"}]


def post(server: Gateway, path: str, body: Any, key: str = "none") -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(f"{server.server.url}{path}", json=body, headers=headers, timeout=60)


def chat(server: Gateway, model: str, key: str = "none") -> httpx.Response:
    return post(server, "/v1/chat/completions", {"model": model, "messages": ASKED}, key)


# A provider's words -----------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["invalid_value", "context_length_exceeded"])
def test_a_providers_words_without_key_and_address(gateway: Gateway, code: str) -> None:
    said = f"The key sk-upstream (sk-u***eam) has no voice {gateway.first.url} at 10.0.0.5, see 4.1"
    error = {"message": said, "type": "invalid_request_error", "code": code}
    gateway.first.script = lambda asked: Reply(status=400, whole={"error": error})
    response = chat(gateway, "first/gpt-4o")
    assert response.status_code == 400
    message = error_of(response)["message"]
    assert message.endswith(
        "The key [removed] ([removed]) has no voice [removed] at [removed], see 4.1"
    )


def test_a_providers_words_in_the_middle_of_a_stream(gateway: Gateway) -> None:
    error = {"message": "No: sk-upstream", "type": "invalid_request_error", "code": "invalid_value"}
    gateway.first.script = lambda asked: Reply([{"error": error}])
    response = chat(gateway, "first/gpt-4o")
    assert response.status_code == 400
    assert error_of(response)["message"].endswith("No: [removed]")
