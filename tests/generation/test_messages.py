"""Which conversations can be answered, and what is said of the others."""

from __future__ import annotations

import numpy as np
import pytest

from chiasm.errors import InvalidRequest
from chiasm.generation import ImagePart, Message, TextPart, ToolCall
from chiasm.generation.messages import check_conversation
from chiasm.media import Image

PICTURE = Image(np.zeros((2, 2, 3), dtype=np.uint8), (2, 2))
SYSTEM = Message("system", (TextPart("Be brief."),))
ASSISTANT = Message("assistant", (TextPart("A cat."),))
USER = Message.user(PICTURE, "What is this?")


@pytest.mark.parametrize(
    "messages",
    [
        [USER],
        [SYSTEM, USER],
        [USER, ASSISTANT, USER],
        [USER, USER],
        [SYSTEM, USER, ASSISTANT, USER],
    ],
)
def test_conversations_in_order(messages: list[Message]) -> None:
    check_conversation(messages)


@pytest.mark.parametrize(
    ("messages", "said", "param"),
    [
        ([], "no messages", "messages"),
        ([SYSTEM], "nothing to answer", "messages[0].role"),
        ([USER, ASSISTANT], "nothing to answer", "messages[1].role"),
        ([ASSISTANT, USER], "no user's message stands before it", "messages[0].role"),
        ([USER, ASSISTANT, ASSISTANT, USER], "no user's message", "messages[2].role"),
        ([USER, SYSTEM, USER], "does not come first", "messages[1].role"),
        (
            [Message("system", (ImagePart(PICTURE),)), USER],
            "a picture in a system message",
            "messages[0].content",
        ),
        (
            [USER, Message("assistant", (ImagePart(PICTURE),)), USER],
            "a picture in an assistant's message",
            "messages[1].content",
        ),
        ([Message("user", ())], "is empty", "messages[0].content"),
        ([Message("robot", (TextPart("x"),))], "not known here", "messages[0].role"),  # type: ignore[arg-type]
        ([Message("tool", (TextPart("x"),))], "uses tools", "messages[0].role"),
        (
            [USER, Message("assistant", (ToolCall("1", "zoom", "{}"),)), USER],
            "uses tools",
            "messages[1].role",
        ),
    ],
)
def test_conversations_out_of_order(messages: list[Message], said: str, param: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as caught:
        check_conversation(messages)
    assert caught.value.param == param
