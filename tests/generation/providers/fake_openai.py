"""A server that speaks OpenAI's two APIs, and fails where it is told to.

What it sends is held against the official SDK's types before it is sent, so that no test stands on
a shape that OpenAI does not have.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

CUT = "cut"
"""In a script: the connection breaks here, without the end that HTTP has for it."""

Step = dict[str, Any] | bytes | float | str
"""An event's data, bytes as they are, seconds of silence, or CUT."""

_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Asked:
    """A request as it arrived."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]
    raw: bytes


@dataclass
class Reply:
    """What is sent. steps: of a stream; whole: in one piece instead, a dict as JSON."""

    steps: Iterable[Step] = ()
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    whole: dict[str, Any] | bytes | None = None
    done: bool = True


Script = Callable[[Asked], Reply]


class FakeOpenAI:
    """One server. What it does may be changed while it runs.

    asked: what it was asked. connections: that were made. open: those that still are. gone: set
    when a client has left.
    """

    def __init__(self) -> None:
        self.script: Script = lambda asked: Reply(chat_answer())
        self.asked: list[Asked] = []
        self.connections = self.open = 0
        self.gone = threading.Event()
        self._server = _Listener(("127.0.0.1", 0), _handler(self))
        self._server.fake = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> FakeOpenAI:
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    fake: FakeOpenAI

    def process_request(self, request: Any, client_address: Any) -> None:
        self.fake.connections += 1
        self.fake.open += 1
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        self.fake.open -= 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is no news."""


def _handler(fake: FakeOpenAI) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked = Asked(self.path, headers, json.loads(raw), raw)
            fake.asked.append(asked)
            reply = fake.script(asked)
            if reply.whole is not None:
                self._send_whole(reply, reply.whole)
                return
            self.send_response(reply.status)
            self.send_header("content-type", "text/event-stream; charset=utf-8")
            self.send_header("transfer-encoding", "chunked")
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.end_headers()
            try:
                self._stream(reply)
            except OSError:
                fake.gone.set()
                self.close_connection = True

        def _send_whole(self, reply: Reply, whole: dict[str, Any] | bytes) -> None:
            data = whole if isinstance(whole, bytes) else json.dumps(whole).encode()
            self.send_response(reply.status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def _stream(self, reply: Reply) -> None:
            for step in reply.steps:
                if step == CUT:
                    self.close_connection = True
                    with contextlib.suppress(OSError):
                        self.connection.shutdown(socket.SHUT_RDWR)
                    return
                if isinstance(step, float):
                    time.sleep(step)
                    continue
                self._chunk(step if isinstance(step, bytes) else event(step))  # type: ignore[arg-type]
            if reply.done:
                self._chunk(DONE)
            self.wfile.write(b"0\r\n\r\n")

        def _chunk(self, data: bytes) -> None:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
            self.wfile.flush()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


def event(data: Mapping[str, Any]) -> bytes:
    """An event as it is sent. Those of Responses have a name; those of chat have none."""
    name = f"event: {data['type']}\n" if "type" in data else ""
    return f"{name}data: {json.dumps(data)}\n\n".encode()


# Chat completions -------------------------------------------------------------------------------


def chunk(delta: dict[str, Any] | None = None, *, reason: str | None = None, **more: Any) -> Step:
    """A piece of an answer. choice: which one; logprobs: of its tokens."""
    choice = {
        "index": more.pop("choice", 0),
        "delta": delta or {},
        "logprobs": more.pop("logprobs", None),
        "finish_reason": reason,
    }
    whole = {
        "id": "chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG",
        "object": "chat.completion.chunk",
        "created": 1741570283,
        "model": "gpt-5-mini-2025-08-07",
        "service_tier": "default",
        "system_fingerprint": None,
        "choices": [choice],
        "usage": None,
        "obfuscation": "2bPnKQ",
        **more,
    }
    ChatCompletionChunk.model_validate(whole)
    return whole


def role(choice: int = 0) -> Step:
    """The first chunk of every choice."""
    return chunk({"role": "assistant", "content": "", "refusal": None}, choice=choice)


def text(said: str, **more: Any) -> Step:
    """A piece of text."""
    return chunk({"content": said}, **more)


def bill(prompt: int = 19, answer: int = 10, **details: Any) -> Step:
    """The last chunk. details: of either side, as OpenAI has them."""
    return chunk(choices=[], usage=chat_usage(prompt, answer, **details))


def chat_usage(prompt: int, answer: int, **details: Any) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {
            "cached_tokens": details.pop("cached", 0),
            "audio_tokens": 0,
            **details.pop("details", {}),
        },
        "completion_tokens_details": {
            "reasoning_tokens": details.pop("thought", 0),
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def called(
    index: int, *, id: str | None = None, name: str | None = None, arguments: str = ""
) -> Step:
    """A piece of a wish for a tool."""
    function: dict[str, Any] = {"arguments": arguments}
    call: dict[str, Any] = {"index": index, "function": function}
    if id is not None:
        call |= {"id": id, "type": "function"}
        function["name"] = name
    return chunk({"tool_calls": [call]})


def chat_answer(said: str = "A cat sleeps.", reason: str = "stop") -> list[Step]:
    """A whole answer, a word a chunk."""
    words = said.split(" ")
    pieces = [word if not at else f" {word}" for at, word in enumerate(words)]
    return [role(), *map(text, pieces), chunk(reason=reason), bill()]


def chat_whole(message: dict[str, Any], reason: str = "stop", **more: Any) -> dict[str, Any]:
    """A whole answer in one piece."""
    whole = {
        "id": "chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT",
        "object": "chat.completion",
        "created": 1741569952,
        "model": "gpt-5-mini-2025-08-07",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "refusal": None, "annotations": [], **message},
                "logprobs": None,
                "finish_reason": reason,
            }
        ],
        "usage": chat_usage(19, 10),
        "service_tier": "default",
        **more,
    }
    ChatCompletion.model_validate(whole)
    return whole


