"""When a question cannot be answered: the API's own words, in place; and when nothing answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from playwright.sync_api import Route, expect

from tests.e2e.conftest import OpenPlayground, new_picture
from tests.e2e.playground_page import PlaygroundPage
from tests.e2e.talking_server import TalkingServer

REFUSED = ["400 POST /v1/chat/completions"]


def test_a_refusal_is_shown_in_the_apis_words(
    open_playground: OpenPlayground, talking: TalkingServer
) -> None:
    playground = open_playground(expected=REFUSED).visit()
    playground.set(Temperature="5", Most_tokens="4")
    body = playground.ask("Is it hot?")
    refusal = talking.ask(messages=body["messages"], temperature=5)["error"]["message"]
    expect(playground.turns.get_by_role("alert")).to_have_text(refusal)
    playground.set(Temperature="0")
    playground.page.get_by_role("button", name="Ask again").click()
    playground.ended()
    expect(playground.turns.get_by_role("alert")).to_have_count(0)
    expect(playground.answer).to_be_visible()


def test_a_broken_picture_is_taken_out_and_the_question_asked_without_it(
    open_playground: OpenPlayground,
) -> None:
    playground = open_playground(expected=REFUSED).visit()
    playground.set(Most_tokens="4")
    playground.choose(("cut short.png", new_picture(40)[:200]))
    playground.ask("What is this?")
    alert = playground.turns.get_by_role("alert")
    expect(alert).to_contain_text("messages[0].content[0]")
    assert "Traceback" not in alert.inner_text()
    expect(playground.turns).to_contain_text("left out of the conversation")
    # What was refused is no part of what is asked next.
    assert playground.ask("Are you there?")["messages"] == [
        {"role": "user", "content": "Are you there?"}
    ]


def test_a_schema_that_is_no_json_is_told_at_once(playground: PlaygroundPage) -> None:
    playground.page.get_by_role("button", name="Settings:").click()
    playground.settings.get_by_label("Form of the answer").select_option("json_schema")
    field = playground.settings.get_by_label("JSON schema")
    field.fill('{"type": ')
    expect(playground.settings.get_by_role("alert")).to_contain_text("not valid JSON")
    expect(field).to_have_attribute("aria-invalid", "true")
    playground.page.keyboard.press("Escape")
    playground.field.fill("What is this?")
    playground.field.press("Enter")  # nothing is sent
    expect(playground.turns.get_by_role("alert")).to_contain_text("not valid JSON")


def test_an_answer_that_breaks_off(playground: PlaygroundPage) -> None:
    chunk = {"choices": [{"index": 0, "delta": {"content": "It is a"}, "finish_reason": None}]}
    error = {"error": {"message": "The disk is full.", "type": "server_error", "code": "no_space"}}

    def say(*bodies: dict[str, Any]) -> None:
        def answer(route: Route) -> None:
            events = "".join(f"data: {json.dumps(body)}\n\n" for body in bodies)
            route.fulfill(status=200, content_type="text/event-stream", body=events)

        playground.page.unroute("**/v1/chat/completions")
        playground.page.route("**/v1/chat/completions", answer)

    say(chunk)
    playground.ask("What is this?")
    expect(playground.answer).to_have_text("It is a")  # what was said is still there to read
    expect(playground.turns.get_by_role("alert")).to_contain_text("broke off")
    say(chunk, error)
    playground.ask("What is this?")
    expect(playground.turns.last.get_by_role("alert")).to_have_text("The disk is full.")


def test_words_cannot_become_markup(playground: PlaygroundPage) -> None:
    evil = "<img src=x onerror=alert(1)>"
    chunk = {"choices": [{"index": 0, "delta": {"content": evil}, "finish_reason": "stop"}]}
    playground.page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(
            status=200,
            content_type="text/event-stream",
            body=f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n",
        ),
    )
    playground.ask(evil)
    expect(playground.turns.get_by_role("heading")).to_have_text(evil)
    expect(playground.answer).to_have_text(evil)
    assert playground.page.locator("img[src='x']").count() == 0


def test_a_server_without_a_model_says_how_to_start_one(
    open_playground: OpenPlayground, tmp_path: Path
) -> None:
    with TalkingServer(tmp_path, talks=False) as mute:
        playground = open_playground(url=mute.url, expected=["404 POST /v1/chat/completions"])
        playground.page.goto(f"{mute.url}/#/playground")
        main = playground.page.get_by_role("main")
        expect(main.get_by_role("heading", level=2)).to_have_text(
            "Nothing here answers questions yet"
        )
        expect(main.locator("code")).to_have_text("chiasm serve --generator default-vlm")
        assert playground.axe() == []
        playground.page.close()


def test_a_model_that_is_being_loaded_is_waited_for(open_playground: OpenPlayground) -> None:
    playground = open_playground(expected=["503 POST /v1/chat/completions"])
    words = "The server is still starting: fetching smollm2: 12 of 98 MB."
    error = {"message": words, "type": "server_error", "param": None, "code": "not_ready"}

    def without_generators(route: Route) -> None:
        listed = route.fetch().json()
        listed["data"] = [one for one in listed["data"] if one["kind"] != "chat"]
        route.fulfill(json=listed)

    playground.page.route("**/v1/models", without_generators)
    playground.page.route(
        "**/v1/chat/completions", lambda route: route.fulfill(status=503, json={"error": error})
    )
    playground.page.goto(f"{playground.url}/#/playground")
    expect(playground.page.get_by_role("heading", name="The model is on its way")).to_be_visible()
    expect(playground.page.get_by_role("main")).to_contain_text("12 of 98 MB")
    playground.page.unroute("**/v1/chat/completions")
    playground.page.unroute("**/v1/models")
    expect(playground.field).to_be_visible()
