"""One model asked in three shapes says the same; and what chat has on top of words."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest
import torch

from chiasm.generation import (
    Finished,
    NativeGenerator,
    RefusalDelta,
    TextPart,
    Tool,
    ToolCall,
    ToolResult,
)
from chiasm.server import create_app
from tests.generation.tiny_models import tiny_llava
from tests.server.conftest import (
    ColourEmbedder,
    LiveServer,
    data_url,
    image_part,
    make_settings,
    picture,
)
from tests.server.scripted import SAID, WANTS_TOOLS, ScriptedGenerator

FUNCTION: Any = {
    "name": "zoom",
    "description": "Look closer.",
    "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}},
}
TOOL: Any = {"type": "function", "function": FUNCTION}


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server with a small LLaVA."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("native")
    generator = NativeGenerator(tiny_llava(folder / "model"))
    app = create_app(make_settings(folder), embedder=ColourEmbedder(), generator=generator)
    with LiveServer(app) as live:
        yield live


@pytest.fixture
def chat(native: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{native.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def claude(native: LiveServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=native.url, api_key="none", max_retries=0) as client:
        yield client


def block(data: bytes) -> Any:
    text = base64.b64encode(data).decode()
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": text}}


def test_three_shapes_say_the_same(chat: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    red, blue, question = picture("red"), picture("blue"), "Which is which?"
    one = chat.chat.completions.create(
        model="tiny-llava",
        max_tokens=12,
        messages=[
            {
                "role": "user",
                "content": [
                    image_part(red),
                    image_part(blue),
                    {"type": "text", "text": question},
                ],
            }
        ],  # type: ignore[list-item]
    )
    asked: Any = [
        {
            "role": "user",
            "content": [
                {"type": "input_image", "image_url": data_url(red), "detail": "auto"},
                {"type": "input_image", "image_url": data_url(blue), "detail": "auto"},
                {"type": "input_text", "text": question},
            ],
        }
    ]
    two = chat.responses.create(model="tiny-llava", max_output_tokens=12, input=asked)
    blocks: Any = [block(red), block(blue), {"type": "text", "text": question}]
    three = claude.messages.create(
        model="tiny-llava", max_tokens=12, messages=[{"role": "user", "content": blocks}]
    )
    said = one.choices[0].message.content
    assert said
    assert two.output_text == said
    first: Any = three.content[0]
    assert first.text == said
    usage, tokens, counted = one.usage, two.usage, three.usage
    assert usage is not None
    assert tokens is not None
    assert (tokens.input_tokens, tokens.output_tokens) == (usage.prompt_tokens, 12)
    details: Any = tokens.input_tokens_details
    assert details.image_tokens == 32
    cached = counted.cache_read_input_tokens or 0
    assert counted.input_tokens + cached == usage.prompt_tokens
    assert counted.model_dump()["image_tokens"] == 32


def test_streams_say_the_same(chat: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    events = list(
        chat.responses.create(model="tiny-llava", max_output_tokens=9, input="Hello", stream=True)
    )
    one = "".join(each.delta for each in events if each.type == "response.output_text.delta")
    with claude.messages.stream(
        model="tiny-llava", max_tokens=9, messages=[{"role": "user", "content": "Hello"}]
    ) as told:
        two = "".join(told.text_stream)
        reason = told.get_final_message().stop_reason
    assert one == two != ""
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.output_text == one
    assert reason == "max_tokens"


def test_prompts_are_counted(chat: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    content: Any = [block(picture("red")), {"type": "text", "text": "Which colour is it?"}]
    question: Any = [{"role": "user", "content": content}]
    counted = claude.messages.count_tokens(model="tiny-llava", messages=question)
    read = claude.messages.create(model="tiny-llava", max_tokens=1, messages=question).usage
    kept = (read.cache_read_input_tokens or 0) + (read.cache_creation_input_tokens or 0)
    assert counted.input_tokens == read.input_tokens + kept
    parts = [
        {"type": "input_image", "image_url": data_url(picture("red")), "detail": "auto"},
        {"type": "input_text", "text": "Which colour is it?"},
    ]
    again = chat.responses.input_tokens.count(
        model="tiny-llava",
        input=[{"role": "user", "content": parts}],  # type: ignore[list-item,misc]
    )
    assert again.input_tokens == counted.input_tokens
    assert again.object == "response.input_tokens"
    with pytest.raises(anthropic.BadRequestError, match="`tools` is not supported"):
        claude.messages.count_tokens(
            model="tiny-llava",
            messages=question,
            tools=[{"name": "zoom", "input_schema": {"type": "object"}}],
        )


def test_a_stop_text_is_named(claude: anthropic.Anthropic) -> None:
    hello: Any = [{"role": "user", "content": "Hello"}]
    whole: Any = claude.messages.create(model="tiny-llava", max_tokens=12, messages=hello)
    stop = whole.content[0].text[4:6]
    cut = claude.messages.create(
        model="tiny-llava", max_tokens=12, messages=hello, stop_sequences=["never", stop]
    )
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", stop)


def test_the_native_model_refuses_tools(chat: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    hello: Any = [{"role": "user", "content": "Hello"}]
    with pytest.raises(openai.BadRequestError, match="`tools` is not supported by tiny-llava"):
        chat.chat.completions.create(model="tiny-llava", messages=hello, tools=[TOOL])
    tool: Any = {"type": "function", **FUNCTION, "strict": False}
    with pytest.raises(openai.BadRequestError, match="`tools` is not supported by tiny-llava"):
        chat.responses.create(model="tiny-llava", input="Hello", tools=[tool])
    with pytest.raises(anthropic.BadRequestError, match="`tools` is not supported by tiny-llava"):
        claude.messages.create(
            model="tiny-llava",
            max_tokens=5,
            messages=hello,
            tools=[{"name": "zoom", "input_schema": {"type": "object"}}],
        )


def test_thinking_that_nobody_does_can_be_turned_off(claude: anthropic.Anthropic) -> None:
    hello: Any = [{"role": "user", "content": "Hello"}]
    asked: Any = {"model": "tiny-llava", "max_tokens": 3, "messages": hello}
    assert claude.messages.create(**asked, thinking={"type": "disabled"}).content
    with pytest.raises(anthropic.BadRequestError, match="reasoning_effort"):
        claude.messages.create(**asked, output_config={"effort": "low"})


@pytest.mark.parametrize(
    ("path", "schema"),
    [
        ("/v1/responses", "ResponsesRequest"),
        ("/v1/responses/input_tokens", "ResponsesCount"),
        ("/v1/messages", "MessagesRequest"),
        ("/v1/messages/count_tokens", "CountRequest"),
    ],
)
def test_the_documents_examples_can_be_sent_as_they_are(
    native: LiveServer, path: str, schema: str
) -> None:
    with httpx.Client(base_url=native.url, timeout=60) as client:
        document = client.get("/openapi.json").json()
        (body,) = document["components"]["schemas"][schema]["examples"]
        response = client.post(path, json=body)
    assert response.status_code == 200, response.text


# Chat with tools --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> ScriptedGenerator:
    return ScriptedGenerator()


@pytest.fixture(scope="module")
def scripted(
    model: ScriptedGenerator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    settings = make_settings(tmp_path_factory.mktemp("scripted"))
    with LiveServer(create_app(settings, embedder=ColourEmbedder(), generator=model)) as live:
        yield live


@pytest.fixture
def sdk(scripted: LiveServer, model: ScriptedGenerator) -> Iterator[openai.OpenAI]:
    model.script, model.asked = SAID, []
    with openai.OpenAI(base_url=f"{scripted.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(
    sdk: openai.OpenAI, messages: Any = ({"role": "user", "content": "Hello"},), **more: Any
) -> Any:
    return sdk.chat.completions.create(model="default", messages=list(messages), **more)


def test_tools_are_asked_for(sdk: openai.OpenAI, model: ScriptedGenerator) -> None:
    model.script = WANTS_TOOLS
    choice = ask(
        sdk,
        tools=[TOOL],
        tool_choice={"type": "function", "function": {"name": "zoom"}},
        parallel_tool_calls=False,
        reasoning_effort="low",
    ).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me look."
    zoom, crop = choice.message.tool_calls
    assert (zoom.id, zoom.type, zoom.function.name) == ("call_1", "function", "zoom")
    assert json.loads(zoom.function.arguments) == {"x": 1, "y": 2}
    assert (crop.id, crop.function.name, crop.function.arguments) == ("call_2", "crop", "{}")
    (asked,) = model.asked
    assert asked.tools == (Tool("zoom", "Look closer.", FUNCTION["parameters"]),)
    assert (asked.tool_choice, asked.parallel_tool_calls, asked.effort) == ("zoom", False, "low")


def test_calls_in_a_stream_add_up(sdk: openai.OpenAI, model: ScriptedGenerator) -> None:
    model.script = WANTS_TOOLS
    whole = ask(sdk, tools=[TOOL]).choices[0]
    with sdk.chat.completions.stream(
        model="default", messages=[{"role": "user", "content": "Hello"}], tools=[TOOL]
    ) as stream:
        for _ in stream:
            pass
        told = stream.get_final_completion().choices[0]
    assert told.finish_reason == "tool_calls"
    assert told.message.content == whole.message.content
    calls = told.message.tool_calls
    assert calls is not None
    assert [(c.id, c.function.name, c.function.arguments) for c in calls] == [
        (c.id, c.function.name, c.function.arguments) for c in whole.message.tool_calls
    ]


def test_results_of_tools_go_back(sdk: openai.OpenAI, model: ScriptedGenerator) -> None:
    model.script = WANTS_TOOLS[1:]
    message = ask(sdk, tools=[TOOL]).choices[0].message
    assert message.content is None
    model.script = SAID
    ask(
        sdk,
        [
            {"role": "user", "content": "Hello"},
            message,
            {"role": "tool", "tool_call_id": "call_1", "content": "Here."},
            {
                "role": "tool",
                "tool_call_id": "call_2",
                "content": [{"type": "text", "text": "There:"}, image_part(picture("green"))],
            },
        ],
        tools=[TOOL],
    )
    _, called, one, two = model.asked[1].messages
    assert called.parts == (
        ToolCall("call_1", "zoom", '{"x": 1, "y": 2}'),
        ToolCall("call_2", "crop", "{}"),
    )
    assert one.parts == (ToolResult("call_1", (TextPart("Here."),)),)
    assert two.role == "tool"
    assert len(two.images) == 1


def test_a_refusal_is_no_content(sdk: openai.OpenAI, model: ScriptedGenerator) -> None:
    model.script = [RefusalDelta(0, "I will "), RefusalDelta(0, "not."), Finished(0, "stop")]
    message = ask(sdk).choices[0].message
    assert (message.content, message.refusal) == (None, "I will not.")
    said = [chunk.choices[0].delta.refusal or "" for chunk in ask(sdk, stream=True)]
    assert "".join(said) == "I will not."


def test_what_a_request_may_take(sdk: openai.OpenAI, model: ScriptedGenerator) -> None:
    ask(sdk, extra_body={"max_image_tokens": 100, "max_cost": 0.5, "restart": True})
    assert model.asked[0].max_image_tokens == 100


CHAT_CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    "a choice without tools": ({"tool_choice": "required"}, "tool_choice", "needs `tools`"),
    "a choice of another tool": (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "crop"}}},
        "tool_choice",
        "not among the tools",
    ),
    "a tool without a name": (
        {"tools": [{"type": "function", "function": {"name": ""}}]},
        "tools[0].function.name",
        "at least 1 character",
    ),
    "a result of no call": (
        {"messages": [{"role": "tool", "content": "x"}]},
        "messages[0].tool_call_id",
        "must name the call",
    ),
    "a user's call": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": "x",
                    "tool_calls": [
                        {"id": "1", "type": "function", "function": {"name": "f", "arguments": ""}}
                    ],
                }
            ]
        },
        "messages[0].tool_calls",
        "belongs in an assistant's message",
    ),
    "an unknown effort": ({"reasoning_effort": "huge"}, "reasoning_effort", "'max'"),
    "no image tokens": ({"max_image_tokens": 0}, "max_image_tokens", "greater than"),
    "no cost": ({"max_cost": 0}, "max_cost", "greater than 0"),
}


@pytest.mark.parametrize("case", CHAT_CASES, ids=list(CHAT_CASES))
def test_bad_requests_are_refused_before_a_model_is_asked(
    sdk: openai.OpenAI, model: ScriptedGenerator, case: str
) -> None:
    body, param, said = CHAT_CASES[case]
    with pytest.raises(openai.BadRequestError) as caught:
        ask(sdk, extra_body=body)
    error: Any = caught.value.body
    assert error["param"] == param
    assert said in error["message"]
    assert model.asked == []
