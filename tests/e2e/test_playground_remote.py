"""The playground in front of a model that is run elsewhere."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from playwright.sync_api import Browser, expect

from chiasm.server import create_app
from tests.e2e.conftest import new_picture
from tests.e2e.playground_page import PlaygroundPage
from tests.generation.providers.fake_vllm import FakeVLLM, answering
from tests.server.conftest import ColourEmbedder, LiveServer, make_settings


def test_an_answer_from_vllm_says_what_is_known_of_its_cost(
    browser: Browser, tmp_path: Path
) -> None:
    with FakeVLLM() as vllm:
        vllm.script = lambda body: answering("A grey cat.", prompt=38, images=16)
        settings = dataclasses.replace(make_settings(tmp_path), generator=f"vllm:{vllm.url}")
        with LiveServer(create_app(settings, embedder=ColourEmbedder())) as server:
            window = PlaygroundPage(browser, server.url)
            playground = window.visit()
            playground.choose(("cat.png", new_picture(1)))
            playground.ask("What is this?")
            expect(playground.answer).to_have_text("A grey cat.")
            budgets = playground.budgets
            expect(budgets).to_contain_text("16 image22 text4 answer")
            expect(budgets).to_contain_text("First token after")
            expect(budgets).to_contain_text("not known")
            expect(budgets).not_to_contain_text("GFLOP")
            expect(budgets).not_to_contain_text("looked at before")
            window.close(expected=[])
