"""A vLLM server behind the generator's protocol: what it is asked, what is made of its answers."""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from chiasm.errors import (
    ChiasmError,
    ConfigurationError,
    ContextExceeded,
    GeneratorFailed,
    GeneratorUnreachable,
    InvalidRequest,
    TimedOut,
)
from chiasm.generation import (
    Completed,
    Event,
    Finished,
    Message,
    Request,
    Sampling,
    TextDelta,
    TextPart,
    Usage,
)
from chiasm.generation.providers.address import Address, parse_address
from chiasm.generation.providers.patience import Patience
from chiasm.generation.providers.vllm import VLLMGenerator
from tests.generation.providers.fake_vllm import (
    CUT,
    FakeVLLM,
    answering,
    chunk,
    refusal,
    role,
    usage,
)
from tests.generation.tiny_models import picture, save, tiny_llava

RED, BLUE = picture((200, 40, 30)), picture((20, 40, 220), size=(17, 23))


@pytest.fixture
def server() -> Iterator[FakeVLLM]:
    with FakeVLLM() as fake:
        yield fake


_OPEN: list[VLLMGenerator] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """No generator looks after servers that are gone."""
    yield
    while _OPEN:
        _OPEN.pop().close()


def connected(*servers: FakeVLLM, model: str | None = None, **options: Any) -> VLLMGenerator:
    urls = tuple(server.url for server in servers)
    _OPEN.append(VLLMGenerator(Address(urls, model), **{"check_seconds": 0.05, **options}))
    return _OPEN[-1]


def asked(*parts: Any, **options: Any) -> Request:
    return Request((Message.user(*(parts or ("What is this?",))),), **options)


def ask(generator: VLLMGenerator, request: Request) -> tuple[str, list[Finished], Usage]:
    events = list(generator.run(request))
    assert isinstance(events[-1], Completed)
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    ends = [event for event in events if isinstance(event, Finished)]
    return text, ends, events[-1].usage


def until(condition: Any, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


# What is asked ----------------------------------------------------------------------------------


def test_it_is_what_the_server_says(server: FakeVLLM) -> None:
    generator = connected(server)
    assert (generator.name, generator.context, generator.sees) == ("tiny-llava", 2048, True)
    assert len(generator.digest) == 64
    server.sees, server.models = False, ["other", "tiny-llava"]
    assert connected(server).name == "other"
    assert not connected(server, model="tiny-llava").sees
    assert connected(server).digest != generator.digest


def test_a_request_in_vllms_words(server: FakeVLLM) -> None:
    request = Request(
        (Message("system", (TextPart("Be brief."),)), Message.user("Say ", "it.")),
        max_tokens=7,
        sampling=Sampling(temperature=0.7, top_p=0.9, top_k=5, seed=11),
        stop=("\n", "END"),
        choices=1,
        logprobs=3,
        schema={"type": "object", "properties": {"a": {"type": "integer"}}},
    )
    ask(connected(server), request)
    (body,) = server.bodies
    assert body["model"] == "tiny-llava"
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Say it."},
    ]
    wanted = {
        "max_tokens": 7, "temperature": 0.7, "top_p": 0.9, "top_k": 5, "seed": 11, "n": 1,
        "stop": ["\n", "END"], "logprobs": True, "top_logprobs": 3, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    assert wanted.items() <= body.items()
    assert body["response_format"]["type"] == "json_schema"
    assert body["response_format"]["json_schema"]["schema"] == request.schema


def test_nothing_is_left_to_the_checkpoints_own_defaults(server: FakeVLLM) -> None:
    ask(connected(server), asked())
    (body,) = server.bodies
    fixed = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0, "min_p": 0.0}
    assert fixed.items() <= body.items()
    assert body["max_tokens"] == 1024
    assert not {"seed", "stop", "logprobs", "response_format"} & set(body)


def test_tenants_share_no_cache_and_are_not_named(server: FakeVLLM) -> None:
    generator = connected(server)
    for tenant in ("", "anna", "anna", "bert"):
        ask(generator, asked(tenant=tenant))
    salts = [body.get("cache_salt") for body in server.bodies]
    assert salts[0] is None
    assert salts[1] == salts[2] != salts[3]
    assert "anna" not in str(server.bodies)


