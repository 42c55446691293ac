"""What goes wrong with a server of OpenAI's APIs, whichever of the two is spoken."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from chiasm.errors import (
    ChiasmError,
    ConfigurationError,
    ContentRefused,
    ContextExceeded,
    GeneratorFailed,
    GeneratorUnreachable,
    InvalidRequest,
    ProviderBusy,
    ProviderKeyRefused,
    ProviderQuotaSpent,
    TimedOut,
    UnknownModel,
)
from chiasm.generation import Completed, Event, Message, Request, TextDelta
from chiasm.generation.providers.openai_chat import OpenAIChat
from chiasm.generation.providers.openai_generator import OpenAIGenerator
from chiasm.generation.providers.openai_responses import OpenAIResponses
from chiasm.generation.providers.patience import Patience
from tests.generation.providers.asking import answers, asked, said
from tests.generation.providers.fake_openai import (
    CUT,
    DONE,
    Events,
    FakeOpenAI,
    Reply,
    Step,
    chat_answer,
    responses_answer,
    role,
    text,
)

KEY = "sk-proj-a1b2c3d4e5f6"
APIS = {"chat": OpenAIChat, "responses": OpenAIResponses}


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI() as fake:
        yield fake


@pytest.fixture(params=list(APIS))
def api(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


Connect = Callable[..., OpenAIGenerator]


@pytest.fixture
def connect(server: FakeOpenAI, api: str) -> Iterator[Connect]:
    with contextlib.ExitStack() as stack:

        def connecting(**options: Any) -> OpenAIGenerator:
            settings = {"model": "gpt-5-mini", "base_url": server.url, "key": KEY, **options}
            return stack.enter_context(contextlib.closing(APIS[api](**settings)))

        yield connecting


def answer(api: str, words: str = "A cat sleeps.") -> list[Step]:
    return chat_answer(words) if api == "chat" else responses_answer(words)


def beginning(api: str) -> tuple[list[Step], Step]:
    """What comes before the first token, and a token."""
    if api == "chat":
        return [role()], text("A ")
    make = Events()
    return [*make.begin(), *make.open_message()], make.delta("A ")


def failing(server: FakeOpenAI, status: int, error: Any, **headers: str) -> None:
    whole = {"error": error} if isinstance(error, dict) else error
    server.script = lambda asked: Reply(
        status=status, headers={k.replace("_", "-"): v for k, v in headers.items()}, whole=whole
    )


def error(message: str, type: str, code: str | None = None, param: str | None = None) -> Any:
    """OpenAI's error object."""
    return {"message": message, "type": type, "param": param, "code": code}


# Refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "said_", "kind", "match"),
    [
        (401, error(f"Incorrect API key provided: {KEY}.", "invalid_request_error",
                    "invalid_api_key"), ProviderKeyRefused, "key"),
        (403, error("Country not supported", "request_forbidden",
                    "unsupported_country_region_territory"), ProviderKeyRefused, "key"),
        (404, error("The model `x` does not exist or you do not have access to it.",
                    "invalid_request_error", "model_not_found"), UnknownModel, "gpt-5-mini"),
        (404, b"<html>nginx</html>", GeneratorUnreachable, "/v1"),
        (408, error("Timeout", "timeout"), ProviderBusy, "no more requests"),
        (409, error("Conflict", "conflict"), ProviderBusy, "no more requests"),
        (429, error("Rate limit reached", "requests", "rate_limit_exceeded"), ProviderBusy,
         "no more requests"),
        (429, error("You exceeded your current quota", "insufficient_quota",
                    "insufficient_quota"), ProviderQuotaSpent, "used up"),
        (503, error("Slow down", "service_unavailable_error", "slow_down"), ProviderBusy,
         "no more requests"),
        (500, error("The server had an error", "server_error"), GeneratorFailed, "status 500"),
        (502, b"<html>Bad gateway</html>", GeneratorFailed, "status 502"),
        (307, b"", GeneratorFailed, "status 307"),
        (400, error("This model's maximum context length is 128000 tokens.",
                    "invalid_request_error", "context_length_exceeded", "messages"),
         ContextExceeded, "128000 tokens"),
        (400, {"code": 400, "type": "exceed_context_size_error", "n_ctx": 4096,
               "message": "the request exceeds the available context size"},  # llama.cpp
         ContextExceeded, "context size"),
        (400, error("Your input image may contain content that is not allowed",
                    "invalid_request_error", "content_policy_violation"), ContentRefused, "rules"),
        (400, {"code": "content_filter", "message": "The response was filtered", "status": 400,
               "innererror": {"code": "ResponsibleAIPolicyViolation"}}, ContentRefused, "rules"),
        (400, error("Invalid prompt: we've limited access to this content for safety reasons.",
                    "invalid_request_error", "invalid_prompt"), ContentRefused, "rules"),
        (400, error("Unsupported value: 'temperature' does not support 0.2 with this model.",
                    "invalid_request_error", "unsupported_value", "temperature"),
         InvalidRequest, "'temperature' does not support 0.2"),
        (400, error("Invalid image.\r\n\x1b[31m" + "x" * 9000, "invalid_request_error",
                    "image_parse_error"), InvalidRequest, r"Invalid image\.\[31mx+…$"),
        (413, b"too large", InvalidRequest, "does not say why"),
        (422, {"detail": "n must be 1"}, InvalidRequest, "refuses the request"),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "",
)  # fmt: skip
def test_refusals(
    server: FakeOpenAI, connect: Connect, status: int, said_: Any, kind: type[ChiasmError],
    match: str, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    failing(server, status, said_)
    model = connect()
    with caplog.at_level(logging.DEBUG), pytest.raises(kind, match=match) as caught:
        answers(model, asked())
    assert type(caught.value) is kind
    for told in (str(caught.value), repr(caught.value), caplog.text, repr(vars(model))):
        assert KEY not in told
    assert server.url.split("/")[2] not in str(caught.value)
    assert len(server.asked) == 1, "asked again, which is the router's business"


def test_the_field_at_fault(server: FakeOpenAI, connect: Connect) -> None:
    failing(server, 400, error("No.", "invalid_request_error", "unsupported_value", "temperature"))
    with pytest.raises(InvalidRequest) as caught:
        answers(connect(), asked())
    assert caught.value.param == "temperature"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry_after": "7"}, 7.0),
        ({"retry_after_ms": "250", "retry_after": "1"}, 0.25),
        ({"x_ratelimit_remaining_requests": "0", "x_ratelimit_reset_requests": "1m2.5s",
          "x_ratelimit_remaining_tokens": "9", "x_ratelimit_reset_tokens": "6h"}, 62.5),
        ({"x_ratelimit_remaining_tokens": "0", "x_ratelimit_reset_tokens": "120ms"}, 0.12),
        ({}, None),
        ({"retry_after": "soon"}, None),
        ({"retry_after": "nan"}, None),
    ],
)  # fmt: skip
def test_when_to_come_back(
    server: FakeOpenAI, connect: Connect, headers: Any, seconds: float | None
) -> None:
    failing(server, 429, error("Rate limit reached", "tokens", "rate_limit_exceeded"), **headers)
    with pytest.raises(ProviderBusy) as caught:
        answers(connect(), asked())
    assert caught.value.retry_after == seconds


def test_a_date_to_come_back(server: FakeOpenAI, connect: Connect) -> None:
    from email.utils import formatdate

    failing(server, 429, error("Wait", "requests"), retry_after=formatdate(time.time() + 40))
    with pytest.raises(ProviderBusy) as caught:
        answers(connect(), asked())
    assert caught.value.retry_after == pytest.approx(40, abs=3)


# Breaking off -----------------------------------------------------------------------------------


def test_a_cut_anywhere_is_no_end(server: FakeOpenAI, connect: Connect, api: str) -> None:
    whole = answer(api)
    model = connect()
    last = len(whole) - (2 if api == "chat" else 1)  # of chat the bill is missing, not the answer
    for at in range(last):
        server.script = lambda asked, at=at: Reply([*whole[:at], CUT])  # type: ignore[misc]
        heard: list[Event] = []
        with pytest.raises(GeneratorFailed):
            heard.extend(model.run(asked()))
        assert not any(isinstance(event, Completed) for event in heard), at
    server.script = lambda asked: Reply(whole)
    assert said(answers(model, asked())) == "A cat sleeps."


