"""Google's Gemini behind the generator's protocol: what is asked, what is made of it."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from google import genai
from google.genai import types

from chiasm.errors import (
    ConfigurationError,
    ContentRefused,
    GeneratorFailed,
    InvalidRequest,
    ProviderKeyRefused,
    Unsupported,
)
from chiasm.generation import (
    Finished,
    ImagePart,
    Message,
    Request,
    Sampling,
    TextDelta,
    TextPart,
    TokenLogprob,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolResult,
)
from chiasm.generation.providers.gemini import Gemini
from tests.generation.providers import gemini_shapes as shapes
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

KEY = "AIzaSyA1b2C3d4"
PLACE = {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}
WEATHER = Tool("get_weather", "The weather of a place.", PLACE)
NEWER, OLDER = "gemini-3.8-flash", "gemini-2.5-flash"


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI() as fake:
        fake.script = lambda asked: Reply(shapes.answer(), done=False)
        yield fake


@pytest.fixture
def model(server: FakeOpenAI) -> Iterator[Gemini]:
    with contextlib.closing(connect(server)) as generator:
        yield generator


@pytest.fixture
def older(server: FakeOpenAI) -> Iterator[Gemini]:
    with contextlib.closing(connect(server, model=OLDER)) as generator:
        yield generator


def connect(server: FakeOpenAI, **options: Any) -> Gemini:
    address = server.url.removesuffix("/v1")
    return Gemini(**{"model": NEWER, "base_url": address, "key": KEY, **options})


def replying(server: FakeOpenAI, *steps: Any) -> None:
    server.script = lambda asked: Reply(list(steps), done=False)


def body_of(server: FakeOpenAI, model: Gemini, request: Request) -> dict[str, Any]:
    """What arrived."""
    list(model.run(request))
    return server.asked[-1].body


def by_the_sdk(server: FakeOpenAI, contents: Any, model: str = NEWER, **config: Any) -> Any:
    """What arrives when Google's own SDK asks the same."""
    options = types.HttpOptions(base_url=server.url.removesuffix("/v1"), api_version="v1beta")
    client = genai.Client(api_key=KEY, enterprise=False, http_options=options)
    with contextlib.closing(client):
        stream = client.models.generate_content_stream(
            model=model, contents=contents, config=types.GenerateContentConfig(**config)
        )
        text = "".join(piece.text or "" for piece in stream)
    assert text == "A cat sleeps."
    return server.asked[-1]


# Requests, as Google's own SDK writes them ------------------------------------------------------


def test_a_plain_question(server: FakeOpenAI, model: Gemini) -> None:
    assert said(answers(model, asked("Who?"))) == "A cat sleeps."
    ours, theirs = server.asked[-1], by_the_sdk(server, "Who?")
    assert ours.path == theirs.path == f"/v1beta/models/{NEWER}:streamGenerateContent?alt=sse"
    assert ours.body["contents"] == theirs.body["contents"]
    assert ours.body.keys() == theirs.body.keys() - {"generationConfig"}
    assert ours.headers["x-goog-api-key"] == theirs.headers["x-goog-api-key"] == KEY
    for name in ("content-type", "user-agent", "x-goog-api-client"):
        assert ours.headers[name] == theirs.headers[name], name


def test_everything_that_may_be_asked(server: FakeOpenAI, model: Gemini) -> None:
    schema = {"type": "object", "properties": {"animal": {"type": "string"}}}
    request = Request(
        (
            Message("system", (TextPart("Be brief."),)),
            Message("system", (TextPart("Speak French."),)),
            Message.user("One.", "Two."),
            Message("assistant", (TextPart("Three."),)),
            Message.user("Four."),
        ),
        max_tokens=7,
        sampling=Sampling(0.5, 0.9, 40, 3, 0.25, -0.25),
        stop=("END", "\n"),
        choices=2,
        logprobs=2,
        schema=schema,
        effort="low",
    )
    with contextlib.suppress(GeneratorFailed):  # for one answer of two comes
        answers(model, request)
    ours = server.asked[-1].body
    theirs = by_the_sdk(
        server,
        [
            types.Content(role="user", parts=[types.Part(text="One."), types.Part(text="Two.")]),
            types.Content(role="model", parts=[types.Part(text="Three.")]),
            types.Content(role="user", parts=[types.Part(text="Four.")]),
        ],
        system_instruction=types.Content(
            parts=[types.Part(text="Be brief."), types.Part(text="Speak French.")]
        ),
        max_output_tokens=7,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        seed=3,
        frequency_penalty=0.25,
        presence_penalty=-0.25,
        stop_sequences=["END", "\n"],
        candidate_count=2,
        response_logprobs=True,
        logprobs=2,
        response_mime_type="application/json",
        response_json_schema=schema,
        thinking_config=types.ThinkingConfig(thinking_level=types.ThinkingLevel.LOW),
    ).body
    system = theirs["systemInstruction"]
    assert system.pop("role", "user") == "user"  # the SDK's own addition; it is ignored
    assert _plain(ours) == _plain(theirs)