# Responses --------------------------------------------------------------------------------------

MESSAGE_ID = "msg_67c9fdcf37fc8190ba82116e33fb28c501b8b0ad0e5eb936"


def response(status: str = "in_progress", output: Iterable[Any] = (), **more: Any) -> Any:
    """A response, as far as it has come."""
    whole = {
        "id": "resp_67c9fdcecf488190bdd9a0409de3a1ec07b8b0ad4e5eb654",
        "object": "response",
        "created_at": 1741290958,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": None,
        "model": "gpt-5-mini-2025-08-07",
        "output": list(output),
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": "minimal", "summary": None},
        "store": False,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": None,
        "user": None,
        "metadata": {},
        **more,
    }
    Response.model_validate(whole)
    return whole


def response_usage(given: int = 37, answer: int = 11, **details: Any) -> dict[str, Any]:
    return {
        "input_tokens": given,
        "input_tokens_details": {
            "cached_tokens": details.pop("cached", 0),
            "cache_write_tokens": details.pop("written", 0),
        },
        "output_tokens": answer,
        "output_tokens_details": {"reasoning_tokens": details.pop("thought", 0)},
        "total_tokens": given + answer,
    }


class Events:
    """Makes the events of one response, numbered."""

    def __init__(self) -> None:
        self._count = itertools.count()

    def __call__(self, kind: str, **fields: Any) -> Step:
        said = {"type": kind, "sequence_number": next(self._count), **fields}
        _EVENT.validate_python(said)
        return said

    def begin(self) -> list[Step]:
        return [
            self("response.created", response=response()),
            self("response.in_progress", response=response()),
        ]

    def open_message(self, at: int = 0, kind: str = "output_text") -> list[Step]:
        item = message_item([], "in_progress")
        part = _part(kind, "")
        place = {"item_id": MESSAGE_ID, "output_index": at, "content_index": 0}
        return [
            self("response.output_item.added", output_index=at, item=item),
            self("response.content_part.added", part=part, **place),
        ]

    def delta(self, said: str, at: int = 0, logprobs: Iterable[Any] = ()) -> Step:
        return self(
            "response.output_text.delta", item_id=MESSAGE_ID, output_index=at, content_index=0,
            delta=said, logprobs=list(logprobs), obfuscation="x1",
        )  # fmt: skip

    def refusal(self, said: str, at: int = 0) -> Step:
        return self(
            "response.refusal.delta", item_id=MESSAGE_ID, output_index=at, content_index=0,
            delta=said,
        )  # fmt: skip

    def close_message(self, said: str, at: int = 0, kind: str = "output_text") -> list[Step]:
        place = {"item_id": MESSAGE_ID, "output_index": at, "content_index": 0}
        part = _part(kind, said)
        if kind == "output_text":
            done = self("response.output_text.done", text=said, logprobs=[], **place)
        else:
            done = self("response.refusal.done", refusal=said, **place)
        return [
            done,
            self("response.content_part.done", part=part, **place),
            self("response.output_item.done", output_index=at, item=message_item([part])),
        ]

    def call(self, at: int, id: str, name: str, pieces: Iterable[str]) -> list[Step]:
        pieces = list(pieces)
        place = {"item_id": f"fc_{id}", "output_index": at}
        item = call_item(id, name, "", "in_progress")
        whole = "".join(pieces)
        return [
            self("response.output_item.added", output_index=at, item=item),
            *(
                self("response.function_call_arguments.delta", delta=piece, **place)
                for piece in pieces
            ),
            self("response.function_call_arguments.done", arguments=whole, name=name, **place),
            self("response.output_item.done", output_index=at, item=call_item(id, name, whole)),
        ]

    def end(self, output: Iterable[Any] = (), **more: Any) -> Step:
        whole = response("completed", output, usage=more.pop("usage", response_usage()), **more)
        return self("response.completed", response=whole)


def message_item(content: list[Any], status: str = "completed") -> dict[str, Any]:
    return {
        "id": MESSAGE_ID,
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": content,
    }


def call_item(id: str, name: str, arguments: str, status: str = "completed") -> dict[str, Any]:
    return {
        "id": f"fc_{id}",
        "type": "function_call",
        "status": status,
        "call_id": id,
        "name": name,
        "arguments": arguments,
    }


def _part(kind: str, said: str) -> dict[str, Any]:
    if kind == "refusal":
        return {"type": "refusal", "refusal": said}
    return {"type": "output_text", "text": said, "annotations": [], "logprobs": []}


def responses_answer(said: str = "A cat sleeps.") -> list[Step]:
    """A whole answer, a word an event."""
    make = Events()
    words = said.split(" ")
    pieces = [word if not at else f" {word}" for at, word in enumerate(words)]
    return [
        *make.begin(),
        *make.open_message(),
        *map(make.delta, pieces),
        *make.close_message(said),
        make.end([message_item([_part("output_text", said)])]),
    ]