def test_a_good_end_that_comes_too_soon(server: FakeOpenAI, connect: Connect, api: str) -> None:
    """The stream ends as HTTP has it, and says that it is done; the answer has not ended."""
    before, token = beginning(api)
    for steps in ([], before, [*before, token]):
        server.script = lambda asked, steps=steps: Reply(steps)  # type: ignore[misc]
        with pytest.raises(GeneratorFailed, match="ended before its answer did"):
            answers(connect(), asked())


@pytest.mark.parametrize(
    "step",
    [
        b"data: {half\n\n",
        b"data: 7\n\n",
        b"data: [1]\n\n",
        {"choices": [{"text": "?"}]},
        {"choices": "?"},
        {"choices": [{"index": "first", "delta": {}}]},
        {"choices": [], "usage": "a lot"},
    ],
    ids=str,
)
def test_what_is_no_part_of_an_answer(server: FakeOpenAI, step: Any) -> None:
    with contextlib.closing(OpenAIChat(model="m", base_url=server.url)) as model:
        encoded = step if isinstance(step, bytes) else _data(step)
        server.script = lambda asked: Reply([role(), text("A "), encoded])
        with pytest.raises(GeneratorFailed, match="no part of an answer"):
            answers(model, asked())


def _data(step: Any) -> bytes:
    import json

    return f"data: {json.dumps(step)}\n\n".encode()


@pytest.mark.parametrize(
    ("said_", "kind"),
    [
        (error("The server had an error", "server_error"), GeneratorFailed),
        (error("Slow down", "requests", "rate_limit_exceeded"), ProviderBusy),
        ({"message": "Grammar error", "type": "BadRequestError", "code": 400}, InvalidRequest),
        (error("Flagged", "invalid_request_error", "content_policy_violation"), ContentRefused),
    ],
)
@pytest.mark.parametrize("form", ["data", "event", "field"])
def test_an_error_in_mid_stream(
    server: FakeOpenAI, connect: Connect, api: str, said_: Any, kind: type[ChiasmError], form: str
) -> None:
    import json

    before, token = beginning(api)
    step = {
        "data": _data({"error": said_}),
        "event": b"event: error\n" + _data(said_),
        "field": f"error: {json.dumps(said_)}\n\n".encode(),
    }[form]
    server.script = lambda asked: Reply([*before, token, step])
    heard = connect().run(asked())
    assert next(heard) == TextDelta(0, "A ")
    with pytest.raises(kind) as caught:
        list(heard)
    assert type(caught.value) is kind


# Patience ---------------------------------------------------------------------------------------


ALIVE: list[Step] = [b": still here\n\n", 0.1] * 15
"""Signs that a server is there, which are no tokens."""


def test_silence_before_the_first_token(server: FakeOpenAI, connect: Connect, api: str) -> None:
    before, _ = beginning(api)
    server.script = lambda asked: Reply([*before, *ALIVE])
    started = time.monotonic()
    with pytest.raises(GeneratorFailed, match=r"silent for 0\.3 seconds"):
        answers(connect(patience=Patience(first_token=0.3)), asked())
    assert time.monotonic() - started < 1.2


def test_silence_before_the_status(server: FakeOpenAI, connect: Connect, api: str) -> None:
    def late(asked: Any) -> Reply:
        time.sleep(1.0)
        return Reply(answer(api))

    server.script = late
    with pytest.raises(GeneratorFailed, match=r"silent for 0\.2 seconds"):
        answers(connect(patience=Patience(first_token=0.2)), asked())


def test_silence_between_tokens(server: FakeOpenAI, connect: Connect, api: str) -> None:
    before, token = beginning(api)
    server.script = lambda asked: Reply([*before, token, *ALIVE])
    heard = connect(patience=Patience(between=0.2)).run(asked())
    assert next(heard) == TextDelta(0, "A ")
    started = time.monotonic()
    with pytest.raises(GeneratorFailed, match=r"silent for 0\.2 seconds"):
        list(heard)
    assert time.monotonic() - started < 1.5


def test_tokens_that_come_slowly_are_no_silence(
    server: FakeOpenAI, connect: Connect, api: str
) -> None:
    before, token = beginning(api)
    server.script = lambda asked: Reply([*before, *[token, 0.15] * 5])
    with pytest.raises(GeneratorFailed, match="ended before"):
        answers(connect(patience=Patience(between=0.5)), asked())


