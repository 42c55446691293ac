"""A server whose answers come from vLLM: the same API, and the truth about who is there."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from chiasm.server import create_app
from tests.generation.providers.fake_vllm import CUT, FakeVLLM, answering, chunk, refusal, role
from tests.server.conftest import (
    ColourEmbedder,
    LiveServer,
    error_of,
    image_part,
    make_settings,
    picture,
)

ASKED = {"type": "text", "text": "What is this?"}


@pytest.fixture
def vllm() -> Iterator[FakeVLLM]:
    with FakeVLLM() as fake:
        yield fake


def served(folder: Path, generator: str) -> LiveServer:
    settings = dataclasses.replace(make_settings(folder), generator=generator)
    return LiveServer(create_app(settings, embedder=ColourEmbedder()))


@pytest.fixture
def client(vllm: FakeVLLM, tmp_path: Path) -> Iterator[httpx.Client]:
    with served(tmp_path, f"vllm:{vllm.url}") as live, httpx.Client(base_url=live.url) as client:
        yield client


def ask(client: httpx.Client, *parts: Any, **more: Any) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": list(parts or (ASKED,))}], **more}
    return client.post("/v1/chat/completions", json=body, timeout=30)


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)


def test_the_same_api(client: httpx.Client, vllm: FakeVLLM) -> None:
    vllm.script = lambda body: answering("A cat.", prompt=38, images=16)
    answer = ask(client, image_part(picture("red")), ASKED, model="tiny-llava").json()
    assert answer["model"] == "tiny-llava"
    assert answer["choices"][0]["message"]["content"] == "A cat."
    assert answer["choices"][0]["finish_reason"] == "stop"
    spent = answer["usage"]
    assert (spent["prompt_tokens"], spent["completion_tokens"], spent["images"]) == (38, 3, 1)
    assert spent["prompt_tokens_details"]["image_tokens"] == 16
    streamed = ask(client, ASKED, stream=True).text
    assert "A cat." in "".join(streamed) or ('"A"' in streamed and '" cat."' in streamed)
    assert streamed.endswith("data: [DONE]\n\n")


def test_its_servers_are_nobodys_business(client: httpx.Client, vllm: FakeVLLM) -> None:
    models = {model["id"]: model for model in client.get("/v1/models").json()["data"]}
    assert models["tiny-llava"]["kind"] == "chat"
    assert (models["tiny-llava"]["context"], models["tiny-llava"]["vision"]) == (2048, True)
    assert client.get("/v1/models/tiny-llava").status_code == 200
    assert vllm.url not in client.get("/v1/models").text
    vllm.stop()
    refused = ask(client)
    assert refused.status_code == 503
    assert str(vllm.port) not in refused.text


def test_readiness_follows_the_server(client: httpx.Client, vllm: FakeVLLM) -> None:
    assert client.get("/readyz").status_code == 200
    vllm.stop()
    until(lambda: client.get("/readyz").status_code == 503)
    assert client.get("/readyz").json()["error"]["code"] == "generator_unreachable"
    refused = ask(client)
    assert refused.status_code == 503
    assert refused.headers["retry-after"]
    assert error_of(refused)["code"] == "generator_unreachable"
    assert client.get("/healthz").status_code == 200
    vllm.start()
    until(lambda: client.get("/readyz").status_code == 200)
    assert ask(client).status_code == 200


def test_it_may_start_before_its_vllm(tmp_path: Path) -> None:
    vllm = FakeVLLM().start()
    vllm.stop()  # its port is known now, and nobody listens there
    live = served(tmp_path, f"vllm:{vllm.url}")
    live._thread.start()
    with httpx.Client(base_url=live.url) as client:
        said = client.get("/readyz")
        until(lambda: "generator_unreachable" in client.get("/readyz").text)
        said = client.get("/readyz")
        assert said.status_code == 503
        assert str(vllm.port) not in said.text
        assert ask(client).status_code == 503
        with vllm:
            until(lambda: client.get("/readyz").status_code == 200)
            assert ask(client).status_code == 200
    live.__exit__()


def test_refusals_keep_their_words(client: httpx.Client, vllm: FakeVLLM) -> None:
    vllm.status = 400
    vllm.script = lambda body: [refusal("top_k must be 0 (disable), or at least 1.", 400)]
    refused = ask(client)
    assert refused.status_code == 400
    assert "top_k must be 0" in error_of(refused)["message"]


def test_an_answer_that_breaks_off_is_an_error_event(client: httpx.Client, vllm: FakeVLLM) -> None:
    vllm.script = lambda body: [role(), chunk("A "), CUT]
    streamed = ask(client, ASKED, stream=True)
    assert streamed.status_code == 200
    assert '"A "' in streamed.text
    assert '"generator_failed"' in streamed.text
    whole = ask(client)
    assert whole.status_code == 502
    assert error_of(whole)["code"] == "generator_failed"


def test_who_goes_away_stops_the_work(client: httpx.Client, vllm: FakeVLLM) -> None:
    def endless(body: Any) -> Iterator[Any]:
        yield role()
        while not vllm.gone.is_set():
            yield chunk("and ")
            yield 0.01

    vllm.script = endless
    body = {"messages": [{"role": "user", "content": "Hm?"}], "stream": True}
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        next(response.iter_lines())
    assert vllm.gone.wait(10)
