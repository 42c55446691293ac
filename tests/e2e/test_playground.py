"""Asking about pictures: the answer as it grows, its cost, and the conversation it is part of."""

from __future__ import annotations

import base64
import json
import re
import time

import pytest
from playwright.sync_api import expect

from tests.e2e.conftest import OpenPlayground, new_picture
from tests.e2e.playground_page import PlaygroundPage
from tests.e2e.talking_server import CONTEXT, TalkingServer
from tests.server.conftest import data_url, image_part

WHAT = "What is this?"


def test_an_answer_grows_word_by_word_into_the_apis_own(
    playground: PlaygroundPage, talking: TalkingServer
) -> None:
    assert talking.generator is not None
    picture = new_picture(1)
    playground.set(Most_tokens="24")
    playground.choose(("cat.png", picture))
    talking.generator.limit = 0
    body = playground.send(WHAT)
    expect(playground.turns.get_by_role("heading")).to_have_text(WHAT)
    expect(playground.turns.get_by_role("img", name="cat.png")).to_be_visible()
    expect(playground.turns).to_contain_text("Looking at the picture…")
    talking.generator.limit = 3
    expect(playground.answer).to_be_visible()
    beginning = playground.answer.inner_text()
    expect(playground.budgets).to_have_count(0)
    talking.generator.limit = None
    playground.ended()
    assert body["messages"] == [
        {"role": "user", "content": [image_part(picture), {"type": "text", "text": WHAT}]}
    ]
    whole = talking.ask(messages=body["messages"], max_tokens=24)["choices"][0]["message"]
    expect(playground.answer).to_have_text(whole["content"])
    assert whole["content"].startswith(beginning)
    assert len(beginning) < len(whole["content"])
    expect(playground.turns).to_contain_text("the most tokens it may have")


def test_budgets_are_those_that_the_engine_counts(
    playground: PlaygroundPage, talking: TalkingServer
) -> None:
    playground.choose(("first.png", new_picture(2)), ("second.png", new_picture(3)))
    playground.set(Most_tokens="12")
    playground.ask("Which of them is larger?")
    assert talking.generator is not None
    usage = talking.generator.usage
    assert usage is not None
    assert (usage.images, usage.image_tokens) == (2, 32)
    assert usage.vision_flops > 0

    budgets = playground.budgets
    expect(budgets.locator(".budget-parts")).to_have_text(
        f"32 image{usage.text_tokens} text12 answer{usage.cached_tokens} cached"
    )
    places = usage.prompt_tokens + 12
    expect(budgets).to_contain_text(f"{places} of {CONTEXT:,} tokens")
    expect(budgets).to_contain_text(re.compile(r"First token after [\d.]+ m?s · [\d.,]+ tokens/s"))
    flops = [usage.vision_flops, usage.language_flops]
    shown = budgets.locator(".budget-value strong").all_inner_texts()[:2]
    assert [gigaflops(words) for words in shown] == [
        pytest.approx(operations / 1e9, rel=0.01) for operations in flops
    ]
    for name, operations in zip(("Vision compute", "Language compute"), flops, strict=True):
        assert playground.bar(name) == [pytest.approx(operations / sum(flops), abs=1e-4)]
    assert playground.bar("Context") == [
        pytest.approx(part / places, abs=1e-4) for part in (32, usage.text_tokens, 12)
    ]


def gigaflops(words: str) -> float:
    """The number in `0.123 GFLOP`."""
    number, unit = words.split()
    assert unit == "GFLOP"
    return float(number)