def test_priorities_are_vllms_own(server: FakeVLLM) -> None:
    generator = connected(server)
    ask(generator, asked())
    ask(generator, asked(priority=-3))
    assert "priority" not in server.bodies[0]  # vLLM refuses any where it ranks nobody
    assert server.bodies[1]["priority"] == -3


def test_more_tokens_than_its_context_are_not_asked_for(server: FakeVLLM) -> None:
    ask(connected(server), asked(max_tokens=9000))
    assert server.bodies[0]["max_tokens"] == 2048


def test_pictures_arrive_as_they_are_and_in_their_places(server: FakeVLLM) -> None:
    ask(connected(server), asked(RED, "Or ", BLUE, "?"))
    content = server.bodies[0]["messages"][0]["content"]
    assert [part["type"] for part in content] == ["image_url", "text", "image_url", "text"]
    for part, image in ((content[0], RED), (content[2], BLUE)):
        kind, data = part["image_url"]["url"].split(",")
        assert kind == "data:image/png;base64"
        file = base64.b64decode(data)
        decoded = PIL.Image.open(io.BytesIO(file))
        assert np.array_equal(np.asarray(decoded), image.pixels)
        chunks = {bytes(file[at + 4 : at + 8]) for at in _chunk_starts(file)}
        assert chunks == {b"IHDR", b"IDAT", b"IEND"}


def _chunk_starts(png: bytes) -> Iterator[int]:
    at = 8
    while at < len(png):
        yield at
        at += 12 + int.from_bytes(png[at : at + 4], "big")


