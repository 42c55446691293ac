"""Anthropic's Messages behind the generator's protocol: what is asked, what is made of it."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import anthropic
import numpy as np
import pytest
from anthropic.types.message_create_params import MessageCreateParamsStreaming
from pydantic import TypeAdapter

from chiasm.errors import GeneratorFailed, ImageTooLarge, InvalidRequest, Unsupported
from chiasm.generation import (
    Finished,
    ImagePart,
    Message,
    Request,
    Sampling,
    TextDelta,
    TextPart,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolResult,
)
from chiasm.generation.providers.anthropic_messages import AnthropicMessages
from chiasm.media import Image
from tests.generation.providers import anthropic_shapes as shapes
from tests.generation.providers.asking import (
    answers,
    asked,
    encoded,
    jpeg,
    pixels,
    png_with_words,
    said,
    shown,
    usage,
)
from tests.generation.providers.fake_openai import FakeOpenAI, Reply

BODY: TypeAdapter[Any] = TypeAdapter(MessageCreateParamsStreaming)
"""What the official SDK's types allow to be asked."""

KEY = "sk-ant-api03-a1b2c3"
PLACE = {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}
WEATHER = Tool("get_weather", "The weather of a place.", PLACE)


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI() as fake:
        fake.script = lambda asked: Reply(shapes.answer(), done=False)
        yield fake


@pytest.fixture
def model(server: FakeOpenAI) -> Iterator[AnthropicMessages]:
    with contextlib.closing(connect(server)) as generator:
        yield generator


def connect(server: FakeOpenAI, **options: Any) -> AnthropicMessages:
    address = server.url.removesuffix("/v1")
    settings = {"model": "claude-opus-5-5", "base_url": address, "key": KEY, **options}
    return AnthropicMessages(**settings)


def replying(server: FakeOpenAI, *steps: Any) -> None:
    server.script = lambda asked: Reply(list(steps), done=False)


def body_of(server: FakeOpenAI, model: AnthropicMessages, request: Request) -> dict[str, Any]:
    """What arrived. Fields that the SDK's types do not know are an error."""
    list(model.run(request))
    body = server.asked[-1].body
    plain = {k: v for k, v in body.items() if k not in ("temperature", "top_p", "top_k")}
    BODY.validate_python(plain, extra="forbid")
    return body


# The shapes themselves --------------------------------------------------------------------------


def test_the_official_sdk_reads_what_this_server_sends(server: FakeOpenAI) -> None:
    """So the recorded events are Anthropic's, and its own reader agrees with ours."""
    steps = [shapes.begin(given=472, read=7), *shapes.thoughts(0, "Hm."), shapes.PING,
             *shapes.words(1, "Okay", ", let's", " see."),
             *shapes.called(2, "toolu_01T1x1fJ34q", "get_weather", '{"pl', 'ace": "Ulm"}'),
             *shapes.end("tool_use", usage={"output_tokens": 89})]  # fmt: skip
    replying(server, *steps)
    sdk = anthropic.Anthropic(api_key=KEY, base_url=server.url.removesuffix("/v1"))
    with sdk.messages.stream(
        model="claude-opus-5-5", max_tokens=9, messages=[{"role": "user", "content": "?"}]
    ) as stream:
        theirs = stream.get_final_message()
    with contextlib.closing(connect(server)) as model:
        ours = answers(model, asked(tools=(WEATHER,)))
    text, call = theirs.content[1], theirs.content[2]
    assert text.type == "text"
    assert said(ours) == text.text
    assert call.type == "tool_use"
    assert call.input == {"place": "Ulm"}
    assert usage(ours).prompt_tokens == theirs.usage.input_tokens + 7
    assert usage(ours).answer_tokens == theirs.usage.output_tokens == 89
    typed, raw = server.asked[-2:]
    assert raw.path == typed.path == "/v1/messages"
    for name in ("authorization", "anthropic-version", "content-type", "accept"):
        assert raw.headers[name] == typed.headers[name], name


# Requests ---------------------------------------------------------------------------------------


