"""Finding pictures: by words, by a picture, by both, with filters; and the address of it all."""

from __future__ import annotations

import base64
import re

from playwright.sync_api import expect

from tests.e2e.conftest import OpenConsole, sample_picture
from tests.e2e.console_page import ConsolePage
from tests.e2e.serving import ServerProcess


def test_start_page_opens_the_collection_that_holds_pictures(console: ConsolePage) -> None:
    console.open()
    expect(console.page).to_have_url(re.compile(r"#/search/sample$"))
    expect(console.page).to_have_title("sample · chiasm")
    expect(console.page.get_by_role("heading", level=1)).to_contain_text("sample")
    expect(console.page.locator(".page-count")).to_have_text("80 pictures")
    assert console.page.locator(".gallery .score").count() == 0  # nothing was asked yet


def test_words_find_pictures_as_the_api_finds_them(
    console: ConsolePage, server: ServerProcess
) -> None:
    console.open("sample").search("a cup of coffee")
    expected = server.call(
        "POST", "/v1/collections/sample/search", json={"text": "a cup of coffee", "limit": 48}
    )["data"]
    assert console.names == [hit["item"]["text"] for hit in expected]
    shown = console.page.locator(".gallery .score-value").all_inner_texts()
    assert shown == [f"{hit['score']:.3f}" for hit in expected]
    assert "cup of espresso" in " ".join(console.names[:5]).lower()


def test_bars_compare_with_the_best_score(console: ConsolePage) -> None:
    console.open("sample").search("a rocket")
    scores = [float(score) for score in console.page.locator(".score-value").all_inner_texts()]
    shares = console.page.locator(".score-bar").evaluate_all(
        "bars => bars.map((bar) => Number(bar.style.getPropertyValue('--share')))"
    )
    assert shares[0] == 1
    for score, share in zip(scores, shares, strict=True):
        assert abs(share - max(0.0, score / scores[0])) < 0.005


def test_summary_tells_count_and_time_and_is_announced(console: ConsolePage) -> None:
    console.open("sample").search("flowers")
    summary = console.page.locator(".summary")
    expect(summary).to_contain_text("of 80, best first")
    expect(summary).to_contain_text(re.compile(r"[\d.,]+ ms to embed, [\d.,]+ ms to search"))
    expect(console.page.locator("[aria-live=polite]")).to_have_text(re.compile("best first"))


def test_typing_searches_without_enter(console: ConsolePage) -> None:
    console.open("sample")
    console.search_field.press_sequentially("motorcycle", delay=20)
    expect(console.page.locator(".score").first).to_be_visible()
    expect(console.page).to_have_url(re.compile(r"\?q=motorcycle$"))


def test_scrolling_brings_the_rest(console: ConsolePage) -> None:
    console.open("sample").search("a drawing")
    for _ in range(10):
        console.page.mouse.wheel(0, 20_000)
        console.page.wait_for_timeout(100)
        if console.tiles.count() == 80:
            break
    expect(console.tiles).to_have_count(80)
    assert len(set(console.names)) == 80  # none twice
    expect(console.page.locator(".summary")).to_contain_text("80 pictures, best first")


def test_picture_dropped_as_a_question_finds_itself(console: ConsolePage) -> None:
    console.open("sample")
    console.drop(console.search_zone, {"cat.webp": sample_picture("chelsea")})
    expect(console.page.locator(".picture-chip img")).to_have_attribute("alt", "cat.webp")
    console.page.locator(".gallery .score").first.wait_for()
    console.settled()
    assert console.names[0] == "Chelsea the cat"
    assert float(console.page.locator(".score-value").first.inner_text()) > 0.99
    expect(console.page.locator(".drop-overlay")).to_have_count(0)


def test_dragged_picture_offers_both_uses_and_several_files_only_one(
    console: ConsolePage, collection: str
) -> None:
    console.open(collection)
    console.drag({"rocket.webp": sample_picture("rocket")})
    expect(console.search_zone).to_be_visible()
    expect(console.add_zone).to_contain_text(f"Add to {collection}")
    console.page.dispatch_event("body", "dragleave", {"dataTransfer": console.dragged})
    expect(console.page.locator(".drop-overlay")).to_have_count(0)
    console.drag({"a.webp": sample_picture("rocket"), "b.webp": sample_picture("coffee")})
    expect(console.add_zone).to_be_visible()
    expect(console.search_zone).to_have_count(0)


def test_pasted_picture_is_a_question(console: ConsolePage) -> None:
    console.open("sample")
    console.page.evaluate(
        """(data) => {
            const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
            const clipboardData = new DataTransfer();
            clipboardData.items.add(new File([bytes], "image.webp", { type: "image/webp" }));
            document.body.dispatchEvent(
                new ClipboardEvent("paste", { bubbles: true, cancelable: true, clipboardData }));
        }""",
        base64.b64encode(sample_picture("astronaut")).decode(),
    )
    console.page.locator(".gallery .score").first.wait_for()
    console.settled()
    assert "astronaut" in console.names[0].lower()