def test_a_conversation_goes_on_and_begins_anew(playground: PlaygroundPage) -> None:
    picture = new_picture(4)
    playground.set(Most_tokens="6")
    playground.choose(("shelf.png", picture))
    first = playground.ask(WHAT)["messages"]
    said = playground.answer.text_content()
    second = playground.ask("How many are there?")["messages"]
    assert second == [
        *first,
        {"role": "assistant", "content": said},
        {"role": "user", "content": "How many are there?"},
    ]
    # The picture is part of what was read before: its cost is paid, and its places are cached.
    expect(playground.budgets).to_contain_text("every picture had been looked at before")
    cached = playground.budgets.locator(".cached").inner_text()
    assert int(cached.split()[0]) > 16
    expect(playground.turns.first.locator("details")).not_to_have_attribute("open", re.compile(""))

    playground.page.get_by_role("button", name="New conversation").click()
    expect(playground.turns).to_have_count(0)
    expect(playground.field).to_be_focused()
    assert playground.ask("And now?")["messages"] == [{"role": "user", "content": "And now?"}]
    expect(playground.budgets).to_contain_text("there is no picture in the conversation")


def test_stop_ends_the_work_at_the_server(
    playground: PlaygroundPage, talking: TalkingServer
) -> None:
    assert talking.generator is not None
    talking.generator.limit = 3
    playground.set(Most_tokens="3000")
    playground.send("Tell me everything.")
    expect(playground.answer).to_be_visible()
    said = playground.answer.text_content()
    playground.page.get_by_role("button", name="Stop").click()
    expect(playground.turns).to_contain_text("Stopped.")
    expect(playground.field).to_be_focused()
    _wait_until_given_up(talking)
    talking.generator.limit = None
    # One question at a time is answered there: had it gone on, this would wait for minutes.
    playground.set(Most_tokens="4")
    messages = playground.ask("Go on.")["messages"]
    assert messages[1] == {"role": "assistant", "content": said}


def test_stop_before_the_first_word(playground: PlaygroundPage, talking: TalkingServer) -> None:
    assert talking.generator is not None
    talking.generator.limit = 0
    playground.send("Tell me everything.")
    playground.field.press("Escape")
    expect(playground.turns).to_contain_text("left out of the conversation")
    _wait_until_given_up(talking)
    talking.generator.limit = None
    playground.set(Most_tokens="4")
    assert len(playground.ask("Something else.")["messages"]) == 1


def test_ask_again_and_edit(playground: PlaygroundPage) -> None:
    playground.set(Most_tokens="5")
    playground.choose(("one.png", new_picture(5)))
    first = playground.ask(WHAT)
    before = playground.answer.text_content()
    with playground.page.expect_request("**/v1/chat/completions"):
        playground.page.get_by_role("button", name="Ask again").click()
    playground.ended()
    expect(playground.answer).to_have_text(str(before))  # at temperature 0
    playground.page.get_by_role("button", name="Edit the question").click()
    expect(playground.turns).to_have_count(0)
    expect(playground.field).to_have_value(WHAT)
    expect(playground.attached).to_have_count(1)
    again = playground.ask("What is that?")
    assert again["messages"][0]["content"][0] == first["messages"][0]["content"][0]


def test_settings_go_with_the_question_and_are_remembered(playground: PlaygroundPage) -> None:
    playground.set(Most_tokens="7", Temperature="0.5", Seed="11")
    body = playground.ask("Anything?")
    assert {key: body[key] for key in ("model", "max_tokens", "temperature", "seed")} == {
        "model": "tiny-llava",
        "max_tokens": 7,
        "temperature": 0.5,
        "seed": 11,
    }
    first = playground.answer.text_content()
    playground.page.reload()
    button = playground.page.get_by_role("button", name="Settings:")
    expect(button).to_contain_text("up to 7 tokens · temperature 0.5 · seed 11")
    playground.ask("Anything?")
    expect(playground.answer).to_have_text(str(first))  # the same seed
    button.click()
    playground.settings.get_by_role("button", name="Back to the defaults").click()
    playground.settings.get_by_role("button", name="Done").click()
    expect(button).to_have_text("tiny-llava · up to 256 tokens")


