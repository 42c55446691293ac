"""The Plan page as a person has it before them."""

from __future__ import annotations

import re

from playwright.sync_api import Locator

from tests.e2e.console_page import ConsolePage


class PlanPage(ConsolePage):
    """A window on the Plan page."""

    def visit(self) -> PlanPage:
        """Go there and wait for the button."""
        self.page.goto(f"{self.url}/#/plan")
        self.page.get_by_role("button", name="Choose a picture").wait_for()
        return self

    # Looking ---------------------------------------------------------------------------------

    @property
    def rows(self) -> Locator:
        """The models."""
        return self.page.locator(".plan-row")

    def row(self, model: str) -> Locator:
        """A model's row, by its whole name; the first of its levels."""
        whole = re.compile(rf"^{re.escape(model)}(auto|low|high|original)?$")
        name = self.page.locator(".plan-name").filter(has_text=whole)
        return self.rows.filter(has=name).first

    @property
    def caption(self) -> Locator:
        """What is said of the chosen model."""
        return self.page.locator("figcaption")

    @property
    def slider(self) -> Locator:
        return self.page.get_by_role("slider", name="Image tokens at most")

    @property
    def canvas_size(self) -> list[int]:
        """Pixels of the picture as it is drawn."""
        size: list[int] = self.page.locator(".plan-frame canvas").evaluate(
            "(canvas) => [canvas.width, canvas.height]"
        )
        return size

    # Doing -----------------------------------------------------------------------------------

    def choose(self, name: str, data: bytes) -> None:
        """A picture, with the browser's own dialog."""
        with self.page.expect_file_chooser() as chooser:
            self.page.get_by_role("button", name="picture").first.click()
        chooser.value.set_files([{"name": name, "mimeType": "image/png", "buffer": data}])

    def type_size(self, width: int, height: int) -> None:
        """And press Enter."""
        self.page.get_by_label("Width").fill(str(width))
        self.page.get_by_label("Height").fill(str(height))
        with self.page.expect_response(lambda response: response.url.endswith("/v1/plan")):
            self.page.get_by_label("Height").press("Enter")
        self.rows.first.wait_for()