def test_a_plain_question(server: FakeOpenAI, model: AnthropicMessages) -> None:
    assert body_of(server, model, asked("Who?")) == {
        "model": "claude-opus-5-5",
        "max_tokens": 4096,
        "messages": [{"role": "user", "content": "Who?"}],
        "stream": True,
    }
    request = server.asked[0]
    assert request.path == "/v1/messages"
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.headers["anthropic-version"] == "2026-10-21"


def test_an_address_that_ends_with_its_version(server: FakeOpenAI) -> None:
    with contextlib.closing(connect(server, base_url=server.url)) as model:
        answers(model, asked())
    assert server.asked[0].path == "/v1/messages"


def test_system_messages(server: FakeOpenAI, model: AnthropicMessages) -> None:
    one = Message("system", (TextPart("Be brief."),))
    two = Message("system", (TextPart("Speak French."),))
    question = Message.user("Who?")
    body = body_of(server, model, Request((one, question)))
    assert body["system"] == "Be brief."
    body = body_of(server, model, Request((one, two, question)))
    assert body["system"] == [
        {"type": "text", "text": "Be brief."},
        {"type": "text", "text": "Speak French."},
    ]
    body = body_of(server, model, Request((one, question, two)))
    assert body["messages"][-1] == {"role": "system", "content": "Speak French."}
    with pytest.raises(InvalidRequest, match="nothing to answer"):
        answers(model, Request((one, two)))


def test_turns(server: FakeOpenAI, model: AnthropicMessages) -> None:
    request = Request(
        (
            Message.user("One.", "Two."),
            Message("assistant", (TextPart("Three."),)),
            Message.user("Four."),
            Message.user("Five."),
        )
    )
    assert body_of(server, model, request)["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": "One."},
                                     {"type": "text", "text": "Two."}]},
        {"role": "assistant", "content": "Three."},
        {"role": "user", "content": "Four."},
        {"role": "user", "content": "Five."},
    ]  # fmt: skip


def test_what_may_be_asked_of_an_answer(server: FakeOpenAI, model: AnthropicMessages) -> None:
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    request = asked(max_tokens=7, stop=("END", "\n"), schema=schema, effort="xhigh")
    body = body_of(server, model, request)
    assert body["max_tokens"] == 7
    assert body["stop_sequences"] == ["END", "\n"]
    assert body["output_config"] == {
        "effort": "xhigh",
        "format": {"type": "json_schema", "schema": schema},
    }
    assert "thinking" not in body
    body = body_of(server, model, asked(effort="none"))
    assert body["thinking"] == {"type": "disabled"}
    assert "output_config" not in body