def test_the_key_is_sent_and_a_wrong_one_is_named(
    server: FakeVLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.key = "open sesame"
    with pytest.raises(GeneratorUnreachable, match=r"refuses the key.*VLLM_API_KEY"):
        connected(server)
    monkeypatch.setenv("VLLM_API_KEY", "open sesame")
    assert ask(connected(server), asked())[0] == "A cat."


# What is made of the answer ---------------------------------------------------------------------


def test_an_answer(server: FakeVLLM) -> None:
    server.script = lambda body: answering("A cat sleeps.", prompt=38, images=16)
    text, ends, spent = ask(connected(server), asked(RED, "What?"))
    assert (text, ends) == ("A cat sleeps.", [Finished(0, "stop")])
    assert (spent.text_tokens, spent.image_tokens, spent.prompt_tokens) == (22, 16, 38)
    assert (spent.answer_tokens, spent.images, spent.cached_tokens) == (4, 1, 0)
    assert spent.vision_flops == spent.language_flops == 0
    assert 0 < spent.seconds["first_token"] < 5
    assert spent.seconds["decode"] >= 0


def test_it_comes_as_it_is_said(server: FakeVLLM) -> None:
    server.script = lambda body: [role(), chunk("One"), 1.0, *answering(" two")[1:]]
    started = time.perf_counter()
    events = connected(server).run(asked())
    assert next(events) == TextDelta(0, "One")
    assert time.perf_counter() - started < 0.9
    rest = list(events)
    assert isinstance(rest[-1], Completed)
    assert rest[-1].usage.seconds["decode"] > 0.8


def test_several_choices(server: FakeVLLM) -> None:
    server.script = lambda body: [
        role(0), role(1), chunk("a"), chunk("x", choice=1), chunk("b", reason="length"),
        chunk("", choice=1, reason="stop"), usage(9, 4),
    ]  # fmt: skip
    events = list(connected(server).run(asked(choices=2)))
    said = {
        choice: "".join(e.text for e in events if isinstance(e, TextDelta) and e.choice == choice)
        for choice in (0, 1)
    }
    assert said == {0: "ab", 1: "x"}
    assert [e for e in events if isinstance(e, Finished)] == [
        Finished(0, "length"),
        Finished(1, "stop"),
    ]


def test_log_probabilities_wait_for_their_text(server: FakeVLLM) -> None:
    def said(token: str, spelling: list[int], *top: Any) -> dict[str, Any]:
        entry = {"token": token, "logprob": -0.5, "bytes": spelling, "top_logprobs": list(top)}
        return {"content": [entry]}

    other = {"token": "!", "logprob": -2.7479703426361084, "bytes": [33]}
    server.script = lambda body: [
        role(),
        chunk("x", logprobs=said("x", [120], other)),
        chunk("", logprobs=said("\ufffd", [228, 184])),  # two thirds of a character
        chunk("世", reason="length", logprobs=said("\ufffd", [150])),
        usage(5, 3),
    ]
    events = [e for e in connected(server).run(asked(logprobs=1)) if isinstance(e, TextDelta)]
    assert [event.text for event in events] == ["x", "世"]
    (first,), second = events[0].tokens, events[1].tokens
    assert (first.token, first.bytes, first.logprob) == ("x", b"x", -0.5)
    assert [(t.token, t.bytes) for t in first.top] == [("!", b"!")]
    assert b"".join(token.bytes for token in second) == "世".encode()


def test_image_tokens_are_counted_here_where_the_server_does_not_say(
    server: FakeVLLM, tmp_path: Path
) -> None:
    save(tiny_llava(tmp_path / "a"), tmp_path / "model")
    server.root = str(tmp_path / "model")
    _, _, spent = ask(connected(server), asked(RED, BLUE, "Which?"))
    assert (spent.image_tokens, spent.text_tokens) == (32, 6)


def test_it_is_said_once_that_nobody_counts_them(
    server: FakeVLLM, caplog: pytest.LogCaptureFixture
) -> None:
    generator = connected(server)
    with caplog.at_level(logging.WARNING, "chiasm.generation"):
        for _ in range(2):
            _, _, spent = ask(generator, asked(RED, "What?"))
            assert (spent.image_tokens, spent.text_tokens, spent.images) == (0, 38, 1)
    assert caplog.text.count("--enable-prompt-tokens-details") == 1


# What goes wrong --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "said", "kind", "match"),
    [
        (400, refusal("top_k must be 0, got -7.", 400), InvalidRequest, "top_k must be 0"),
        (400, refusal("At most 1 image(s) may be provided.", 400), InvalidRequest, "At most 1"),
        (
            400,
            refusal("The maximum context length is 2048 tokens.", 400, param="input_tokens"),
            ContextExceeded,
            "2048 tokens",
        ),
        (500, refusal("EngineCore encountered an issue.", 500), GeneratorFailed, "status 500"),
        (404, refusal("The model `x` does not exist.", 404), GeneratorUnreachable, "No server"),
        (503, {}, GeneratorUnreachable, "No server"),
        (429, {}, GeneratorUnreachable, "No server"),
    ],
)  # fmt: skip
def test_refusals(
    server: FakeVLLM, status: int, said: Any, kind: type[ChiasmError], match: str
) -> None:
    generator = connected(server)
    server.status, server.script = status, lambda body: [said]
    with pytest.raises(kind, match=match) as caught:
        ask(generator, asked())
    assert type(caught.value) is kind
    assert "127.0.0.1" not in str(caught.value)


def test_a_refusal_after_the_status(server: FakeVLLM) -> None:
    """As for a schema that cannot be followed: vLLM has answered 200 by then."""
    generator = connected(server)
    server.script = lambda body: [refusal("Grammar error: Invalid type: nonsense", 400)]
    with pytest.raises(InvalidRequest, match="Invalid type: nonsense"):
        ask(generator, asked(schema={"type": "nonsense"}))


@pytest.mark.parametrize(
    "steps",
    [
        [role(), chunk("A "), CUT],
        [role(), CUT],
        [role(), chunk("A "), refusal("EngineCore encountered an issue.", 500)],
        [role(), chunk("A ", reason="abort")],
        [role(), chunk("A "), b"data: {half\n\n"],
        [role(), chunk("A "), {"choices": [{"text": "?"}]}],
        [role(), chunk("A "), {"choices": "?"}],
    ],
    ids=["cut", "cut-early", "engine", "abort", "no-json", "no-choice", "no-list"],
)
def test_an_answer_that_breaks_off(server: FakeVLLM, steps: Any) -> None:
    generator = connected(server)
    server.script = lambda body: steps
    heard: list[Event] = []
    with pytest.raises(GeneratorFailed):
        heard.extend(generator.run(asked()))
    assert not any(isinstance(event, Completed) for event in heard)
    server.script = lambda body: answering()
    until(lambda: generator.usable_servers)
    assert ask(generator, asked())[0] == "A cat."