def test_an_answer_that_follows_a_schema(playground: PlaygroundPage) -> None:
    schema = {
        "type": "object",
        "properties": {"kind": {"enum": ["cat", "dog"]}, "sure": {"type": "boolean"}},
        "required": ["kind", "sure"],
        "additionalProperties": False,
    }
    playground.set(Form_of_the_answer="json_schema", JSON_schema=json.dumps(schema))
    body = playground.ask(WHAT)
    assert body["response_format"]["json_schema"]["schema"] == schema
    answered = json.loads(playground.answer.inner_text())
    assert set(answered) == {"kind", "sure"}
    assert answered["kind"] in ("cat", "dog")
    assert isinstance(answered["sure"], bool)


def test_pictures_come_by_drop_paste_and_choice(playground: PlaygroundPage) -> None:
    pictures = {f"{seed}.png": new_picture(seed) for seed in range(20, 24)}
    names = list(pictures)
    playground.drop(playground.drop_zone, {name: pictures[name] for name in names[:2]})
    expect(playground.page.locator(".drop-overlay")).to_have_count(0)
    expect(playground.attached).to_have_count(2)
    playground.page.evaluate(
        """(data) => {
            const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
            const clipboardData = new DataTransfer();
            clipboardData.items.add(new File([bytes], "pasted.png", { type: "image/png" }));
            document.activeElement.dispatchEvent(
                new ClipboardEvent("paste", { bubbles: true, cancelable: true, clipboardData }));
        }""",
        base64.b64encode(pictures[names[2]]).decode(),
    )
    playground.choose((names[3], pictures[names[3]]))
    expect(playground.attached).to_have_count(4)
    playground.page.get_by_role("button", name=f"Remove {names[1]}").click()
    playground.set(Most_tokens="2")
    content = playground.ask("Which is best?")["messages"][0]["content"]
    sent = [part["image_url"]["url"] for part in content[:-1]]
    assert sent == [data_url(pictures[name]) for name in (names[0], names[2], names[3])]
    expect(playground.budgets).to_contain_text("48 image")
    expect(playground.attached).to_have_count(0)


def test_examples_fill_the_field(playground: PlaygroundPage) -> None:
    playground.page.get_by_role("button", name="Is there a … in the picture?").click()
    expect(playground.field).to_be_focused()
    playground.page.keyboard.type("dog")  # in place of the dots
    expect(playground.field).to_have_value("Is there a dog in the picture?")
    playground.page.get_by_role("button", name=WHAT).click()
    expect(playground.field).to_have_value(WHAT)


def test_search_is_found_as_it_was_left(
    open_playground: OpenPlayground, talking: TalkingServer
) -> None:
    console = open_playground()
    console.page.goto(console.url)
    console.page.get_by_role("button", name="New collection").click()
    console.page.get_by_label("Name").fill("shelf")
    console.page.get_by_role("button", name="Create").click()
    expect(console.page.get_by_role("heading", name="Nothing here yet")).to_be_visible()
    console.drop(console.add_zone, {"a.png": new_picture(30), "b.png": new_picture(31)})
    expect(console.tiles).to_have_count(2)
    console.search("red")
    left = console.page.url
    navigation = console.page.get_by_role("navigation", name="Pages")
    expect(navigation.get_by_role("link", name="Search")).to_have_attribute("aria-current", "page")
    navigation.get_by_role("link", name="Playground").click()
    expect(console.page).to_have_url(f"{console.url}/#/playground")
    expect(console.page).to_have_title("Playground · chiasm")
    console.set(Most_tokens="3")
    console.ask("Are you there?")
    said = str(console.answer.text_content())
    navigation.get_by_role("link", name="Search").click()
    expect(console.page).to_have_url(left)
    expect(console.search_field).to_have_value("red")
    console.page.go_back()
    expect(console.answer).to_have_text(said)  # so is the conversation


def _wait_until_given_up(talking: TalkingServer) -> None:
    assert talking.generator is not None
    deadline = time.monotonic() + 30
    while not talking.generator.given_up:
        assert time.monotonic() < deadline, "the server did not hear that nobody listens"
        time.sleep(0.02)
