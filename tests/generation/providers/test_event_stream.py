"""Server-sent events as the standard has them, wherever the network cuts the bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import pytest

from chiasm.errors import GeneratorFailed
from chiasm.generation.providers import event_stream
from chiasm.generation.providers.event_stream import EventDecoder, read_objects

STREAM = (
    b"\xef\xbb\xbf: a comment\n"
    b'data: {"a": 1}\n'
    b"\n"
    b"event: message\n"
    b"id: 7\n"
    b"retry: 3000\n"
    b'data:{"b":\n'
    b'data: "\xe4\xb8\x96"}\n'
    b"\n"
    b"\n"
    b"event: lost\n"
    b"\n"
    b'data: {"c": 3}\n'
    b"\n"
)
EVENTS = [(b"", b'{"a": 1}'), (b"message", b'{"b":\n"\xe4\xb8\x96"}'), (b"", b'{"c": 3}')]
"""By hand, from section 9.2.6 of the HTML standard. An event without data is none."""


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
def test_bytes_may_be_cut_anywhere(line_end: bytes) -> None:
    stream = STREAM.replace(b"\n", line_end)
    # In data of several lines the standard puts LF between them, whatever ended the lines.
    for first in range(len(stream) + 1):
        decoder = EventDecoder()
        pieces = (stream[:first], b"", stream[first:])
        events = [event for piece in pieces for event in decoder.feed(piece)] + decoder.end()
        assert events == EVENTS, first
    decoder = EventDecoder()
    single = [event for at in range(len(stream)) for event in decoder.feed(stream[at : at + 1])]
    assert single + decoder.end() == EVENTS


def objects(*pieces: bytes) -> list[dict[str, Any]]:
    async def chunks() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    async def wait(awaited: Awaitable[bytes | None]) -> bytes | None:
        return await awaited

    async def read() -> list[dict[str, Any]]:
        return [each async for each in read_objects(chunks(), wait)]

    return asyncio.run(read())


def test_a_stream_and_what_follows_its_end() -> None:
    ended = b'data: {"a": 1}\n\ndata: [DONE]\n\ndata: {"b": 2}\n\n'
    assert objects(ended) == [{"a": 1}]
    assert objects(b'data: {"a": 1}\n\ndata: [DONE]') == [{"a": 1}]


def test_an_empty_line_that_is_missing_at_the_end() -> None:
    assert objects(b'data: {"a": 1}\n\ndata: {"b": 2}\n') == [{"a": 1}, {"b": 2}]


def test_one_object_and_no_stream() -> None:
    assert objects(b" \n", b'  {"a"', b': "data: 1\\n"}', b"\n") == [{"a": "data: 1\n"}]


def test_nothing_at_all() -> None:
    assert objects() == []
    assert objects(b"\n", b"") == []


def test_errors_have_their_name() -> None:
    assert objects(b'event: error\ndata: {"message": "x"}\n\n') == [{"error": {"message": "x"}}]
    assert objects(b'event: error\ndata: {"error": {"code": 1}}\n\n') == [{"error": {"code": 1}}]
    assert objects(b'error: {"message": "x"}\n\n') == [{"error": {"message": "x"}}]


@pytest.mark.parametrize(
    "stream",
    [
        b"data: {\n\n",
        b"data: 7\n\n",
        b"data: \xff\n\n",
        b"{",
        b'{"a": 1} {"b": 2}',
        b'{"a":' * 99_999,
    ],
    ids=["cut", "number", "no UTF-8", "brace", "two", "deep"],
)
def test_what_is_none(stream: bytes) -> None:
    with pytest.raises(GeneratorFailed, match="no part of an answer"):
        objects(stream)


@pytest.mark.parametrize("stream", [b"data: " + b"x" * 99, b"x" * 99, b"{" + b" " * 99])
def test_what_has_no_end(stream: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "MOST_BYTES", 64)
    with pytest.raises(GeneratorFailed, match="no part of an answer"):
        objects(*[stream] * 3)


def test_data_of_many_lines_has_an_end_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "MOST_BYTES", 64)
    with pytest.raises(GeneratorFailed, match="no part of an answer"):
        objects(*[b"data: 0123456789\n"] * 9)
