"""A real server on a real port, with a small embedder that knows colours."""

from __future__ import annotations

import base64
import io
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import PIL.Image
import pytest
import uvicorn

from chiasm.media import Image
from chiasm.server import create_app
from chiasm.settings import ServerSettings, Settings

COLOURS = {
    "red": (230, 20, 30),
    "green": (20, 200, 40),
    "blue": (30, 40, 220),
    "yellow": (240, 220, 20),
    "white": (250, 250, 250),
    "black": (8, 8, 8),
}


class ColourEmbedder:
    """Pictures by the histogram of their colours, texts by the colours they name.

    A real embedder, if a modest one: both kinds share a space in which near means alike.
    """

    name = "colours"
    digest = "c" * 64
    dimension = 64
    decode_side = 32

    def embed_images(self, images: Sequence[Image]) -> npt.NDArray[np.float32]:
        """float32 [n, 64], unit length."""
        return np.stack([_histogram(image.pixels) for image in images])

    def embed_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """float32 [n, 64], unit length."""
        return np.stack([self._text(text) for text in texts])

    def count_tokens(self, text: str) -> int:
        """Words."""
        return len(text.split())

    def _text(self, text: str) -> npt.NDArray[np.float32]:
        named = [COLOURS[word] for word in text.lower().split() if word in COLOURS]
        if not named:
            rng = np.random.default_rng(list(text.encode()))
            vector = rng.normal(size=self.dimension).astype(np.float32)
            return vector / np.linalg.norm(vector)
        return _histogram(np.array([named], dtype=np.uint8))


def _histogram(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    levels = (pixels.reshape(-1, 3) >> 6).astype(np.int64)
    bins = levels[:, 0] * 16 + levels[:, 1] * 4 + levels[:, 2]
    counts = np.bincount(bins, minlength=64).astype(np.float32)
    return counts / np.linalg.norm(counts)


class LiveServer:
    """uvicorn in a thread, on a free port of the loopback address."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(app, log_config=None, access_log=False, ws="none")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self.socket],))

    def __enter__(self) -> LiveServer:
        self._thread.start()
        deadline = time.monotonic() + 300
        while httpx.get(f"{self.url}/readyz", timeout=60).status_code != 200:
            assert time.monotonic() < deadline, "the server did not become ready"
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(30)
        self.socket.close()


MakeServer = Callable[..., LiveServer]


def make_settings(folder: Path, **server: Any) -> Settings:
    """Settings whose every path is below `folder`."""
    return Settings(
        cache_dir=folder / "cache",
        data_dir=folder / "data",
        offline=True,
        generator="",
        server=ServerSettings(**server),
    )


def make_server(folder: Path, *, embedder: Any = None, **server: Any) -> LiveServer:
    """A server over `folder`, not yet started."""
    settings = make_settings(folder, **server)
    return LiveServer(create_app(settings, embedder=embedder or ColourEmbedder()))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """One server for all tests that do not change how it behaves; collections are theirs."""
    with make_server(tmp_path_factory.mktemp("server")) as live:
        yield live


@pytest.fixture
def client(server: LiveServer) -> Iterator[httpx.Client]:
    """A plain HTTP client."""
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.fixture
def collection(client: httpx.Client) -> Iterator[str]:
    """An empty collection's path."""
    name = f"c-{uuid.uuid4().hex[:12]}"
    assert client.post("/v1/collections", json={"name": name}).status_code == 201
    yield f"/v1/collections/{name}"
    client.delete(f"/v1/collections/{name}")


def picture(
    colour: str | tuple[int, int, int] = "red",
    *,
    size: tuple[int, int] = (48, 40),
    kind: str = "PNG",
    seed: int | None = None,
    **options: Any,
) -> bytes:
    """An encoded picture of one colour; with a seed, with noise that makes it unlike others."""
    rgb = COLOURS[colour] if isinstance(colour, str) else colour
    pixels = np.full((size[1], size[0], 3), rgb, dtype=np.uint8)
    if seed is not None:
        # Coarse blocks in the lowest bits of every channel's level: another picture to a
        # perceptual hash, the same colour to the histogram.
        rng = np.random.default_rng(seed)
        blocks = rng.integers(0, 2, (8, 8, 1)) * 48
        noise = np.kron(blocks, np.ones((size[1] // 8 + 1, size[0] // 8 + 1, 1)))
        base = (np.array(rgb) >> 6) << 6
        pixels = (base + noise[: size[1], : size[0]]).astype(np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def data_url(data: bytes, media_type: str = "image/png") -> str:
    """The bytes as a data URL."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def image_part(data: bytes) -> dict[str, Any]:
    """A part as chat messages have it."""
    return {"type": "image_url", "image_url": {"url": data_url(data)}}


def add(client: httpx.Client, collection: str, *data: bytes, **fields: Any) -> list[dict[str, Any]]:
    """Add pictures through JSON and return what became of them."""
    items = [{"image": data_url(one), "source": f"{n}.png", **fields} for n, one in enumerate(data)]
    response = client.post(f"{collection}/items", json={"items": items})
    assert response.status_code == 200, response.text
    results: list[dict[str, Any]] = response.json()["data"]
    return results


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error object; asserts that it has OpenAI's shape and nothing else."""
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert response.headers["x-request-id"]
    error: dict[str, Any] = body["error"]
    return error
