"""OpenAI's Responses API behind the generator's protocol: what is asked, what is made of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from openai.types.responses.response_create_params import ResponseCreateParamsStreaming
from pydantic import TypeAdapter

from chiasm.errors import ChiasmError, ContentRefused, GeneratorFailed, InvalidRequest, ProviderBusy
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
from chiasm.generation.providers.openai_responses import OpenAIResponses
from tests.generation.providers.asking import (
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
    Events,
    FakeOpenAI,
    Reply,
    call_item,
    message_item,
    response,
    response_usage,
)

BODY: TypeAdapter[Any] = TypeAdapter(ResponseCreateParamsStreaming)
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
def model(server: FakeOpenAI) -> Iterator[OpenAIResponses]:
    generator = OpenAIResponses(model="gpt-5-mini", base_url=server.url, key="sk-test")
    yield generator
    generator.close()


def replying(server: FakeOpenAI, *steps: Any) -> None:
    server.script = lambda asked: Reply(steps, done=False)


def whole_of(said: str) -> list[Any]:
    return [message_item([{"type": "output_text", "text": said, "annotations": []}])]


def body_of(server: FakeOpenAI) -> dict[str, Any]:
    """The body of the one request, which OpenAI's types allow."""
    (request,) = server.asked
    assert request.path == "/v1/responses"
    BODY.validate_python(request.body)
    return request.body


@pytest.fixture(autouse=True)
def _answering(server: FakeOpenAI) -> None:
    make = Events()
    replying(
        server, *make.begin(), *make.open_message(), make.delta("A "), make.delta("cat."),
        *make.close_message("A cat."), make.end(whole_of("A cat.")),
    )  # fmt: skip


# What is asked ----------------------------------------------------------------------------------


def test_nothing_is_sent_that_was_not_asked_for_and_nothing_is_kept(
    server: FakeOpenAI, model: OpenAIResponses
) -> None:
    answers(model, asked("Hello"))
    assert body_of(server) == {
        "model": "gpt-5-mini",
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "Hello"}]}],
        "stream": True,
        "store": False,
    }


def test_everything_that_can_be_asked_for(server: FakeOpenAI, model: OpenAIResponses) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    request = Request(
        (Message("system", (TextPart("Be brief."),)), Message.user("Say it.")),
        max_tokens=70,
        sampling=Sampling(temperature=0.7, top_p=0.9),
        logprobs=3,
        schema=schema,
        schema_name="count",
        tools=(WEATHER, Tool("now", strict=True)),
        tool_choice="get_weather",
        parallel_tool_calls=True,
        effort="minimal",
    )
    answers(model, request)
    assert body_of(server) == {
        "model": "gpt-5-mini",
        "instructions": "Be brief.",
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "Say it."}]}],
        "stream": True,
        "store": False,
        "max_output_tokens": 70,
        "temperature": 0.7,
        "top_p": 0.9,
        "reasoning": {"effort": "minimal"},
        "text": {
            "format": {"type": "json_schema", "name": "count", "schema": schema, "strict": True}
        },
        "top_logprobs": 3,
        "include": ["message.output_text.logprobs"],
        "tools": [
            {
                "type": "function",
                "name": "get_weather",
                "description": "The weather of a place.",
                "parameters": WEATHER.parameters,
                "strict": False,
            },
            {"type": "function", "name": "now", "parameters": {"type": "object"}, "strict": True},
        ],
        "tool_choice": {"type": "function", "name": "get_weather"},
        "parallel_tool_calls": True,
    }


def test_any_object(server: FakeOpenAI, model: OpenAIResponses) -> None:
    answers(model, asked(schema={"type": "object"}))
    assert body_of(server)["text"] == {"format": {"type": "json_object"}}


