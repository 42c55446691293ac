"""`/v1/messages` through Anthropic's own client."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anthropic
import httpx
import PIL.Image
import pydantic
import pytest

from chiasm.errors import (
    ChiasmError,
    ContentRefused,
    GeneratorFailed,
    GeneratorUnreachable,
    Overloaded,
    TimedOut,
)
from chiasm.generation import (
    Finished,
    ImagePart,
    RefusalDelta,
    TextDelta,
    TextPart,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolResult,
)
from chiasm.media import Image
from chiasm.operations.database import open_database
from chiasm.operations.keys import Keys
from chiasm.server import create_app
from chiasm.settings import ModelSettings
from tests.server.conftest import COLOURS, ColourEmbedder, LiveServer, make_settings, picture
from tests.server.scripted import SAID, WANTS_TOOLS, ScriptedGenerator

HELLO: Any = [{"role": "user", "content": "Hello"}]
ZOOM: Any = {
    "name": "zoom",
    "description": "Look closer.",
    "input_schema": {"type": "object", "properties": {"x": {"type": "integer"}}},
}


@pytest.fixture(scope="module")
def model() -> ScriptedGenerator:
    return ScriptedGenerator()


@pytest.fixture(scope="module")
def live(
    model: ScriptedGenerator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    settings = make_settings(tmp_path_factory.mktemp("messages"), max_request_bytes=200_000)
    with LiveServer(create_app(settings, embedder=ColourEmbedder(), generator=model)) as live:
        yield live


@pytest.fixture(autouse=True)
def rested(model: ScriptedGenerator) -> None:
    model.script, model.asked = SAID, []


@pytest.fixture
def sdk(live: LiveServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=live.url, api_key="none", max_retries=0) as client:
        yield client


def block(data: bytes, media_type: str = "image/png") -> Any:
    text = base64.b64encode(data).decode()
    return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": text}}


def user(*blocks: Any) -> Any:
    return [{"role": "user", "content": list(blocks)}]


def ask(sdk: anthropic.Anthropic, messages: Any = HELLO, **more: Any) -> Any:
    return sdk.messages.create(model="default", max_tokens=50, messages=messages, **more)


def test_an_answer(sdk: anthropic.Anthropic, model: ScriptedGenerator) -> None:
    answer = ask(sdk, system="Be short.", stop_sequences=["END"], metadata={"user_id": "u"})
    assert answer.content[0].type == "text"
    assert answer.content[0].text == "A red square."
    assert (answer.stop_reason, answer.stop_sequence) == ("end_turn", None)
    assert answer.role == "assistant"
    assert answer.model == "default"
    assert answer.id.startswith("msg_")
    assert answer._request_id.startswith("req_")
    (asked,) = model.asked
    assert [(m.role, m.text) for m in asked.messages] == [
        ("system", "Be short."),
        ("user", "Hello"),
    ]
    assert asked.max_tokens == 50
    assert asked.stop == ("END",)


def test_usage_has_their_shape_and_ours(sdk: anthropic.Anthropic) -> None:
    usage = ask(sdk).usage
    assert usage.cache_read_input_tokens == 16
    assert usage.cache_creation_input_tokens == 4
    assert usage.input_tokens == 40 + 20 - 16 - 4
    assert usage.output_tokens == 7
    assert usage.output_tokens_details.thinking_tokens == 2
    extra = usage.model_dump()
    assert extra["images"] == 1
    assert extra["image_tokens"] == 20
    assert extra["text_tokens"] == 40
    assert extra["cost"] == 0
    assert extra["compute"] == {"vision_flops": 11, "language_flops": 13}


def test_pictures_arrive_in_their_order(sdk: anthropic.Anthropic, model: ScriptedGenerator) -> None:
    ask(
        sdk,
        user(
            block(picture("red")),
            {"type": "text", "text": "and"},
            {**block(picture("blue", kind="WEBP", lossless=True), "image/webp")},
            {"type": "text", "text": "?", "cache_control": {"type": "ephemeral"}},
        ),
    )
    first, text, second, last = model.asked[0].messages[0].parts
    assert [colour(first), colour(second)] == ["red", "blue"]
    assert (text, last) == (TextPart("and"), TextPart("?"))


def colour(part: Any) -> str:
    assert isinstance(part, ImagePart)
    assert isinstance(part.image, Image)
    pixel = tuple(part.image.pixels[5, 5].tolist())
    return next(name for name, rgb in COLOURS.items() if rgb == pixel)


def test_turns(sdk: anthropic.Anthropic, model: ScriptedGenerator) -> None:
    ask(
        sdk,
        [
            {"role": "user", "content": "One"},
            {"role": "user", "content": "Two"},
            {"role": "assistant", "content": [{"type": "text", "text": "Three"}]},
            {"role": "user", "content": "Four"},
        ],
        system=[{"type": "text", "text": "A"}, {"type": "text", "text": "B"}],
    )
    assert [(m.role, [p.text for p in m.parts]) for m in model.asked[0].messages] == [  # type: ignore[union-attr]
        ("system", ["A", "B"]),
        ("user", ["One", "Two"]),
        ("assistant", ["Three"]),
        ("user", ["Four"]),
    ]


# Streams ----------------------------------------------------------------------------------------


def test_a_stream_has_the_documented_sequence(sdk: anthropic.Anthropic) -> None:
    events = list(ask(sdk, stream=True))
    assert [event.type for event in events] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    start, opened, *_, delta, _ = events
    assert start.message.usage.input_tokens > 0, "as it is planned: the bill comes at the end"
    assert start.message.content == []
    assert start.message.stop_reason is None
    assert (opened.index, opened.content_block.text) == (0, "")
    assert delta.delta.stop_reason == "end_turn"
    assert delta.usage.output_tokens == 7
    assert delta.usage.model_dump()["image_tokens"] == 20


def test_the_wire_names_each_event(live: LiveServer) -> None:
    body = {"max_tokens": 5, "messages": HELLO, "stream": True}
    response = httpx.post(f"{live.url}/v1/messages", json=body, timeout=60)
    assert response.headers["content-type"].startswith("text/event-stream")
    for event in response.text.strip().split("\n\n"):
        name, data = event.split("\n")
        assert name == f"event: {json.loads(data.removeprefix('data: '))['type']}"


def test_a_stream_adds_up_to_the_whole(sdk: anthropic.Anthropic, model: ScriptedGenerator) -> None:
    model.script = WANTS_TOOLS
    whole = ask(sdk, tools=[ZOOM, {**ZOOM, "name": "crop"}])
    with sdk.messages.stream(model="default", max_tokens=50, messages=HELLO) as stream:
        streamed = stream.get_final_message()
    assert plain(streamed) == plain(whole)
    assert streamed.usage.input_tokens == whole.usage.input_tokens
    assert streamed.usage.cache_read_input_tokens == 16


def plain(message: Any) -> dict[str, Any]:
    """A message without what differs: its id, and what the client alone adds."""
    found: dict[str, Any] = message.to_dict()
    blocks = [{k: v for k, v in each.items() if v is not None} for each in found["content"]]
    return {**found, "id": None, "usage": None, "content": blocks}


def test_the_asynchronous_client(live: LiveServer) -> None:
    async def say() -> str:
        async with (
            anthropic.AsyncAnthropic(base_url=live.url, api_key="none") as client,
            client.messages.stream(model="default", max_tokens=9, messages=HELLO) as stream,
        ):
            return "".join([text async for text in stream.text_stream])

    assert asyncio.run(say()) == "A red square."


# Tools and schemas ------------------------------------------------------------------------------


def test_tools_are_asked_for(sdk: anthropic.Anthropic, model: ScriptedGenerator) -> None:
    model.script = WANTS_TOOLS
    answer = ask(
        sdk,
        tools=[{**ZOOM, "strict": True, "cache_control": {"type": "ephemeral"}}],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
    )
    assert answer.stop_reason == "tool_use"
    text, zoom, crop = answer.content
    assert text.text == "Let me look."
    assert (zoom.type, zoom.id, zoom.name, zoom.input) == (
        "tool_use",
        "call_1",
        "zoom",
        {"x": 1, "y": 2},
    )
    assert (crop.id, crop.name, crop.input) == ("call_2", "crop", {})
    (asked,) = model.asked
    assert asked.tools == (Tool("zoom", "Look closer.", ZOOM["input_schema"], strict=True),)
    assert asked.tool_choice == "required"
    assert asked.parallel_tool_calls is False


@pytest.mark.parametrize(
    ("choice", "means"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "zoom"}, "zoom"),
    ],
    ids=["auto", "none", "tool"],
)
def test_choices_of_tools(
    sdk: anthropic.Anthropic, model: ScriptedGenerator, choice: Any, means: str
) -> None:
    ask(sdk, tools=[ZOOM], tool_choice=choice)
    assert model.asked[0].tool_choice == means
    assert model.asked[0].parallel_tool_calls is None


def test_results_of_tools_go_back(sdk: anthropic.Anthropic, model: ScriptedGenerator) -> None:
    model.script = WANTS_TOOLS
    first = ask(sdk, tools=[ZOOM, {**ZOOM, "name": "crop"}])
    model.script = SAID
    results = [
        {
            "type": "tool_result",
            "tool_use_id": "call_1",
            "content": [{"type": "text", "text": "Here:"}, block(picture("green"))],
        },
        {"type": "tool_result", "tool_use_id": "call_2", "content": "No.", "is_error": True},
        {"type": "text", "text": "Well?"},
    ]
    ask(sdk, [*HELLO, first.to_param(), *user(*results)], tools=[ZOOM, {**ZOOM, "name": "crop"}])
    hello, called, one, two, last = model.asked[1].messages
    assert hello.role == "user"
    assert called.role == "assistant"
    assert called.parts[0] == TextPart("Let me look.")
    call = called.parts[1]
    assert isinstance(call, ToolCall)
    assert (call.id, call.name, json.loads(call.arguments)) == ("call_1", "zoom", {"x": 1, "y": 2})
    assert (one.role, two.role) == ("tool", "tool")
    result = one.parts[0]
    assert isinstance(result, ToolResult)
    assert (result.call, result.parts[0], result.failed) == ("call_1", TextPart("Here:"), False)
    assert colour(result.parts[1]) == "green"
    assert two.parts == (ToolResult("call_2", (TextPart("No."),), failed=True),)
    assert (last.role, last.text) == ("user", "Well?")


class Thing(pydantic.BaseModel):
    name: str
    count: int


def test_a_schema(sdk: anthropic.Anthropic, model: ScriptedGenerator) -> None:
    model.script = [TextDelta(0, '{"name": "cat", "count": 2}'), Finished(0, "stop")]
    answer = sdk.messages.parse(model="default", max_tokens=50, messages=HELLO, output_format=Thing)
    assert answer.parsed_output == Thing(name="cat", count=2)
    schema = model.asked[0].schema
    assert schema is not None
    assert set(schema["properties"]) == {"name", "count"}


def test_sampling_and_effort(sdk: anthropic.Anthropic, model: ScriptedGenerator) -> None:
    ask(
        sdk,
        extra_body={"temperature": 0.5, "top_p": 0.9, "top_k": 7},
        output_config={"effort": "high"},
        thinking={"type": "adaptive"},
    )
    ask(sdk, thinking={"type": "disabled"})
    first, second = model.asked
    assert (first.sampling.temperature, first.sampling.top_p, first.sampling.top_k) == (0.5, 0.9, 7)
    assert (first.effort, second.effort) == ("high", "none")


def test_what_a_request_may_take(sdk: anthropic.Anthropic, model: ScriptedGenerator) -> None:
    ask(sdk, extra_body={"max_image_tokens": 100, "deadline": 9, "cache_salt": "s"})
    assert model.asked[0].max_image_tokens == 100
    assert model.asked[0].tenant == "s"


# Ends -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "means"), [("length", "max_tokens"), ("content_filter", "refusal")]
)
def test_reasons_to_stop(
    sdk: anthropic.Anthropic, model: ScriptedGenerator, reason: Any, means: str
) -> None:
    model.script = [TextDelta(0, "A"), Finished(0, reason)]
    assert ask(sdk).stop_reason == means


def test_a_stop_text(sdk: anthropic.Anthropic, model: ScriptedGenerator) -> None:
    model.script = [TextDelta(0, "A"), Finished(0, "stop", "END")]
    answer = ask(sdk, stop_sequences=["END"])
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "END")
    delta = list(ask(sdk, stop_sequences=["END"], stream=True))[-2].delta
    assert (delta.stop_reason, delta.stop_sequence) == ("stop_sequence", "END")


def test_a_refusal_is_no_answer(sdk: anthropic.Anthropic, model: ScriptedGenerator) -> None:
    model.script = [RefusalDelta(0, "I will "), RefusalDelta(0, "not."), Finished(0, "stop")]
    whole = ask(sdk)
    with sdk.messages.stream(model="default", max_tokens=50, messages=HELLO) as stream:
        streamed = stream.get_final_message()
    answers: list[Any] = [whole, streamed]
    for answer in answers:
        assert answer.content == []
        assert answer.stop_reason == "refusal"
        assert answer.stop_details.explanation == "I will not."


def test_a_call_that_was_cut_off(sdk: anthropic.Anthropic, model: ScriptedGenerator) -> None:
    model.script = [
        ToolCallDelta(0, 0, id="c", name="zoom", arguments='{"x": 1, "y'),
        Finished(0, "length"),
    ]
    answer = ask(sdk, tools=[ZOOM])
    assert answer.stop_reason == "max_tokens"
    assert answer.content[0].input == {"x": 1}


def test_arguments_that_are_no_object(sdk: anthropic.Anthropic, model: ScriptedGenerator) -> None:
    model.script = [
        ToolCallDelta(0, 0, id="c", name="zoom", arguments="[1"),
        Finished(0, "tool_calls"),
    ]
    with pytest.raises(anthropic.InternalServerError, match="no JSON object") as caught:
        ask(sdk, tools=[ZOOM])
    assert caught.value.status_code == 502


# Errors -----------------------------------------------------------------------------------------


def error_of(error: anthropic.APIStatusError) -> tuple[str, str]:
    """Type and message; asserts that the body has Anthropic's shape and nothing else."""
    body: Any = error.body
    assert set(body) == {"type", "error", "request_id"}
    assert body["type"] == "error"
    assert set(body["error"]) == {"type", "message"}
    assert body["request_id"] == error.response.headers["request-id"] == error.request_id
    return body["error"]["type"], body["error"]["message"]