def test_sampling_goes_to_the_version_that_has_it(
    server: FakeOpenAI, model: AnthropicMessages
) -> None:
    """The newest has none, and to drop it in silence would be another answer."""
    sampling = Sampling(temperature=0.0, top_p=0.9, top_k=40)
    body = body_of(server, model, asked(sampling=sampling))
    assert (body["temperature"], body["top_p"], body["top_k"]) == (0.0, 0.9, 40)
    assert server.asked[-1].headers["anthropic-version"] == "2023-06-01"
    body_of(server, model, asked())
    assert server.asked[-1].headers["anthropic-version"] == "2026-10-21"


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"choices": 2}, "n"),
        ({"logprobs": 0}, "logprobs"),
        ({"sampling": Sampling(seed=0)}, "seed"),
        ({"sampling": Sampling(frequency_penalty=0.1)}, "frequency_penalty"),
        ({"sampling": Sampling(presence_penalty=0.1)}, "presence_penalty"),
        ({"sampling": Sampling(temperature=1.1)}, "temperature"),
        ({"effort": "minimal"}, "reasoning_effort"),
        ({"schema": {"type": "object"}}, "response_format"),
    ],
)
def test_what_it_cannot_do(
    server: FakeOpenAI, model: AnthropicMessages, options: Any, param: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        answers(model, asked(**options))
    assert caught.value.param == param
    assert not server.asked


# Pictures ---------------------------------------------------------------------------------------


def picture_in(block: dict[str, Any]) -> tuple[str, bytes]:
    assert block["type"] == "image"
    assert block["source"]["type"] == "base64"
    return block["source"]["media_type"], base64.b64decode(block["source"]["data"], validate=True)


def test_a_plain_file_goes_as_it_is(server: FakeOpenAI, model: AnthropicMessages) -> None:
    file = jpeg()
    request = Request((Message("user", (ImagePart(encoded(file)), TextPart("What?"))),))
    content = body_of(server, model, request)["messages"][0]["content"]
    assert picture_in(content[0]) == ("image/jpeg", file)
    assert content[1] == {"type": "text", "text": "What?"}


def test_nothing_but_the_picture_leaves(server: FakeOpenAI, model: AnthropicMessages) -> None:
    file = png_with_words("51.4778 N, 0.0014 W")
    content = body_of(
        server, model, Request((Message("user", (ImagePart(encoded(file)),)),))
    )["messages"][0]["content"]  # fmt: skip
    kind, received = picture_in(content[0])
    assert kind == "image/png"
    assert b"51.4778" not in received
    assert b"51.4778" in file
    np.testing.assert_array_equal(shown(received), pixels())


def test_pixels_and_a_size_to_read_them_at(server: FakeOpenAI, model: AnthropicMessages) -> None:
    image = Image(pixels(), (40, 24), name="drawn")
    for size in (None, (20, 12)):
        part = ImagePart(image, detail="high", size=size)
        body = body_of(server, model, Request((Message("user", (part,)),)))
        _, received = picture_in(body["messages"][0]["content"][0])
        assert shown(received).shape == (*reversed(size or (40, 24)), 3)


def test_limits_of_pictures(server: FakeOpenAI, model: AnthropicMessages) -> None:
    small, wide = encoded(jpeg(8, 8)), encoded(jpeg(2100, 8))
    wider = encoded(jpeg(8004, 8))

    def question(*images: Any) -> Request:
        return Request((Message("user", tuple(ImagePart(image) for image in images)),))

    body_of(server, model, question(*[small] * 19, wide))
    with pytest.raises(ImageTooLarge, match="2,000 of more than 20 pictures"):
        answers(model, question(*[small] * 20, wide))
    with pytest.raises(
        ImageTooLarge, match=r"8,004 pixels, of which claude-opus-5-5 takes 8,000\."
    ):
        answers(model, question(wider))
    body_of(server, model, question(*[small] * 101))
    with pytest.raises(InvalidRequest, match="601 pictures"):
        answers(model, question(*[small] * 601))
    with (
        contextlib.closing(connect(server, context=200_000)) as short,
        pytest.raises(InvalidRequest, match="101 pictures; claude-opus-5-5 reads up to 100"),
    ):
        answers(short, question(*[small] * 101))
    with pytest.raises(Unsupported) as caught:
        answers(model, Request((Message("user", (ImagePart(small, detail="low"),)),)))
    assert caught.value.param == "detail"


def test_a_picture_of_too_many_bytes_is_compressed(
    server: FakeOpenAI, model: AnthropicMessages
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1700, 1700, 3), dtype=np.uint8)
    request = Request((Message("user", (ImagePart(Image(noise, (1700, 1700), name="noise")),)),))
    block = body_of(server, model, request)["messages"][0]["content"][0]
    kind, received = picture_in(block)
    assert kind == "image/jpeg"
    assert len(block["source"]["data"]) <= 10 * 1024 * 1024
    assert shown(received).shape == (1700, 1700, 3)


def test_a_request_of_too_many_bytes(server: FakeOpenAI, model: AnthropicMessages) -> None:
    with pytest.raises(ImageTooLarge, match="bytes, of which Anthropic takes 33,554,432"):
        answers(model, asked("x" * (32 * 1024 * 1024)))
    assert not server.asked


