"""The playground as a person has it before them."""

from __future__ import annotations

import json
from typing import Any

from playwright.sync_api import Locator, Request, expect

from tests.e2e.console_page import ConsolePage


class PlaygroundPage(ConsolePage):
    """A window on the playground."""

    def visit(self) -> PlaygroundPage:
        """Go there and wait for the field."""
        self.page.goto(f"{self.url}/#/playground")
        self.field.wait_for()
        return self

    # Looking ---------------------------------------------------------------------------------

    @property
    def field(self) -> Locator:
        """Where a question is written."""
        return self.page.get_by_label("Your question")

    @property
    def turns(self) -> Locator:
        """Questions with their answers."""
        return self.page.locator("article.turn")

    @property
    def answer(self) -> Locator:
        """The words of the newest answer."""
        return self.turns.last.locator("p.answer")

    @property
    def budgets(self) -> Locator:
        """Of the newest answer."""
        return self.turns.last.locator(".budgets")

    @property
    def attached(self) -> Locator:
        """The pictures of the question that is being written."""
        return self.page.get_by_role("list", name="Pictures to ask about").get_by_role("img")

    @property
    def drop_zone(self) -> Locator:
        return self.page.locator(".drop-zone", has_text="Ask about it")

    @property
    def settings(self) -> Locator:
        return self.page.get_by_role("dialog", name="Settings")

    def bar(self, name: str) -> list[float]:
        """The shares that a budget's last bar draws."""
        row = self.budgets.locator(".budget").filter(has=self.page.get_by_text(name, exact=True))
        parts = row.locator(".bar:not(.thin) .bar-parts > span")
        shares: list[float] = parts.evaluate_all(
            "parts => parts.map((part) => Number(part.style.getPropertyValue('--share')))"
        )
        return shares

    # Doing -----------------------------------------------------------------------------------

    def choose(self, *files: tuple[str, bytes]) -> None:
        """Add pictures with the button and the browser's own dialog."""
        with self.page.expect_file_chooser() as chooser:
            self.page.get_by_role("button", name="Add pictures").click()
        chooser.value.set_files(
            [{"name": name, "mimeType": "image/png", "buffer": data} for name, data in files]
        )

    def set(self, **settings: str) -> None:
        """Open the settings, fill in some, close them. Labels with underscores for spaces."""
        self.page.get_by_role("button", name="Settings:").click()
        for label, value in settings.items():
            field = self.settings.get_by_label(label.replace("_", " "))
            if field.evaluate("field => field.tagName") == "SELECT":
                field.select_option(value)
            else:
                field.fill(value)
        self.page.keyboard.press("Escape")
        expect(self.settings).to_have_count(0)

    def send(self, question: str) -> dict[str, Any]:
        """Write a question and press Enter: the body of the request that leaves."""
        self.field.fill(question)
        with self.page.expect_request("**/v1/chat/completions") as request:
            self.field.press("Enter")
        return body_of(request.value)

    def ask(self, question: str) -> dict[str, Any]:
        """The same, and wait for the end of the answer."""
        body = self.send(question)
        self.ended()
        return body

    def ended(self) -> None:
        """Until nothing is being answered."""
        expect(self.turns.last).to_have_attribute("aria-busy", "false")


def body_of(request: Request) -> dict[str, Any]:
    """A request's JSON."""
    body: dict[str, Any] = json.loads(request.post_data or "")
    return body
