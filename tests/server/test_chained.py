"""A server before a server: three shapes in front, three shapes behind, nothing lost between.

The far server has a scripted model. What it was asked is compared with what was sent to the near
one, and what the near one answers with what the far one said.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import anthropic
import openai
import pytest

from chiasm.generation import Finished, ImagePart, TextDelta, TextPart, ToolCall, ToolResult
from chiasm.media import Image
from chiasm.server import create_app
from chiasm.settings import ProviderSettings
from tests.server.conftest import (
    COLOURS,
    ColourEmbedder,
    LiveServer,
    data_url,
    image_part,
    make_settings,
    picture,
)
from tests.server.scripted import SAID, WANTS_TOOLS, ScriptedGenerator

KINDS = ("openai", "openai-responses", "anthropic")
SCHEMA: Any = {"type": "object", "properties": {"x": {"type": "integer"}}}
RED = picture("red")


@pytest.fixture(scope="module")
def model() -> ScriptedGenerator:
    return ScriptedGenerator()


@pytest.fixture(scope="module")
def near(
    model: ScriptedGenerator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    """A server whose providers are another server, by each of its shapes."""
    far_settings = make_settings(tmp_path_factory.mktemp("far"))
    app = create_app(far_settings, embedder=ColourEmbedder(), generator=model)
    with pytest.MonkeyPatch.context() as patch, LiveServer(app) as far:
        patch.setenv("FAR_KEY", "none")
        providers = {
            kind: ProviderSettings(
                kind=kind,
                base_url=far.url if kind == "anthropic" else f"{far.url}/v1",
                key_variable="FAR_KEY",
            )
            for kind in KINDS
        }
        settings = replace(make_settings(tmp_path_factory.mktemp("near")), providers=providers)
        with LiveServer(create_app(settings, embedder=ColourEmbedder())) as live:
            yield live


@pytest.fixture(autouse=True)
def rested(model: ScriptedGenerator) -> None:
    model.script, model.asked = SAID, []


# Fronts: each asks the same, and gives the words, the calls and the prompt's tokens of the answer.
Front = Callable[[LiveServer, str, bool], tuple[str, list[tuple[str, str, Any]], int]]


def by_chat(near: LiveServer, name: str, with_results: bool) -> Any:
    function = {"name": "zoom", "description": "Look closer.", "parameters": SCHEMA}
    calls = [{"id": "a", "type": "function", "function": {"name": "zoom", "arguments": '{"x": 1}'}}]
    messages: Any = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [image_part(RED), {"type": "text", "text": "Look."}]},
        {"role": "assistant", "content": "Wait.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "a", "content": "Seen."},
    ]
    with openai.OpenAI(base_url=f"{near.url}/v1", api_key="none", max_retries=0) as client:
        answer: Any = client.chat.completions.create(
            model=name,
            messages=messages if with_results else messages[:2],
            tools=[{"type": "function", "function": function}],
            max_tokens=50,
        )
    message = answer.choices[0].message
    found = [
        (each.id, each.function.name, json.loads(each.function.arguments))
        for each in message.tool_calls or ()
    ]
    return message.content, found, answer.usage.prompt_tokens


def by_responses(near: LiveServer, name: str, with_results: bool) -> Any:
    tool: Any = {
        "type": "function",
        "name": "zoom",
        "description": "Look closer.",
        "parameters": SCHEMA,
        "strict": False,
    }
    asked: Any = [
        {
            "role": "user",
            "content": [
                {"type": "input_image", "image_url": data_url(RED), "detail": "auto"},
                {"type": "input_text", "text": "Look."},
            ],
        },
        {"role": "assistant", "content": "Wait."},
        {"type": "function_call", "call_id": "a", "name": "zoom", "arguments": '{"x": 1}'},
        {"type": "function_call_output", "call_id": "a", "output": "Seen."},
    ]
    with openai.OpenAI(base_url=f"{near.url}/v1", api_key="none", max_retries=0) as client:
        answer: Any = client.responses.create(
            model=name,
            instructions="Be short.",
            input=asked if with_results else asked[:1],
            tools=[tool],
            max_output_tokens=50,
        )
    found = [
        (each.call_id, each.name, json.loads(each.arguments))
        for each in answer.output
        if each.type == "function_call"
    ]
    return answer.output_text, found, answer.usage.input_tokens


def by_messages(near: LiveServer, name: str, with_results: bool) -> Any:
    source = {
        "type": "base64",
        "media_type": "image/png",
        "data": base64.b64encode(RED).decode(),
    }
    messages: Any = [
        {
            "role": "user",
            "content": [{"type": "image", "source": source}, {"type": "text", "text": "Look."}],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "Wait."},
                {"type": "tool_use", "id": "a", "name": "zoom", "input": {"x": 1}},
            ],
        },
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "a", "content": "Seen."}],
        },
    ]
    with anthropic.Anthropic(base_url=near.url, api_key="none", max_retries=0) as client:
        answer: Any = client.messages.create(
            model=name,
            system="Be short.",
            messages=messages if with_results else messages[:1],
            tools=[{"name": "zoom", "description": "Look closer.", "input_schema": SCHEMA}],
            max_tokens=50,
        )
    said = "".join(each.text for each in answer.content if each.type == "text")
    found = [(each.id, each.name, each.input) for each in answer.content if each.type != "text"]
    usage = answer.usage
    kept = usage.cache_read_input_tokens + usage.cache_creation_input_tokens
    return said, found, usage.input_tokens + kept


FRONTS: list[Front] = [by_chat, by_responses, by_messages]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("front", FRONTS, ids=["chat", "responses", "messages"])
def test_nothing_is_lost_between(
    near: LiveServer, model: ScriptedGenerator, front: Front, kind: str
) -> None:
    model.script = WANTS_TOOLS
    said, calls, tokens = front(near, f"{kind}/default", False)
    assert said == "Let me look."
    assert calls == [("call_1", "zoom", {"x": 1, "y": 2}), ("call_2", "crop", {})]
    assert tokens == 60
    model.script = SAID
    said, calls, _ = front(near, f"{kind}/default", True)
    assert (said, calls) == ("A red square.", [])
    first, second = model.asked
    for asked in (first, second):
        assert asked.max_tokens == 50
        (tool,) = asked.tools
        assert (tool.name, tool.description, tool.parameters) == ("zoom", "Look closer.", SCHEMA)
    system, user = first.messages
    assert (system.role, system.text) == ("system", "Be short.")
    shown, words = user.parts
    assert isinstance(shown, ImagePart)
    assert isinstance(shown.image, Image)
    assert tuple(shown.image.pixels[5, 5].tolist()) == COLOURS["red"]
    assert words == TextPart("Look.")
    called, result = second.messages[2:]
    text, call = called.parts
    assert text == TextPart("Wait.")
    assert isinstance(call, ToolCall)
    assert (call.id, call.name, json.loads(call.arguments)) == ("a", "zoom", {"x": 1})
    assert result.role == "tool"
    assert result.parts == (ToolResult("a", (TextPart("Seen."),)),)


@pytest.mark.parametrize("kind", KINDS)
def test_streams_pass_through(near: LiveServer, model: ScriptedGenerator, kind: str) -> None:
    model.script = [TextDelta(0, "One "), TextDelta(0, "two."), Finished(0, "length")]
    with anthropic.Anthropic(base_url=near.url, api_key="none", max_retries=0) as client:
        events: Any = client.messages.create(
            model=f"{kind}/default",
            max_tokens=9,
            messages=[{"role": "user", "content": "Count."}],
            stream=True,
        )
        seen = list(events)
    said = [each.delta.text for each in seen if each.type == "content_block_delta"]
    assert "".join(said) == "One two.", "what comes together may be one piece"
    assert seen[-2].delta.stop_reason == "max_tokens"


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
def test_a_stop_text_is_named_where_the_shape_behind_can(
    near: LiveServer, model: ScriptedGenerator, kind: str
) -> None:
    model.script = [TextDelta(0, "One "), Finished(0, "stop", "two")]
    with anthropic.Anthropic(base_url=near.url, api_key="none", max_retries=0) as client:
        answer = client.messages.create(
            model=f"{kind}/default",
            max_tokens=9,
            messages=[{"role": "user", "content": "Count."}],
            stop_sequences=["two"],
        )
    assert model.asked[0].stop == ("two",)
    named = ("stop_sequence", "two") if kind == "anthropic" else ("end_turn", None)
    assert (answer.stop_reason, answer.stop_sequence) == named
