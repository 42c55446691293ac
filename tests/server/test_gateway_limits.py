"""What callers cannot do at the gateway: learn what is not theirs, or ask more than they may."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from chiasm.operations.budgets import Budget
from tests.generation.providers.fake_openai import Reply
from tests.server.conftest import add, data_url, error_of, picture
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


# Rates ------------------------------------------------------------------------------------------

PICTURE = {"width": 100, "height": 100}
ROUTES: list[tuple[str, str, Any]] = [
    ("POST", "/v1/plan", {"pictures": [PICTURE], "models": ["small"]}),
    ("POST", "/v1/messages/count_tokens", {"model": "small", "messages": ASKED}),
    ("POST", "/v1/responses/input_tokens", {"model": "small", "input": "What?"}),
    ("POST", "/v1/collections/shop/search", {"text": "red"}),
    ("POST", "/v1/embeddings", {"input": "red"}),
    ("POST", "/v1/collections/shop/items", {"items": [{"image": data_url(picture("red"))}]}),
    ("GET", "/v1/collections/shop/items", None),
    ("GET", "/v1/collections/shop", None),
    ("GET", "/v1/collections", None),
    ("GET", "/v1/models", None),
    ("GET", "/v1/models/small", None),
]


def test_a_keys_rate_holds_on_every_route(keyed: Gateway) -> None:
    everything, _ = keyed.key("everything")
    assert post(keyed, "/v1/collections", {"name": "shop"}, everything).status_code == 201
    for number, (method, path, body) in enumerate(ROUTES):
        secret, _ = keyed.key(f"key {number}", requests_per_minute=1)
        with httpx.Client(
            base_url=keyed.server.url, headers={"authorization": f"Bearer {secret}"}, timeout=60
        ) as client:
            statuses = [client.request(method, path, json=body).status_code for _ in range(2)]
        assert statuses == [200, 429], path


def test_a_gallery_is_shown_whole(keyed: Gateway) -> None:
    secret, _ = keyed.key("gallery", requests_per_minute=3)
    headers = {"authorization": f"Bearer {secret}"}
    with httpx.Client(base_url=keyed.server.url, headers=headers, timeout=60) as client:
        assert client.post("/v1/collections", json={"name": "shop"}).status_code == 201
        (added,) = add(client, "/v1/collections/shop", picture("red"))
        thumbnail = f"/v1/collections/shop/items/{added['id']}/thumbnail"
        assert [client.get(thumbnail).status_code for _ in range(5)] == [200] * 5
        image_path = thumbnail.replace("thumbnail", "image")
        assert [client.get(image_path).status_code for _ in range(2)] == [200, 429]


def test_a_search_is_in_the_ledger_and_in_the_budget(keyed: Gateway) -> None:
    secret, key = keyed.key("search", budgets=[Budget.parse("requests/day=2")])
    post(keyed, "/v1/collections", {"name": "shop"}, secret)
    for body in ({"text": "a red cat"}, {"image": data_url(picture("red"))}):
        assert post(keyed, "/v1/collections/shop/search", body, secret).status_code == 200
    refused = post(keyed, "/v1/collections/shop/search", {"text": "red"}, secret)
    assert (refused.status_code, error_of(refused)["code"]) == (429, "insufficient_quota")
    rows = [row for row in keyed.rows() if row.route == "/v1/collections/shop/search"]
    assert [(row.status, row.key, row.images, row.text_tokens) for row in rows] == [
        (429, key.id, 0, 0),
        (200, key.id, 1, 0),
        (200, key.id, 0, 3),
    ]
    assert {row.model for row in rows} == {"colours"}


# Plans ------------------------------------------------------------------------------------------


def planned(server: Gateway, key: str, *models: str) -> set[str]:
    body = {"pictures": [PICTURE]} | ({"models": models} if models else {})
    response = post(server, "/v1/plan", body, key)
    assert response.status_code == 200, response.text
    return {row["model"] for row in response.json()["data"]}


def test_what_an_alias_reaches_may_be_planned(keyed: Gateway) -> None:
    scoped, _ = keyed.key("scoped", models=["pick"])
    reached = {"first/gpt-4o", "second/gpt-4o"}
    assert planned(keyed, scoped) == reached
    assert planned(keyed, scoped, "pick") == reached
    assert planned(keyed, scoped, "second/gpt-4o") == {"second/gpt-4o"}
    everything, _ = keyed.key("everything")
    assert planned(keyed, everything) > reached | {"first/gpt-5-mini", "away/m"}


def test_what_it_does_not_reach_may_not(keyed: Gateway) -> None:
    scoped, _ = keyed.key("scoped", models=["pick", "remembr*"])
    for model in ("small", "first/gpt-5-mini", "remembered"):
        response = post(keyed, "/v1/plan", {"pictures": [PICTURE], "models": [model]}, scoped)
        assert response.status_code == 403
    body = {"pictures": [PICTURE], "models": ["remembr"]}
    unknown = post(keyed, "/v1/plan", body, scoped)
    assert unknown.status_code == 404
    message = error_of(unknown)["message"]
    assert "remembered" not in message
    assert "gpt-5-mini" not in message
    assert "pick" in message
