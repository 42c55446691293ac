"""What Anthropic's Messages API sends, as its reference "Streaming messages" shows it.

Each event is held against the official SDK's types before it is sent, so that no test stands on a
shape that Anthropic does not have.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from tests.generation.providers.fake_openai import Step

_EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)

PING: Step = {"type": "ping"}


def event(kind: str, **fields: Any) -> Step:
    said = {"type": kind, **fields}
    _EVENT.validate_python(said)
    return said


def message(content: Iterable[Any] = (), reason: str | None = None, **more: Any) -> dict[str, Any]:
    """A message as it begins, or whole."""
    whole = {
        "id": "msg_01XFDUDYJgAACzvnptvVoYEL",
        "type": "message",
        "role": "assistant",
        "model": "claude-opus-5-5",
        "content": list(content),
        "stop_reason": reason,
        "stop_sequence": None,
        "stop_details": None,
        "usage": spent(answer=1),
        **more,
    }
    Message.model_validate(whole)
    return whole


def spent(given: int = 25, answer: int = 15, **more: Any) -> dict[str, Any]:
    """A bill. read, kept: of the prompt, from and for the next request; thought: of the answer."""
    return {
        "input_tokens": given,
        "cache_creation_input_tokens": more.get("kept", 0),
        "cache_read_input_tokens": more.get("read", 0),
        "cache_creation": {"ephemeral_5m_input_tokens": more.get("kept", 0),
                           "ephemeral_1h_input_tokens": 0},
        "output_tokens": answer,
        "output_tokens_details": {"thinking_tokens": more.get("thought", 0)},
        "service_tier": "standard",
    }  # fmt: skip


def begin(**usage: Any) -> Step:
    return event("message_start", message=message(usage=spent(answer=1, **usage)))


def block(at: int, kind: str, **fields: Any) -> Step:
    return event("content_block_start", index=at, content_block={"type": kind, **fields})


def delta(at: int, kind: str, **fields: Any) -> Step:
    return event("content_block_delta", index=at, delta={"type": kind, **fields})


def close(at: int) -> Step:
    return event("content_block_stop", index=at)


def words(at: int, *pieces: str) -> list[Step]:
    """A block of text."""
    return [
        block(at, "text", text=""),
        *(delta(at, "text_delta", text=piece) for piece in pieces),
        close(at),
    ]


def called(at: int, id: str, name: str, *pieces: str) -> list[Step]:
    """A block of a wish for a tool. Its first piece is empty, as Anthropic sends it."""
    return [
        block(at, "tool_use", id=id, name=name, input={}),
        *(delta(at, "input_json_delta", partial_json=piece) for piece in ("", *pieces)),
        close(at),
    ]


def thoughts(at: int, *pieces: str) -> list[Step]:
    return [
        block(at, "thinking", thinking="", signature=""),
        *(delta(at, "thinking_delta", thinking=piece) for piece in pieces),
        delta(at, "signature_delta", signature="EqQBCgIYAhIM1gbcDa9GJwZA2b3hGgxBdjrkzLoky3dl"),
        close(at),
    ]


def end(reason: str = "end_turn", stop: str | None = None, **more: Any) -> list[Step]:
    """How a message ends. usage: the bill; details: why it was refused."""
    said = {
        "stop_reason": reason,
        "stop_sequence": stop,
        "stop_details": more.get("details"),
    }
    bill = more.get("usage") or {"output_tokens": 15}
    return [event("message_delta", delta=said, usage=bill), event("message_stop")]


def answer(said: str = "A cat sleeps.", reason: str = "end_turn") -> list[Step]:
    """A whole answer, a word an event."""
    split = said.split(" ")
    pieces = [word if not at else f" {word}" for at, word in enumerate(split)]
    return [begin(), PING, *words(0, *pieces), *end(reason)]


def refusal(kind: str, said: str, code: str | None = None) -> dict[str, Any]:
    """An error's body."""
    error: dict[str, Any] = {"type": kind, "message": said}
    if code is not None:
        error["details"] = {"error_code": code}
    return {"type": "error", "error": error, "request_id": "req_011CSHoEeqs5C35K2UUqR7Fy"}


def broken(kind: str, said: str) -> bytes:
    """An error in the middle of a stream."""
    body = {"type": "error", "error": {"type": kind, "message": said}}
    return f"event: error\ndata: {json.dumps(body)}\n\n".encode()