# Tools ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "parallel", "expected"),
    [
        ("auto", None, None),
        ("auto", False, {"type": "auto", "disable_parallel_tool_use": True}),
        ("auto", True, {"type": "auto", "disable_parallel_tool_use": False}),
        ("none", False, {"type": "none"}),
        ("required", None, {"type": "any"}),
        ("get_weather", False,
         {"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True}),
    ],
)  # fmt: skip
def test_tools(
    server: FakeOpenAI, model: AnthropicMessages, choice: str, parallel: bool | None, expected: Any
) -> None:
    tools = (replace(WEATHER, strict=True), Tool("now"))
    body = body_of(
        server, model, asked(tools=tools, tool_choice=choice, parallel_tool_calls=parallel)
    )
    assert body["tools"] == [
        {
            "name": "get_weather",
            "description": "The weather of a place.",
            "input_schema": PLACE,
            "strict": True,
        },
        {"name": "now", "input_schema": {"type": "object"}},
    ]
    assert body.get("tool_choice") == expected


def test_results_of_tools(server: FakeOpenAI, model: AnthropicMessages) -> None:
    file = jpeg()
    request = Request(
        (
            Message.user("How is it?"),
            Message(
                "assistant",
                (
                    TextPart(""),
                    ToolCall("toolu_1", "get_weather", '{"place": "Ulm"}'),
                    ToolCall("toolu_2", "camera", ""),
                    ToolCall("toolu_3", "camera", "{}"),
                ),
            ),
            Message("tool", (ToolResult("toolu_1", (TextPart("Fog."),)),)),
            Message(
                "tool",
                (
                    ToolResult("toolu_2", (TextPart("See:"), ImagePart(encoded(file)))),
                    ToolResult("toolu_3", (TextPart("It is broken."),), failed=True),
                ),
            ),
            Message.user("And now?"),
        ),
        tools=(WEATHER, Tool("camera")),
    )
    turns = body_of(server, model, request)["messages"]
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user", "user"]
    assert turns[1]["content"] == [
        {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"place": "Ulm"}},
        {"type": "tool_use", "id": "toolu_2", "name": "camera", "input": {}},
        {"type": "tool_use", "id": "toolu_3", "name": "camera", "input": {}},
    ]
    first, second, third = turns[2]["content"]
    assert first == {"type": "tool_result", "tool_use_id": "toolu_1", "content": "Fog."}
    assert second["content"][0] == {"type": "text", "text": "See:"}
    assert picture_in(second["content"][1]) == ("image/jpeg", file)
    assert third == {
        "type": "tool_result",
        "tool_use_id": "toolu_3",
        "content": "It is broken.",
        "is_error": True,
    }


@pytest.mark.parametrize("arguments", ["[1]", "{half", '"text"'])
def test_arguments_that_are_no_object(
    server: FakeOpenAI, model: AnthropicMessages, arguments: str
) -> None:
    call = Message("assistant", (ToolCall("t", "get_weather", arguments),))
    with pytest.raises(InvalidRequest) as caught:
        answers(model, Request((Message.user("?"), call), tools=(WEATHER,)))
    assert caught.value.param == "messages[1].tool_calls"
    assert not server.asked


# Answers ----------------------------------------------------------------------------------------


def test_a_text(server: FakeOpenAI, model: AnthropicMessages) -> None:
    events = answers(model, asked())
    assert said(events) == "A cat sleeps."
    assert events[-2] == Finished(0, "stop")


@pytest.mark.parametrize(
    ("reason", "stop", "expected"),
    [
        ("end_turn", None, Finished(0, "stop")),
        ("stop_sequence", "END", Finished(0, "stop", "END")),
        ("max_tokens", None, Finished(0, "length")),
        ("model_context_window_exceeded", None, Finished(0, "length")),
        ("tool_use", None, Finished(0, "tool_calls")),
        ("refusal", None, Finished(0, "content_filter")),
    ],
)
def test_why_it_ends(
    server: FakeOpenAI, model: AnthropicMessages, reason: str, stop: str | None, expected: Finished
) -> None:
    details = {"type": "refusal", "category": "cyber", "explanation": None}
    steps = shapes.end(reason, stop, details=details if reason == "refusal" else None)
    replying(server, shapes.begin(), *shapes.words(0, "A"), *steps)
    assert answers(model, asked())[-2] == expected


@pytest.mark.parametrize("reason", ["pause_turn", "moonrise"])
def test_an_end_that_is_none(server: FakeOpenAI, model: AnthropicMessages, reason: str) -> None:
    event = {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {}}
    replying(server, shapes.begin(), *shapes.words(0, "A"), event, {"type": "message_stop"})
    with pytest.raises(GeneratorFailed, match="gave the answer up"):
        answers(model, asked())


def test_an_end_without_a_reason(server: FakeOpenAI, model: AnthropicMessages) -> None:
    replying(server, shapes.begin(), *shapes.words(0, "A"), shapes.event("message_stop"))
    with pytest.raises(GeneratorFailed, match="ended before its answer did"):
        answers(model, asked())