@pytest.mark.parametrize(
    ("steps", "patience"),
    [
        ([role(), 4.0], Patience(first_token=0.2)),
        ([role(), chunk("A "), 4.0], Patience(first_token=5.0, between=0.2)),
    ],
)
def test_silence_ends(server: FakeVLLM, steps: Any, patience: Patience) -> None:
    server.script = lambda body: steps
    generator = connected(server, patience=patience)
    started = time.monotonic()
    with pytest.raises(GeneratorFailed, match=r"silent for 0\.2 seconds"):
        ask(generator, asked())
    assert time.monotonic() - started < 3


@pytest.mark.parametrize("steps", [[role(), 4.0], [role(), chunk("A "), 4.0]])
def test_a_deadline(server: FakeVLLM, steps: Any) -> None:
    server.script = lambda body: steps
    started = time.monotonic()
    with pytest.raises(TimedOut):
        ask(connected(server), asked(deadline=0.3))
    assert time.monotonic() - started < 3


def test_who_stops_listening_stops_the_work(server: FakeVLLM) -> None:
    def endless(body: Any) -> Iterator[Any]:
        yield role()
        while not server.gone.is_set():
            yield chunk("and ")
            yield 0.01

    server.script = endless
    generator = connected(server)

    async def listen_briefly() -> Event:
        events = generator.stream(asked())
        first = await anext(events)
        await events.aclose()
        return first

    assert asyncio.run(listen_briefly()) == TextDelta(0, "and ")
    assert server.gone.wait(5)


def test_a_cancelled_task_stops_the_work(server: FakeVLLM) -> None:
    def endless(body: Any) -> Iterator[Any]:
        yield role()
        while not server.gone.is_set():
            yield chunk("and ")
            yield 0.01

    server.script = endless
    generator = connected(server)

    async def cancelled() -> None:
        begun = asyncio.Event()

        async def listen() -> None:
            async for _ in generator.stream(asked()):
                begun.set()

        task = asyncio.create_task(listen())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert server.gone.wait(5)


def test_what_cannot_be_asked_is_refused_here(server: FakeVLLM) -> None:
    server.sees = False
    generator = connected(server)
    with pytest.raises(InvalidRequest, match="reads text alone"):
        ask(generator, asked(RED, "What?"))
    with pytest.raises(InvalidRequest, match="nothing to answer"):
        ask(generator, Request((Message("system", (TextPart("Be brief."),)),)))
    assert not server.bodies


def test_nobody_there() -> None:
    with pytest.raises(GeneratorUnreachable, match=r"http://127\.0\.0\.1:9 cannot be reached"):
        VLLMGenerator(Address(("http://127.0.0.1:9",)))


def test_another_model_than_wanted(server: FakeVLLM) -> None:
    with pytest.raises(GeneratorUnreachable, match="does not serve small, but tiny-llava"):
        connected(server, model="small")


# Several servers --------------------------------------------------------------------------------


@pytest.fixture
def pair() -> Iterator[tuple[FakeVLLM, FakeVLLM]]:
    with FakeVLLM() as one, FakeVLLM() as two:
        yield one, two


def test_one_dies_and_comes_back(pair: tuple[FakeVLLM, FakeVLLM]) -> None:
    one, two = pair
    generator = connected(one, two)
    one.stop()
    for _ in range(4):
        assert ask(generator, asked())[0] == "A cat."
    assert len(two.bodies) == 4
    assert generator.usable_servers == 1
    one.start()
    until(lambda: generator.usable_servers == 2)
    for _ in range(4):
        ask(generator, asked())
    assert one.bodies


