"""For everybody: by keyboard alone, on a phone, in the dark, with a screen reader."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from tests.e2e.conftest import OpenConsole, new_picture
from tests.e2e.console_page import PHONE, ConsolePage


def test_a_whole_visit_by_keyboard(console: ConsolePage) -> None:
    console.open("sample")
    keyboard = console.page.keyboard
    keyboard.press("Tab")
    assert console.focused == "Skip to the content"
    keyboard.press("/")
    expect(console.search_field).to_be_focused()
    with console.page.expect_response(lambda response: response.url.endswith("/search")):
        keyboard.type("a cat")
        keyboard.press("Enter")
    console.page.locator(".gallery .score").first.wait_for()
    console.settled()
    keyboard.press("ArrowDown")
    expect(console.tiles.nth(0)).to_be_focused()
    keyboard.press("ArrowRight")
    expect(console.tiles.nth(1)).to_be_focused()
    keyboard.press("Enter")
    expect(console.item).to_be_visible()
    assert _inside(console, "dialog.item")
    keyboard.press("ArrowRight")
    expect(console.item.locator(".item-place")).to_contain_text("3 of")
    for _ in range(30):  # the focus cannot leave the dialog for the page behind it
        keyboard.press("Tab")
        assert _inside(console, "dialog.item, body:focus, html")
        assert not _inside(console, "main")
    keyboard.press("Escape")
    expect(console.item).to_have_count(0)
    expect(console.tiles.nth(2)).to_be_focused()
    keyboard.press("ArrowUp")
    expect(console.search_field).to_be_focused()
    keyboard.press("Escape")
    expect(console.search_field).to_have_value("")
    expect(console.page).to_have_url(re.compile("#/search/sample$"))


def test_arrow_keys_walk_the_rows(console: ConsolePage) -> None:
    console.open("sample")
    console.tiles.first.focus()
    keyboard = console.page.keyboard
    top = _box(console)["y"]
    keyboard.press("ArrowDown")
    below = _box(console)
    assert below["y"] > top
    keyboard.press("ArrowUp")
    assert _box(console)["y"] == top
    keyboard.press("End")
    expect(console.tiles.last).to_be_focused()
    keyboard.press("Home")
    expect(console.tiles.first).to_be_focused()
    # One stop for Tab, however many pictures there are.
    assert console.page.locator(".gallery a[tabindex='0']").count() == 1


def test_menu_by_keyboard(console: ConsolePage) -> None:
    console.open("sample")
    button = console.page.get_by_role("button", name="Collection: sample")
    button.focus()
    console.page.keyboard.press("ArrowDown")
    expect(console.page.get_by_role("menuitemradio", name="sample")).to_be_focused()
    console.page.keyboard.press("End")
    expect(console.page.get_by_role("menuitem", name="Delete sample…")).to_be_focused()
    console.page.keyboard.press("Escape")
    expect(button).to_be_focused()
    expect(console.page.get_by_role("menu")).to_have_count(0)


def test_a_question_gives_the_focus_back(console: ConsolePage) -> None:
    console.open("sample")
    button = console.page.get_by_role("button", name="Collection: sample")
    button.click()
    console.page.get_by_role("menuitem", name="New collection…").click()
    expect(console.page.get_by_label("Name")).to_be_focused()
    console.page.keyboard.press("Escape")
    expect(button).to_be_focused()


def test_focus_is_visible_everywhere(console: ConsolePage) -> None:
    console.open("sample").search("a tree")
    console.page.locator("body").press("Tab")
    for _ in range(12):
        ring = console.page.evaluate(
            """() => {
                const focused = document.activeElement;
                const box = focused.closest("form.search-box") && focused.type === "search"
                    ? focused.closest("form.search-box") : focused;
                const { outlineStyle, outlineWidth, boxShadow } = getComputedStyle(box);
                return focused === document.body
                    || (outlineStyle !== "none" && parseFloat(outlineWidth) >= 2)
                    || (box !== focused && boxShadow !== "none");
            }"""
        )
        assert ring, console.focused
        console.page.keyboard.press("Tab")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(open_console: OpenConsole, collection: str, scheme: str) -> None:
    console = open_console(color_scheme=scheme)
    console.open(collection)
    assert console.axe() == []
    console.search("an apple")
    console.page.get_by_role("button", name="Filter").click()
    console.page.keyboard.type("no condition")
    console.page.keyboard.press("Enter")
    assert console.axe() == []
    console.page.keyboard.press("Escape")
    console.page.get_by_role("button", name="Collection:").click()
    assert console.axe() == []
    console.page.keyboard.press("Escape")
    console.drop(console.add_zone, {"new.png": new_picture(40), "notes.txt": b"no picture"})
    expect(console.tray.get_by_role("heading")).to_have_text("1 added, 1 failed")
    assert console.axe() == []
    console.tiles.first.click()
    expect(console.item.get_by_role("region", name="Neighbours").get_by_role("link")).to_have_count(
        6
    )
    assert console.axe(within="dialog.item") == []
    console.item.get_by_role("button", name="Edit").click()
    assert console.axe(within="dialog.item") == []
    console.page.keyboard.press("Escape")
    console.item.get_by_role("button", name="Delete").click()
    assert console.axe(within="dialog.ask") == []


def test_phone(open_console: OpenConsole, collection: str) -> None:
    console = open_console(**PHONE)
    console.open(collection)
    assert _no_sideways_scrolling(console)
    small = console.page.evaluate(
        """() => [...document.querySelectorAll("main button, header button, header a, main input")]
            .filter((element) => element.checkVisibility())
            .map((element) => [element.ariaLabel || element.innerText || element.name,
                               element.getBoundingClientRect()])
            .filter(([, box]) => box.width < 40 || box.height < 40)
            .map(([name, box]) => `${name}: ${box.width} × ${box.height}`)"""
    )
    assert small == []
    console.search("a motorcycle")
    assert _no_sideways_scrolling(console)
    console.tiles.first.tap()
    expect(console.item).to_be_visible()
    box = console.item.bounding_box()
    assert box is not None
    assert (box["width"], box["height"]) == (390, 844)  # the whole screen
    assert _no_sideways_scrolling(console)
    console.item.get_by_role("button", name="Close").tap()
    expect(console.item).to_have_count(0)


def test_theme_follows_the_system_until_chosen(open_console: OpenConsole) -> None:
    console = open_console(color_scheme="dark")
    console.open("sample")
    assert _lightness(console) < 60
    console.page.get_by_role("button", name="Use the light theme").click()
    assert _lightness(console) > 200
    console.page.reload()
    console.tiles.first.wait_for()
    assert _lightness(console) > 200  # remembered
    console.page.get_by_role("button", name="Use the dark theme").click()
    assert _lightness(console) < 60
    console.page.emulate_media(color_scheme="light")  # and following the system again
    assert _lightness(console) > 200


def _inside(console: ConsolePage, selector: str) -> bool:
    return bool(
        console.page.evaluate(
            "(selector) => Boolean(document.activeElement.closest(selector))", selector
        )
    )


def _box(console: ConsolePage) -> dict[str, float]:
    return dict(
        console.page.evaluate("() => document.activeElement.getBoundingClientRect().toJSON()")
    )


def _no_sideways_scrolling(console: ConsolePage) -> bool:
    return bool(
        console.page.evaluate(
            "() => document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        )
    )


def _lightness(console: ConsolePage) -> float:
    colour = console.page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 3
