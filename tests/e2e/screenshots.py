"""Takes the pictures of the console that the documentation shows.

    python -m tests.e2e.screenshots docs/images [GENERATOR]

It starts a server with the sample collection, and needs Chromium and the default weights. The
playground is left out where GENERATOR (default-vlm, if none is named) is not at hand.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import PIL.Image
import PIL.ImageColor
from playwright.sync_api import Browser, expect, sync_playwright

from tests.e2e.conftest import PLACES, new_picture, sample_picture
from tests.e2e.console_page import CHROMIUM_FLAGS, PHONE, ConsolePage
from tests.e2e.plan_page import PlanPage
from tests.e2e.playground_page import PlaygroundPage
from tests.e2e.serving import ServerProcess, WeightsMissing

ANSWER_MILLISECONDS = 120_000

# A palette keeps the files small. The picture's own colours make it up, but for these few, which
# must stay exactly what they are: the logo's, the buttons', the backgrounds'.
COLOURS = 256
FIXED = (
    "#e0654a",
    "#5b61dd",
    "#4a4fce",
    "#a9acff",
    "#b3301b",
    "#ff9a86",
    "#22734a",
    "#7fd3a4",
    "#ffffff",
    "#f8f7f4",
    "#efede8",
    "#121214",
    "#1b1b1f",
)


def main(folder: Path, generator: str = "default-vlm") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    executable = next(filter(None, map(shutil.which, PLACES)))
    expect.set_options(timeout=ANSWER_MILLISECONDS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=CHROMIUM_FLAGS)
        with started() as server:
            for words in ("warm", "up"):  # the first searches pay for what is loaded late
                server.call("POST", "/v1/collections/sample/search", json={"text": words})
            take(browser, server, folder)
            take_plan(browser, server, folder)
        try:
            with started(sample=False, generator=generator) as server:
                take_playground(browser, server.wait_for_generator(), folder)
        except WeightsMissing as missing:
            print(f"No picture of the playground. {missing}")  # noqa: T201
        browser.close()


@contextmanager
def started(**options: Any) -> Iterator[ServerProcess]:
    """A server with data of its own, ready."""
    with tempfile.TemporaryDirectory() as folder:
        server = ServerProcess(Path(folder), **options).wait()
        try:
            yield server
        finally:
            server.stop()


def take(browser: Browser, server: ServerProcess, folder: Path) -> None:
    """Every picture, one window a picture."""

    def window(**context: Any) -> ConsolePage:
        return ConsolePage(browser, server.url, **context)

    for scheme in ("light", "dark"):
        console = window(color_scheme=scheme)
        console.open("sample").search("a cup of coffee")
        save(console, folder / f"console-search-{scheme}.png")

    console = window(color_scheme="light")
    console.open("sample", q="a pet", item="chelsea")
    console.item.locator(".neighbours li").nth(11).wait_for()
    save(console, folder / "console-item.png")

    console = window(color_scheme="dark")
    console.open("sample")
    console.drop(console.search_zone, {"rocket.webp": sample_picture("rocket")})
    console.page.locator(".gallery .score").first.wait_for()
    console.search("in the city")
    save(console, folder / "console-both.png")

    console = window(**PHONE, color_scheme="light")
    console.open("sample").search("a flower")
    save(console, folder / "console-phone.png")
    console.tiles.first.tap()
    console.item.locator(".neighbours li").nth(11).wait_for()
    save(console, folder / "console-phone-item.png")

    console = window(color_scheme="light")
    console.open("sample")
    files = {f"shelf-{number:02}.png": new_picture(number) for number in range(1, 7)}
    console.drop(
        console.add_zone,
        files
        | {
            "coffee.webp": sample_picture("coffee"),
            "cut-short.png": new_picture(9)[:300],
        },
    )
    expect(console.tray.get_by_role("heading")).to_have_text("6 added, 1 already there, 1 failed")
    save(console, folder / "console-adding.png")


def take_plan(browser: Browser, server: ServerProcess, folder: Path) -> None:
    """A photograph, as one model sees it, and what it costs of every other."""
    for name, context in {"light": {}, "dark": {}, "phone": PHONE}.items():
        scheme = "dark" if name == "dark" else "light"
        plan = PlanPage(browser, server.url, **context, color_scheme=scheme).visit()
        plan.choose("coffee.png", enlarged("coffee", (1536, 1024)))
        plan.row("openai/gpt-4.1").click()
        expect(plan.caption).to_contain_text("crops")
        if name == "dark":
            plan.row("anthropic/claude-haiku-4-5").click()
            plan.slider.fill("400")
            expect(plan.caption).to_contain_text("budget")
        plan.page.evaluate("() => window.scrollTo(0, 0)")
        plan.page.mouse.move(0, 0)
        save(plan, folder / f"console-plan-{name}.png")


def enlarged(name: str, size: tuple[int, int]) -> bytes:
    """A picture of the sample, as large as those that people send."""
    buffer = io.BytesIO()
    with PIL.Image.open(io.BytesIO(sample_picture(name))) as picture:
        picture.convert("RGB").resize(size, PIL.Image.Resampling.LANCZOS).save(buffer, "PNG")
    return buffer.getvalue()


def take_playground(browser: Browser, server: ServerProcess, folder: Path) -> None:
    """A photograph and what it is; in the dark a second question, which finds much in the cache."""
    tall = {"viewport": {"width": 1360, "height": 1100}}
    for name, context in {
        "light": tall | {"color_scheme": "light"},
        "dark": {"color_scheme": "dark"},
        "phone": PHONE | {"color_scheme": "light"},
    }.items():
        playground = PlaygroundPage(browser, server.url, **context).visit()
        playground.choose(("coffee.webp", sample_picture("coffee")))
        playground.page.mouse.move(0, 0)
        playground.ask("What is this?")
        if name == "dark":
            playground.ask("Is there a spoon in the picture?")
        save(playground, folder / f"console-playground-{name}.png")


def save(console: ConsolePage, path: Path) -> None:
    """The window as it is, as a small PNG; then close it unless nothing was wrong with it."""
    console.page.evaluate("() => document.fonts.ready")
    console.page.wait_for_function(
        "() => [...document.images].every((image) => image.complete || image.loading === 'lazy')"
    )
    console.page.wait_for_timeout(400)
    with PIL.Image.open(io.BytesIO(console.page.screenshot())) as picture:
        save_small(picture.convert("RGB"), path)
    print(f"{path}  {path.stat().st_size / 1024:.0f} KB")  # noqa: T201
    assert not console.errors, console.errors


def save_small(picture: PIL.Image.Image, path: Path) -> None:
    """A PNG of 256 colours."""
    found = picture.quantize(COLOURS - len(FIXED)).getpalette() or []
    fixed = [level for colour in FIXED for level in PIL.ImageColor.getrgb(colour)]
    palette = PIL.Image.new("P", (1, 1))
    palette.putpalette(found + fixed)
    dithered = picture.quantize(palette=palette, dither=PIL.Image.Dither.FLOYDSTEINBERG)
    dithered.save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
