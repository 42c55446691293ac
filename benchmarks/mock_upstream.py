"""A model's server that costs next to nothing, for `gateway.py`: OpenAI's chat API, fixed words.

    python mock_upstream.py PORT [PICTURE.jpg …] [--pause SECONDS]

Answers as soon as a request has been read. A request that says `picture 3` must hold the fourth of
the files in base64, byte for byte; `GET /stats` tells how many did. --pause: before the first word.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import re
from pathlib import Path
from typing import Any, ClassVar

import httptools
import uvloop

WORDS = ["Peregrine", *(f" word{n}" for n in range(1, 15)), " halcyon"]
"""What is answered, a token each. The first and the last are looked for by the clients."""

_NAMED = re.compile(rb"picture (\d+)")
_STREAMS = re.compile(rb'"stream": ?true')
_WITH_USAGE = re.compile(rb'"include_usage": ?true')
_USAGE = {"prompt_tokens": 20, "completion_tokens": len(WORDS), "total_tokens": 20 + len(WORDS)}


class Upstream(asyncio.Protocol):
    """One connection, kept alive; one request after the other."""

    pictures: ClassVar[list[bytes]] = []
    pause: ClassVar[float] = 0.0
    stats: ClassVar[dict[str, int]] = {"requests": 0, "pictures": 0, "others": 0}

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._parser = httptools.HttpRequestParser(self)
        self._url, self._body = b"", []

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    # Called by the parser.

    def on_url(self, url: bytes) -> None:
        self._url, self._body = url, []

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"expect":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, piece: bytes) -> None:
        self._body.append(piece)

    def on_message_complete(self) -> None:
        body = b"".join(self._body)
        self._body = []
        if self._url.endswith(b"/chat/completions"):
            self._check(body)
            # What is looked for stands before a picture or behind it, never in the middle.
            ends = body[:2000] + body[-2000:]
            if self.pause:
                asyncio.get_running_loop().call_later(self.pause, self._answer, ends)
            else:
                self._answer(ends)
        elif self._url == b"/stats":
            self._transport.write(_whole(json.dumps(self.stats).encode()))
        else:
            models = {"object": "list", "data": [{"id": "gpt", "object": "model"}]}
            self._transport.write(_whole(json.dumps(models).encode()))

    def _check(self, body: bytes) -> None:
        self.stats["requests"] += 1
        named = _NAMED.search(body)
        if named is not None:
            at = body.find(b";base64,") + len(b";base64,")
            same = body.startswith(self.pictures[int(named[1])] + b'"', at)
            self.stats["pictures" if same else "others"] += 1

    def _answer(self, asked: bytes) -> None:
        if not _STREAMS.search(asked):
            self._transport.write(ANSWER)
            return
        self._transport.write(STREAM_HEAD)
        for chunk in CHUNKS:  # each a write of its own, as a model's server does it
            self._transport.write(chunk)
        self._transport.write(USAGE_CHUNK + END if _WITH_USAGE.search(asked) else END)


def _whole(body: bytes) -> bytes:
    head = (
        f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _frame(kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": kind, "created": 1764000000, "model": "gpt"}


def _piece(body: bytes) -> bytes:
    return f"{len(body):x}\r\n".encode() + body + b"\r\n"


def _chunk(delta: dict[str, Any], reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
    said = {**_frame("chat.completion.chunk"), "choices": [choice]}
    return _piece(b"data: " + json.dumps(said).encode() + b"\n\n")


def _answer() -> bytes:
    message = {"role": "assistant", "content": "".join(WORDS), "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    said = {**_frame("chat.completion"), "choices": [choice], "usage": _USAGE}
    return _whole(json.dumps(said).encode())


ANSWER = _answer()
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)
CHUNKS = [
    _chunk({"role": "assistant", "content": ""}),
    *(_chunk({"content": word}) for word in WORDS),
    _chunk({}, "stop"),
]
USAGE_CHUNK = _piece(
    b"data: "
    + json.dumps({**_frame("chat.completion.chunk"), "choices": [], "usage": _USAGE}).encode()
    + b"\n\n"
)
END = _piece(b"data: [DONE]\n\n") + b"0\r\n\r\n"


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    arguments = argparse.ArgumentParser()
    arguments.add_argument("port", type=int)
    arguments.add_argument("pictures", nargs="*", type=Path)
    arguments.add_argument("--pause", type=float, default=0.0)
    given = arguments.parse_args()
    Upstream.pictures = [base64.b64encode(path.read_bytes()) for path in given.pictures]
    Upstream.pause = given.pause
    uvloop.run(serve(given.port))