RAISED: list[tuple[Exception, type[anthropic.APIStatusError], str]] = [
    (ContentRefused("No."), anthropic.BadRequestError, "invalid_request_error"),
    (Overloaded("Full.", retry_after=3), anthropic.RateLimitError, "rate_limit_error"),
    (GeneratorFailed("Broke."), anthropic.InternalServerError, "api_error"),
    (GeneratorUnreachable("Away."), anthropic.InternalServerError, "api_error"),
    (TimedOut("Late."), anthropic.InternalServerError, "timeout_error"),
    (RuntimeError("secret"), anthropic.InternalServerError, "api_error"),
]


@pytest.mark.parametrize(
    ("raised", "kind", "name"), RAISED, ids=[type(case[0]).__name__ for case in RAISED]
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_errors_are_their_own_exceptions(
    sdk: anthropic.Anthropic,
    model: ScriptedGenerator,
    raised: Exception,
    kind: type[anthropic.APIStatusError],
    name: str,
    stream: bool,
) -> None:
    model.script = [raised]
    with pytest.raises(kind) as caught:
        ask(sdk, stream=stream)
    type_, message = error_of(caught.value)
    assert type_ == name
    if isinstance(raised, ChiasmError):
        assert caught.value.status_code == raised.http_status
        assert message.startswith(raised.message)
    else:
        assert caught.value.status_code == 500
        assert "secret" not in message
    if isinstance(raised, Overloaded):
        assert caught.value.response.headers["retry-after"] == "3"


def test_an_error_in_mid_stream(sdk: anthropic.Anthropic, model: ScriptedGenerator) -> None:
    model.script = [TextDelta(0, "A "), GeneratorFailed("It broke off.")]
    said: list[str] = []

    def listen() -> None:
        events = ask(sdk, stream=True)
        said.extend(each.delta.text for each in events if each.type == "content_block_delta")

    with pytest.raises(anthropic.APIStatusError) as caught:
        listen()
    assert said == ["A "]
    body: Any = caught.value.body
    assert body["error"] == {"type": "api_error", "message": "It broke off."}


def test_an_unknown_model(sdk: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="Did you mean scripted") as caught:
        sdk.messages.create(model="scriptd", max_tokens=5, messages=HELLO)
    assert error_of(caught.value)[0] == "not_found_error"


def test_a_body_over_the_limit(sdk: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.ContentTooLargeError) as caught:
        ask(sdk, user(block(b"0" * 200_000)))
    assert error_of(caught.value)[0] == "request_too_large"


def test_a_foreign_page(live: LiveServer) -> None:
    headers = {"origin": "https://example.com"}
    response = httpx.post(f"{live.url}/v1/messages", json={}, headers=headers, timeout=60)
    assert response.status_code == 403
    assert response.json()["error"]["type"] == "permission_error"


def moving() -> bytes:
    """A GIF of two frames."""
    frames = [PIL.Image.new("RGB", (20, 20), COLOURS[name]) for name in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "no max_tokens": ({"max_tokens": None}, "max_tokens"),
    "no tokens": ({"max_tokens": 0}, "`max_tokens` is 0"),
    "no messages": ({"messages": []}, "messages is empty"),
    "messages no list": ({"messages": "hi"}, "messages must be a list"),
    "an unknown field": ({"container": "c"}, "There is no argument called container"),
    "an unknown role": (
        {"messages": [{"role": "tool", "content": "x"}]},
        "messages[0].role must be user, assistant or system",
    ),
    "a hot temperature": ({"temperature": 1.5}, "temperature"),
    "an empty text": (
        {"messages": user({"type": "text", "text": ""})},
        "messages[0].content[0].text is an empty text",
    ),
    "a document": ({"messages": user({"type": "document"})}, "messages[0].content[0].type is a"),
    "a picture by its address": (
        {
            "messages": user(
                {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}
            )
        },
        "messages[0].content[0].source.url: pictures are not fetched",
    ),
    "a stored file": (
        {"messages": user({"type": "image", "source": {"type": "file", "file_id": "f"}})},
        "messages[0].content[0].source.type names a file",
    ),
    "a media type in disguise": (
        {"messages": user(block(b"x", "image/png;base64,AAAA"))},
        "messages[0].content[0].source.media_type must be image/jpeg",
    ),
    "no picture": (
        {"messages": user(block(b"plain text"))},
        "messages[0].content[0].source.data: ",
    ),
    "several frames": (
        {"messages": user(block(moving(), "image/gif"))},
        "messages[0].content[0].source.data: it has 2 frames",
    ),
    "a result before its place": (
        {
            "messages": user(
                {"type": "text", "text": "x"}, {"type": "tool_result", "tool_use_id": "1"}
            )
        },
        "messages[0].content[1] is a tool's result after something else",
    ),
    "thoughts in the middle of a turn": (
        {
            "messages": [
                *HELLO,
                {
                    "role": "assistant",
                    "content": [{"type": "thinking", "thinking": "Hm", "signature": "s"}],
                },
                *user({"type": "tool_result", "tool_use_id": "1", "content": "x"}),
            ]
        },
        "messages[1].content[0].type holds a model's thoughts",
    ),
    "a thinking budget": (
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        "thinking.type: input should be 'adaptive' or 'disabled'",
    ),
    "an unknown effort": ({"output_config": {"effort": "huge"}}, "output_config.effort must be"),
    "a tool that Anthropic runs": (
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        "tools[0].type: input should be 'custom'",
    ),
    "a choice without tools": ({"tool_choice": {"type": "any"}}, "`tool_choice` needs `tools`"),
    "a choice of another tool": (
        {"tools": [ZOOM], "tool_choice": {"type": "tool", "name": "crop"}},
        "does not name one of the tools",
    ),
    "a restart in a stream": ({"restart": True, "stream": True}, "cannot take back"),
}


@pytest.mark.parametrize("case", CASES, ids=list(CASES))
def test_bad_requests_are_refused_before_a_model_is_asked(
    sdk: anthropic.Anthropic, model: ScriptedGenerator, case: str
) -> None:
    body, said = CASES[case]
    with pytest.raises(anthropic.BadRequestError) as caught:
        sdk.messages.create(model="default", max_tokens=5, messages=HELLO, extra_body=body)
    kind, message = error_of(caught.value)
    assert kind == "invalid_request_error"
    assert said in message
    assert model.asked == []


def test_thoughts_of_turns_that_are_over_are_left_out(
    sdk: anthropic.Anthropic, model: ScriptedGenerator
) -> None:
    thought = {"type": "thinking", "thinking": "Hm", "signature": "s"}
    ask(
        sdk,
        [
            *HELLO,
            {"role": "assistant", "content": [thought, {"type": "text", "text": "Hi"}]},
            *user({"type": "text", "text": "And?"}),
        ],
    )
    assert [m.text for m in model.asked[0].messages] == ["Hello", "Hi", "And?"]


# Models and counts ------------------------------------------------------------------------------


def test_models(sdk: anthropic.Anthropic, live: LiveServer) -> None:
    (listed,) = list(sdk.models.list(limit=1))
    assert (listed.id, listed.type, listed.lifecycle) == ("scripted", "model", "active")
    assert listed.max_input_tokens == 4096
    assert abs((datetime.now(UTC) - listed.created_at).total_seconds()) < 3600
    assert sdk.models.retrieve("scripted") == listed
    assert sdk.beta.models.retrieve("scripted").id == "scripted"
    with pytest.raises(anthropic.NotFoundError) as caught:
        sdk.models.retrieve("other")
    assert error_of(caught.value)[0] == "not_found_error"
    plain = httpx.get(f"{live.url}/v1/models", timeout=60).json()
    assert plain["object"] == "list"
    assert {"colours", "scripted"} <= {each["id"] for each in plain["data"]}


def test_pages_of_models(model: ScriptedGenerator, tmp_path: Path) -> None:
    routes = {name: ModelSettings(targets=("scripted",)) for name in ("a", "b", "c", "d")}
    settings = replace(make_settings(tmp_path), models=routes)
    app = create_app(settings, embedder=ColourEmbedder(), generator=model)
    with (
        LiveServer(app) as live,
        anthropic.Anthropic(base_url=live.url, api_key="none", max_retries=0) as client,
    ):
        names = [each.id for each in client.models.list()]
        assert set(names) == {"scripted", "a", "b", "c", "d"}
        assert [each.id for each in client.models.list(limit=2)] == names
        page = client.models.list(limit=2, before_id=names[4])
        assert [each.id for each in page.data] == names[2:4]
        assert [each.id for each in page] == [*names[2:4], *names[:2]]
        with pytest.raises(anthropic.NotFoundError):
            client.models.list(after_id="e")


# Keys -------------------------------------------------------------------------------------------


def test_keys(model: ScriptedGenerator, tmp_path_factory: pytest.TempPathFactory) -> None:
    settings = make_settings(tmp_path_factory.mktemp("keyed"))
    database = open_database("", settings.data_dir)
    text, _ = Keys(database).create("someone", models=["colours"])
    good, _ = Keys(database).create("other")
    database.close()
    app = create_app(settings, embedder=ColourEmbedder(), generator=model)
    with LiveServer(app) as live:
        for key, kind, name in (
            ("chk-wrong", anthropic.AuthenticationError, "authentication_error"),
            (text, anthropic.PermissionDeniedError, "permission_error"),
        ):
            client = anthropic.Anthropic(base_url=live.url, api_key=key, max_retries=0)
            with client, pytest.raises(kind) as caught:
                ask(client)
            assert error_of(caught.value)[0] == name
        with anthropic.Anthropic(base_url=live.url, api_key=good, max_retries=0) as client:
            assert ask(client).content[0].text == "A red square."
