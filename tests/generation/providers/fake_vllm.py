"""A server that speaks as vLLM 0.32 was heard to, and fails where it is told to."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

CUT = "cut"
"""In a script: the connection breaks here."""

Step = dict[str, Any] | bytes | float | str
"""A chunk, bytes as they are, seconds of silence, or CUT."""


def chunk(text: str = "", *, choice: int = 0, reason: str | None = None, **more: Any) -> Step:
    """A piece of an answer, with the fields that vLLM sends."""
    return {
        "id": "chatcmpl-b31982e5d48ac476",
        "object": "chat.completion.chunk",
        "created": 1795611705,
        "model": "tiny-llava",
        "choices": [
            {
                "index": choice,
                "delta": {"content": text},
                "logprobs": more.pop("logprobs", None),
                "finish_reason": reason,
                "token_ids": None,
                **({"stop_reason": None} if reason else {}),
            }
        ],
        **more,
    }


def role(choice: int = 0) -> Step:
    """The first chunk of every choice."""
    begun: Any = chunk(choice=choice)
    begun["choices"][0]["delta"] = {"role": "assistant", "content": ""}
    return {**begun, "prompt_token_ids": None, "prompt_text": None}


def usage(prompt: int, answer: int, details: dict[str, Any] | None = None) -> Step:
    """The last chunk."""
    spent = {
        "prompt_tokens": prompt,
        "total_tokens": prompt + answer,
        "completion_tokens": answer,
    }
    if details is not None:
        spent["prompt_tokens_details"] = details  # type: ignore[assignment]
    last: Any = {**chunk(), "choices": [], "usage": spent}  # type: ignore[dict-item]
    return {**last, "system_fingerprint": "vllm-0.32.0-95f046a8"}


def answering(text: str = "A cat.", prompt: int = 38, images: int | None = None) -> list[Step]:
    """A whole answer, a word a chunk."""
    words = text.split(" ")
    pieces = [word if not at else f" {word}" for at, word in enumerate(words)]
    details: dict[str, Any] = {"cached_tokens": 0, "created_cache_tokens": 0}
    if images is not None:
        details["multimodal_tokens"] = {"image": images}
    return [
        role(),
        *(chunk(piece) for piece in pieces[:-1]),
        chunk(pieces[-1], reason="stop"),
        usage(prompt, len(pieces) + 1, details),
    ]


def refusal(message: str, status: int, kind: str = "BadRequestError", **more: Any) -> Any:
    """vLLM's error object."""
    error = {"message": message, "type": kind, "param": None, "code": status, **more}
    return {"error": error}


class FakeVLLM:
    """One server. What it does may be changed while it runs.

    script: body → what to send. status: of the answer; any but 200 sends the script's first step
    as a whole. bodies: what it was asked. gone: set when a client has left before the end.
    """

    def __init__(self, *, model: str = "tiny-llava", port: int = 0) -> None:
        self.models = [model]
        self.root = "/models/tiny-llava"
        self.context = 2048
        self.sees = True
        self.healthy = True
        self.key: str | None = None
        self.running, self.waiting = 0, 0
        self.status = 200
        self.script: Callable[[dict[str, Any]], Iterable[Step]] = lambda body: answering()
        self.bodies: list[dict[str, Any]] = []
        self.gone = threading.Event()
        self._server: _Listener | None = None
        self.port = port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> FakeVLLM:
        """Listen; on the same port as before, if it was stopped."""
        self._server = _Listener(("127.0.0.1", self.port), _handler(self))
        self.port = self._server.server_address[1]
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()
        return self

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server.hang_up()
            self._server = None

    def __enter__(self) -> FakeVLLM:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._connections: list[socket.socket] = []

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.append(request)
        super().process_request(request, client_address)

    def hang_up(self) -> None:
        """As when a process dies: connections that wait for more break, too."""
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is no news."""


def _handler(fake: FakeVLLM) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if not self._allowed():
                return
            if self.path == "/v1/models":
                cards = [
                    {
                        "id": name,
                        "object": "model",
                        "owned_by": "vllm",
                        "root": fake.root,
                        "parent": None,
                        "max_model_len": fake.context,
                    }
                    for name in fake.models
                ]
                self._send(200, json.dumps({"object": "list", "data": cards}))
            elif self.path == "/health":
                self._send(200 if fake.healthy else 503, "")
            elif self.path == "/metrics":
                self._send(200, _METRICS.format(running=fake.running, waiting=fake.waiting))
            else:
                self._send(404, "{}")

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if not self._allowed():
                return
            if self.path == "/tokenize":
                if fake.sees:
                    self._send(200, json.dumps({"count": 3, "tokens": [1, 2, 3]}))
                else:
                    said = refusal(f"{fake.models[0]} is not a multimodal model", 400)
                    self._send(400, json.dumps(said))
                return
            fake.bodies.append(body)
            if fake.status != 200:
                self._send(fake.status, json.dumps(next(iter(fake.script(body)))))
                return
            self.send_response(200)
            self.send_header("content-type", "text/event-stream; charset=utf-8")
            self.send_header("connection", "close")
            self.end_headers()
            try:
                self._stream(fake.script(body))
            except OSError:
                fake.gone.set()
            self.close_connection = True

        def _stream(self, steps: Iterable[Step]) -> None:
            for step in steps:
                if step == CUT:
                    return
                if isinstance(step, float):
                    time.sleep(step)
                    continue
                self.wfile.write(
                    step if isinstance(step, bytes) else f"data: {json.dumps(step)}\n\n".encode()
                )
                self.wfile.flush()
            self.wfile.write(b"data: [DONE]\n\n")

        def _allowed(self) -> bool:
            if fake.key is None or self.headers.get("authorization") == f"Bearer {fake.key}":
                return True
            self._send(401, '{"error": "Unauthorized"}')
            return False

        def _send(self, status: int, text: str) -> None:
            data = text.encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


_METRICS = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="tiny-llava"}} {running}.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{{engine="0",model_name="tiny-llava"}} {waiting}.0
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{{engine="0",reason="capacity"}} {waiting}.0
"""
