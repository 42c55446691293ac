"""One picture: what is known of it, its neighbours, editing and deleting it."""

from __future__ import annotations

import io
import re

import PIL.Image
import pytest
from playwright.sync_api import expect

from tests.e2e.conftest import OpenConsole, sample_picture
from tests.e2e.console_page import ConsolePage
from tests.e2e.serving import ServerProcess


def test_click_shows_everything_about_a_picture(
    console: ConsolePage, server: ServerProcess
) -> None:
    console.open("sample")
    console.tiles.first.click()
    item = server.call("GET", "/v1/collections/sample/items?limit=1&order=desc")["data"][0]
    panel = console.item
    for words in (
        item["text"],
        item["source"],
        item["digest"],
        f"{item['width']} × {item['height']} pixels",
        *item["metadata"].values(),
    ):
        expect(panel).to_contain_text(words)
    picture = panel.locator(".item-picture img")
    expect(picture).to_have_js_property("naturalWidth", item["width"])
    expect(panel.get_by_role("link", name="Full size")).to_have_attribute("href", item["image_url"])


def test_neighbours_are_the_api_s_and_lead_on(console: ConsolePage, server: ServerProcess) -> None:
    console.open("sample", item="coffee")
    neighbours = console.item.get_by_role("region", name="Neighbours").get_by_role("link")
    expect(neighbours).to_have_count(12)
    hits = server.call(
        "POST", "/v1/collections/sample/search", json={"item": "coffee", "limit": 13}
    )["data"]
    expected = [hit["item"]["text"] for hit in hits if hit["id"] != "coffee"][:12]
    shown = [" ".join(text.split("\n")[:1]) for text in neighbours.all_inner_texts()]
    assert shown == expected
    neighbours.first.click()
    expect(console.item).to_contain_text(expected[0])
    expect(console.page).not_to_have_url(re.compile("item=coffee$"))
    console.page.go_back()
    expect(console.page).to_have_url(re.compile("item=coffee$"))
    expect(console.item).to_contain_text("A cup of espresso")


def test_closing_returns_to_the_tile_and_the_question(console: ConsolePage) -> None:
    console.open("sample").search("a rocket")
    console.tiles.nth(2).click()
    console.item.get_by_role("region", name="Neighbours").get_by_role("link").first.click()
    console.page.wait_for_timeout(50)
    console.item.get_by_role("button", name="Close").click()
    expect(console.item).to_have_count(0)
    expect(console.page).to_have_url(re.compile(r"\?q=a\+rocket$"))
    expect(console.search_field).to_have_value("a rocket")


def test_more_like_this_is_a_question(console: ConsolePage) -> None:
    console.open("sample", item="tulips")
    console.item.get_by_role("button", name="More like this").click()
    expect(console.item).to_have_count(0)
    expect(console.page).to_have_url(re.compile(r"\?like=tulips$"))
    expect(console.page.locator(".picture-chip img")).to_be_visible()
    expect(console.page.locator(".score").first).to_be_visible()


def test_a_value_leads_to_all_that_share_it(console: ConsolePage) -> None:
    console.open("sample", item="coffee")
    console.item.get_by_role("link", name="photo").click()
    expect(console.item).to_have_count(0)
    expect(console.page.locator(".chip", has_text="kind = photo")).to_be_visible()
    expect(console.page.locator(".tile-name", has_text="A cup of espresso")).to_be_visible()


def test_text_and_metadata_are_edited(
    console: ConsolePage, server: ServerProcess, collection: str
) -> None:
    console.open(collection)
    console.tiles.first.click()
    panel = console.item
    panel.get_by_role("button", name="Edit").click()
    panel.get_by_role("textbox", name="Text").fill("An apple a day")
    for key, value in (("price", "0.5"), ("sku", '"0042"'), ("organic", "true")):
        panel.get_by_role("button", name="Add a value").click()
        console.page.keyboard.type(key)
        console.page.keyboard.press("Tab")
        console.page.keyboard.type(value)
    panel.get_by_role("button", name="Save").click()
    expect(panel.locator(".item-text")).to_have_text("An apple a day")
    stored = server.call("GET", f"/v1/collections/{collection}/items?limit=1&order=desc")["data"][0]
    assert stored["text"] == "An apple a day"
    assert stored["metadata"] == {"price": 0.5, "sku": "0042", "organic": True}
    # Editing again without a change changes nothing, the type of a value included.
    panel.get_by_role("button", name="Edit").click()
    panel.get_by_role("button", name="Remove price").click()
    panel.get_by_role("button", name="Save").click()
    expect(panel.get_by_role("button", name="Edit")).to_be_visible()
    stored = server.call("GET", f"/v1/collections/{collection}/items?limit=1&order=desc")["data"][0]
    assert stored["metadata"] == {"sku": "0042", "organic": True}
    console.page.keyboard.press("Escape")
    expect(console.tiles.first).to_contain_text("An apple a day")


def test_deleting_asks_first(console: ConsolePage, server: ServerProcess, collection: str) -> None:
    console.open(collection)
    console.tiles.filter(has_text="coffee.webp").click()
    console.item.get_by_role("button", name="Delete").click()
    console.page.get_by_role("button", name="Cancel").click()
    expect(console.item).to_be_visible()
    console.item.get_by_role("button", name="Delete").click()
    console.page.get_by_role("button", name="Delete picture").click()
    expect(console.item).to_have_count(0)
    expect(console.tiles).to_have_count(5)
    expect(console.page.locator(".page-count")).to_have_text("5 pictures")
    expect(console.page.locator("[aria-live=polite]")).to_have_text("Picture deleted.")
    sources = {
        item["source"] for item in server.call("GET", f"/v1/collections/{collection}/items")["data"]
    }
    assert len(sources) == 5
    assert "coffee.webp" not in sources


def test_near_duplicate_links_to_its_original(
    console: ConsolePage, server: ServerProcess, collection: str
) -> None:

    buffer = io.BytesIO()
    with PIL.Image.open(io.BytesIO(sample_picture("coffee"))) as picture:
        picture.resize((picture.width // 2, picture.height // 2)).save(buffer, "JPEG", quality=80)
    added = server.call(
        "POST",
        f"/v1/collections/{collection}/items",
        files={"files": ("small.jpg", buffer.getvalue(), "image/jpeg")},
    )["data"][0]
    assert added["status"] == "near_duplicate"
    console.open(collection, item=added["id"])
    console.item.get_by_role("link", name="of this picture").click()
    expect(console.item).to_contain_text("coffee.webp")


@pytest.mark.parametrize("address", ["item=not-there", "item=%2F..%2F"])
def test_item_that_is_gone_says_so(open_console: OpenConsole, address: str) -> None:
    console = open_console(expected=["404 GET /v1/collections/sample/items/"])
    console.page.goto(f"{console.url}/#/search/sample?{address}")
    expect(console.item.get_by_role("alert")).to_be_visible()
    console.page.keyboard.press("Escape")
    expect(console.item).to_have_count(0)
    expect(console.tiles.first).to_be_visible()
