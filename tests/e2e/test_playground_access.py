"""The playground for everybody: by keyboard, on a phone, in the dark, with a screen reader."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.e2e.conftest import OpenPlayground, new_picture
from tests.e2e.console_page import PHONE
from tests.e2e.playground_page import PlaygroundPage
from tests.e2e.talking_server import TalkingServer

SMALL_PHONE = PHONE | {"viewport": {"width": 375, "height": 667}}


def test_a_whole_visit_by_keyboard(open_playground: OpenPlayground, talking: TalkingServer) -> None:
    assert talking.generator is not None
    playground = open_playground()
    page, keyboard = playground.page, playground.page.keyboard
    file = {"name": "a.png", "mimeType": "image/png", "buffer": new_picture(60)}
    page.on("filechooser", lambda chooser: chooser.set_files(file))
    page.goto(playground.url)
    page.get_by_role("navigation").wait_for()
    while playground.focused != "Playground":
        keyboard.press("Tab")
    keyboard.press("Enter")
    expect(playground.field).to_be_focused()
    keyboard.press("Tab")
    assert playground.focused == "Add pictures"
    keyboard.press("Enter")
    expect(playground.attached).to_have_count(1)
    keyboard.press("Tab")
    assert playground.focused.startswith("Settings")
    keyboard.press("Enter")
    playground.settings.get_by_label("Most tokens").press("Control+a")
    keyboard.type("300")
    keyboard.press("Enter")
    expect(playground.settings).to_have_count(0)
    assert playground.focused.startswith("Settings")
    expect(page.get_by_role("button", name="Settings:")).to_contain_text("up to 300 tokens")

    playground.field.focus()
    talking.generator.limit = 2
    keyboard.type("What is")
    keyboard.press("Shift+Enter")
    keyboard.type("this?")
    keyboard.press("Enter")
    expect(playground.turns.get_by_role("heading")).to_have_text("What is\nthis?")
    expect(playground.answer).to_be_visible()
    keyboard.type("What else?")  # written ahead, and not sent while an answer comes
    keyboard.press("Enter")
    expect(playground.turns).to_have_count(1)
    keyboard.press("Escape")
    expect(playground.turns).to_contain_text("Stopped.")
    talking.generator.limit = None
    keyboard.press("Enter")
    expect(playground.turns).to_have_count(2)


def test_backspace_in_an_empty_field_takes_the_last_picture_away(
    playground: PlaygroundPage,
) -> None:
    playground.choose(("a.png", new_picture(61)), ("b.png", new_picture(62)))
    playground.field.press("Backspace")
    expect(playground.attached).to_have_count(1)
    expect(playground.page.get_by_role("img", name="a.png")).to_be_visible()


def test_the_answer_is_heard_once_when_it_is_whole(playground: PlaygroundPage) -> None:
    playground.set(Most_tokens="5")
    playground.ask("What is this?")
    said = playground.answer.text_content()
    heard = playground.page.locator("[aria-live=polite]")
    expect(heard).to_have_text(f"The answer: {said}")
    assert playground.page.locator("article [aria-live], [role=log]").count() == 0
    # The bars are for the eye; their numbers are words.
    for bar in playground.budgets.locator(".bar").all():
        assert bar.get_attribute("aria-hidden") == "true"
    for name in ("Vision compute", "Language compute", "Context"):
        expect(playground.budgets.get_by_text(name, exact=True)).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(open_playground: OpenPlayground, scheme: str) -> None:
    playground = open_playground(
        color_scheme=scheme, expected=["400 POST /v1/chat/completions"]
    ).visit()
    assert playground.axe() == []
    playground.choose(("a.png", new_picture(63)), ("b.png", new_picture(64)))
    playground.field.fill("What is this?")
    assert playground.axe() == []
    playground.set(Most_tokens="6")
    playground.page.get_by_role("button", name="Settings:").click()
    playground.settings.get_by_label("Form of the answer").select_option("json_schema")
    playground.settings.get_by_label("JSON schema").fill("{")
    assert playground.axe(within="dialog") == []
    playground.settings.get_by_label("Form of the answer").select_option("text")
    playground.page.keyboard.press("Escape")
    playground.ask("What is this?")
    playground.ask("And how many?")
    playground.choose(("c.png", new_picture(65)))
    assert playground.axe() == []
    playground.set(Temperature="9")
    playground.ask("Is it hot?")
    assert playground.axe() == []


def test_phone(open_playground: OpenPlayground) -> None:
    playground = open_playground(**SMALL_PHONE).visit()
    page = playground.page
    assert _no_sideways_scrolling(playground)
    playground.choose(("wide.png", new_picture(66, size=(1600, 300))))
    assert _too_small(playground) == []
    page.get_by_role("button", name="Settings:").tap()
    box = playground.settings.bounding_box()
    assert box is not None
    assert (box["width"], box["height"]) == (375, 667)  # the whole screen
    playground.settings.get_by_label("Most tokens").fill("40")
    playground.settings.get_by_role("button", name="Close").tap()
    playground.field.fill("A question of more than a few words, to see that it is broken in lines?")
    page.get_by_role("button", name="Ask", exact=True).tap()
    expect(playground.turns).to_have_count(1)
    playground.ended()
    expect(playground.budgets).to_be_in_viewport()  # the page has followed the answer
    assert _no_sideways_scrolling(playground)
    assert _too_small(playground) == []
    expect(playground.field).not_to_be_focused()  # its keyboard would hide the answer


def test_who_scrolls_up_reads_in_peace(
    open_playground: OpenPlayground, talking: TalkingServer
) -> None:
    assert talking.generator is not None
    playground = open_playground(**SMALL_PHONE).visit()
    playground.set(Most_tokens="300")
    playground.choose(("tall.png", new_picture(67, size=(300, 500))))
    talking.generator.limit = 200
    playground.send("What is this?")
    playground.page.wait_for_function("() => scrollY > 50")
    playground.page.evaluate("() => scrollTo(0, 0)")
    talking.generator.limit = None
    playground.ended()
    assert playground.page.evaluate("() => scrollY") == 0
    playground.page.evaluate("() => scrollTo(0, document.body.scrollHeight)")
    playground.ask("And what else?")  # from the end on, the page follows again
    expect(playground.budgets).to_be_in_viewport()


def _no_sideways_scrolling(playground: PlaygroundPage) -> bool:
    return bool(
        playground.page.evaluate(
            "() => document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        )
    )


def _too_small(playground: PlaygroundPage) -> list[str]:
    """What a finger would miss. The cross on a picture may be smaller: it has room around it."""
    found: list[str] = playground.page.evaluate(
        """() => [...document.querySelectorAll("main button, header button, header a, summary")]
            .filter((element) => element.checkVisibility() && !element.closest(".picture-chip"))
            .map((element) => [element.ariaLabel || element.innerText,
                               element.getBoundingClientRect()])
            .filter(([, box]) => box.width < 40 || box.height < 40)
            .map(([name, box]) => `${name}: ${box.width} × ${box.height}`)"""
    )
    return found
