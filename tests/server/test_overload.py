"""More questions than can be answered, over HTTP."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import pytest
import torch
from starlette.requests import ClientDisconnect

from chiasm.generation import ImagePart, Message, NativeGenerator
from chiasm.generation.engine.engine import Engine
from chiasm.media.encoded import read_encoded
from chiasm.media.limits import Limits
from chiasm.server import create_app
from chiasm.server.local import move_to_disk
from chiasm.settings import ServerSettings
from tests.generation.tiny_models import tiny_llava
from tests.server.conftest import (
    ColourEmbedder,
    LiveServer,
    error_of,
    image_part,
    make_settings,
    picture,
)

RED = image_part(picture("red"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server that answers one question at a time and lets two wait."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("small")
    generator = NativeGenerator(tiny_llava(folder / "model"), running=1)
    settings = make_settings(folder)
    server: ServerSettings = replace(settings.server, max_waiting=2)
    settings = replace(settings, server=server)
    app = create_app(settings, embedder=ColourEmbedder(), generator=generator)
    with LiveServer(app) as live:
        httpx.get(f"{live.url}/readyz", timeout=60)
        yield live


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """While it is closed, the engine takes no step."""
    opened = threading.Event()
    step = Engine.step

    def waiting(self: Engine) -> None:
        opened.wait(30)
        step(self)

    monkeypatch.setattr(Engine, "step", waiting)
    yield opened
    opened.set()


def ask(live: LiveServer, **more: Any) -> httpx.Response:
    content = [RED, {"type": "text", "text": "What is this?"}]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 4, **more}
    return httpx.post(f"{live.url}/v1/chat/completions", json=body, timeout=60)


def queue(live: LiveServer) -> tuple[int, int]:
    state = httpx.get(f"{live.url}/readyz", timeout=60).json()
    return state["answering"], state["waiting"]


def wait_for(live: LiveServer, wanted: tuple[int, int]) -> None:
    deadline = time.monotonic() + 30
    while queue(live) != wanted:
        assert time.monotonic() < deadline, queue(live)
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_the_queue_is_bounded_and_whoever_waits_is_answered(
    small: LiveServer, gate: threading.Event, stream: bool
) -> None:
    with ThreadPoolExecutor(8) as threads:
        admitted = [threads.submit(ask, small, stream=stream) for _ in range(3)]
        wait_for(small, (3, 0))
        waiting = [threads.submit(ask, small, stream=stream) for _ in range(2)]
        wait_for(small, (3, 2))
        refused = ask(small, stream=stream)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert error_of(refused)["code"] == "queue_full"
        assert error_of(refused)["type"] == "rate_limit_error"
        gate.set()
        answers = [each.result() for each in (*admitted, *waiting)]
    assert [answer.status_code for answer in answers] == [200] * 5
    assert len({answer.text.count("content") for answer in answers}) == 1
    wait_for(small, (0, 0))


def test_searches_do_not_queue_behind_questions(small: LiveServer, gate: threading.Event) -> None:
    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(ask, small) for _ in range(5)]
        wait_for(small, (3, 2))
        found = httpx.post(f"{small.url}/v1/embeddings", json={"input": "red"}, timeout=60)
        assert found.status_code == 200
        gate.set()
        assert all(each.result().status_code == 200 for each in asked)


def test_whoever_hangs_up_while_waiting_leaves_the_queue(
    small: LiveServer, gate: threading.Event
) -> None:
    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(ask, small) for _ in range(3)]
        wait_for(small, (3, 0))
        body = {"messages": [{"role": "user", "content": "Hello?"}], "max_tokens": 4}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{small.url}/v1/chat/completions", json=body, timeout=0.3)
        wait_for(small, (3, 0))
        gate.set()
        assert all(each.result().status_code == 200 for each in asked)
    wait_for(small, (0, 0))


def test_streams_that_nobody_reads_give_their_places_back(small: LiveServer) -> None:
    body = {"messages": [{"role": "user", "content": "Hello?"}], "max_tokens": 400, "stream": True}
    for lines in (0, 0, 0, 1, 2):
        with (
            httpx.Client(base_url=small.url, timeout=60) as client,
            client.stream("POST", "/v1/chat/completions", json=body) as answer,
        ):
            read = answer.iter_lines()
            for _ in range(lines):
                next(read)
    wait_for(small, (0, 0))


def test_a_stream_that_is_never_begun_ends_the_work() -> None:
    from chiasm.server.streaming import Stream

    left: list[str] = []

    async def never_begun() -> Any:
        raise AssertionError("it was begun")
        yield b""

    async def begun() -> Any:
        try:
            yield None
            yield None
        finally:
            left.append("events")

    async def gone(message: Any) -> None:
        raise OSError("nobody is there")

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def run() -> None:
        events = begun()
        await anext(events)
        stream = Stream(never_begun(), events)
        scope = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}}
        with pytest.raises((OSError, ClientDisconnect)):
            await stream(scope, receive, gone)

    asyncio.run(run())
    assert left == ["events"]


@pytest.mark.parametrize("waits", [False, True], ids=["admitted", "waiting"])
def test_a_deadline(small: LiveServer, gate: threading.Event, waits: bool) -> None:
    with ThreadPoolExecutor(8) as threads:
        others = [threads.submit(ask, small) for _ in range(3 if waits else 0)]
        wait_for(small, (len(others), 0))
        late = threads.submit(ask, small, deadline=0.2)
        if not waits:
            wait_for(small, (1, 0))
            time.sleep(0.5)
            gate.set()
        answer = late.result()
        gate.set()
        assert answer.status_code == 504
        assert error_of(answer)["code"] == "deadline_exceeded"
        assert all(each.result().status_code == 200 for each in others)
    wait_for(small, (0, 0))


def test_a_salt_keeps_caches_apart(small: LiveServer) -> None:
    def cached(**more: Any) -> int:
        usage = ask(small, **more).json()["usage"]
        found: int = usage["prompt_tokens_details"]["cached_tokens"]
        return found

    assert cached(cache_salt="one") == 0
    assert cached(cache_salt="one") > 0
    assert cached(cache_salt="two") == 0


@pytest.mark.parametrize(
    ("field", "value"), [("deadline", 0), ("deadline", -1), ("priority", 2**40), ("cache_salt", 3)]
)
def test_fields_that_make_no_sense(small: LiveServer, field: str, value: Any) -> None:
    answer = ask(small, **{field: value})
    assert answer.status_code == 400
    assert error_of(answer)["param"] == field


def test_pictures_wait_on_the_disk() -> None:
    files = [picture("red", size=(40 + n, 30)) for n in range(5)]
    images = [read_encoded(file, limits=Limits(), name=str(n)) for n, file in enumerate(files)]
    names = [image.name for image in images]
    move_to_disk([Message("user", tuple(map(ImagePart, images)))])
    assert [image.name for image in images] == names
    for number in (3, 0, 4, 3, 1, 2):
        assert images[number].data == files[number]
