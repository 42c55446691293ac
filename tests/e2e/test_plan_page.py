"""The Plan page: what a picture costs of each model, and how it is seen."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import httpx
import pytest
from playwright.sync_api import Browser, expect

from tests.e2e.conftest import _windows, new_picture
from tests.e2e.console_page import PHONE
from tests.e2e.plan_page import PlanPage
from tests.e2e.talking_server import TalkingServer

OpenPlan = Callable[..., PlanPage]
HAIKU = "anthropic/claude-haiku-4-5"


@pytest.fixture
def open_plan(browser: Browser, talking: TalkingServer) -> Iterator[OpenPlan]:
    """Opens windows on the server that talks; nothing may go wrong in them."""
    with _windows(PlanPage, browser, talking.url) as open_window:
        yield open_window


@pytest.fixture
def plan(open_plan: OpenPlan) -> PlanPage:
    return open_plan().visit()


def test_a_picture_is_planned_and_never_sent(plan: PlanPage) -> None:
    sent: list[str] = []
    plan.page.on("request", lambda request: sent.append(request.post_data or ""))
    plan.choose("shelf.png", new_picture(3, size=(1092, 1092)))
    expect(plan.row(HAIKU)).to_contain_text("1,521")  # Anthropic's own example
    assert plan.rows.count() >= 30
    assert all("base64" not in body and len(body) < 1000 for body in sent)
    assert any('"width":1092' in body for body in sent)


def test_the_rows_say_what_the_server_says(plan: PlanPage, talking: TalkingServer) -> None:
    plan.type_size(1920, 1080)
    body = {"pictures": [{"width": 1920, "height": 1080}], "prompt": "What is in this picture?"}
    answer = httpx.post(f"{talking.url}/v1/plan", json={**body, "details": ["auto"]}).json()
    expect(plan.rows).to_have_count(len(answer["data"]))
    for row in answer["data"][:8]:
        tokens = row["image_tokens"] + row["text_tokens"]
        expect(plan.row(row["model"])).to_contain_text(f"{tokens:,}")
    names = plan.page.locator(".plan-name").all_inner_texts()
    priced = [row["model"] for row in answer["data"] if row["cost"] is not None]
    assert names[: len(priced)][0] == priced[0]


def test_the_picture_as_a_model_sees_it(plan: PlanPage) -> None:
    plan.choose("wide.png", new_picture(4, size=(1920, 1080)))
    plan.row("openai/gpt-4o").click()
    plan.row(HAIKU).click()
    expect(plan.caption).to_contain_text("1,456 × 819 pixels")  # as Anthropic's documents have it
    expect(plan.caption).to_contain_text("1,560 image tokens")
    plan.page.wait_for_function("() => document.querySelector('.plan-frame canvas').width === 1456")
    assert plan.canvas_size == [1456, 819]
    # 52 columns and 30 rows of patches, of 28 pixels each.
    path = plan.page.locator(".plan-grid path.over").get_attribute("d")
    assert path is not None
    assert len(re.findall("V", path)) == 51
    assert len(re.findall("H", path)) == 29
    assert "M28 0" in path


def test_a_budget_of_tokens(plan: PlanPage) -> None:
    plan.choose("wide.png", new_picture(5, size=(1920, 1080)))
    plan.row(HAIKU).click()
    expect(plan.slider).to_have_attribute("max", "1560")
    plan.slider.fill("400")
    expect(plan.caption).to_contain_text("to keep within the budget")
    said = plan.caption.inner_text()
    tokens = re.search(r"([\d,]+) image token", said)
    assert tokens is not None
    assert 300 < int(tokens[1].replace(",", "")) <= 400
    plan.row("openai/gpt-4o").click()  # another model begins without a bound
    expect(plan.caption).not_to_contain_text("budget")


def test_sorting_grouping_and_levels(plan: PlanPage) -> None:
    plan.type_size(1024, 1024)
    few = plan.rows.count()
    plan.page.get_by_label("Sort by").select_option("tokens")
    values = [
        int(text.split()[0].replace(",", ""))
        for text in plan.page.locator(".tokens .plan-value").all_inner_texts()
    ]
    assert values == sorted(values)
    plan.page.get_by_label("By provider").check()
    expect(plan.page.locator("legend").filter(has_text="Anthropic")).to_be_visible()
    plan.page.get_by_label("Every level of detail").check()
    expect(plan.rows.filter(has_text="low").first).to_be_visible()
    assert plan.rows.count() > few


def test_a_longer_question_has_more_tokens(plan: PlanPage) -> None:
    plan.type_size(640, 480)
    before = plan.caption.inner_text()
    plan.page.get_by_label("Asked about it").fill("Read the invoice and list all its lines. " * 30)
    expect(plan.caption).not_to_have_text(before)
    expect(plan.caption).to_contain_text(re.compile(r"[2-9]\d\d text tokens"))


def test_a_file_that_no_browser_shows(plan: PlanPage) -> None:
    plan.choose("notes.png", b"no picture at all")
    alert = plan.page.get_by_role("alert")
    expect(alert).to_contain_text("notes.png is in no format that this browser shows")
    plan.type_size(640, 480)
    expect(alert).to_have_count(0)


def test_a_picture_dropped_on_the_page(plan: PlanPage) -> None:
    zone = plan.page.locator(".drop-zone", has_text="Plan it")
    plan.drop(zone, {"dropped.png": new_picture(8, size=(300, 200))})
    expect(plan.page.get_by_label("Width")).to_have_value("300")


def test_by_keyboard(open_plan: OpenPlan) -> None:
    plan = open_plan().visit()
    keyboard = plan.page.keyboard
    plan.page.get_by_label("Width").focus()
    keyboard.press("Control+a")
    keyboard.type("800")
    keyboard.press("Enter")
    plan.rows.first.wait_for()
    radios = plan.page.get_by_role("radio")
    plan.page.get_by_label("Every level of detail").focus()
    keyboard.press("Tab")
    expect(radios.first).to_be_focused()
    expect(radios.first).to_be_checked()
    keyboard.press("ArrowDown")
    expect(radios.nth(1)).to_be_checked()
    expect(radios.nth(1)).to_be_focused()
    name = plan.page.locator(".plan-name").nth(1).inner_text()
    expect(plan.caption).to_contain_text(name)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(open_plan: OpenPlan, scheme: str) -> None:
    plan = open_plan(color_scheme=scheme).visit()
    assert plan.axe() == []
    plan.choose("wide.png", new_picture(6, size=(1920, 1080)))
    plan.rows.first.wait_for()
    plan.page.get_by_label("By provider").check()
    plan.row(HAIKU).click()
    assert plan.axe() == []


def test_on_a_phone(open_plan: OpenPlan) -> None:
    plan = open_plan(**PHONE).visit()
    plan.choose("wide.png", new_picture(7, size=(1920, 1080)))
    plan.row(HAIKU).tap()
    expect(plan.caption).to_contain_text("1,560 image tokens")
    assert plan.page.evaluate("() => document.documentElement.scrollWidth") <= 390
    assert plan.axe() == []
