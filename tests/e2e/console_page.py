"""The console as a person has it before them, in a real Chromium."""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    JSHandle,
    Locator,
    Page,
    Request,
    Response,
    expect,
)

CHROMIUM_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE_MILLISECONDS = 30_000  # spent only where something is wrong, or the machine is busy

DESKTOP = {"viewport": {"width": 1360, "height": 900}}
PHONE = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "is_mobile": True,
    "has_touch": True,
}
_AXE = Path(__file__).parent / "vendor" / "axe.min.js"


class ConsolePage:
    """A browser window on the console, which remembers everything that went wrong in it."""

    def __init__(self, browser: Browser, url: str, **context: Any) -> None:
        self.url = url
        self.context = browser.new_context(**(DESKTOP | context))
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE_MILLISECONDS)
        self.errors: list[str] = []
        self.foreign: list[str] = []
        self.dragged: JSHandle  # the files under the pointer
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.errors.append(f"exception: {error}"))
        self.page.on("request", self._requested)
        self.page.on("response", self._answered)

    # Looking ---------------------------------------------------------------------------------

    @property
    def tiles(self) -> Locator:
        """The pictures of the gallery."""
        return self.page.locator(".gallery a")

    @property
    def names(self) -> list[str]:
        """The words under the pictures of the gallery, in their order."""
        return self.page.locator(".gallery .tile-name").all_inner_texts()

    @property
    def search_field(self) -> Locator:
        return self.page.get_by_role("searchbox")

    @property
    def item(self) -> Locator:
        """The dialog with one picture."""
        return self.page.get_by_role("dialog").filter(has=self.page.locator(".item-frame"))

    @property
    def tray(self) -> Locator:
        """What is being added."""
        return self.page.get_by_role("region", name="Adding pictures")

    @property
    def search_zone(self) -> Locator:
        """Where a dragged picture becomes a question."""
        return self.page.locator(".drop-zone", has_text="Search with it")

    @property
    def add_zone(self) -> Locator:
        """Where dragged files are added."""
        return self.page.locator(".drop-zone", has_text="Add to")

    @property
    def focused(self) -> str:
        """The accessible name (or text) of what has the focus."""
        return str(
            self.page.evaluate(
                "() => document.activeElement.ariaLabel || document.activeElement.innerText.trim()"
            )
        )

    # Doing -----------------------------------------------------------------------------------

    def open(self, collection: str = "", **query: str) -> ConsolePage:
        """Go to a collection and wait for its pictures, or for the word that there are none."""
        values = "&".join(f"{key}={quote(value)}" for key, value in query.items())
        address = f"{self.url}/#/search/{quote(collection)}{'?' if values else ''}{values}"
        self.page.goto(address if collection else f"{self.url}/")
        self.page.locator(".gallery a, .notice").first.wait_for()
        self.settled()
        return self

    def settled(self) -> None:
        """Until no answer is on its way."""
        expect(self.page.locator(".gallery[aria-busy=true], .gallery-waiting")).to_have_count(0)

    def search(self, words: str) -> None:
        """Type words, press Enter, wait for the pictures."""
        with self.page.expect_response(lambda response: response.url.endswith("/search")):
            self.search_field.fill(words)
            self.search_field.press("Enter")
        self.page.locator(".gallery .score").first.wait_for()
        self.settled()

    def drag(self, files: Mapping[str, bytes]) -> None:
        """Drag files over the window, as from a file manager."""
        self.dragged = self.page.evaluate_handle(
            """(files) => {
                const transfer = new DataTransfer();
                for (const { name, type, data } of files) {
                    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
                    transfer.items.add(new File([bytes], name, { type }));
                }
                return transfer;
            }""",
            [
                {
                    "name": name,
                    "type": mimetypes.guess_type(name)[0] or "",
                    "data": base64.b64encode(data).decode(),
                }
                for name, data in files.items()
            ],
        )
        self.page.dispatch_event("body", "dragenter", {"dataTransfer": self.dragged})

    def drop(self, target: Locator, files: Mapping[str, bytes]) -> None:
        """Drag files over the window and let them go over `target`."""
        self.drag(files)
        for kind in ("dragenter", "dragover", "drop"):
            target.dispatch_event(kind, {"dataTransfer": self.dragged})

    def axe(self, *, within: str = "html") -> list[str]:
        """What axe-core finds against WCAG 2.2 AA, a line a finding."""
        # Let fades end: a half-faded text has half its contrast.
        self.page.wait_for_timeout(250)
        self.settled()
        self.page.wait_for_function(
            "() => document.getAnimations().every(({ playState }) => playState === 'finished')"
        )
        self.page.evaluate(_AXE.read_text(encoding="utf-8"))
        found = self.page.evaluate(
            """async (within) => {
                const wcag = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"];
                const runOnly = [...wcag, "best-practice"];
                const { violations } = await axe.run(within, { runOnly });
                return violations.flatMap(({ id, nodes }) =>
                    nodes.map(({ html, failureSummary }) => `${id}: ${html} ${failureSummary}`));
            }""",
            within,
        )
        return list(found)

    def close(self, *, expected: Sequence[str] = ()) -> None:
        """Close the window; anything that went wrong in it, and was not expected, fails."""
        self.context.close()
        surprising = [
            error for error in self.errors if not any(words in error for words in expected)
        ]
        assert not surprising, surprising
        assert not self.foreign, self.foreign

    # Listening -------------------------------------------------------------------------------

    def _heard(self, message: ConsoleMessage) -> None:
        # A failed request is written down by `_answered`, with its address.
        if message.type in {"error", "warning"} and "Failed to load resource" not in message.text:
            self.errors.append(f"{message.type}: {message.text}")

    def _requested(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in {"data", "blob"} and not request.url.startswith(f"{self.url}/"):
            self.foreign.append(request.url)

    def _answered(self, response: Response) -> None:
        if response.status >= 400:
            path = urlsplit(response.url).path
            self.errors.append(f"{response.status} {response.request.method} {path}")