def test_a_slow_listener_is_no_silence(server: FakeOpenAI, connect: Connect, api: str) -> None:
    server.script = lambda asked: Reply(answer(api))
    heard = connect(patience=Patience(between=0.2)).run(asked())
    first = next(heard)
    time.sleep(0.5)
    assert said([first, *heard]) == "A cat sleeps."


def test_a_deadline(server: FakeOpenAI, connect: Connect, api: str) -> None:
    before, token = beginning(api)
    for steps in ([*before, 1.0], [*before, token, 1.0]):
        server.script = lambda asked, steps=steps: Reply(steps)  # type: ignore[misc]
        with pytest.raises(TimedOut):
            answers(connect(), asked(deadline=0.25))


# Connections ------------------------------------------------------------------------------------


def test_nobody_there(api: str) -> None:
    with socket.socket() as taken:  # bound, but it does not listen
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with (
            contextlib.closing(APIS[api](model="m", base_url=url, key=KEY)) as model,
            pytest.raises(GeneratorUnreachable) as caught,
        ):
            answers(model, asked())
    assert type(caught.value) is GeneratorUnreachable
    assert "127.0.0.1" not in str(caught.value)


def test_nobody_accepts(api: str) -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):  # its queue is full: who comes next waits
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        patience = Patience(connect=0.2)
        model = APIS[api](model="m", base_url=url, patience=patience)
        stack.enter_context(contextlib.closing(model))
        with pytest.raises(GeneratorUnreachable) as caught:
            answers(model, asked())
        assert type(caught.value) is GeneratorUnreachable


def test_pictures_are_sent_nowhere_else(server: FakeOpenAI, connect: Connect, api: str) -> None:
    """A server may not send a question on to another."""

    def elsewhere(asked: Any) -> Reply:
        if asked.path == "/elsewhere":
            return Reply(answer(api))
        return Reply(status=307, headers={"location": "/elsewhere"}, whole=b"")

    server.script = elsewhere
    with pytest.raises(GeneratorFailed, match="status 307"):
        answers(connect(), asked())
    assert len(server.asked) == 1


def test_a_host_that_hangs_up(server: FakeOpenAI, connect: Connect) -> None:
    """Another than nobody: it has been reached, and has perhaps begun to work."""

    def hang_up(asked: Any) -> Reply:
        raise ConnectionResetError

    server.script = hang_up
    with pytest.raises(GeneratorFailed, match="broke"):
        answers(connect(), asked())


