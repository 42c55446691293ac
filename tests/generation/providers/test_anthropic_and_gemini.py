"""What goes wrong with Anthropic's or Google's server, and how connections are kept and let go."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from chiasm.errors import (
    ChiasmError,
    ConfigurationError,
    GeneratorFailed,
    GeneratorUnreachable,
    InvalidRequest,
    ProviderBusy,
    ProviderKeyRefused,
    TimedOut,
)
from chiasm.generation import Completed, Event, Message, Request, TextDelta, ToolCall
from chiasm.generation.providers.address import Address, parse_address
from chiasm.generation.providers.anthropic_messages import AnthropicMessages
from chiasm.generation.providers.gemini import Gemini
from chiasm.generation.providers.hosted import HostedGenerator
from chiasm.generation.providers.loading import generator_at
from chiasm.generation.providers.patience import Patience
from tests.generation.providers import anthropic_shapes, gemini_shapes
from tests.generation.providers.asking import answers, asked, said
from tests.generation.providers.fake_openai import CUT, FakeOpenAI, Reply, Step, event

KEY = "sk-a1b2c3d4e5f6"


@dataclass(frozen=True)
class Api:
    """How one of the two is spoken to, and what it says.

    before: what comes before the first token; token: one; kinds: of errors by what they are for.
    """

    make: type[AnthropicMessages] | type[Gemini]
    model: str
    answer: Callable[..., list[Step]]
    before: list[Step]
    token: Step
    busy: Any
    failed: Any
    refused: Any


def _opened() -> list[Step]:
    return [anthropic_shapes.begin(), anthropic_shapes.block(0, "text", text="")]


APIS = {
    "anthropic": Api(
        AnthropicMessages,
        "claude-opus-5-5",
        anthropic_shapes.answer,
        _opened(),
        anthropic_shapes.delta(0, "text_delta", text="A "),
        anthropic_shapes.refusal("overloaded_error", "Overloaded"),
        anthropic_shapes.refusal("api_error", "Internal server error"),
        anthropic_shapes.refusal("invalid_request_error", "messages.0: too odd"),
    ),
    "gemini": Api(
        Gemini,
        "gemini-3.8-flash",
        gemini_shapes.answer,
        [],
        gemini_shapes.chunk({"text": "A "}),
        gemini_shapes.refusal(503, "UNAVAILABLE", "The model is overloaded."),
        gemini_shapes.refusal(500, "INTERNAL", "An internal error has occurred."),
        gemini_shapes.refusal(400, "INVALID_ARGUMENT", "too odd"),
    ),
}


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI() as fake:
        yield fake


@pytest.fixture(params=list(APIS))
def api(request: pytest.FixtureRequest) -> Api:
    return APIS[request.param]


Connect = Callable[..., HostedGenerator]


@pytest.fixture
def connect(server: FakeOpenAI, api: Api) -> Iterator[Connect]:
    with contextlib.ExitStack() as stack:

        def connecting(**options: Any) -> HostedGenerator:
            address = server.url.removesuffix("/v1")
            settings = {"model": api.model, "base_url": address, "key": KEY, **options}
            return stack.enter_context(contextlib.closing(api.make(**settings)))

        yield connecting


def replying(server: FakeOpenAI, *steps: Step) -> None:
    server.script = lambda asked: Reply(steps, done=False)


# Breaking off -----------------------------------------------------------------------------------


def test_a_cut_anywhere_is_no_end(server: FakeOpenAI, connect: Connect, api: Api) -> None:
    whole = api.answer()
    model = connect()
    for at in range(len(whole)):
        replying(server, *whole[:at], CUT)
        heard: list[Event] = []
        with pytest.raises(GeneratorFailed):
            heard.extend(model.run(asked()))
        assert not any(isinstance(each, Completed) for each in heard), at
    replying(server, *whole)
    assert said(answers(model, asked())) == "A cat sleeps."


def test_a_cut_in_the_middle_of_an_event(server: FakeOpenAI, connect: Connect, api: Api) -> None:
    last = event(api.answer()[-1])  # type: ignore[arg-type]
    for at in (1, len(last) // 2, len(last) - 3):
        replying(server, *api.answer()[:-1], last[:at], CUT)
        with pytest.raises(GeneratorFailed):
            answers(connect(), asked())


def test_a_good_end_that_comes_too_soon(server: FakeOpenAI, connect: Connect, api: Api) -> None:
    """The stream ends as HTTP has it; the answer has not ended."""
    whole = api.answer()
    for at in range(len(whole)):
        replying(server, *whole[:at])
        with pytest.raises(GeneratorFailed, match="ended before its answer did"):
            answers(connect(), asked())


@pytest.mark.parametrize("step", [b"data: {half\n\n", b"data: 7\n\n", b"data: [1]\n\n"], ids=str)
def test_what_is_no_json_object(
    server: FakeOpenAI, connect: Connect, api: Api, step: bytes
) -> None:
    replying(server, *api.before, api.token, step)
    with pytest.raises(GeneratorFailed, match="no part of an answer"):
        answers(connect(), asked())


@pytest.mark.parametrize(
    "step",
    [
        {"type": "content_block_delta", "index": "first", "delta": {}},
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "A"}},
        {"type": "content_block_start", "index": 0, "content_block": None},
        {"type": "message_start"},
        {"type": "message_delta", "usage": {}},
    ],
    ids=str,
)
def test_what_is_no_event_of_anthropics(server: FakeOpenAI, step: Step) -> None:
    address = server.url.removesuffix("/v1")
    replying(server, *_opened(), step)
    with (
        contextlib.closing(AnthropicMessages(model="m", base_url=address)) as model,
        pytest.raises(GeneratorFailed, match="no part of an answer"),
    ):
        answers(model, asked())


@pytest.mark.parametrize(
    "step",
    [
        {"candidates": 7},
        {"candidates": [{"content": "?"}]},
        {"candidates": [{"content": {"parts": ["?"]}}]},
        {"candidates": [{"index": "first"}]},
        {"candidates": [{"content": {"parts": [{"functionCall": {"args": {}}}]}}]},
        {"usageMetadata": "a lot"},
    ],
    ids=str,
)
def test_what_is_no_object_of_googles(server: FakeOpenAI, step: Step) -> None:
    address = server.url.removesuffix("/v1")
    replying(server, step)
    with (
        contextlib.closing(Gemini(model="m", base_url=address)) as model,
        pytest.raises(GeneratorFailed, match="no part of an answer"),
    ):
        answers(model, asked())


@pytest.mark.parametrize(
    ("which", "kind"),
    [("busy", ProviderBusy), ("failed", GeneratorFailed), ("refused", InvalidRequest)],
)
def test_an_error_in_mid_stream(
    server: FakeOpenAI, connect: Connect, api: Api, which: str, kind: type[ChiasmError]
) -> None:
    replying(server, *api.before, api.token, getattr(api, which))
    heard = connect().run(asked())
    assert next(heard) == TextDelta(0, "A ")
    with pytest.raises(kind) as caught:
        list(heard)
    assert type(caught.value) is kind


# Patience ---------------------------------------------------------------------------------------

ALIVE: list[Step] = [b'event: ping\ndata: {"type": "ping"}\n\n', 0.1] * 15
"""Signs that a server is there, which are no tokens."""


def test_silence_before_the_first_token(server: FakeOpenAI, connect: Connect, api: Api) -> None:
    replying(server, *api.before, *ALIVE)
    started = time.monotonic()
    with pytest.raises(GeneratorFailed, match=r"silent for 0\.3 seconds"):
        answers(connect(patience=Patience(first_token=0.3)), asked())
    assert time.monotonic() - started < 1.4


def test_silence_before_the_status(server: FakeOpenAI, connect: Connect, api: Api) -> None:
    def late(asked: Any) -> Reply:
        time.sleep(0.8)
        return Reply(api.answer(), done=False)

    server.script = late
    with pytest.raises(GeneratorFailed, match=r"silent for 0\.2 seconds"):
        answers(connect(patience=Patience(first_token=0.2)), asked())


def test_silence_between_tokens(server: FakeOpenAI, connect: Connect, api: Api) -> None:
    replying(server, *api.before, api.token, *ALIVE)
    heard = connect(patience=Patience(between=0.2)).run(asked())
    assert next(heard) == TextDelta(0, "A ")
    started = time.monotonic()
    with pytest.raises(GeneratorFailed, match=r"silent for 0\.2 seconds"):
        list(heard)
    assert time.monotonic() - started < 1.5


def test_thoughts_that_are_kept_back_are_no_silence(server: FakeOpenAI) -> None:
    """Anthropic may think for minutes between two tools, and says no more than that it does."""
    address = server.url.removesuffix("/v1")
    steps: list[Step] = [*anthropic_shapes.words(0, "A "),
                         anthropic_shapes.block(1, "thinking", thinking="", signature=""), 0.9,
                         anthropic_shapes.close(1), *anthropic_shapes.words(2, "cat."),
                         *anthropic_shapes.end()]  # fmt: skip
    replying(server, anthropic_shapes.begin(), *steps)
    patience = Patience(between=0.5)
    with contextlib.closing(
        AnthropicMessages(model="m", base_url=address, patience=patience)
    ) as model:
        assert said(answers(model, asked())) == "A cat."


def test_a_deadline(server: FakeOpenAI, connect: Connect, api: Api) -> None:
    steps: list[Step]
    for steps in ([*api.before, 0.8], [*api.before, api.token, 0.8]):
        replying(server, *steps)
        with pytest.raises(TimedOut):
            answers(connect(), asked(deadline=0.25))


# Connections ------------------------------------------------------------------------------------


def test_nobody_there(api: Api) -> None:
    with socket.socket() as taken:  # bound, but it does not listen
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with (
            contextlib.closing(api.make(model="m", base_url=url, key=KEY)) as model,
            pytest.raises(GeneratorUnreachable) as caught,
        ):
            answers(model, asked())
    assert type(caught.value) is GeneratorUnreachable
    assert "127.0.0.1" not in str(caught.value)


def test_a_host_that_hangs_up(server: FakeOpenAI, connect: Connect) -> None:
    """Another than nobody: it has been reached, and has perhaps begun to work."""

    def hang_up(asked: Any) -> Reply:
        raise ConnectionResetError

    server.script = hang_up
    with pytest.raises(GeneratorFailed, match="broke"):
        answers(connect(), asked())
    assert len(server.asked) == 1, "asked again, which is the router's business"


def endless(server: FakeOpenAI, api: Api) -> None:
    def steps() -> Iterator[Step]:
        yield from api.before
        while not server.gone.is_set():
            yield api.token
            yield 0.01

    server.script = lambda asked: Reply(steps(), done=False)


def test_who_stops_listening_stops_the_work(server: FakeOpenAI, connect: Connect, api: Api) -> None:
    endless(server, api)
    heard = connect().run(asked())
    assert next(heard) == TextDelta(0, "A ")
    heard.close()  # type: ignore[attr-defined]
    assert server.gone.wait(5)


def test_a_cancelled_task_stops_the_work(server: FakeOpenAI, connect: Connect, api: Api) -> None:
    endless(server, api)
    model = connect()

    async def cancelled() -> None:
        begun = asyncio.Event()

        async def listen() -> None:
            async with contextlib.aclosing(model.stream(asked())) as events:
                async for _ in events:
                    begun.set()

        task = asyncio.create_task(listen())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(server.gone.wait, 5)

    asyncio.run(cancelled())


def test_connections_are_kept_and_shared(server: FakeOpenAI, connect: Connect, api: Api) -> None:
    server.script = lambda asked: Reply(api.answer(), done=False)

    async def one_after_the_other() -> None:
        for model in (connect(), connect(), connect(model="another")):
            async for _ in model.stream(asked()):
                pass

    asyncio.run(one_after_the_other())
    assert len(server.asked) == 3
    assert server.connections == 1


def test_two_at_once_hear_their_own_answers(server: FakeOpenAI, connect: Connect, api: Api) -> None:
    server.script = lambda asked: Reply(
        api.answer(f"You said {'one' if b'number one' in asked.raw else 'two'}."), done=False
    )
    one, two = connect(), connect()

    async def both() -> list[str]:
        async def hear(model: HostedGenerator, words: str) -> str:
            return said([event async for event in model.stream(asked(words))])

        return await asyncio.gather(hear(one, "number one"), hear(two, "number two"))

    assert asyncio.run(both()) == ["You said one.", "You said two."]


def test_one_that_is_closed_leaves_the_other_its_connections(
    server: FakeOpenAI, connect: Connect, api: Api
) -> None:
    server.script = lambda asked: Reply(api.answer(), done=False)
    one, two = connect(), connect()

    async def close_one() -> str:
        async for _ in one.stream(asked()):
            pass
        one.close()
        await asyncio.sleep(0.05)
        return said([event async for event in two.stream(asked())])

    assert asyncio.run(close_one()) == "A cat sleeps."
    assert server.connections == 1


# Making one -------------------------------------------------------------------------------------


def test_what_tells_models_apart(connect: Connect, api: Api) -> None:
    same, again = connect(), connect(key="another")
    others = [connect(model="another"), connect(base_url="http://another.host")]
    assert same.digest == again.digest
    assert len({same.digest, *(other.digest for other in others)}) == 3
    assert (same.name, connect(name="eyes").name) == (api.model, "eyes")


def test_a_server_without_keys_is_sent_none(server: FakeOpenAI, connect: Connect, api: Api) -> None:
    server.script = lambda asked: Reply(api.answer(), done=False)
    answers(connect(key=None, headers={"X-Team": "eyes"}), asked())
    headers = server.asked[0].headers
    assert not headers.keys() & {"authorization", "x-api-key", "x-goog-api-key"}
    assert headers["x-team"] == "eyes"


def test_a_key_is_told_nobody(
    server: FakeOpenAI, connect: Connect, api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    body = {**api.refused, "error": {**api.refused["error"], "message": f"{KEY} is wrong"}}
    server.script = lambda asked: Reply(status=401, whole=body)
    model = connect()
    with caplog.at_level(logging.DEBUG), pytest.raises(ProviderKeyRefused) as caught:
        answers(model, asked())
    for told in (str(caught.value), repr(caught.value), caplog.text, repr(vars(model))):
        assert KEY not in told
    assert server.url.split("/")[2] not in str(caught.value)


@pytest.mark.parametrize(
    "address", ["ftp://host", "http://", "nonsense", "http://name:hunter2@host"]
)
def test_an_address_that_is_none(api: Api, address: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        api.make(model="m", base_url=address, key=KEY)
    assert caught.value.param == "base_url"
    assert "hunter2" not in str(caught.value)


def test_without_the_sdk(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anthropic", None)
    import google

    monkeypatch.setitem(sys.modules, "google.genai", None)
    monkeypatch.delattr(google, "genai")
    with pytest.raises(ConfigurationError, match=r'pip install "chiasm\[providers\]"'):
        api.make(model="m", base_url="http://nobody", key="of nobody")


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("anthropic:claude-opus-5-5", Address((), "claude-opus-5-5", "anthropic")),
        ("gemini:gemini-3.8-flash", Address((), "gemini-3.8-flash", "gemini")),
        ("anthropic:http://host:1/v1#m", Address(("http://host:1/v1",), "m", "anthropic")),
        ("gemini:https://host#m", Address(("https://host",), "m", "gemini")),
    ],
)
def test_addresses(location: str, expected: Address) -> None:
    assert parse_address(location) == expected


def test_a_generator_by_its_address(
    server: FakeOpenAI, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    monkeypatch.setenv("GOOGLE_API_KEY", KEY)
    server.script = lambda asked: Reply(api.answer(), done=False)
    scheme = "anthropic" if api.make is AnthropicMessages else "gemini"
    location = f"{scheme}:{server.url.removesuffix('/v1')}#{api.model}"
    with contextlib.closing(generator_at(parse_address(location))) as model:
        assert isinstance(model, api.make)
        assert said(answers(model, asked())) == "A cat sleeps."
    sent = server.asked[0].headers
    assert KEY in (sent.get("x-goog-api-key"), sent.get("authorization", "").split(" ")[-1])


def test_parts_that_stand_where_they_mean_nothing(connect: Connect) -> None:
    for message in (Message("user", (ToolCall("t", "now", "{}"),)), Message("user", ())):
        with pytest.raises(InvalidRequest):
            answers(connect(), Request((message,)))
