"""Adding pictures: by drop and by choice, with a result for each file."""

from __future__ import annotations

import re
import uuid

from playwright.sync_api import expect

from tests.e2e.conftest import OpenConsole, new_picture, sample_picture
from tests.e2e.console_page import ConsolePage
from tests.e2e.serving import ServerProcess


def test_dropped_files_each_have_their_result(
    console: ConsolePage, server: ServerProcess, collection: str
) -> None:
    console.open(collection)
    whole = new_picture(1)
    console.drop(
        console.add_zone,
        {
            "first.png": whole,
            "second.png": new_picture(2),
            "apple again.webp": sample_picture("apple"),
            "cut short.png": whole[: len(whole) // 2],
            "notes.txt": b"These are words, not a picture.",
        },
    )
    tray = console.tray
    expect(tray.get_by_role("heading")).to_have_text("2 added, 1 already there, 2 failed")
    rows = tray.get_by_role("listitem")
    expect(rows).to_have_count(5)
    expect(rows.filter(has_text="first.png")).to_contain_text("Added")
    expect(rows.filter(has_text="apple again.webp")).to_contain_text("Already there")
    for name in ("cut short.png", "notes.txt"):
        row = rows.filter(has_text=name).locator(".adding-status")
        assert row.inner_text().strip()
        assert not row.inner_text().startswith(name)  # the name stands beside it already
    expect(console.tiles).to_have_count(8)
    expect(console.page.locator(".page-count")).to_have_text("8 pictures")
    sources = {
        item["source"] for item in server.call("GET", f"/v1/collections/{collection}/items")["data"]
    }
    assert {"first.png", "second.png"} < sources
    expect(console.tiles.first).to_contain_text(re.compile("(first|second).png"))  # newest first
    tray.get_by_role("link", name="apple again.webp").click()
    expect(console.item).to_contain_text("apple.webp")


def test_chosen_files_fill_an_empty_collection(
    console: ConsolePage, server: ServerProcess, created: list[str]
) -> None:
    name = f"test-{uuid.uuid4().hex[:8]}"
    server.call("POST", "/v1/collections", json={"name": name})
    created.append(name)
    console.open(name)
    expect(console.page.get_by_role("heading", name="Nothing here yet")).to_be_visible()
    expect(console.page.locator("code")).to_have_text(f"chiasm index FOLDER --collection {name}")
    with console.page.expect_file_chooser() as chooser:
        console.page.get_by_role("button", name="Choose pictures").click()
    chooser.value.set_files(
        [
            {"name": f"{seed}.png", "mimeType": "image/png", "buffer": new_picture(seed)}
            for seed in range(10, 17)
        ]
    )
    expect(console.tray.get_by_role("heading")).to_have_text("7 added")
    expect(console.tiles).to_have_count(7)
    expect(console.search_field).to_be_visible()
    console.tray.get_by_role("button", name="Close").click()
    expect(console.tray).to_have_count(0)


def test_failed_files_can_be_tried_again(open_console: OpenConsole, collection: str) -> None:
    console = open_console()
    console.open(collection)
    path = f"**/v1/collections/{collection}/items"
    console.page.route(path, lambda route: route.abort())  # the network goes away
    console.drop(console.add_zone, {"late.png": new_picture(30)})
    expect(console.tray).to_contain_text("The server does not answer")
    console.page.unroute(path)
    console.errors.clear()
    console.tray.get_by_role("button", name="Try again").click()
    expect(console.tray.get_by_role("heading")).to_have_text("1 added")


def test_stop_leaves_the_rest_out(console: ConsolePage, collection: str) -> None:
    console.open(collection)
    files = {f"{seed}.png": new_picture(seed, size=(1600, 1200)) for seed in range(100, 130)}
    console.drop(console.add_zone, files)
    expect(console.tray.get_by_role("heading")).to_have_text("Adding 30 pictures")
    console.tray.get_by_role("button", name="Stop").click()
    expect(console.tray.get_by_role("heading")).to_contain_text("stopped")
    expect(console.tray.get_by_role("listitem").filter(has_text="Stopped").first).to_be_visible()