def test_pictures_and_tools_and_their_results(server: FakeOpenAI, model: Gemini) -> None:
    file, schema = jpeg(), PLACE
    request = Request(
        (
            Message("user", (TextPart("?"), ImagePart(encoded(file), detail="low"))),
            Message(
                "assistant",
                (
                    TextPart(""),
                    ToolCall("c1", "get_weather", '{"place": "Ulm"}'),
                    ToolCall("c2", "camera", ""),
                ),
            ),
            Message("tool", (ToolResult("c1", (TextPart("No such place."),), failed=True),)),
            Message("tool", (ToolResult("c2", (TextPart("See:"), ImagePart(encoded(file)))),)),
        ),
        tools=(WEATHER, Tool("camera")),
        tool_choice="get_weather",
    )
    ours = body_of(server, model, request)
    blob = types.FunctionResponseBlob(mime_type="image/jpeg", data=file)
    theirs = by_the_sdk(
        server,
        [
            types.Content(
                role="user",
                parts=[
                    types.Part(text="?"),
                    types.Part(
                        inline_data=types.Blob(mime_type="image/jpeg", data=file),
                        media_resolution=types.PartMediaResolution(
                            level=types.PartMediaResolutionLevel.MEDIA_RESOLUTION_LOW
                        ),
                    ),
                ],
            ),
            types.Content(
                role="model",
                parts=[
                    types.Part(
                        function_call=types.FunctionCall(
                            id="c1", name="get_weather", args={"place": "Ulm"}
                        ),
                        thought_signature=base64.urlsafe_b64decode(
                            "skip_thought_signature_validator"
                        ),
                    ),
                    types.Part(function_call=types.FunctionCall(id="c2", name="camera", args={})),
                ],
            ),
            types.Content(
                role="user",
                parts=[
                    types.Part(
                        function_response=types.FunctionResponse(
                            id="c1", name="get_weather", response={"error": "No such place."}
                        )
                    ),
                    types.Part(
                        function_response=types.FunctionResponse(
                            id="c2",
                            name="camera",
                            response={"output": "See:"},
                            parts=[types.FunctionResponsePart(inline_data=blob)],
                        )
                    ),
                ],
            ),
        ],
        tools=[
            types.Tool(
                function_declarations=[
                    types.FunctionDeclaration(
                        name="get_weather",
                        description="The weather of a place.",
                        parameters_json_schema=schema,
                    ),
                    types.FunctionDeclaration(
                        name="camera", parameters_json_schema={"type": "object"}
                    ),
                ]
            )
        ],
        tool_config=types.ToolConfig(
            function_calling_config=types.FunctionCallingConfig(
                mode=types.FunctionCallingConfigMode.ANY, allowed_function_names=["get_weather"]
            )
        ),
    ).body
    assert _plain(ours) == _plain(theirs)


def _plain(value: Any, name: str = "") -> Any:
    """What Google reads alike: names of fields in two spellings, base64 in two alphabets."""
    if isinstance(value, dict):
        return {k: _plain(v, k) for k, v in ((_camel(k), v) for k, v in value.items()) if v != {}}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if name in ("data", "thoughtSignature"):
        return value.replace("-", "+").replace("_", "/")
    return value


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.title() for word in rest)


# Requests, the rest -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "strict", "expected"),
    [
        ("auto", False, None),
        ("auto", True, {"mode": "VALIDATED"}),
        ("none", True, {"mode": "NONE"}),
        ("required", False, {"mode": "ANY"}),
    ],
)
def test_tools(server: FakeOpenAI, model: Gemini, choice: str, strict: bool, expected: Any) -> None:
    tools = (Tool("now", strict=strict),)
    body = body_of(server, model, asked(tools=tools, tool_choice=choice, parallel_tool_calls=True))
    config = body.get("toolConfig")
    assert config == (None if expected is None else {"functionCallingConfig": expected})