def test_wishes_for_tools(server: FakeOpenAI, model: AnthropicMessages) -> None:
    replying(
        server,
        shapes.begin(),
        *shapes.words(0, "I look."),
        *shapes.called(1, "toolu_1", "get_weather", '{"place', '": "Ulm"}'),
        *shapes.called(2, "toolu_2", "now"),
        *shapes.end("tool_use"),
    )
    events = answers(model, asked(tools=(WEATHER, Tool("now"))))
    assert events[:-1] == [
        TextDelta(0, "I look."),
        ToolCallDelta(0, 0, "toolu_1", "get_weather"),
        ToolCallDelta(0, 0, arguments='{"place'),
        ToolCallDelta(0, 0, arguments='": "Ulm"}'),
        ToolCallDelta(0, 1, "toolu_2", "now"),
        ToolCallDelta(0, 1, arguments="{}"),
        Finished(0, "tool_calls"),
    ]


def test_thoughts_are_counted_and_not_shown(server: FakeOpenAI, model: AnthropicMessages) -> None:
    replying(
        server,
        shapes.begin(),
        *shapes.thoughts(0, "Is it", " a dog?"),
        shapes.block(1, "redacted_thinking", data="EmwKAhgBEgy3va3pzix"),
        shapes.close(1),
        *shapes.words(2, "A cat."),
        *shapes.end(usage=shapes.spent(25, 60, thought=48)),
    )
    events = answers(model, asked())
    assert events[:-1] == [TextDelta(0, "A cat."), Finished(0, "stop")]
    assert (usage(events).answer_tokens, usage(events).thought_tokens) == (60, 48)


def test_kinds_of_events_that_are_not_known_yet(
    server: FakeOpenAI, model: AnthropicMessages
) -> None:
    steps = shapes.answer()
    new = {"type": "weather_report", "sun": True}
    replying(server, *[each for step in steps for each in (new, step)])
    assert said(answers(model, asked())) == "A cat sleeps."


def test_an_answer_in_one_piece(server: FakeOpenAI, model: AnthropicMessages) -> None:
    """Some servers that speak this API do not stream."""
    content = [
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"place": "Ulm"}},
    ]
    whole = shapes.message(content, "tool_use", usage=shapes.spent(25, 15))
    server.script = lambda asked: Reply(whole=whole)
    events = answers(model, asked(tools=(WEATHER,)))
    assert events[:-1] == [
        TextDelta(0, "I look."),
        ToolCallDelta(0, 0, "toolu_1", "get_weather", '{"place": "Ulm"}'),
        Finished(0, "tool_calls"),
    ]
    assert usage(events).answer_tokens == 15


def test_the_bill(server: FakeOpenAI, model: AnthropicMessages) -> None:
    """What is read from a cache and written to it is not in `input_tokens`."""
    replying(
        server,
        shapes.begin(given=21, read=188_086, kept=300),
        *shapes.words(0, "A"),
        *shapes.end(usage={"output_tokens": 393}),
    )
    bill = usage(answers(model, asked()))
    assert (bill.text_tokens, bill.image_tokens) == (21 + 188_086 + 300, 0)
    assert (bill.cached_tokens, bill.written_tokens) == (188_086, 300)
    assert (bill.answer_tokens, bill.images, bill.estimated) == (393, 0, False)
    assert set(bill.seconds) == {"prepare", "first_token", "decode"}
    bill = usage(answers(model, Request((Message("user", (ImagePart(encoded(jpeg())),)),))))
    assert (bill.image_tokens, bill.images, bill.estimated) == (0, 1, True)


def test_the_last_sums_count(server: FakeOpenAI, model: AnthropicMessages) -> None:
    replying(
        server,
        shapes.begin(given=472, read=5),
        *shapes.words(0, "A"),
        *shapes.end(usage={"input_tokens": 10_682, "output_tokens": 510,
                           "cache_read_input_tokens": None}),
    )  # fmt: skip
    bill = usage(answers(model, asked()))
    assert (bill.prompt_tokens, bill.answer_tokens) == (10_687, 510)
    assert bill.cached_tokens == 5, "what was left out has not changed"
