"""The API's page in a real browser: it works, and asks no other host for anything."""

from __future__ import annotations

import shutil

import pytest
from playwright.sync_api import sync_playwright

from tests.server.conftest import LiveServer

PLACES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.mark.e2e
def test_a_request_can_be_tried_from_the_page(server: LiveServer) -> None:
    executable = next(filter(None, map(shutil.which, PLACES)), None)
    if executable is None:
        pytest.skip("There is no Chromium on this machine (Debian: apt install chromium).")
    addresses: list[str] = []
    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("request", lambda request: addresses.append(request.url))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "console",
            lambda line: complaints.append(line.text) if line.type == "error" else None,
        )
        page.goto(f"{server.url}/docs")
        operation = page.locator("#operations-embeddings-create_embedding")
        operation.click()
        operation.get_by_role("button", name="Execute").click()
        answer = operation.locator(".live-responses-table .response").first
        answer.wait_for()
        assert "200" in answer.inner_text()
        assert '"embedding"' in answer.inner_text()
        browser.close()
    assert complaints == []
    assert all(address.startswith((server.url, "data:")) for address in addresses)
