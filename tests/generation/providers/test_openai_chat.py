"""OpenAI's chat completions behind the generator's protocol: what is asked, what is made of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming
from pydantic import TypeAdapter

from chiasm.errors import GeneratorFailed, InvalidRequest, Unsupported
from chiasm.generation import (
    Finished,
    ImagePart,
    Message,
    RefusalDelta,
    Request,
    Sampling,
    TextDelta,
    TextPart,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolResult,
)
from chiasm.generation.providers.chat_messages import sender
from chiasm.generation.providers.openai_chat import OpenAIChat, chat_body
from chiasm.media import Image
from tests.generation.providers.asking import (
    LIMITS,
    answers,
    asked,
    encoded,
    file_in,
    jpeg,
    pixels,
    png_with_words,
    said,
    shown,
    usage,
)
from tests.generation.providers.fake_openai import (
    FakeOpenAI,
    Reply,
    bill,
    called,
    chat_answer,
    chat_usage,
    chat_whole,
    chunk,
    role,
    text,
)

BODY: TypeAdapter[Any] = TypeAdapter(CompletionCreateParamsStreaming)
"""What the official SDK's types allow to be asked."""

WEATHER = Tool(
    "get_weather",
    "The weather of a place.",
    {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
)


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI() as fake:
        yield fake


@pytest.fixture
def model(server: FakeOpenAI) -> Iterator[OpenAIChat]:
    generator = OpenAIChat(model="gpt-5-mini", base_url=server.url, key="sk-test")
    yield generator
    generator.close()


def replying(server: FakeOpenAI, *steps: Any, **options: Any) -> None:
    server.script = lambda asked: Reply(steps, **options)


def body_of(server: FakeOpenAI) -> dict[str, Any]:
    """The body of the one request, which OpenAI's types allow."""
    (request,) = server.asked
    assert request.path == "/v1/chat/completions"
    BODY.validate_python(request.body)
    return request.body


# What is asked ----------------------------------------------------------------------------------


def test_nothing_is_sent_that_was_not_asked_for(server: FakeOpenAI, model: OpenAIChat) -> None:
    answers(model, asked("Hello"))
    assert body_of(server) == {
        "model": "gpt-5-mini",
        "messages": [{"role": "user", "content": "Hello"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert server.asked[0].headers["authorization"] == "Bearer sk-test"


def test_everything_that_can_be_asked_for(server: FakeOpenAI, model: OpenAIChat) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    replying(server, role(0), role(1), chunk(reason="stop"), chunk(reason="stop", choice=1), bill())
    request = Request(
        (Message("system", (TextPart("Be brief."),)), Message.user("Say ", "it.")),
        max_tokens=7,
        sampling=Sampling(0.7, 0.9, 0, 11, 0.5, -0.25),
        stop=("\n", "END"),
        choices=2,
        logprobs=3,
        schema=schema,
        schema_name="count",
        schema_strict=False,
        effort="low",
    )
    answers(model, request)
    assert body_of(server) == {
        "model": "gpt-5-mini",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "Say "}, {"type": "text", "text": "it."}],
            },
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 7,
        "n": 2,
        "temperature": 0.7,
        "top_p": 0.9,
        "seed": 11,
        "frequency_penalty": 0.5,
        "presence_penalty": -0.25,
        "stop": ["\n", "END"],
        "logprobs": True,
        "top_logprobs": 3,
        "reasoning_effort": "low",
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "count", "schema": schema, "strict": False},
        },
    }


def test_openais_own_models_count_thoughts_with_the_answer() -> None:
    """`max_tokens` is refused by their reasoning models; other servers know nothing else."""
    (own,) = chat_body(asked(max_tokens=9), "o4-mini", sender(LIMITS), own=True)
    assert b'"max_completion_tokens":9' in own
    assert b'"max_tokens"' not in own


