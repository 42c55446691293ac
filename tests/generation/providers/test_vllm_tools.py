"""What vLLM has in common with OpenAI's chat API: tools, effort, files that pass through."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from chiasm.errors import InvalidRequest, Unsupported
from chiasm.generation import (
    Finished,
    ImagePart,
    Message,
    Request,
    Sampling,
    TextPart,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolResult,
)
from chiasm.generation.providers.address import Address
from chiasm.generation.providers.vllm import VLLMGenerator
from tests.generation.providers.asking import (
    answers,
    asked,
    encoded,
    file_in,
    jpeg,
    pixels,
    png_with_words,
    shown,
    usage,
)
from tests.generation.providers.fake_vllm import FakeVLLM, answering, chunk, role
from tests.generation.providers.fake_vllm import usage as bill
from tests.generation.tiny_models import save, tiny_llava

NOW = Tool("now", "The time.", {"type": "object", "properties": {"zone": {"type": "string"}}})


@pytest.fixture
def server() -> Iterator[FakeVLLM]:
    with FakeVLLM() as fake:
        yield fake


@pytest.fixture
def model(server: FakeVLLM) -> Iterator[VLLMGenerator]:
    generator = VLLMGenerator(Address((server.url,)))
    yield generator
    generator.close()


def test_tools_and_what_came_of_them(server: FakeVLLM, model: VLLMGenerator) -> None:
    conversation = (
        Message.user("What time is it?"),
        Message("assistant", (ToolCall("c1", "now", '{"zone": "UTC"}'),)),
        Message("tool", (ToolResult("c1", (TextPart("noon"),)),)),
    )
    answers(model, Request(conversation, tools=(NOW,), tool_choice="required", effort="low"))
    (body,) = server.bodies
    assert body["messages"][1:] == [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "now", "arguments": '{"zone": "UTC"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "noon"},
    ]
    assert body["tools"][0]["function"]["parameters"] == NOW.parameters
    assert (body["tool_choice"], body["reasoning_effort"]) == ("required", "low")


def test_penalties(server: FakeVLLM, model: VLLMGenerator) -> None:
    answers(model, asked(sampling=Sampling(frequency_penalty=0.5, presence_penalty=-1.0)))
    (body,) = server.bodies
    assert (body["frequency_penalty"], body["presence_penalty"]) == (0.5, -1.0)


def test_calls_of_tools(server: FakeVLLM, model: VLLMGenerator) -> None:
    def piece(**call: Any) -> Any:
        made: Any = chunk()
        made["choices"][0]["delta"] = {"tool_calls": [{"index": 0, **call}]}
        return made

    server.script = lambda body: [
        role(),
        piece(id="chatcmpl-tool-1", type="function", function={"name": "now", "arguments": ""}),
        piece(function={"arguments": '{"zone":'}),
        piece(function={"arguments": ' "UTC"}'}),
        chunk(reason="tool_calls"),
        bill(20, 9),
    ]
    events = answers(model, asked(tools=(NOW,)))
    assert events[:-1] == [
        ToolCallDelta(0, 0, "chatcmpl-tool-1", "now", ""),
        ToolCallDelta(0, 0, arguments='{"zone":'),
        ToolCallDelta(0, 0, arguments=' "UTC"}'),
        Finished(0, "tool_calls"),
    ]


def test_a_picture_from_a_tool_is_unsupported(server: FakeVLLM, model: VLLMGenerator) -> None:
    conversation = (
        Message.user("?"),
        Message("assistant", (ToolCall("c1", "shot", "{}"),)),
        Message("tool", (ToolResult("c1", (ImagePart(encoded(jpeg())),)),)),
    )
    with pytest.raises(Unsupported, match="tool's result"):
        answers(model, Request(conversation))
    with pytest.raises(InvalidRequest, match="nothing to answer"):
        answers(model, Request((Message.user("?"), Message("assistant", (TextPart("!"),)))))
    assert not server.bodies


def test_files_pass_through_or_are_made_anew(server: FakeVLLM, model: VLLMGenerator) -> None:
    secret, file = "taken at 48.8584 N 2.2945 E", jpeg()
    answers(model, asked(encoded(file), encoded(png_with_words(secret)), "?"))
    first, second = (
        file_in(part["image_url"]["url"]) for part in server.bodies[0]["messages"][0]["content"][:2]
    )
    assert first == ("image/jpeg", file)
    assert second[0] == "image/png"
    assert secret.encode() not in second[1]
    assert np.array_equal(shown(second[1]), pixels())


def test_tokens_are_counted_of_the_size_that_was_sent(server: FakeVLLM, tmp_path: Any) -> None:
    save(tiny_llava(tmp_path / "a"), tmp_path / "model")
    server.root = str(tmp_path / "model")
    server.script = lambda body: answering()
    model = VLLMGenerator(Address((server.url,)))
    part = ImagePart(encoded(jpeg()), size=(20, 12))
    spent = usage(answers(model, Request((Message("user", (part, TextPart("?"))),))))
    model.close()
    assert (spent.image_tokens, spent.estimated) == (16, False)
    _, sent = file_in(server.bodies[0]["messages"][0]["content"][0]["image_url"]["url"])
    assert shown(sent).shape == (12, 20, 3)


def test_nobody_knows_the_pictures_share(server: FakeVLLM, model: VLLMGenerator) -> None:
    spent = usage(answers(model, asked(encoded(jpeg()), "?")))
    assert (spent.image_tokens, spent.estimated) == (0, True)
    assert not usage(answers(model, asked())).estimated
