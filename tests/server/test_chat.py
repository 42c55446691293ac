"""`/v1/chat/completions` through OpenAI's own client, and what it says to bad requests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch

from chiasm.generation import NativeGenerator
from chiasm.server import create_app
from tests.generation.tiny_models import tiny_llava
from tests.server.conftest import (
    ColourEmbedder,
    LiveServer,
    data_url,
    error_of,
    image_part,
    make_settings,
    picture,
)

ASKED = {"type": "text", "text": "What is this?"}
RED, BLUE = image_part(picture("red")), image_part(picture("blue", kind="JPEG"))


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server with a small LLaVA."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("talking")
    generator = NativeGenerator(tiny_llava(folder / "model"))
    app = create_app(make_settings(folder), embedder=ColourEmbedder(), generator=generator)
    with LiveServer(app) as live:
        yield live


@pytest.fixture
def sdk(talking: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{talking.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def door(talking: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=talking.url, timeout=60) as client:
        yield client


def messages(*parts: Any) -> Any:
    return [{"role": "user", "content": list(parts)}]


def test_an_answer(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(
        model="tiny-llava", messages=messages(RED, ASKED), max_tokens=8
    )
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason == "length"
    assert choice.logprobs is None
    assert answer.model == "tiny-llava"
    assert answer.usage is not None
    details: Any = answer.usage.prompt_tokens_details
    assert details.image_tokens == 16
    assert details.image_tokens + details.text_tokens == answer.usage.prompt_tokens
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8
    extra = answer.usage.model_dump()
    assert extra["images"] == 1
    assert extra["compute"]["language_flops"] > 0
    assert {"queue", "prepare", "prefill", "decode", "first_token"} <= set(extra["seconds"])


def test_pictures_and_their_order_matter(sdk: openai.OpenAI) -> None:
    def ask(*parts: Any) -> str:
        answer = sdk.chat.completions.create(
            model="tiny-llava", messages=messages(*parts), max_tokens=12
        )
        return answer.choices[0].message.content or ""

    said = [ask(RED, ASKED), ask(BLUE, ASKED), ask(RED, BLUE, ASKED), ask(BLUE, RED, ASKED)]
    assert len(set(said)) == 4
    assert ask(RED, ASKED) == said[0]


def test_a_stream_says_the_same(sdk: openai.OpenAI) -> None:
    whole = sdk.chat.completions.create(
        model="tiny-llava", messages=messages(RED, ASKED), max_tokens=12
    )
    chunks = list(
        sdk.chat.completions.create(
            model="tiny-llava",
            messages=messages(RED, ASKED),
            max_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    first, last = chunks[0], chunks[-1]
    assert first.choices[0].delta.role == "assistant"
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 12
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks[:-1]]
    assert "".join(pieces) == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == "length"


def test_a_stream_without_usage_has_none(sdk: openai.OpenAI) -> None:
    chunks = list(
        sdk.chat.completions.create(
            model="default", messages=messages(ASKED), max_tokens=3, stream=True
        )
    )
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_the_asynchronous_client(talking: LiveServer) -> None:
    async def ask() -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=f"{talking.url}/v1", api_key="none") as client:
            whole, stream = await asyncio.gather(
                client.chat.completions.create(
                    model="tiny-llava", messages=messages(RED, ASKED), max_tokens=10
                ),
                client.chat.completions.create(
                    model="tiny-llava", messages=messages(RED, ASKED), max_tokens=10, stream=True
                ),
            )
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
            return whole.choices[0].message.content or "", "".join(pieces)

    whole, streamed = asyncio.run(ask())
    assert whole == streamed


def test_several_choices_seeds_and_stops(sdk: openai.OpenAI) -> None:
    def draw(**more: Any) -> list[str]:
        answer = sdk.chat.completions.create(
            model="tiny-llava", messages=messages(RED, ASKED), max_tokens=10, **more
        )
        return [choice.message.content or "" for choice in answer.choices]

    drawn = draw(n=3, temperature=1.3, top_p=0.95, seed=5)
    assert len(set(drawn)) == 3
    assert draw(n=3, temperature=1.3, top_p=0.95, seed=5) == drawn
    (whole,) = draw()
    (cut,) = draw(stop=[whole[4:6]])
    assert cut == whole[: whole.index(whole[4:6])]


def test_choices_in_a_stream(sdk: openai.OpenAI) -> None:
    asked: Any = {
        "model": "tiny-llava",
        "messages": messages(ASKED),
        "max_tokens": 6,
        "n": 2,
        "temperature": 1.0,
        "seed": 1,
    }
    whole = sdk.chat.completions.create(**asked)
    said = ["", ""]
    for chunk in sdk.chat.completions.create(**asked, stream=True):
        choice = chunk.choices[0]
        said[choice.index] += choice.delta.content or ""
    assert said == [choice.message.content for choice in whole.choices]


def test_log_probabilities(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(
        model="tiny-llava",
        messages=messages(RED, ASKED),
        max_tokens=5,
        logprobs=True,
        top_logprobs=3,
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 5
    for token in logprobs.content:
        assert token.logprob == max(top.logprob for top in token.top_logprobs)  # greedy
        assert len(token.top_logprobs) == 3
    spelt = b"".join(bytes(token.bytes or []) for token in logprobs.content)
    assert spelt.decode(errors="replace") == answer.choices[0].message.content


SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["cat", "dog"]}, "count": {"type": "integer", "maximum": 9}},
    "required": ["name", "count"],
    "additionalProperties": False,
}


def test_a_json_schema(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(
        model="tiny-llava",
        messages=messages(RED, ASKED),
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "thing", "schema": SCHEMA, "strict": True},
        },
    )
    value = json.loads(answer.choices[0].message.content or "")
    assert value["name"] in ("cat", "dog")
    assert value["count"] <= 9


def test_any_json_object(door: httpx.Client) -> None:
    body = {
        "messages": messages(ASKED),
        "response_format": {"type": "json_object"},
        "max_tokens": 40,
    }
    answer = door.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert answer["message"]["content"].startswith("{")


def test_models_say_what_they_are_for(door: httpx.Client) -> None:
    listed = {model["id"]: model for model in door.get("/v1/models").json()["data"]}
    assert listed["tiny-llava"]["kind"] == "chat"
    assert listed["tiny-llava"]["vision"] is True
    assert listed["tiny-llava"]["context"] == 2048
    assert listed["colours"]["kind"] == "embedding"
    assert "context" not in listed["colours"]
    assert door.get("/v1/models/tiny-llava").json() == listed["tiny-llava"]


def test_the_documents_example_can_be_sent_as_it_is(door: httpx.Client) -> None:
    document = door.get("/openapi.json").json()
    (body,) = document["components"]["schemas"]["ChatRequest"]["examples"]
    response = door.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    assert response.json()["usage"]["images"] == 1


# Bad input ---------------------------------------------------------------------------------------

URL = {"type": "image_url", "image_url": {"url": "https://example.com/cat.jpg"}}
CASES: dict[str, tuple[dict[str, Any], int, str | None, str]] = {
    "no messages": ({"messages": []}, 400, "messages", "is empty"),
    "messages missing": ({}, 400, "messages", "is required"),
    "messages no list": ({"messages": "hi"}, 400, "messages", "must be a list"),
    "a message no object": ({"messages": ["hi"]}, 400, "messages[0]", "must be an object"),
    "no role": ({"messages": [{"content": "x"}]}, 400, "messages[0].role", "must be system"),
    "an unknown role": (
        {"messages": [{"role": "narrator", "content": "x"}]},
        400,
        "messages[0].role",
        "must be system, user, assistant or tool",
    ),
    "tools": (
        {"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]},
        400,
        "messages[0].role",
        "uses tools",
    ),
    "no content": ({"messages": [{"role": "user"}]}, 400, "messages[0].content", "must be a text"),
    "empty content": (
        {"messages": [{"role": "user", "content": []}]},
        400,
        "messages[0].content",
        "is empty",
    ),
    "an empty question": (
        {"messages": [{"role": "user", "content": ""}]},
        400,
        "messages[0].content",
        "is an empty text",
    ),
    "roles out of order": (
        {"messages": [{"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}]},
        400,
        "messages[0].role",
        "no user's message stands before it",
    ),
    "nothing to answer": (
        {
            "messages": [
                {"role": "user", "content": "x"},
                {"role": "assistant", "content": "y"},
            ]
        },
        400,
        "messages[1].role",
        "nothing to answer",
    ),
    "a late system message": (
        {"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}]},
        400,
        "messages[1].role",
        "does not come first",
    ),
    "a picture in a system message": (
        {"messages": [{"role": "system", "content": [RED]}, {"role": "user", "content": "x"}]},
        400,
        "messages[0].content",
        "a picture in a system message",
    ),
    "a picture's address": (
        {"messages": messages(URL, ASKED)},
        400,
        None,
        "not fetched from addresses",
    ),
    "no picture": (
        {"messages": messages(image_part(b"plain text"), ASKED)},
        400,
        None,
        "not a picture",
    ),
    "a damaged picture": (
        {"messages": messages(image_part(picture(kind="JPEG", size=(200, 200))[:900]), ASKED)},
        400,
        None,
        "damaged or cut short",
    ),
    "a picture as text": (
        {"messages": messages({"type": "text", "text": data_url(picture())})},
        400,
        "messages[0].content[0].text",
        "is a data URL where a text belongs",
    ),
    "too many pictures": ({"messages": messages(*[RED] * 65)}, 400, "messages", "takes 64 at most"),
    "more pictures than the context holds": (
        {"messages": messages(*[RED] * 30, {"type": "text", "text": "What? " * 1600})},
        400,
        "messages",
        "480 of them for 30 pictures",
    ),
    "a question longer than the context": (
        {"messages": messages({"type": "text", "text": "What is this? " * 900})},
        400,
        "messages",
        "reads 2,048",
    ),
    "an unknown model": (
        {"messages": messages(ASKED), "model": "tiny-lava"},
        404,
        "model",
        "Did you mean tiny-llava",
    ),
    "an embedder": ({"messages": messages(ASKED), "model": "colours"}, 404, "model", "No model"),
    "a temperature out of range": (
        {"messages": messages(ASKED), "temperature": 3},
        400,
        "temperature",
        "between 0 and 2",
    ),
    "no tokens": ({"messages": messages(ASKED), "max_tokens": 0}, 400, "max_tokens", "1 or more"),
    "two limits": (
        {"messages": messages(ASKED), "max_tokens": 4, "max_completion_tokens": 5},
        400,
        "max_tokens",
        "differ",
    ),
    "too many choices": ({"messages": messages(ASKED), "n": 99}, 400, "n", "between 1 and 16"),
    "a penalty": (
        {"messages": messages(ASKED), "presence_penalty": 0.5},
        400,
        "presence_penalty",
        "not supported",
    ),
    "tools offered": (
        {
            "messages": messages(ASKED),
            "tools": [{"type": "function", "function": {"name": "zoom"}}],
        },
        400,
        "tools",
        "`tools` is not supported by",
    ),
    "top_logprobs alone": (
        {"messages": messages(ASKED), "top_logprobs": 2},
        400,
        "top_logprobs",
        "needs `logprobs`",
    ),
    "a schema without one": (
        {"messages": messages(ASKED), "response_format": {"type": "json_schema"}},
        400,
        "response_format.json_schema",
        "needs `json_schema.schema`",
    ),
    "a schema that means nothing": (
        {
            "messages": messages(ASKED),
            "response_format": {
                "type": "json_schema",
                "json_schema": {"schema": {"type": "banana"}},
            },
        },
        400,
        "response_format",
        "cannot be followed",
    ),
}


@pytest.mark.parametrize("case", CASES, ids=list(CASES))
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_bad_requests_are_refused_before_anything_is_sent(
    door: httpx.Client, case: str, stream: bool
) -> None:
    body, status, param, said = CASES[case]
    response = door.post("/v1/chat/completions", json={**body, "stream": stream})
    error = error_of(response)
    assert response.status_code == status, error
    assert said in error["message"]
    if param is not None:
        assert error["param"] == param
    fine = door.post("/v1/chat/completions", json={"messages": messages(ASKED), "max_tokens": 1})
    assert fine.status_code == 200


# Going away --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_whoever_goes_away_stops_the_work(
    talking: LiveServer, door: httpx.Client, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chiasm.generation.engine.engine import Engine

    steps, started = 0, threading.Event()
    step = Engine.step

    def counted(self: Engine) -> None:
        nonlocal steps
        steps += 1
        if steps == 3:
            started.set()
        time.sleep(0.005)
        step(self)

    monkeypatch.setattr(Engine, "step", counted)
    body = {
        "messages": messages(RED, ASKED),
        "max_tokens": 1500,
        "stream": stream,
        # It cannot end of itself before the context does.
        "response_format": {
            "type": "json_schema",
            "json_schema": {"schema": {"type": "string", "minLength": 20_000}},
        },
    }

    def ask() -> None:
        with httpx.Client(base_url=talking.url, timeout=60) as client:
            if not stream:
                with contextlib.suppress(httpx.ReadTimeout):
                    client.post("/v1/chat/completions", json=body, timeout=0.7)
                return
            with client.stream("POST", "/v1/chat/completions", json=body) as response:
                for _ in response.iter_lines():
                    if started.is_set():
                        return

    thread = threading.Thread(target=ask)
    thread.start()
    assert started.wait(60)
    thread.join(60)
    # The next question is answered: the engine has let go of the one nobody waits for.
    after = door.post("/v1/chat/completions", json={"messages": messages(ASKED), "max_tokens": 1})
    assert after.status_code == 200
    assert steps < 1400


# Without a generator ------------------------------------------------------------------------------


def test_a_server_that_answers_no_questions_says_so(client: httpx.Client) -> None:
    response = client.post("/v1/chat/completions", json={"messages": messages(ASKED)})
    assert response.status_code == 404
    assert "answers no questions" in error_of(response)["message"]
    assert error_of(response)["code"] == "model_not_found"


def test_a_generator_that_cannot_be_loaded_does_not_stop_the_rest(tmp_path: Path) -> None:
    from dataclasses import replace

    settings = replace(make_settings(tmp_path), generator="no-such-model")
    with LiveServer(create_app(settings, embedder=ColourEmbedder())) as live:
        response = httpx.post(
            f"{live.url}/v1/chat/completions", json={"messages": messages(ASKED)}, timeout=60
        )
        assert response.status_code == 503
        assert "no-such-model" in error_of(response)["message"]
        found = httpx.post(f"{live.url}/v1/embeddings", json={"input": "red"}, timeout=60)
        assert found.status_code == 200