def test_any_object(server: FakeOpenAI, model: OpenAIChat) -> None:
    answers(model, asked(schema={"type": "object"}))
    assert body_of(server)["response_format"] == {"type": "json_object"}


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        ("auto", None),
        ("none", "none"),
        ("required", "required"),
        ("get_weather", {"type": "function", "function": {"name": "get_weather"}}),
    ],
)
def test_tools(server: FakeOpenAI, model: OpenAIChat, choice: str, sent: Any) -> None:
    strict = Tool("now", strict=True)
    answers(model, asked(tools=(WEATHER, strict), tool_choice=choice, parallel_tool_calls=False))
    body = body_of(server)
    assert body["tools"] == [
        {
            "type": "function",
            "function": {
                "name": "get_weather",
                "description": "The weather of a place.",
                "parameters": WEATHER.parameters,
            },
        },
        {
            "type": "function",
            "function": {"name": "now", "parameters": {"type": "object"}, "strict": True},
        },
    ]
    assert body.get("tool_choice") == sent
    assert body["parallel_tool_calls"] is False


def test_results_of_tools_go_back(server: FakeOpenAI, model: OpenAIChat) -> None:
    conversation = (
        Message.user("And in Rome and Oslo?"),
        Message(
            "assistant",
            (
                TextPart("Let me see."),
                ToolCall("call_1", "get_weather", '{"place": "Rome"}'),
                ToolCall("call_2", "get_weather", '{"place": "Oslo"}'),
            ),
        ),
        Message(
            "tool",
            (
                ToolResult("call_1", (TextPart("sunny, "), TextPart("31 °C"))),
                ToolResult("call_2", (TextPart("no such place"),), failed=True),
            ),
        ),
    )
    answers(model, Request(conversation, tools=(WEATHER,)))
    user, assistant, *results = body_of(server)["messages"]
    assert user == {"role": "user", "content": "And in Rome and Oslo?"}
    assert assistant["content"] == "Let me see."
    assert assistant["tool_calls"] == [
        {
            "id": f"call_{n}",
            "type": "function",
            "function": {"name": "get_weather", "arguments": f'{{"place": "{place}"}}'},
        }
        for n, place in ((1, "Rome"), (2, "Oslo"))
    ]
    assert results == [
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny, 31 °C"},
        {"role": "tool", "tool_call_id": "call_2", "content": "Error: no such place"},
    ]


