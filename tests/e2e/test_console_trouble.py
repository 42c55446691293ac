"""When something is wrong: the page says what, in a sentence, and goes on when it can."""

from __future__ import annotations

import json
from pathlib import Path

from playwright.sync_api import Route, expect

from tests.e2e.conftest import OpenConsole, new_picture, sample_picture
from tests.e2e.console_page import ConsolePage
from tests.e2e.serving import ServerProcess


def test_starting_server_is_waited_for(open_console: OpenConsole) -> None:
    console = open_console(expected=["503 GET /readyz"])
    body = {
        "status": "starting",
        "error": {
            "message": "The server is still starting: fetching minilm-l6: 12 of 84 MB.",
            "type": "server_error",
            "param": None,
            "code": "not_ready",
        },
    }

    def starting(route: Route) -> None:
        route.fulfill(status=503, content_type="application/json", body=json.dumps(body))

    console.page.route("**/readyz", starting)
    console.page.goto(console.url)
    expect(console.page.get_by_role("heading", name="Getting ready")).to_be_visible()
    expect(console.page.get_by_role("main")).to_contain_text("12 of 84 MB")
    console.page.unroute("**/readyz")
    expect(console.tiles.first).to_be_visible()


def test_server_that_goes_away_and_comes_back(open_console: OpenConsole, tmp_path: Path) -> None:
    server = ServerProcess(tmp_path, sample=False).wait()
    try:
        # While it ends, the server refuses whatever the page still asks for.
        console = open_console(url=server.url, expected=["503 "])
        console.page.goto(server.url)
        expect(console.page.get_by_role("heading")).to_have_text("Start with a collection")
        server.call("POST", "/v1/collections", json={"name": "pets"})
        file = ("cat.webp", sample_picture("chelsea"), "image/webp")
        server.call("POST", "/v1/collections/pets/items", files={"files": file})
        console.open("pets")
    finally:
        server.stop()
    console.search_field.fill("a cat")
    expect(console.page.get_by_role("alert")).to_contain_text("The server does not answer")
    again = ServerProcess(tmp_path, port=server.port, sample=False).wait()
    try:
        console.page.get_by_role("button", name="Try again").click()
        expect(console.page.locator(".score")).to_be_visible()
        expect(console.tiles).to_contain_text("cat.webp")
    finally:
        again.stop()


def test_collection_deleted_by_somebody_else(
    open_console: OpenConsole, server: ServerProcess, collection: str
) -> None:
    console = open_console(expected=[f"404 POST /v1/collections/{collection}/search"])
    console.open(collection)
    for thumbnail in console.page.locator(".gallery img").all():  # else one may be asked for later
        expect(thumbnail).to_have_js_property("complete", True)
    server.call("DELETE", f"/v1/collections/{collection}")
    console.search_field.fill("a cat")
    expect(console.page.get_by_role("alert")).to_contain_text(collection)


def test_address_of_no_collection(console: ConsolePage) -> None:
    console.open("never-made")
    expect(console.page.get_by_role("alert")).to_contain_text("never-made")
    console.page.get_by_role("button", name="Open sample").click()
    expect(console.tiles.first).to_be_visible()


def test_question_that_is_no_picture(open_console: OpenConsole) -> None:
    console = open_console(expected=["400 POST /v1/collections/sample/search"])
    console.open("sample")
    console.drop(console.search_zone, {"broken.png": new_picture(50)[:200]})
    expect(console.page.get_by_role("alert")).to_be_visible()
    assert "Traceback" not in console.page.get_by_role("alert").inner_text()
    console.page.get_by_role("button", name="Remove the picture from the search").click()
    expect(console.tiles.first).to_be_visible()


def test_words_cannot_become_markup(
    console: ConsolePage, server: ServerProcess, collection: str
) -> None:
    evil = "<img src=x onerror=alert(1)>"
    item = server.call("GET", f"/v1/collections/{collection}/items?limit=1&order=desc")["data"][0]
    server.call(
        "PATCH",
        f"/v1/collections/{collection}/items/{item['id']}",
        json={"text": evil, "metadata": {evil: evil}},
    )
    console.open(collection)
    expect(console.tiles.first).to_contain_text(evil)
    console.tiles.first.click()
    expect(console.item.locator(".item-text")).to_have_text(evil)
    assert console.page.locator("img[src='x']").count() == 0


def test_nothing_needs_an_unsafe_policy(console: ConsolePage) -> None:
    answer = console.page.goto(console.url)
    assert answer is not None
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy  # that it is kept to, each test's end checks
