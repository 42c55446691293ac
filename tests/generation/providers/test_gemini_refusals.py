"""What Google's Gemini API means when it does not answer."""

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
from chiasm.generation.providers.gemini import Gemini
from tests.generation.providers import gemini_shapes as shapes
from tests.generation.providers.asking import answers, asked
from tests.generation.providers.fake_openai import FakeOpenAI, Reply
from tests.generation.providers.gemini_shapes import info, refusal, retry, violation


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI() as fake:
        yield fake


@pytest.fixture
def model(server: FakeOpenAI) -> Iterator[Gemini]:
    address = server.url.removesuffix("/v1")
    with contextlib.closing(Gemini(model="gemini-3.8-flash", base_url=address, key="k")) as model:
        yield model


INVALID = "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("status", "body", "kind", "match"),
    [
        (400, refusal(400, INVALID, "API key not valid. Please pass a valid API key.",
                      info("API_KEY_INVALID")), ProviderKeyRefused, "key"),
        (401, refusal(401, "UNAUTHENTICATED", "Missing credentials"), ProviderKeyRefused, "key"),
        (403, refusal(403, "PERMISSION_DENIED", "Method doesn't allow unregistered callers"),
         ProviderKeyRefused, "key"),
        (400, refusal(400, "FAILED_PRECONDITION", "User location is not supported."),
         ProviderKeyRefused, "key"),
        (404, refusal(404, "NOT_FOUND", "models/gemini-9 is not found for API version v1beta"),
         UnknownModel, "gemini-3.8-flash"),
        (404, b"<html>nginx</html>", GeneratorUnreachable, "/v1beta/models"),
        (429, refusal(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota"), ProviderBusy,
         "no more requests"),
        (429, refusal(429, "RESOURCE_EXHAUSTED", "Your prepayment credits are depleted."),
         ProviderQuotaSpent, "used up"),
        (503, refusal(503, "UNAVAILABLE", "The model is overloaded."), ProviderBusy,
         "no more requests"),
        (500, refusal(500, "INTERNAL", "An internal error has occurred."), GeneratorFailed,
         "status 500"),
        (504, refusal(504, "DEADLINE_EXCEEDED", "Deadline expired"), GeneratorFailed, "status 504"),
        (302, b"", GeneratorFailed, "status 302"),
        (413, b"too large", ImageTooLarge, "more bytes"),
        (400, refusal(400, INVALID, "The input token count (1200000) exceeds the maximum number of "
                      "tokens allowed (1048576)."), ContextExceeded, "1200000"),
        (400, refusal(400, INVALID, "Unable to process input image."), InvalidRequest,
         "Unable to process input image"),
        (400, [refusal(400, INVALID, "In a list, as it comes without alt=sse.")], InvalidRequest,
         "In a list"),
        (400, refusal(400, INVALID, "Odd\r\n\x1b[31m" + "x" * 9000), InvalidRequest,
         r"Odd\[31mx+…$"),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "",
)  # fmt: skip
def test_refusals(
    server: FakeOpenAI, model: Gemini, status: int, body: Any, kind: type[ChiasmError], match: str
) -> None:
    server.script = lambda asked: Reply(status=status, whole=body)
    with pytest.raises(kind, match=match) as caught:
        answers(model, asked())
    assert type(caught.value) is kind
    assert len(server.asked) == 1, "asked again, which is the router's business"


def test_the_field_at_fault(server: FakeOpenAI, model: Gemini) -> None:
    body = refusal(400, INVALID, "Invalid value", violation("generation_config.seed", "too big"))
    server.script = lambda asked: Reply(status=400, whole=body)
    with pytest.raises(InvalidRequest) as caught:
        answers(model, asked())
    assert caught.value.param == "generation_config.seed"


@pytest.mark.parametrize(
    ("details", "headers", "seconds"),
    [
        ([retry("34.074824224s")], {"retry-after": "9"}, pytest.approx(34.074824224)),
        ([info("RATE_LIMIT_EXCEEDED")], {"retry-after": "9"}, 9.0),
        ([retry("soon")], {}, None),
        ([], {}, None),
    ],
)
def test_when_to_come_back(
    server: FakeOpenAI, model: Gemini, details: Any, headers: dict[str, str], seconds: Any
) -> None:
    body = refusal(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota", *details)
    server.script = lambda asked: Reply(status=429, headers=headers, whole=body)
    with pytest.raises(ProviderBusy) as caught:
        answers(model, asked())
    assert caught.value.retry_after == seconds


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ({"code": 503, "status": "UNAVAILABLE", "message": "Overloaded"}, ProviderBusy),
        ({"status": "RESOURCE_EXHAUSTED", "message": "Quota"}, ProviderBusy),
        ({"code": 500, "status": "INTERNAL", "message": "Oh"}, GeneratorFailed),
        ({"status": "INVALID_ARGUMENT", "message": "Odd"}, InvalidRequest),
        ({"message": "?"}, GeneratorFailed),
    ],
)
def test_errors_in_mid_stream(
    server: FakeOpenAI, model: Gemini, error: Any, expected: type[ChiasmError]
) -> None:
    steps = [shapes.chunk({"text": "A "}), {"error": error}]
    server.script = lambda asked: Reply(steps, done=False)
    with pytest.raises(expected) as caught:
        answers(model, asked())
    assert type(caught.value) is expected