def test_an_assistant_that_only_calls_says_nothing(server: FakeOpenAI, model: OpenAIChat) -> None:
    conversation = (
        Message.user("?"),
        Message("assistant", (ToolCall("c", "now", "{}"),)),
        Message("tool", (ToolResult("c", (TextPart("noon"),)),)),
    )
    answers(model, Request(conversation, tools=(Tool("now"),)))
    assert body_of(server)["messages"][1]["content"] is None


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (asked(sampling=Sampling(top_k=5)), "top_k"),
        (Request(()), "messages"),
        (Request((Message("user", ()),)), "messages[0].content"),
        (
            Request((Message.user("?"), Message("assistant", (ImagePart(encoded(jpeg())),)))),
            "messages[1].content",
        ),
        (
            Request((Message("system", (ImagePart(encoded(jpeg())),)), Message.user("?"))),
            "messages[0].content",
        ),
        (
            Request((Message("tool", (ToolResult("c", (ImagePart(encoded(jpeg())),)),)),)),
            "messages[0].content",
        ),
        (Request((Message("user", (ToolCall("c", "now", "{}"),)),)), "messages[0].tool_calls"),
        (Request((Message("tool", (TextPart("noon"),)),)), "messages[0].content"),
        (Request((Message("user", (ToolResult("c", ()),)),)), "messages[0].content"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_not_sent(
    server: FakeOpenAI, model: OpenAIChat, request_: Request, param: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        answers(model, request_)
    assert caught.value.param == param
    assert not server.asked


def test_a_picture_from_a_tool_is_unsupported(server: FakeOpenAI, model: OpenAIChat) -> None:
    """Not invalid: another model of the same route may read it."""
    shot = ToolResult("c", (ImagePart(encoded(jpeg())),))
    with pytest.raises(Unsupported, match="gpt-5-mini"):
        answers(model, Request((Message("tool", (shot,)),)))


# Pictures ---------------------------------------------------------------------------------------


def test_a_file_with_nothing_but_its_picture_is_sent_as_it_came(
    server: FakeOpenAI, model: OpenAIChat
) -> None:
    files = [jpeg(40, 24), jpeg(64, 64)]
    first, second = map(encoded, files)
    parts = (
        ImagePart(first, "low"),
        TextPart('"Or\u2028this?" \\'),
        ImagePart(second),
        ImagePart(first, "original"),
    )
    answers(model, Request((Message("user", parts),)))
    content = body_of(server)["messages"][0]["content"]
    assert [part["type"] for part in content] == ["image_url", "text", "image_url", "image_url"]
    assert content[1]["text"] == '"Or\u2028this?" \\'
    details = [content[at]["image_url"].get("detail") for at in (0, 2, 3)]
    assert details == ["low", None, "original"]
    for at, file in ((0, files[0]), (2, files[1]), (3, files[0])):
        assert file_in(content[at]["image_url"]["url"]) == ("image/jpeg", file)


def test_nothing_leaves_with_a_picture(server: FakeOpenAI, model: OpenAIChat) -> None:
    secret = "taken at 48.8584 N 2.2945 E"
    photo = jpeg(comment=secret.encode())
    answers(model, asked(encoded(png_with_words(secret)), encoded(photo), "What?"))
    words, camera = (
        file_in(part["image_url"]["url"])[1]
        for part in body_of(server)["messages"][0]["content"][:2]
    )
    assert secret.encode() in png_with_words(secret)
    assert secret.encode() in photo
    assert secret.encode() not in words + camera
    assert np.array_equal(shown(words), pixels())
    assert np.abs(shown(camera).astype(int) - shown(photo)).mean() < 12  # JPEG of JPEG, of noise
    assert shown(camera).shape == shown(photo).shape


def test_pixels_arrive_exactly(server: FakeOpenAI, model: OpenAIChat) -> None:
    image = Image(pixels(), original_size=(40, 24))
    answers(model, asked(image, "What?"))
    kind, file = file_in(body_of(server)["messages"][0]["content"][0]["image_url"]["url"])
    assert kind == "image/png"
    assert np.array_equal(shown(file), pixels())


def test_a_picture_that_is_to_be_read_smaller(server: FakeOpenAI, model: OpenAIChat) -> None:
    part = ImagePart(encoded(jpeg(40, 24)), size=(20, 12))
    answers(model, Request((Message("user", (part,)),)))
    _, file = file_in(body_of(server)["messages"][0]["content"][0]["image_url"]["url"])
    assert shown(file).shape == (12, 20, 3)


def test_a_text_that_looks_like_a_pictures_place(server: FakeOpenAI, model: OpenAIChat) -> None:
    """The place of a picture is marked by a word that nobody can guess."""
    words = "0; 1; 00000000000000000000000000000000" + "0; {} data:image/png;base64,0;"
    answers(model, asked(encoded(jpeg()), words))
    assert body_of(server)["messages"][0]["content"][1]["text"] == words


# What is made of the answer ---------------------------------------------------------------------


def test_an_answer(server: FakeOpenAI, model: OpenAIChat) -> None:
    events = answers(model, asked())
    assert said(events) == "A cat sleeps."  # words that come together may be one piece
    assert events[-2] == Finished(0, "stop")
    spent = usage(events)
    assert (spent.text_tokens, spent.image_tokens, spent.answer_tokens) == (19, 0, 10)
    assert not spent.estimated
    assert spent.seconds["first_token"] > 0


def test_the_bill(server: FakeOpenAI, model: OpenAIChat) -> None:
    paid = chat_usage(1000, 80, cached=640, thought=64, details={"cache_write_tokens": 200})
    replying(server, *chat_answer()[:-1], chunk(choices=[], usage=paid))
    spent = usage(answers(model, asked()))
    assert (spent.cached_tokens, spent.written_tokens) == (640, 200)
    assert (spent.answer_tokens, spent.thought_tokens) == (80, 64)


@pytest.mark.parametrize(
    ("details", "image_tokens", "estimated"),
    [
        ({}, 0, True),
        ({"image_tokens": 0}, 0, True),
        ({"image_tokens": 765}, 765, False),
        ({"multimodal_tokens": {"image": 576}}, 576, False),
    ],
)
def test_the_pictures_share(
    server: FakeOpenAI, model: OpenAIChat, details: Any, image_tokens: int, estimated: bool
) -> None:
    last = chunk(choices=[], usage=chat_usage(1000, 9, details=details))
    replying(server, *chat_answer()[:-1], last)
    spent = usage(answers(model, asked(encoded(jpeg()), "?")))
    assert (spent.image_tokens, spent.estimated, spent.images) == (image_tokens, estimated, 1)
    assert spent.prompt_tokens == 1000


def test_a_server_that_gives_no_bill(server: FakeOpenAI, model: OpenAIChat) -> None:
    replying(server, *chat_answer()[:-1])
    spent = usage(answers(model, asked()))
    assert (spent.prompt_tokens, spent.answer_tokens, spent.estimated) == (0, 3, True)


@pytest.mark.parametrize(
    ("reason", "meant"),
    [("stop", "stop"), ("length", "length"), ("content_filter", "content_filter")],
)
def test_why_it_ends(server: FakeOpenAI, model: OpenAIChat, reason: str, meant: str) -> None:
    replying(server, *chat_answer(reason=reason))
    assert answers(model, asked())[-2] == Finished(0, meant)  # type: ignore[arg-type]


def test_an_end_that_is_none(server: FakeOpenAI, model: OpenAIChat) -> None:
    cut = chunk()
    cut["choices"][0]["finish_reason"] = "insufficient_system_resource"  # type: ignore[index]
    replying(server, role(), text("A"), cut, bill())
    with pytest.raises(GeneratorFailed, match="gave the answer up"):
        answers(model, asked())


def test_a_refusal_is_no_answer(server: FakeOpenAI, model: OpenAIChat) -> None:
    pieces = ("I'm sorry, ", "I can't help with that.")
    replying(
        server, role(), *(chunk({"refusal": each}) for each in pieces), chunk(reason="stop"), bill()
    )
    events = answers(model, asked())
    assert events[:-1] == [*(RefusalDelta(0, each) for each in pieces), Finished(0, "stop")]


def test_log_probabilities(server: FakeOpenAI, model: OpenAIChat) -> None:
    other = {"token": "!", "logprob": -2.75, "bytes": [33]}

    def token(said: str, spelling: list[int] | None, *top: Any) -> dict[str, Any]:
        entry = {"token": said, "logprob": -0.5, "bytes": spelling, "top_logprobs": list(top)}
        return {"content": [entry], "refusal": None}

    replying(
        server,
        role(),
        text("x", logprobs=token("x", [120], other)),
        text("", logprobs=token("\\xe4\\xb8", [228, 184])),  # two thirds of a character
        text("世", logprobs=token("\\x96", [150])),
        text("y", logprobs=token("y", None)),
        chunk(reason="stop"),
        bill(),
    )
    deltas = [e for e in answers(model, asked(logprobs=1)) if isinstance(e, TextDelta)]
    assert "".join(each.text for each in deltas) == "x世y"
    first, *halves, last = (each for delta in deltas for each in delta.tokens)
    assert (first.bytes, first.logprob) == (b"x", -0.5)
    assert [(t.token, t.logprob) for t in first.top] == [("!", -2.75)]
    assert b"".join(token.bytes for token in halves) == "世".encode()
    assert last.bytes == b"y"


def test_several_choices(server: FakeOpenAI, model: OpenAIChat) -> None:
    replying(
        server, role(0), role(1), text("a"), text("x", choice=1), chunk(reason="length"),
        text("y", choice=1), chunk(reason="stop", choice=1), bill(),
    )  # fmt: skip
    events = answers(model, asked(choices=2))
    assert (said(events, 0), said(events, 1)) == ("a", "xy")


def test_a_choice_that_is_missing(server: FakeOpenAI, model: OpenAIChat) -> None:
    """As from a server that knows no `n`."""
    with pytest.raises(GeneratorFailed, match="ended before its answer did"):
        answers(model, asked(choices=2))


# Calls of tools ---------------------------------------------------------------------------------


def test_a_call_in_pieces(server: FakeOpenAI, model: OpenAIChat) -> None:
    replying(
        server,
        role(),
        called(0, id="call_DdmO9pD3xa9XTPNJ32zg2hcA", name="get_weather"),
        called(0, arguments='{"pl'),
        called(0, arguments='ace": "Rome"}'),
        chunk(reason="tool_calls"),
        bill(),
    )
    assert answers(model, asked(tools=(WEATHER,)))[:-1] == [
        ToolCallDelta(0, 0, "call_DdmO9pD3xa9XTPNJ32zg2hcA", "get_weather", ""),
        ToolCallDelta(0, 0, arguments='{"pl'),
        ToolCallDelta(0, 0, arguments='ace": "Rome"}'),
        Finished(0, "tool_calls"),
    ]


def test_parallel_calls(server: FakeOpenAI, model: OpenAIChat) -> None:
    replying(
        server,
        role(),
        text("Let me see."),
        called(0, id="call_a", name="get_weather"),
        called(0, arguments='{"place": "Rome"}'),
        called(1, id="call_b", name="get_weather"),
        called(1, arguments='{"place": "Oslo"}'),
        chunk(reason="tool_calls"),
        bill(),
    )
    events = answers(model, asked(tools=(WEATHER,)))
    assert said(events) == "Let me see."
    assert _calls(events) == [
        ("call_a", "get_weather", '{"place": "Rome"}'),
        ("call_b", "get_weather", '{"place": "Oslo"}'),
    ]


def test_a_tool_that_was_asked_for_by_name(server: FakeOpenAI, model: OpenAIChat) -> None:
    """OpenAI ends such an answer with `stop`, though it waits for the result."""
    replying(server, role(), called(0, id="c", name="now", arguments="{}"), chunk(reason="stop"))
    assert answers(model, asked(tools=(Tool("now"),)))[-2] == Finished(0, "tool_calls")


def test_calls_whose_server_does_not_count(server: FakeOpenAI, model: OpenAIChat) -> None:
    """Whole calls, all at index 0, told apart by their ids; and one that has none."""
    nameless = called(0)
    nameless["choices"][0]["delta"]["tool_calls"] = [  # type: ignore[index]
        {"function": {"name": "now", "arguments": {"zone": "UTC"}}}
    ]
    replying(
        server,
        role(),
        called(0, id="a", name="now", arguments="{}"),
        called(0, id="b", name="now", arguments="[]"),
        chunk(reason="tool_calls"),
    )
    assert _calls(answers(model, asked(tools=(Tool("now"),)))) == [
        ("a", "now", "{}"), ("b", "now", "[]"),
    ]  # fmt: skip
    replying(server, role(), nameless, chunk(reason="tool_calls"))
    ((id, name, arguments),) = _calls(answers(model, asked(tools=(Tool("now"),))))
    assert id.startswith("call_")
    assert (name, arguments) == ("now", '{"zone": "UTC"}')


def _calls(events: list[Any]) -> list[tuple[str, str, str]]:
    calls: dict[int, tuple[str, str, str]] = {}
    for event in events:
        if isinstance(event, ToolCallDelta):
            id, name, arguments = calls.get(event.number, ("", "", ""))
            calls[event.number] = (id + event.id, name + event.name, arguments + event.arguments)
    return [calls[number] for number in sorted(calls)]


# Servers that do not stream ---------------------------------------------------------------------


def test_an_answer_in_one_piece(server: FakeOpenAI, model: OpenAIChat) -> None:
    server.script = lambda asked: Reply(whole=chat_whole({"content": "A cat."}))
    events = answers(model, asked())
    assert events[:-1] == [TextDelta(0, "A cat."), Finished(0, "stop")]
    assert usage(events).prompt_tokens == 19


def test_calls_in_one_piece(server: FakeOpenAI, model: OpenAIChat) -> None:
    calls = [
        {"id": id, "type": "function", "function": {"name": "now", "arguments": "{}"}}
        for id in ("a", "b")
    ]
    whole = chat_whole({"content": None, "tool_calls": calls}, "tool_calls")
    server.script = lambda asked: Reply(whole=whole)
    events = answers(model, asked(tools=(Tool("now"),)))
    assert _calls(events) == [("a", "now", "{}"), ("b", "now", "{}")]


def test_thoughts_are_not_shown(server: FakeOpenAI, model: OpenAIChat) -> None:
    """As servers of open reasoning models send them."""
    thought = chunk()
    thought["choices"][0]["delta"] = {"reasoning_content": "Hm, a cat?"}  # type: ignore[index]
    replying(server, role(), thought, text("A cat."), chunk(reason="stop"), bill(thought=7))
    events = answers(model, asked())
    assert said(events) == "A cat."
    assert usage(events).thought_tokens == 7
