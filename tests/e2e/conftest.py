"""A server, a browser, and a window for each test."""

from __future__ import annotations

import io
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import PIL.Image
import pytest
import torch
from playwright.sync_api import Browser, expect, sync_playwright

import chiasm.retrieval.sample
from tests.e2e.console_page import CHROMIUM_FLAGS, PATIENCE_MILLISECONDS, ConsolePage
from tests.e2e.playground_page import PlaygroundPage
from tests.e2e.serving import ServerProcess, WeightsMissing
from tests.e2e.talking_server import TalkingServer

SAMPLE = Path(chiasm.retrieval.sample.__file__).parent
PLACES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

OpenConsole = Callable[..., ConsolePage]
OpenPlayground = Callable[..., PlaygroundPage]

Window = TypeVar("Window", bound=ConsolePage)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark these tests, and put them last.

    Playwright's synchronous interface keeps an event loop in this thread for as long as the
    browser is open, and nothing that runs a loop of its own may come after it.
    """
    for item in items:
        if _is_ours(item):
            item.add_marker(pytest.mark.e2e)
            if "server" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.weights)
    items.sort(key=_is_ours)


def _is_ours(item: pytest.Item) -> bool:
    return Path(__file__).parent in item.path.parents


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests; each has a context of its own in it."""
    executable = next(filter(None, map(shutil.which, PLACES)), None)
    if executable is None:
        pytest.skip("There is no Chromium on this machine (Debian: apt install chromium).")
    expect.set_options(timeout=PATIENCE_MILLISECONDS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server with the sample collection. Tests that change something make a collection."""
    try:
        server = ServerProcess(tmp_path_factory.mktemp("e2e")).wait()
    except WeightsMissing as missing:
        pytest.skip(f"The default weights are not in the cache (chiasm pull default): {missing}")
    yield server
    server.stop()


@pytest.fixture
def created(server: ServerProcess) -> Iterator[list[str]]:
    """Names of collections to delete once the test's windows are closed."""
    names: list[str] = []
    yield names
    present = {one["name"] for one in server.call("GET", "/v1/collections")["data"]}
    for name in present.intersection(names):
        server.call("DELETE", f"/v1/collections/{name}")


@pytest.fixture
def open_console(
    browser: Browser, server: ServerProcess, created: list[str]
) -> Iterator[OpenConsole]:
    """Opens windows; when the test ends, none of them may have met an unexpected error.

    `expected` is a list of words that an error of this test may contain.
    """
    with _windows(ConsolePage, browser, server.url) as open_window:
        yield open_window


@contextmanager
def _windows(
    kind: type[Window], browser: Browser, default_url: str
) -> Iterator[Callable[..., Window]]:
    opened: list[tuple[Window, list[str]]] = []

    def open_window(
        *, url: str = default_url, expected: list[str] | None = None, **context: Any
    ) -> Window:
        window = kind(browser, url, **context)
        opened.append((window, expected or []))
        return window

    yield open_window
    for window, expected in opened:
        window.close(expected=expected)


@pytest.fixture
def console(open_console: OpenConsole) -> ConsolePage:
    """A desktop window in which nothing may go wrong."""
    return open_console()


@pytest.fixture(scope="session")
def talking_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TalkingServer]:
    """One server with a model that talks. It needs no weights."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a second would only wait for the first
    with TalkingServer(tmp_path_factory.mktemp("talking")) as server:
        yield server
    torch.set_num_threads(threads)


@pytest.fixture
def talking(talking_server: TalkingServer) -> TalkingServer:
    """The same, saying all that it has to say."""
    assert talking_server.generator is not None
    talking_server.generator.limit = None
    talking_server.generator.given_up = 0
    return talking_server


@pytest.fixture
def open_playground(browser: Browser, talking: TalkingServer) -> Iterator[OpenPlayground]:
    """As `open_console`, on the server that talks."""
    with _windows(PlaygroundPage, browser, talking.url) as open_window:
        yield open_window


@pytest.fixture
def playground(open_playground: OpenPlayground) -> PlaygroundPage:
    """A desktop window on the playground, in which nothing may go wrong."""
    return open_playground().visit()


@pytest.fixture
def collection(server: ServerProcess, created: list[str]) -> str:
    """A collection of this test alone, with six pictures of the sample."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    server.call("POST", "/v1/collections", json={"name": name})
    created.append(name)
    files = [
        ("files", (f"{picture}.webp", sample_picture(picture), "image/webp"))
        for picture in ("apple", "coffee", "chelsea", "rocket", "motorcycle", "tulips")
    ]
    server.call("POST", f"/v1/collections/{name}/items", files=files)
    return name


def sample_picture(name: str) -> bytes:
    """An encoded picture of the sample collection."""
    return (SAMPLE / f"{name}.webp").read_bytes()


def new_picture(seed: int, *, size: tuple[int, int] = (320, 240)) -> bytes:
    """A PNG of coloured blocks that is like no other."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = PIL.Image.fromarray(blocks).resize(size, PIL.Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