def test_a_conversation_with_tools_and_pictures(server: FakeOpenAI, model: OpenAIResponses) -> None:
    question, shot = jpeg(40, 24), jpeg(64, 64)
    conversation = (
        Message("user", (ImagePart(encoded(question), "high"), TextPart("Where is it?"))),
        Message("assistant", (TextPart("Let me see."), ToolCall("c1", "map", '{"zoom": 3}'))),
        Message(
            "tool",
            (
                ToolResult("c1", (TextPart("the map: "), ImagePart(encoded(shot)))),
                ToolResult("c2", (TextPart("too far"),), failed=True),
                ToolResult("c3", (ImagePart(encoded(shot)),), failed=True),
            ),
        ),
        Message("system", (TextPart("Answer in French."),)),
    )
    answers(model, Request(conversation))
    user, said_, call, result, failed, both, late = body_of(server)["input"]
    image, text = user["content"]
    assert (image["type"], image["detail"]) == ("input_image", "high")
    assert file_in(image["image_url"]) == ("image/jpeg", question)
    assert text == {"type": "input_text", "text": "Where is it?"}
    assert said_ == {"role": "assistant", "content": "Let me see."}
    assert call == {
        "type": "function_call", "call_id": "c1", "name": "map", "arguments": '{"zoom": 3}'
    }  # fmt: skip
    assert (result["type"], result["call_id"]) == ("function_call_output", "c1")
    assert result["output"][0] == {"type": "input_text", "text": "the map: "}
    assert file_in(result["output"][1]["image_url"]) == ("image/jpeg", shot)
    assert failed["output"] == "Error: too far"
    assert both["output"][0] == {"type": "input_text", "text": "Error: "}
    assert late == {"role": "system", "content": "Answer in French."}