def test_any_object(server: FakeOpenAI, model: Gemini) -> None:
    body = body_of(server, model, asked(schema={"type": "object"}))
    assert body["generationConfig"] == {"responseMimeType": "application/json"}


@pytest.mark.parametrize(
    ("name", "effort", "expected"),
    [
        (NEWER, "minimal", {"thinkingLevel": "MINIMAL"}),
        (NEWER, "xhigh", {"thinkingLevel": "XHIGH"}),
        ("gemini-flash-latest", "high", {"thinkingLevel": "HIGH"}),
        ("models/gemini-4-argon", "medium", {"thinkingLevel": "MEDIUM"}),
        (OLDER, "none", {"thinkingBudget": 0}),
        (OLDER, "low", {"thinkingBudget": 1024}),
        (OLDER, "high", {"thinkingBudget": 24576}),
    ],
)
def test_effort(server: FakeOpenAI, name: str, effort: Any, expected: Any) -> None:
    with contextlib.closing(connect(server, model=name)) as model:
        config = body_of(server, model, asked(effort=effort))["generationConfig"]
    assert config == {"thinkingConfig": expected}


@pytest.mark.parametrize(
    ("name", "options", "param"),
    [
        (NEWER, {"effort": "none"}, "reasoning_effort"),
        (NEWER, {"effort": "max"}, "reasoning_effort"),
        (OLDER, {"effort": "xhigh"}, "reasoning_effort"),
        (NEWER, {"tools": (WEATHER,), "parallel_tool_calls": False}, "parallel_tool_calls"),
    ],
)
def test_what_it_cannot_do(server: FakeOpenAI, name: str, options: Any, param: str) -> None:
    with (
        contextlib.closing(connect(server, model=name)) as model,
        pytest.raises(Unsupported) as caught,
    ):
        answers(model, asked(**options))
    assert caught.value.param == param
    assert not server.asked


def test_system_messages_come_first(server: FakeOpenAI, model: Gemini) -> None:
    late = Message("system", (TextPart("Speak French."),))
    with pytest.raises(InvalidRequest) as caught:
        answers(model, Request((Message.user("?"), late)))
    assert caught.value.param == "messages[1].role"
    with pytest.raises(InvalidRequest, match="nothing to answer"):
        answers(model, Request((late,)))


def test_a_result_without_its_call(server: FakeOpenAI, model: Gemini) -> None:
    result = Message("tool", (ToolResult("c9", (TextPart("Fog."),)),))
    with pytest.raises(InvalidRequest) as caught:
        answers(model, Request((Message.user("?"), result)))
    assert caught.value.param == "messages[1].tool_call_id"


def test_nothing_but_the_picture_leaves(server: FakeOpenAI, model: Gemini) -> None:
    file = png_with_words("51.4778 N, 0.0014 W")
    request = Request((Message("user", (ImagePart(encoded(file)),)),))
    part = body_of(server, model, request)["contents"][0]["parts"][0]
    received = base64.b64decode(part["inlineData"]["data"], validate=True)
    assert part["inlineData"]["mimeType"] == "image/png"
    assert "mediaResolution" not in part
    assert b"51.4778" in file
    assert b"51.4778" not in received
    np.testing.assert_array_equal(shown(received), pixels())


def test_details_of_older_models_are_of_the_whole_request(
    server: FakeOpenAI, older: Gemini
) -> None:
    def question(*details: Any) -> Request:
        parts = tuple(ImagePart(encoded(jpeg()), detail=detail) for detail in details)
        return Request((Message("user", parts),))

    body = body_of(server, older, question("low", "low"))
    assert body["generationConfig"] == {"mediaResolution": "MEDIA_RESOLUTION_LOW"}
    assert "mediaResolution" not in body["contents"][0]["parts"][0]
    assert "generationConfig" not in body_of(server, older, question("auto", "auto"))
    for mixed in (("low", "high"), ("auto", "low"), ("original",)):
        with pytest.raises(Unsupported) as caught:
            answers(older, question(*mixed))
        assert caught.value.param == "detail"


def test_pictures_from_tools_need_a_newer_model(server: FakeOpenAI, older: Gemini) -> None:
    request = Request(
        (
            Message.user("?"),
            Message("assistant", (ToolCall("c1", "camera", "{}"),)),
            Message("tool", (ToolResult("c1", (ImagePart(encoded(jpeg())),)),)),
        )
    )
    with pytest.raises(Unsupported, match="picture in a tool's result"):
        answers(older, request)


