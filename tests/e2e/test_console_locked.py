"""A server that answers to holders of a key: the page asks for it, once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect

from chiasm.operations.database import open_database
from chiasm.operations.keys import Keys
from chiasm.server import create_app
from tests.e2e.conftest import OpenConsole
from tests.server.conftest import ColourEmbedder, LiveServer, data_url, make_settings, picture


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LiveServer, str]]:
    folder = tmp_path_factory.mktemp("locked")
    settings = make_settings(folder)
    database = open_database("", settings.data_dir)
    key, _ = Keys(database).create("the team", collections=["shown"])
    database.close()
    with LiveServer(create_app(settings, embedder=ColourEmbedder())) as live:
        yield live, key


def test_the_page_asks_for_a_key(open_console: OpenConsole, locked: tuple[LiveServer, str]) -> None:
    server, key = locked
    console = open_console(url=server.url, expected=["401 "])
    console.page.goto(server.url)
    expect(console.page.get_by_role("heading", name="This server asks for a key")).to_be_visible()
    field = console.page.get_by_label("Your key")
    field.fill("chk-wrong")
    field.press("Enter")
    expect(console.page.get_by_role("alert")).to_contain_text("The API key is not valid.")
    findings = console.axe()
    assert findings == [], findings
    field.fill(key)
    field.press("Enter")
    expect(console.page.get_by_role("heading", name="Start with a collection")).to_be_visible()
    assert key not in console.page.evaluate("document.cookie"), "scripts can read the key"


def test_pictures_are_shown_to_whoever_gave_it(
    open_console: OpenConsole, locked: tuple[LiveServer, str], tmp_path: Path
) -> None:
    server, key = locked
    with httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {key}"}) as client:
        client.post("/v1/collections", json={"name": "shown"}).raise_for_status()
        items = [{"image": data_url(picture("red")), "source": "red.png"}]
        client.post("/v1/collections/shown/items", json={"items": items}).raise_for_status()
        assert client.post("/v1/collections", json={"name": "other"}).status_code == 403
    console = open_console(url=server.url, expected=["401 "])
    console.page.goto(server.url)
    console.page.get_by_label("Your key").fill(key)
    console.page.get_by_role("button", name="Go on").click()
    expect(console.tiles).to_have_count(1)
    shown = "document.querySelector('.gallery img').naturalWidth"
    console.page.wait_for_function(f"{shown} > 0")