def test_nothing_leaves_with_a_picture(server: FakeOpenAI, model: OpenAIResponses) -> None:
    secret = "taken at 48.8584 N 2.2945 E"
    answers(model, asked(encoded(png_with_words(secret)), "What?"))
    _, file = file_in(body_of(server)["input"][0]["content"][0]["image_url"])
    assert secret.encode() not in file
    assert np.array_equal(shown(file), pixels())


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"sampling": Sampling(seed=1)}, "seed"),
        ({"sampling": Sampling(top_k=5)}, "top_k"),
        ({"sampling": Sampling(frequency_penalty=1.0)}, "frequency_penalty"),
        ({"sampling": Sampling(presence_penalty=1.0)}, "presence_penalty"),
        ({"stop": ("\n",)}, "stop"),
        ({"choices": 2}, "n"),
    ],
)
def test_what_cannot_be_asked_is_not_sent(
    server: FakeOpenAI, model: OpenAIResponses, options: Any, param: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        answers(model, asked(**options))
    assert caught.value.param == param
    assert not server.asked


# What is made of the answer ---------------------------------------------------------------------


def test_an_answer(server: FakeOpenAI, model: OpenAIResponses) -> None:
    events = answers(model, asked())
    assert said(events) == "A cat."  # words that come together may be one piece
    assert events[-2] == Finished(0, "stop")
    spent = usage(events)
    assert (spent.text_tokens, spent.answer_tokens, spent.estimated) == (37, 11, False)


def test_the_bill(server: FakeOpenAI, model: OpenAIResponses) -> None:
    make = Events()
    bill = response_usage(1000, 80, cached=640, written=200, thought=64)
    replying(
        server, *make.begin(), *make.open_message(), make.delta("A cat."),
        make.end(whole_of("A cat."), usage=bill),
    )  # fmt: skip
    spent = usage(answers(model, asked(encoded(jpeg()), "What?")))
    assert (spent.prompt_tokens, spent.cached_tokens, spent.written_tokens) == (1000, 640, 200)
    assert (spent.answer_tokens, spent.thought_tokens) == (80, 64)
    assert (spent.image_tokens, spent.estimated, spent.images) == (0, True, 1)


def test_calls_of_tools(server: FakeOpenAI, model: OpenAIResponses) -> None:
    make = Events()
    thought = {"id": "rs_1", "type": "reasoning", "summary": []}
    replying(
        server,
        *make.begin(),
        make("response.output_item.added", output_index=0, item=thought),
        make("response.output_item.done", output_index=0, item=thought),
        *make.call(1, "call_a", "get_weather", ['{"pla', 'ce": "Rome"}']),
        *make.call(2, "call_b", "get_weather", ['{"place": "Oslo"}']),
        make.end(),
    )
    assert answers(model, asked(tools=(WEATHER,)))[:-1] == [
        ToolCallDelta(0, 0, "call_a", "get_weather", ""),
        ToolCallDelta(0, 0, arguments='{"pla'),
        ToolCallDelta(0, 0, arguments='ce": "Rome"}'),
        ToolCallDelta(0, 1, "call_b", "get_weather", ""),
        ToolCallDelta(0, 1, arguments='{"place": "Oslo"}'),
        Finished(0, "tool_calls"),
    ]


def test_what_comes_at_once_and_not_in_pieces(server: FakeOpenAI, model: OpenAIResponses) -> None:
    make = Events()
    opened, _, done, closed = make.call(1, "call_a", "now", ["{}"])
    replying(
        server, *make.begin(), *make.open_message(), *make.close_message("Wait."),
        opened, done, closed, make.end(),
    )  # fmt: skip
    events = answers(model, asked(tools=(Tool("now"),)))
    assert said(events) == "Wait."
    assert ToolCallDelta(0, 0, arguments="{}") in events


def test_log_probabilities(server: FakeOpenAI, model: OpenAIResponses) -> None:
    make = Events()
    entry = {
        "token": "cat", "logprob": -0.5,
        "top_logprobs": [{"token": "cat", "logprob": -0.5}, {"token": "dog", "logprob": -1.25}],
    }  # fmt: skip
    replying(
        server, *make.begin(), *make.open_message(), make.delta("cat", logprobs=[entry]),
        *make.close_message("cat"), make.end(whole_of("cat")),
    )  # fmt: skip
    (delta, *_) = answers(model, asked(logprobs=2))
    assert isinstance(delta, TextDelta)
    (token,) = delta.tokens
    assert (token.token, token.bytes, token.logprob) == ("cat", b"cat", -0.5)
    assert [(other.token, other.logprob) for other in token.top] == [("cat", -0.5), ("dog", -1.25)]


def test_a_refusal_is_no_answer(server: FakeOpenAI, model: OpenAIResponses) -> None:
    make = Events()
    replying(
        server, *make.begin(), *make.open_message(kind="refusal"), make.refusal("I can't "),
        make.refusal("do that."), *make.close_message("I can't do that.", kind="refusal"),
        make.end(),
    )  # fmt: skip
    assert answers(model, asked())[:-1] == [
        RefusalDelta(0, "I can't "),
        RefusalDelta(0, "do that."),
        Finished(0, "stop"),
    ]


@pytest.mark.parametrize(
    ("why", "reason"), [("max_output_tokens", "length"), ("content_filter", "content_filter")]
)
def test_an_answer_that_is_not_complete(
    server: FakeOpenAI, model: OpenAIResponses, why: str, reason: Any
) -> None:
    make = Events()
    cut = response("incomplete", incomplete_details={"reason": why}, usage=response_usage())
    replying(
        server, *make.begin(), *make.open_message(), make.delta("A "),
        make("response.incomplete", response=cut),
    )  # fmt: skip
    events = answers(model, asked())
    assert events[:-1] == [TextDelta(0, "A "), Finished(0, reason)]
    assert usage(events).answer_tokens == 11


def test_an_answer_that_was_given_up(server: FakeOpenAI, model: OpenAIResponses) -> None:
    make = Events()
    cut = response("incomplete", incomplete_details={"reason": "steered"})
    replying(server, *make.begin(), make("response.incomplete", response=cut))
    with pytest.raises(GeneratorFailed, match="gave the answer up"):
        answers(model, asked())


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("server_error", GeneratorFailed),
        ("rate_limit_exceeded", ProviderBusy),
        ("image_content_policy_violation", ContentRefused),
        ("bio_policy", ContentRefused),
        ("image_parse_error", InvalidRequest),
        ("invalid_image_format", InvalidRequest),
    ],
)
def test_a_response_that_fails(
    server: FakeOpenAI, model: OpenAIResponses, code: str, kind: type[ChiasmError]
) -> None:
    make = Events()
    failed = response("failed", error={"code": code, "message": "Something about it."})
    replying(
        server, *make.begin(), *make.open_message(), make.delta("A "),
        make("response.failed", response=failed),
    )  # fmt: skip
    heard = model.run(asked())
    assert next(heard) == TextDelta(0, "A ")
    with pytest.raises(kind) as caught:
        list(heard)
    assert type(caught.value) is kind
    replying(
        server, *make.begin(),
        make("error", code=code, message="Something about it.", param=None),
    )  # fmt: skip
    with pytest.raises(kind):
        answers(model, asked())


def test_a_response_in_one_piece(server: FakeOpenAI, model: OpenAIResponses) -> None:
    output = [*whole_of("Let me see."), call_item("call_a", "now", "{}")]
    whole = response("completed", output, usage=response_usage())
    server.script = lambda asked: Reply(whole=whole)
    events = answers(model, asked(tools=(Tool("now"),)))
    assert events[:-1] == [
        TextDelta(0, "Let me see."),
        ToolCallDelta(0, 0, "call_a", "now", "{}"),
        Finished(0, "tool_calls"),
    ]
    assert usage(events).prompt_tokens == 37