@pytest.mark.parametrize("name", ["../x", "a/../b", "x?key=1", "x:y", "", "a b"])
def test_a_name_that_is_none(name: str) -> None:
    with pytest.raises(ConfigurationError, match="not the name of a model"):
        Gemini(model=name, key=KEY)


@pytest.mark.parametrize(
    ("base", "path"), [("", "/v1beta/"), ("/v1", "/v1/"), ("/proxy/v1alpha/", "/proxy/v1alpha/")]
)
def test_versions_of_the_api(server: FakeOpenAI, base: str, path: str) -> None:
    address = server.url.removesuffix("/v1") + base
    with contextlib.closing(connect(server, base_url=address)) as model:
        answers(model, asked())
    assert server.asked[0].path == f"{path}models/{NEWER}:streamGenerateContent?alt=sse"


def test_a_version_that_the_environment_names(
    server: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_GENAI_API_VERSION", "v1alpha")
    with contextlib.closing(connect(server)) as model:
        answers(model, asked())
    assert server.asked[0].path.startswith("/v1alpha/")


# Answers ----------------------------------------------------------------------------------------


def test_a_text(server: FakeOpenAI, model: Gemini) -> None:
    events = answers(model, asked())
    assert said(events) == "A cat sleeps."
    assert events[-2] == Finished(0, "stop")


def test_several_answers(server: FakeOpenAI, model: Gemini) -> None:
    replying(
        server,
        shapes.chunk({"text": "A"}, index=0),
        shapes.chunk({"text": "B"}, index=1),
        shapes.chunk(index=1, reason="MAX_TOKENS"),
        shapes.chunk(index=0, reason="STOP"),
    )
    events = answers(model, asked(choices=2))
    assert events[:-1] == [
        TextDelta(0, "A"), TextDelta(1, "B"), Finished(1, "length"), Finished(0, "stop"),
    ]  # fmt: skip


_FILTERED = ("SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY")


@pytest.mark.parametrize(
    ("reason", "expected"),
    [("STOP", "stop"), ("MAX_TOKENS", "length"), *((each, "content_filter") for each in _FILTERED)],
)
def test_why_it_ends(server: FakeOpenAI, model: Gemini, reason: str, expected: Any) -> None:
    replying(server, shapes.chunk({"text": "A"}), shapes.chunk(reason=reason))
    assert answers(model, asked())[-2] == Finished(0, expected)


@pytest.mark.parametrize(
    ("reason", "kind", "match"),
    [
        ("MALFORMED_FUNCTION_CALL", GeneratorFailed, "called a tool"),
        ("UNEXPECTED_TOOL_CALL", GeneratorFailed, "called a tool"),
        ("LANGUAGE", GeneratorFailed, "gave the answer up"),
        ("OTHER", GeneratorFailed, "gave the answer up"),
        ("PUP_LIMITED_DISABLED", ProviderKeyRefused, "closed"),
    ],
)
def test_an_end_that_is_none(
    server: FakeOpenAI, model: Gemini, reason: str, kind: type[Exception], match: str
) -> None:
    replying(server, shapes.chunk({"text": "A"}), shapes.chunk(reason=reason))
    with pytest.raises(kind, match=match):
        answers(model, asked())


def test_a_question_that_is_not_let_through(server: FakeOpenAI, model: Gemini) -> None:
    replying(server, shapes.whole(promptFeedback={"blockReason": "PROHIBITED_CONTENT"}))
    with pytest.raises(ContentRefused, match="rules"):
        answers(model, asked())


def test_thoughts_are_counted_and_not_shown(server: FakeOpenAI, model: Gemini) -> None:
    bill = shapes.spent(10, answer=12, thought=48)
    replying(
        server,
        shapes.chunk({"text": "Is it a dog?", "thought": True}),
        shapes.chunk({"text": "A cat."}, reason="STOP", usage=bill),
    )
    events = answers(model, asked())
    assert events[:-1] == [TextDelta(0, "A cat."), Finished(0, "stop")]
    assert (usage(events).answer_tokens, usage(events).thought_tokens) == (60, 48)


def test_the_bill(server: FakeOpenAI, model: Gemini) -> None:
    early, late = shapes.spent(25, 1064), shapes.spent(25, 1064, answer=7, cached=1000)
    replying(
        server,
        shapes.chunk({"text": "A"}, usage=early),
        shapes.chunk({"text": " cat."}, reason="STOP", usage=late),
    )
    request = Request((Message("user", (ImagePart(encoded(jpeg())),)),))
    bill = usage(answers(model, request))
    assert (bill.text_tokens, bill.image_tokens, bill.images) == (25, 1064, 1)
    assert (bill.cached_tokens, bill.answer_tokens, bill.estimated) == (1000, 7, False)
    replying(server, *shapes.answer())
    assert usage(answers(model, request)).estimated, "no share of the pictures was stated"
    assert not usage(answers(model, asked())).estimated


def test_log_probabilities(server: FakeOpenAI, model: Gemini) -> None:
    def place(token: str, logprob: float, *others: tuple[str, float]) -> tuple[Any, Any]:
        chosen = {"token": token, "tokenId": 7, "logProbability": logprob}
        beside = [{"token": t, "tokenId": 8, "logProbability": p} for t, p in others]
        return chosen, {"candidates": [chosen, *beside]}

    def result(*places: tuple[Any, Any]) -> Any:
        chosen, top = zip(*places, strict=True)
        return {"chosenCandidates": list(chosen), "topCandidates": list(top)}

    first = result(place("A", -0.1, ("The", -2.5), ("One", -4.0)))
    second = result(place(" cät", -0.2, (" dog", -1.5)))
    replying(
        server,
        shapes.chunk({"text": "A"}, logprobs=first),
        shapes.chunk({"text": " cät"}, logprobs=second, reason="STOP"),
    )
    events = answers(model, asked(logprobs=2))
    assert events[:2] == [
        TextDelta(0, "A", (TokenLogprob("A", b"A", -0.1, (
            TokenLogprob("A", b"A", -0.1), TokenLogprob("The", b"The", -2.5))),)),
        TextDelta(0, " cät", (TokenLogprob(" cät", " cät".encode(), -0.2, (
            TokenLogprob(" cät", " cät".encode(), -0.2), TokenLogprob(" dog", b" dog", -1.5))),)),
    ]  # fmt: skip


# Tools in answers -------------------------------------------------------------------------------


def test_wishes_for_tools(server: FakeOpenAI, model: Gemini) -> None:
    replying(
        server,
        shapes.chunk({"text": "I look."}),
        shapes.chunk(
            shapes.called("get_weather", {"place": "Köln"}, "abc1"),
            shapes.called("now", {}, "abc2"),
        ),
        shapes.chunk(reason="STOP"),
    )
    events = answers(model, asked(tools=(WEATHER, Tool("now"))))
    assert events[:-1] == [
        TextDelta(0, "I look."),
        ToolCallDelta(0, 0, "abc1", "get_weather", '{"place": "Köln"}'),
        ToolCallDelta(0, 1, "abc2", "now", "{}"),
        Finished(0, "tool_calls"),
    ]


def test_calls_without_ids_are_given_some(server: FakeOpenAI, older: Gemini) -> None:
    call = shapes.called("get_weather", {"place": "Ulm"})
    replying(server, shapes.chunk(call, call, reason="STOP"))
    first, second = answers(older, asked(tools=(WEATHER,)))[:2]
    assert isinstance(first, ToolCallDelta)
    assert isinstance(second, ToolCallDelta)
    assert first.id and second.id and first.id != second.id  # noqa: PT018
    assert (first.number, second.number) == (0, 1)


def test_signatures_are_sent_back(server: FakeOpenAI, model: Gemini, older: Gemini) -> None:
    replying(
        server,
        shapes.chunk(
            shapes.called("now", {}, "abc1", "c2lnbmF0dXJl"), shapes.called("now", {}, "abc2")
        ),
        shapes.chunk(reason="STOP"),
    )
    answers(model, asked(tools=(Tool("now"),)))
    replying(server, *shapes.answer())

    def signatures(generator: Gemini, *calls: str, tenant: str = "") -> list[Any]:
        wishes = Message("assistant", tuple(ToolCall(call, "now", "{}") for call in calls))
        results = tuple(ToolResult(call, (TextPart("Noon."),)) for call in calls)
        request = Request(
            (Message.user("?"), wishes, Message("tool", results)),
            tools=(Tool("now"),),
            tenant=tenant,
        )
        turn = body_of(server, generator, request)["contents"][1]["parts"]
        return [part.get("thoughtSignature") for part in turn]

    lost = "skip_thought_signature_validator"
    assert signatures(model, "abc1", "abc2") == ["c2lnbmF0dXJl", None]
    assert signatures(model, "from_another_model", "and_another") == [lost, None]
    assert signatures(model, "abc1", tenant="somebody else") == [lost]
    assert signatures(older, "abc1") == [None]
