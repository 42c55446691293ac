"""Web servers for tests of fetching: real ones, on the loopback address."""

from __future__ import annotations

import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class WebServer:
    """A server that gives `pages` and remembers what it was asked.

    pages: path → (status, headers, body), or a function that answers by itself.
    """

    def __init__(
        self, tls: ssl.SSLContext | None = None, *, host: str = "127.0.0.1", port: int = 0
    ) -> None:
        self.pages: dict[str, Any] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.connections = 0
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                web.connections += 1
                super().setup()

            def do_GET(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                web.requests.append((self.path, headers))
                page = web.pages.get(self.path.partition("?")[0], (404, {}, b"nothing"))
                if callable(page):
                    page(self)
                    return
                status, more, body = page
                self.send_response(status)
                for name, value in ({"content-length": str(len(body))} | more).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer((host, port), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> WebServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()

    def picture(self, path: str, data: bytes, media_type: str = "image/png", **more: str) -> None:
        """Let `data` lie at `path`."""
        self.pages[path] = (200, {"content-type": media_type} | more, data)

    def redirect(self, path: str, to: str, status: int = 302) -> None:
        """Let `path` lead on."""
        self.pages[path] = (status, {"location": to}, b"")


class Names:
    """A resolver with names of its own, that counts how often it is asked."""

    def __init__(self, **names: str | list[str]) -> None:
        self.numbers = {name.replace("_", "."): _list(value) for name, value in names.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        if host not in self.numbers:
            raise OSError
        return self.numbers[host]


class ChangingNames(Names):
    """A resolver that answers differently the second time: DNS rebinding."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__()
        self._answers = [first, second]

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        return [self._answers[min(len(self.asked), 2) - 1]]


def _list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
