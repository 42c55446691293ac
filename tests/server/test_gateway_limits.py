"""What callers cannot do at the gateway: learn what is not theirs, or ask more than they may."""

from __future__ import annotations

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


# Names ------------------------------------------------------------------------------------------

COUNTING = {"messages": ASKED, "model": "remembred"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", COUNTING),
        ("/v1/messages", {**COUNTING, "max_tokens": 5}),
        ("/v1/messages/count_tokens", COUNTING),
        ("/v1/responses", {"input": "x", "model": "remembred"}),
        ("/v1/responses/input_tokens", {"input": "x", "model": "remembred"}),
    ],
)
def test_hints_name_only_what_the_key_may_use(keyed: Gateway, path: str, body: Any) -> None:
    scoped, _ = keyed.key("scoped", models=["small", "rememb*"])
    other, _ = keyed.key("other", models=["small"])
    everything, _ = keyed.key("everything")
    near = post(keyed, path, body, scoped)
    assert near.status_code == 404
    assert "Did you mean remembered?" in near.json()["error"]["message"]
    far = post(keyed, path, {**body, "model": "zzzz"}, everything).json()["error"]["message"]
    assert all(name in far for name in ("pick", "cheap", "remembered"))
    for model in ("remembred", "zzzz"):
        message = post(keyed, path, {**body, "model": model}, other).json()["error"]["message"]
        assert "There is small." in message


def test_other_routes_name_only_what_the_key_may_use(keyed: Gateway) -> None:
    other, _ = keyed.key("other", models=["small"])
    response = post(keyed, "/v1/embeddings", {"model": "colour", "input": "red"}, other)
    assert response.status_code == 404
    assert "colours" not in response.text
    with httpx.Client(
        base_url=keyed.server.url, headers={"authorization": f"Bearer {other}"}
    ) as client:
        assert client.get("/v1/models/small").status_code == 200
        assert client.get("/v1/models/pick").status_code == 403
        nowhere = client.get("/v1/models/colour")
        assert nowhere.status_code == 404
        assert "colours" not in nowhere.text