def test_words_and_picture_together(console: ConsolePage, server: ServerProcess) -> None:
    console.open("sample")
    console.drop(console.search_zone, {"cat.webp": sample_picture("chelsea")})
    console.page.locator(".gallery .score").first.wait_for()
    console.search("a dog")
    data = base64.b64encode(sample_picture("chelsea")).decode()
    query = {"text": "a dog", "image": f"data:image/webp;base64,{data}", "limit": 48}
    expected = server.call("POST", "/v1/collections/sample/search", json=query)["data"]
    assert console.names == [hit["item"]["text"] for hit in expected]
    # Without the picture only the words are left.
    console.page.get_by_role("button", name="Remove the picture from the search").click()
    expect(console.page.locator(".picture-chip")).to_have_count(0)
    console.settled()
    alone = server.call(
        "POST", "/v1/collections/sample/search", json={"text": "a dog", "limit": 48}
    )["data"]
    assert console.names == [hit["item"]["text"] for hit in alone]


def test_question_survives_reload_and_back(console: ConsolePage) -> None:
    console.open("sample").search("a cat")
    first = console.names
    console.drop(console.search_zone, {"rocket.webp": sample_picture("rocket")})
    expect(console.page.locator(".picture-chip")).to_be_visible()
    console.settled()
    both = console.names
    console.page.reload()
    expect(console.page.locator(".picture-chip")).to_be_visible()
    console.page.locator(".gallery .score").first.wait_for()
    console.settled()
    assert console.names == both
    console.page.go_back()
    expect(console.page.locator(".picture-chip")).to_have_count(0)
    expect(console.search_field).to_have_value("a cat")
    expect(console.page.locator(".tile-name").first).to_have_text(first[0])


def test_picture_of_another_tab_is_asked_for_again(
    console: ConsolePage, open_console: OpenConsole
) -> None:
    console.open("sample", image="unknown")
    expect(console.page.get_by_role("alert")).to_contain_text("not in this tab any more")
    console.page.get_by_role("button", name="Search without it").click()
    expect(console.tiles.first).to_be_visible()


def test_filters_narrow_and_are_removed(console: ConsolePage) -> None:
    console.open("sample").search("a flower")
    console.page.get_by_role("button", name="Filter").click()
    field = console.page.get_by_label("Filter, for example color = red or price < 10")
    field.fill("kind = photo")
    field.press("Enter")
    expect(console.page.locator(".chip", has_text="kind = photo")).to_be_visible()
    expect(console.page).to_have_url(re.compile(r"where=kind\+%3D\+photo"))
    console.settled()
    photos = console.tiles.count()
    assert 0 < photos < 30
    field.fill("category = nothing of the kind")
    field.press("Enter")
    expect(console.page.get_by_role("heading", name="No picture fits")).to_be_visible()
    console.page.get_by_role("button", name="Remove the filter category").click()
    expect(console.tiles).to_have_count(photos)


def test_filter_that_cannot_be_read_says_how(console: ConsolePage) -> None:
    console.open("sample")
    console.page.get_by_role("button", name="Filter").click()
    field = console.page.get_by_label("Filter, for example color = red or price < 10")
    field.fill("red ones")
    field.press("Enter")
    expect(console.page.get_by_role("alert")).to_contain_text("key = value")
    expect(console.page.locator(".chip:not(.add)")).to_have_count(0)


def test_collections_are_made_chosen_and_deleted(
    console: ConsolePage, server: ServerProcess
) -> None:
    console.open("sample")
    menu = console.page.get_by_role("button", name="Collection: sample")
    menu.click()
    console.page.get_by_role("menuitem", name="New collection…").click()
    console.page.get_by_label("Name").fill("made-by-hand")
    console.page.get_by_role("button", name="Create").click()
    expect(console.page.get_by_role("heading", name="Nothing here yet")).to_be_visible()
    expect(console.page).to_have_url(re.compile("#/search/made-by-hand$"))
    console.page.get_by_role("button", name="Collection: made-by-hand").click()
    console.page.get_by_role("menuitem", name="Delete made-by-hand…").click()
    console.page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    assert "made-by-hand" in _collections(server)
    console.page.get_by_role("button", name="Collection: made-by-hand").click()
    console.page.get_by_role("menuitem", name="Delete made-by-hand…").click()
    console.page.get_by_role("button", name="Delete collection").click()
    expect(console.page.get_by_role("button", name="Collection: sample")).to_be_visible()
    assert "made-by-hand" not in _collections(server)


def test_name_that_cannot_be_keeps_the_dialog_open(open_console: OpenConsole) -> None:
    console = open_console(expected=["409 POST /v1/collections"])
    console.open("sample")
    console.page.get_by_role("button", name="Collection: sample").click()
    console.page.get_by_role("menuitem", name="New collection…").click()
    console.page.get_by_label("Name").fill("sample")
    console.page.get_by_role("button", name="Create").click()
    expect(console.page.get_by_role("dialog").get_by_role("alert")).to_contain_text("sample")
    console.page.keyboard.press("Escape")
    expect(console.page.get_by_role("dialog")).to_have_count(0)


def _collections(server: ServerProcess) -> set[str]:
    return {one["name"] for one in server.call("GET", "/v1/collections")["data"]}