def test_all_die_and_come_back(server: FakeVLLM) -> None:
    generator = connected(server)
    generator.check()
    server.stop()
    with pytest.raises(GeneratorUnreachable):
        ask(generator, asked())
    with pytest.raises(GeneratorUnreachable):
        generator.check()
    server.start()
    until(lambda: generator.usable_servers)
    generator.check()
    assert ask(generator, asked())[0] == "A cat."


def test_a_server_that_says_it_is_not_well_gets_nothing(pair: tuple[FakeVLLM, FakeVLLM]) -> None:
    one, two = pair
    generator = connected(one, two)
    one.healthy = False
    until(lambda: generator.usable_servers == 1)
    for _ in range(3):
        ask(generator, asked())
    assert (len(one.bodies), len(two.bodies)) == (0, 3)


@pytest.mark.parametrize(
    "steps",
    [[CUT], [role(), CUT], [refusal("EngineCore encountered an issue.", 500)]],
    ids=["nothing", "role", "engine"],
)
def test_another_answers_before_the_first_token(
    pair: tuple[FakeVLLM, FakeVLLM], steps: Any
) -> None:
    for dying, other in (pair, pair[::-1]):
        dying.script, other.script = lambda body: steps, lambda body: answering()
        generator = connected(*pair)
        for _ in range(2):
            text, ends, _ = ask(generator, asked())
            assert (text, len(ends)) == ("A cat.", 1)


def test_none_answers_after_the_first_token(pair: tuple[FakeVLLM, FakeVLLM]) -> None:
    one, two = pair
    one.script = two.script = lambda body: [role(), chunk("A "), CUT]
    with pytest.raises(GeneratorFailed):
        ask(connected(one, two), asked())
    assert len(one.bodies) + len(two.bodies) == 1


def test_a_request_that_breaks_servers_breaks_two_at_most() -> None:
    with FakeVLLM() as one, FakeVLLM() as two, FakeVLLM() as three:
        for server in (one, two, three):
            server.script = lambda body: [CUT]
        with pytest.raises(GeneratorFailed):
            ask(connected(one, two, three), asked())
        assert sum(len(server.bodies) for server in (one, two, three)) == 2


def test_a_conversation_stays_with_its_picture(pair: tuple[FakeVLLM, FakeVLLM]) -> None:
    generator = connected(*pair)
    images = [picture((10 * n, 40, 30)) for n in range(12)]
    for _ in range(2):
        for image in images:
            ask(generator, asked(image, "What?"))
    seen = [{_url(body) for body in server.bodies} for server in pair]
    assert not seen[0] & seen[1]
    assert all(seen), "one server got every picture"
    assert sum(map(len, seen)) == 12


def _url(body: dict[str, Any]) -> str:
    return str(body["messages"][0]["content"][0]["image_url"]["url"])


# Addresses --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "urls", "model"),
    [
        ("vllm:http://h:8000", ("http://h:8000",), None),
        ("vllm:http://h:8000/", ("http://h:8000",), None),
        ("vllm:http://h:8000/v1", ("http://h:8000",), None),
        ("vllm:http://h:8000/#org/name", ("http://h:8000",), "org/name"),
        ("vllm:http://a:1,https://b,http://a:1#m", ("http://a:1", "https://b"), "m"),
        ("vllm:http://gate/vllm/one", ("http://gate/vllm/one",), None),
        ("vllm:http://[::1]:8000", ("http://[::1]:8000",), None),
    ],
)
def test_addresses(text: str, urls: tuple[str, ...], model: str | None) -> None:
    assert parse_address(text) == Address(urls, model)


@pytest.mark.parametrize(
    "text",
    ["vllm:", "vllm:#m", "vllm:h:8000", "vllm:ftp://h", "vllm:http://", "vllm:http://h:x",
     "vllm:http://a:1,b:2", "vllm:http://user:secret@h:8000", "vllm:http://h:8000?x=1"],
)  # fmt: skip
def test_bad_addresses(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_address(text)
    assert caught.value.hint
    assert "secret" not in str(caught.value)
