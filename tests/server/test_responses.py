"""`/v1/responses` through OpenAI's own client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pydantic
import pytest

from chiasm.errors import ChiasmError, ContentRefused, GeneratorFailed, Overloaded, TimedOut
from chiasm.generation import (
    Finished,
    ImagePart,
    RefusalDelta,
    TextDelta,
    TextPart,
    TokenLogprob,
    Tool,
    ToolCall,
    ToolResult,
)
from chiasm.media import Image
from chiasm.server import create_app
from tests.server.conftest import (
    COLOURS,
    ColourEmbedder,
    LiveServer,
    data_url,
    make_settings,
    picture,
)
from tests.server.scripted import SAID, WANTS_TOOLS, ScriptedGenerator

ZOOM: Any = {
    "type": "function",
    "name": "zoom",
    "description": "Look closer.",
    "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}},
    "strict": True,
}
CROP: Any = {**ZOOM, "name": "crop"}


@pytest.fixture(scope="module")
def model() -> ScriptedGenerator:
    return ScriptedGenerator()


@pytest.fixture(scope="module")
def live(
    model: ScriptedGenerator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    settings = make_settings(tmp_path_factory.mktemp("responses"))
    with LiveServer(create_app(settings, embedder=ColourEmbedder(), generator=model)) as live:
        yield live


@pytest.fixture(autouse=True)
def rested(model: ScriptedGenerator) -> None:
    model.script, model.asked = SAID, []


@pytest.fixture
def sdk(live: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(sdk: openai.OpenAI, asked: Any = "Hello", **more: Any) -> Any:
    return sdk.responses.create(model="default", input=asked, **more)


def user(*parts: Any) -> Any:
    return {"role": "user", "content": list(parts)}


def words(text: str) -> Any:
    return {"type": "input_text", "text": text}


def shown(data: bytes, detail: str = "auto") -> Any:
    return {"type": "input_image", "image_url": data_url(data), "detail": detail}


def test_an_answer(sdk: openai.OpenAI, model: ScriptedGenerator) -> None:
    answer = ask(
        sdk,
        instructions="Be short.",
        max_output_tokens=50,
        temperature=0.5,
        top_p=0.9,
        reasoning={"effort": "low", "summary": "auto"},
        metadata={"a": "b"},
        store=True,
        user="u",
    )
    assert answer.output_text == "A red square."
    assert answer.status == "completed"
    assert answer.error is None
    assert answer.incomplete_details is None
    assert answer.model == "default"
    assert answer.id.startswith("resp_")
    assert answer.instructions == "Be short."
    assert answer.metadata == {"a": "b"}
    assert (answer.temperature, answer.top_p, answer.max_output_tokens) == (0.5, 0.9, 50)
    assert answer.text.format.type == "text"
    assert answer.reasoning.effort == "low"
    assert answer.model_dump()["store"] is False
    (message,) = answer.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "completed")
    assert message.content[0].annotations == []
    (asked,) = model.asked
    assert [(m.role, m.text) for m in asked.messages] == [
        ("system", "Be short."),
        ("user", "Hello"),
    ]
    assert asked.max_tokens == 50
    assert (asked.sampling.temperature, asked.sampling.top_p) == (0.5, 0.9)
    assert asked.effort == "low"


def test_usage_has_their_shape_and_ours(sdk: openai.OpenAI) -> None:
    usage = ask(sdk).usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (60, 7, 67)
    assert usage.input_tokens_details.cached_tokens == 16
    assert usage.input_tokens_details.cache_write_tokens == 4
    assert usage.output_tokens_details.reasoning_tokens == 2
    extra = usage.model_dump()
    assert extra["input_tokens_details"]["image_tokens"] == 20
    assert extra["input_tokens_details"]["text_tokens"] == 40
    assert extra["images"] == 1
    assert extra["cost"] == 0


def test_pictures_arrive_in_their_order(sdk: openai.OpenAI, model: ScriptedGenerator) -> None:
    ask(
        sdk,
        [
            user(shown(picture("red"), "high"), words("and"), shown(picture("blue"))),
            {"type": "message", **user(words("What?"))},
        ],
    )
    first, second = model.asked[0].messages
    assert [colour(first.parts[0]), colour(first.parts[2])] == ["red", "blue"]
    assert [part.detail for part in first.image_parts] == ["high", "auto"]
    assert first.parts[1] == TextPart("and")
    assert second.text == "What?"


def colour(part: Any) -> str:
    assert isinstance(part, ImagePart)
    assert isinstance(part.image, Image)
    pixel = tuple(part.image.pixels[5, 5].tolist())
    return next(name for name, rgb in COLOURS.items() if rgb == pixel)


def test_an_answer_can_be_sent_back(sdk: openai.OpenAI, model: ScriptedGenerator) -> None:
    first = ask(sdk)
    ask(sdk, [user(words("Hello")), *first.output, {"role": "developer", "content": "Be kind."}])
    assert [(m.role, m.text) for m in model.asked[1].messages] == [
        ("user", "Hello"),
        ("assistant", "A red square."),
        ("system", "Be kind."),
    ]


# Streams ----------------------------------------------------------------------------------------


def test_a_stream_has_the_documented_sequence(sdk: openai.OpenAI) -> None:
    events = list(ask(sdk, stream=True))
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(10))
    created, _, added, part, delta, _, done, _, item, completed = events
    assert (created.response.status, created.response.output) == ("in_progress", [])
    assert (added.item.status, added.item.content) == ("in_progress", [])
    assert part.part.text == ""
    assert (delta.delta, done.text) == ("A red ", "A red square.")
    assert item.item == completed.response.output[0]
    assert {each.item_id for each in (part, delta, done)} == {item.item.id}
    assert completed.response.usage.total_tokens == 67
    assert completed.response.id == created.response.id


def test_a_stream_adds_up_to_the_whole(sdk: openai.OpenAI, model: ScriptedGenerator) -> None:
    model.script = WANTS_TOOLS
    whole = ask(sdk, tools=[ZOOM, CROP])
    with sdk.responses.stream(model="default", input="Hello", tools=[ZOOM, CROP]) as stream:
        for _ in stream:
            pass
        streamed = stream.get_final_response()
    assert plain(streamed) == plain(whole)


def plain(response: Any) -> Any:
    """A response without ids, times, and what the client alone adds."""
    found = response.to_dict()
    for each in [found, *found["output"]]:
        for name in ("id", "created_at", "completed_at", "parsed_arguments", "usage"):
            each.pop(name, None)
        for part in each.get("content", ()):
            part.pop("parsed", None)
    return found


def test_the_asynchronous_client(live: LiveServer) -> None:
    async def say() -> str:
        async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none") as client:
            stream = await client.responses.create(model="default", input="Hello", stream=True)
            return "".join(
                [each.delta async for each in stream if each.type == "response.output_text.delta"]
            )

    assert asyncio.run(say()) == "A red square."


# Tools and schemas ------------------------------------------------------------------------------


def test_tools_are_asked_for(sdk: openai.OpenAI, model: ScriptedGenerator) -> None:
    model.script = WANTS_TOOLS
    answer = ask(sdk, tools=[ZOOM, CROP], tool_choice="required", parallel_tool_calls=False)
    message, zoom, crop = answer.output
    assert message.content[0].text == "Let me look."
    assert (zoom.type, zoom.call_id, zoom.name) == ("function_call", "call_1", "zoom")
    assert json.loads(zoom.arguments) == {"x": 1, "y": 2}
    assert (crop.call_id, crop.arguments, crop.status) == ("call_2", "{}", "completed")
    assert answer.status == "completed"
    assert answer.tool_choice == "required"
    assert answer.parallel_tool_calls is False
    assert [tool.name for tool in answer.tools] == ["zoom", "crop"]
    (asked,) = model.asked
    assert asked.tools[0] == Tool("zoom", "Look closer.", ZOOM["parameters"], strict=True)
    assert (asked.tool_choice, asked.parallel_tool_calls) == ("required", False)


def test_calls_in_a_stream(sdk: openai.OpenAI, model: ScriptedGenerator) -> None:
    model.script = WANTS_TOOLS[1:]
    events = list(ask(sdk, tools=[ZOOM, CROP], stream=True))
    call = [
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
    ]
    assert [event.type for event in events[2:7]] == call
    assert [event.output_index for event in events[2:-1]] == [0] * 5 + [1] * 4
    assert (events[2].item.call_id, events[2].item.name) == ("call_1", "zoom")
    assert events[2].item.arguments == ""
    assert json.loads(events[5].arguments) == {"x": 1, "y": 2}


@pytest.mark.parametrize(
    ("choice", "means", "offered"),
    [
        ({"type": "function", "name": "zoom"}, "zoom", ["zoom", "crop"]),
        (
            {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "function", "name": "crop"}],
            },
            "required",
            ["crop"],
        ),
    ],
    ids=["function", "allowed_tools"],
)
def test_choices_of_tools(
    sdk: openai.OpenAI, model: ScriptedGenerator, choice: Any, means: str, offered: list[str]
) -> None:
    answer = ask(sdk, tools=[ZOOM, CROP], tool_choice=choice)
    (asked,) = model.asked
    assert asked.tool_choice == means
    assert [tool.name for tool in asked.tools] == offered
    assert answer.tool_choice.to_dict() == choice


def test_results_of_tools_go_back(sdk: openai.OpenAI, model: ScriptedGenerator) -> None:
    model.script = WANTS_TOOLS
    first = ask(sdk, tools=[ZOOM, CROP])
    model.script = SAID
    results = [
        {
            "type": "function_call_output",
            "call_id": "call_1",
            "output": [words("Here:"), shown(picture("green"), "low")],
        },
        {"type": "function_call_output", "call_id": "call_2", "output": "No."},
    ]
    ask(sdk, [user(words("Hello")), *first.output, *results], tools=[ZOOM, CROP])
    hello, called, one, two = model.asked[1].messages
    assert hello.role == "user"
    assert called.role == "assistant"
    assert called.parts == (
        TextPart("Let me look."),
        ToolCall("call_1", "zoom", '{"x": 1, "y": 2}'),
        ToolCall("call_2", "crop", "{}"),
    )
    result = one.parts[0]
    assert isinstance(result, ToolResult)
    assert (one.role, result.call, result.parts[0]) == ("tool", "call_1", TextPart("Here:"))
    assert colour(result.parts[1]) == "green"
    assert two.parts == (ToolResult("call_2", (TextPart("No."),)),)


class Thing(pydantic.BaseModel):
    name: str
    count: int


def test_a_schema(sdk: openai.OpenAI, model: ScriptedGenerator) -> None:
    model.script = [TextDelta(0, '{"name": "cat", "count": 2}'), Finished(0, "stop")]
    answer = sdk.responses.parse(model="default", input="Hello", text_format=Thing)
    assert answer.output_parsed == Thing(name="cat", count=2)
    (asked,) = model.asked
    assert asked.schema is not None
    assert set(asked.schema["properties"]) == {"name", "count"}
    assert (asked.schema_name, asked.schema_strict) == ("Thing", True)
    ask(sdk, text={"format": {"type": "json_object"}})
    assert model.asked[1].schema == {"type": "object"}


def test_log_probabilities(sdk: openai.OpenAI, model: ScriptedGenerator) -> None:
    other = TokenLogprob("B", b"B", -2.0)
    token = TokenLogprob("A", b"A", -0.5, (other,))
    model.script = [TextDelta(0, "A", (token,)), Finished(0, "stop")]
    answer = ask(sdk, include=["message.output_text.logprobs"], top_logprobs=1)
    assert model.asked[0].logprobs == 1
    (found,) = answer.output[0].content[0].logprobs
    assert (found.token, found.bytes, found.logprob) == ("A", [65], -0.5)
    assert [(top.token, top.logprob) for top in found.top_logprobs] == [("B", -2.0)]
    events = list(ask(sdk, top_logprobs=1, stream=True))
    delta = next(each for each in events if each.type == "response.output_text.delta")
    assert (delta.logprobs[0].token, delta.logprobs[0].logprob) == ("A", -0.5)


# Ends -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "means"), [("length", "max_output_tokens"), ("content_filter", "content_filter")]
)
def test_incomplete_answers(
    sdk: openai.OpenAI, model: ScriptedGenerator, reason: Any, means: str
) -> None:
    model.script = [TextDelta(0, "A"), Finished(0, reason)]
    answer = ask(sdk)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", means)
    assert answer.output[0].status == "incomplete"
    last = list(ask(sdk, stream=True))[-1]
    assert last.type == "response.incomplete"
    assert last.response.incomplete_details.reason == means
    assert last.response.usage.total_tokens == 67


def test_a_refusal(sdk: openai.OpenAI, model: ScriptedGenerator) -> None:
    model.script = [RefusalDelta(0, "I will "), RefusalDelta(0, "not."), Finished(0, "stop")]
    answer = ask(sdk)
    assert answer.output_text == ""
    content = answer.output[0].content[0]
    assert (content.type, content.refusal) == ("refusal", "I will not.")
    kinds = [event.type for event in ask(sdk, stream=True)]
    assert kinds[3:7] == [
        "response.content_part.added",
        "response.refusal.delta",
        "response.refusal.delta",
        "response.refusal.done",
    ]


# Errors -----------------------------------------------------------------------------------------

RAISED: list[tuple[ChiasmError, type[openai.APIStatusError]]] = [
    (ContentRefused("No."), openai.BadRequestError),
    (Overloaded("Full.", retry_after=3), openai.RateLimitError),
    (GeneratorFailed("Broke."), openai.InternalServerError),
    (TimedOut("Late."), openai.InternalServerError),
]


@pytest.mark.parametrize(
    ("raised", "kind"), RAISED, ids=[type(case[0]).__name__ for case in RAISED]
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_errors_are_their_own_exceptions(
    sdk: openai.OpenAI,
    model: ScriptedGenerator,
    raised: ChiasmError,
    kind: type[openai.APIStatusError],
    stream: bool,
) -> None:
    model.script = [raised]
    with pytest.raises(kind) as caught:
        ask(sdk, stream=stream)
    assert caught.value.status_code == raised.http_status
    assert caught.value.code == raised.code
    assert caught.value.type == raised.kind
    body: Any = caught.value.body
    assert body["message"].startswith(raised.message)


def test_an_error_in_mid_stream(sdk: openai.OpenAI, model: ScriptedGenerator) -> None:
    model.script = [TextDelta(0, "A "), GeneratorFailed("It broke off.")]
    events = list(ask(sdk, stream=True))
    assert [event.type for event in events[-2:]] == [
        "response.output_text.delta",
        "response.failed",
    ]
    failed = events[-1]
    assert failed.response.status == "failed"
    assert (failed.response.error.code, failed.response.error.message) == (
        "server_error",
        "It broke off.",
    )
    assert failed.sequence_number == len(events) - 1


CASES: dict[str, tuple[dict[str, Any], str | None, str]] = {
    "no input": ({"input": []}, "input", "is empty"),
    "an empty question": ({"input": ""}, "input", "is an empty text"),
    "an unknown field": ({"prompt": {"id": "p"}}, "prompt", "no argument called prompt"),
    "an answer before": (
        {"previous_response_id": "resp_1"},
        "previous_response_id",
        "nothing is stored here",
    ),
    "a conversation": ({"conversation": "conv_1"}, "conversation", "nothing is stored here"),
    "in the background": ({"background": True}, "background", "background"),
    "truncation": ({"truncation": "auto"}, "truncation", "'disabled'"),
    "verbosity": ({"text": {"verbosity": "low"}}, "text.verbosity", "'medium'"),
    "an unknown role": ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role", "must be"),
    "an item by its id": (
        {"input": [{"type": "item_reference", "id": "msg_1"}]},
        "input[0]",
        "none are stored here",
    ),
    "a file": (
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_data": "x"}]}]},
        "input[0].content[0].type",
        "files and sound are not read here",
    ),
    "a stored picture": (
        {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
        "input[0].content[0].file_id",
        "none are kept here",
    ),
    "a picture's address": (
        {
            "input": [
                {
                    "role": "user",
                    "content": [{"type": "input_image", "image_url": "https://example.com/a.png"}],
                }
            ]
        },
        None,
        "input[0].content[0].image_url: pictures are not fetched",
    ),
    "an unknown detail": (
        {"input": [user({**shown(picture()), "detail": "huge"})]},
        "input[0].content[0].detail",
        "must be one of",
    ),
    "thoughts in the middle of a turn": (
        {
            "input": [
                user(words("x")),
                {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "…"},
                {"type": "function_call_output", "call_id": "1", "output": "x"},
            ]
        },
        "input[1]",
        "holds a model's thoughts",
    ),
    "a tool that OpenAI runs": (
        {"tools": [{"type": "web_search"}]},
        "tools[0].type",
        "should be 'function'",
    ),
    "a choice without tools": ({"tool_choice": "required"}, "tool_choice", "needs `tools`"),
    "a choice of another tool": (
        {"tools": [ZOOM], "tool_choice": {"type": "function", "name": "crop"}},
        "tool_choice",
        "not among the tools",
    ),
    "a schema without one": (
        {"text": {"format": {"type": "json_schema", "name": "x"}}},
        "text.format.schema",
        "needs `schema`",
    ),
    "an unknown effort": ({"reasoning": {"effort": "huge"}}, "reasoning.effort", "must be one of"),
    "an unknown inclusion": ({"include": ["x"]}, "include[0]", "is not known here"),
    "a restart in a stream": ({"restart": True, "stream": True}, "restart", "cannot take back"),
}


@pytest.mark.parametrize("case", CASES, ids=list(CASES))
def test_bad_requests_are_refused_before_a_model_is_asked(
    sdk: openai.OpenAI, model: ScriptedGenerator, case: str
) -> None:
    body, param, said = CASES[case]
    with pytest.raises(openai.BadRequestError) as caught:
        ask(sdk, extra_body=body)
    error: Any = caught.value.body
    assert said in error["message"]
    if param is not None:
        assert error["param"] == param
    assert model.asked == []


def test_thoughts_of_turns_that_are_over_are_left_out(
    sdk: openai.OpenAI, model: ScriptedGenerator
) -> None:
    ask(
        sdk,
        [
            user(words("One")),
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {"role": "assistant", "content": "Two"},
            user(words("Three")),
        ],
    )
    assert [m.text for m in model.asked[0].messages] == ["One", "Two", "Three"]


def test_nothing_is_kept(sdk: openai.OpenAI) -> None:
    answer = ask(sdk)
    with pytest.raises(openai.NotFoundError):
        sdk.responses.retrieve(answer.id)


def test_models(sdk: openai.OpenAI, live: LiveServer) -> None:
    assert {"scripted", "colours"} <= {model.id for model in sdk.models.list()}
    assert sdk.models.retrieve("scripted").id == "scripted"
    assert "first_id" not in httpx.get(f"{live.url}/v1/models", timeout=60).json()
