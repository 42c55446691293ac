"""What Anthropic's API means when it does not answer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

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
from chiasm.generation.providers.anthropic_messages import AnthropicMessages
from tests.generation.providers import anthropic_shapes as shapes
from tests.generation.providers.anthropic_shapes import refusal
from tests.generation.providers.asking import answers, asked
from tests.generation.providers.fake_openai import FakeOpenAI, Reply


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI() as fake:
        yield fake


@pytest.fixture
def model(server: FakeOpenAI) -> Iterator[AnthropicMessages]:
    address = server.url.removesuffix("/v1")
    model = AnthropicMessages(model="claude-opus-5-5", base_url=address, key="sk-ant-1")
    with contextlib.closing(model):
        yield model


INVALID = "invalid_request_error"


@pytest.mark.parametrize(
    ("status", "body", "kind", "match"),
    [
        (401, refusal("authentication_error", "invalid bearer token"), ProviderKeyRefused, "key"),
        (403, refusal("permission_error", "Your API key does not have permission"),
         ProviderKeyRefused, "key"),
        (402, refusal("billing_error", "Check your payment details"), ProviderQuotaSpent,
         "used up"),
        (400, refusal(INVALID, "Your credit balance is too low to access the Anthropic API."),
         ProviderQuotaSpent, "used up"),
        (400, refusal(INVALID, "You have reached your specified API usage limits. You will regain "
                      "access on 2026-12-01 at 00:00 UTC."), ProviderQuotaSpent, "used up"),
        (429, refusal("rate_limit_error", "Monthly threshold", "enforced_spend_limit_reached"),
         ProviderQuotaSpent, "used up"),
        (429, refusal("rate_limit_error", "This request would exceed your rate limit"),
         ProviderBusy, "no more requests"),
        (409, refusal("conflict_error", "Conflict"), ProviderBusy, "no more requests"),
        (529, refusal("overloaded_error", "Overloaded"), ProviderBusy, "no more requests"),
        (503, b"<html>", ProviderBusy, "no more requests"),
        (500, refusal("api_error", "Internal server error"), GeneratorFailed, "status 500"),
        (504, refusal("timeout_error", "Request timed out"), GeneratorFailed, "status 504"),
        (502, b"<html>Bad gateway</html>", GeneratorFailed, "status 502"),
        (307, b"", GeneratorFailed, "status 307"),
        (404, refusal("not_found_error", "model: claude-opus-9"), UnknownModel, "claude-opus-5-5"),
        (404, b"<html>nginx</html>", GeneratorUnreachable, "/v1/messages"),
        (413, refusal("request_too_large", "Request exceeds the maximum size"), ImageTooLarge,
         "more bytes"),
        (413, b"too large", ImageTooLarge, "more bytes"),
        (400, refusal(INVALID, "prompt is too long: 208310 tokens > 200000 maximum"),
         ContextExceeded, "208310 tokens"),
        (400, refusal(INVALID, "input length and `max_tokens` exceed context limit: 199000 + "
                      "8192 > 200000, decrease one of them"), ContextExceeded, "199000"),
        (400, refusal(INVALID, "temperature is not supported on this model"), InvalidRequest,
         "temperature is not supported"),
        (400, refusal(INVALID, "Could not process image\r\n\x1b[31m" + " x" * 9000), InvalidRequest,
         r"Could not process image\[31m[ x]+…$"),
        (422, {"detail": "odd"}, InvalidRequest, "does not say why"),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "",
)  # fmt: skip
def test_refusals(
    server: FakeOpenAI, model: AnthropicMessages, status: int, body: Any,
    kind: type[ChiasmError], match: str,
) -> None:  # fmt: skip
    server.script = lambda asked: Reply(status=status, whole=body)
    with pytest.raises(kind, match=match) as caught:
        answers(model, asked())
    assert type(caught.value) is kind
    assert len(server.asked) == 1, "asked again, which is the router's business"


def test_the_field_at_fault(server: FakeOpenAI, model: AnthropicMessages) -> None:
    said = "messages.0.content.1.image.source.base64.data: image dimensions exceed max allowed size"
    server.script = lambda asked: Reply(status=400, whole=refusal(INVALID, said))
    with pytest.raises(InvalidRequest) as caught:
        answers(model, asked())
    assert caught.value.param == "messages.0.content.1.image.source.base64.data"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [({"retry-after": "17"}, 17.0), ({"retry-after": "soon"}, None), ({}, None)],
)
def test_when_to_come_back(
    server: FakeOpenAI, model: AnthropicMessages, headers: dict[str, str], seconds: float | None
) -> None:
    body = refusal("rate_limit_error", "This request would exceed your rate limit")
    server.script = lambda asked: Reply(status=429, headers=headers, whole=body)
    with pytest.raises(ProviderBusy) as caught:
        answers(model, asked())
    assert caught.value.retry_after == seconds


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("overloaded_error", ProviderBusy),
        ("rate_limit_error", ProviderBusy),
        ("api_error", GeneratorFailed),
        ("timeout_error", GeneratorFailed),
        ("authentication_error", ProviderKeyRefused),
        ("invalid_request_error", InvalidRequest),
        ("sun_spot_error", GeneratorFailed),
    ],
)
def test_errors_in_mid_stream(
    server: FakeOpenAI, model: AnthropicMessages, kind: str, expected: type[ChiasmError]
) -> None:
    steps = [shapes.begin(), *shapes.words(0, "A "), shapes.broken(kind, "Oh")]
    server.script = lambda asked: Reply(steps, done=False)
    with pytest.raises(expected) as caught:
        answers(model, asked())
    assert type(caught.value) is expected