def test_what_is_no_http(api: str) -> None:
    import threading

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def talk() -> None:
            with contextlib.suppress(OSError):
                peer, _ = listener.accept()
                with peer:
                    peer.recv(65536)
                    peer.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

        threading.Thread(target=talk, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        with (
            contextlib.closing(APIS[api](model="m", base_url=url)) as model,
            pytest.raises(GeneratorFailed, match="broke"),
        ):
            answers(model, asked())


def endless(server: FakeOpenAI, api: str) -> None:
    before, token = beginning(api)

    def steps() -> Iterator[Step]:
        yield from before
        while not server.gone.is_set():
            yield token
            yield 0.01

    server.script = lambda asked: Reply(steps())


def test_who_stops_listening_stops_the_work(server: FakeOpenAI, connect: Connect, api: str) -> None:
    endless(server, api)
    heard = connect().run(asked())
    assert next(heard) == TextDelta(0, "A ")
    heard.close()  # type: ignore[attr-defined]
    assert server.gone.wait(5)


def test_a_cancelled_task_stops_the_work(server: FakeOpenAI, connect: Connect, api: str) -> None:
    endless(server, api)
    model = connect()

    async def cancelled() -> None:
        begun = asyncio.Event()

        async def listen() -> None:
            async for _ in model.stream(asked()):
                begun.set()

        task = asyncio.create_task(listen())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(server.gone.wait, 5)

    asyncio.run(cancelled())


def test_one_connection_is_used_again_and_shared(
    server: FakeOpenAI, connect: Connect, api: str
) -> None:
    """By all models of a provider and key; another key has its own."""
    server.script = lambda asked: Reply([*answer(api), DONE, 0.03], done=False)
    models = [connect(), connect(model="gpt-5")]

    async def hear(model: OpenAIGenerator) -> str:
        return said([event async for event in model.stream(asked())])

    async def one_after_another() -> None:
        for model in (*models, *models):
            assert await hear(model) == "A cat sleeps."
        assert server.connections == 1
        assert await hear(connect(key="sk-other")) == "A cat sleeps."
        assert server.connections == 2

    asyncio.run(one_after_another())
    assert [each.body["model"] for each in server.asked[:2]] == ["gpt-5-mini", "gpt-5"]
    assert server.asked[-1].headers["authorization"] == "Bearer sk-other"


def test_two_questions_at_once(server: FakeOpenAI, connect: Connect, api: str) -> None:
    def parrot(asked_: Any) -> Reply:
        words = "one" if b"one" in asked_.raw else "two"
        return Reply([0.1, *answer(api, f"{words} {words}")])

    server.script = parrot
    model = connect()

    async def both() -> list[str]:
        async def hear(word: str) -> str:
            return said([event async for event in model.stream(asked(word))])

        return await asyncio.gather(hear("one"), hear("two"), hear("one"))

    assert asyncio.run(both()) == ["one one", "two two", "one one"]


def test_one_closes_and_another_goes_on(server: FakeOpenAI, api: str) -> None:
    server.script = lambda asked: Reply(answer(api))
    staying, leaving = (APIS[api](model="m", base_url=server.url, key=KEY) for _ in range(2))

    async def hear() -> str:
        return said([event async for event in staying.stream(asked())])

    async def closing() -> None:
        await hear()
        leaving.close()
        assert await hear() == "A cat sleeps."
        assert server.connections == 1
        staying.close()
        await asyncio.to_thread(until, lambda: not server.open)

    asyncio.run(closing())


def test_who_has_no_event_loop_leaves_no_connection(
    server: FakeOpenAI, connect: Connect, api: str
) -> None:
    server.script = lambda asked: Reply(answer(api))
    answers(connect(), asked())
    until(lambda: not server.open)


def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


def test_a_server_without_keys_is_sent_none(server: FakeOpenAI, connect: Connect, api: str) -> None:
    server.script = lambda asked: Reply(answer(api))
    answers(connect(key=None), asked())
    assert "authorization" not in server.asked[0].headers


def test_headers_of_the_operator(
    server: FakeOpenAI, connect: Connect, api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-7")
    server.script = lambda asked: Reply(answer(api))
    answers(connect(headers={"X-Team": "vision"}), asked())
    assert server.asked[0].headers["x-team"] == "vision"
    assert server.asked[0].headers["openai-organization"] == "org-7"


@pytest.mark.parametrize(
    "url", ["host:8000", "ftp://host/v1", "http://", "http://user:secret@host/v1", "http://h:x/"]
)
def test_bad_addresses(url: str, api: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        APIS[api](model="m", base_url=url, key=KEY)
    assert caught.value.hint
    assert "secret" not in str(caught.value)


def test_models_are_told_apart(server: FakeOpenAI, connect: Connect) -> None:
    one, same, other = connect(), connect(), connect(model="gpt-5")
    assert one.digest == same.digest != other.digest
    assert len(one.digest) == 64
    assert KEY not in repr(vars(one))


def test_without_the_sdk(monkeypatch: pytest.MonkeyPatch, api: str) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ConfigurationError, match=r'pip install "chiasm\[providers\]"'):
        APIS[api](model="m", base_url="http://host/v1", key="another")


def test_the_sdk_is_not_imported_before_it_is_needed() -> None:
    import subprocess

    code = (
        "import sys, chiasm.generation.loading, chiasm.generation.providers.openai_chat, "
        "chiasm.generation.providers.openai_responses, chiasm.server\n"
        "assert not {'openai', 'httpx2', 'aiohttp'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_message_of_many_megabytes_of_words(
    server: FakeOpenAI, connect: Connect, api: str
) -> None:
    server.script = lambda asked: Reply(answer(api))
    words = "ä\ud800\x00\U0001f600" * 400_000
    answers(connect(), Request((Message.user(words),)))
    content = (
        server.asked[0].body["messages"][0]["content"]
        if api == "chat"
        else server.asked[0].body["input"][0]["content"][0]["text"]
    )
    assert content == words
