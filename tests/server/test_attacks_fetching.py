"""Attacks by address, replayed against a running server. Each names where it succeeded."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import torch

from chiasm.generation import NativeGenerator
from chiasm.media.fetch import Fetcher
from chiasm.media.limits import Limits
from chiasm.server import create_app
from chiasm.settings import FetchSettings
from tests.generation.tiny_models import tiny_llava
from tests.media.web_servers import ChangingNames, Names, WebServer
from tests.server.conftest import (
    ColourEmbedder,
    LiveServer,
    data_url,
    error_of,
    make_settings,
    picture,
)

RED = picture("red")
ASKED = {"type": "text", "text": "What is this?"}


@pytest.fixture(scope="module")
def web() -> Iterator[WebServer]:
    """A host that the operator allows."""
    with WebServer() as web:
        web.picture("/red.png", RED)
        yield web


@pytest.fixture
def victim() -> Iterator[WebServer]:
    """A server that nobody may be made to ask."""
    with WebServer() as victim:
        victim.picture("/red.png", RED)
        victim.pages["/admin/delete"] = (200, {}, b"done")
        yield victim
        assert victim.connections == 0
        assert victim.requests == []


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> NativeGenerator:
    torch.set_num_threads(1)
    return NativeGenerator(tiny_llava(tmp_path_factory.mktemp("attacked") / "model"))


def started(folder: Any, generator: NativeGenerator, fetch: FetchSettings) -> LiveServer:
    settings = dataclasses.replace(
        make_settings(folder), fetch=fetch, media=Limits(max_bytes=1_000_000)
    )
    return LiveServer(create_app(settings, embedder=ColourEmbedder(), generator=generator))


@pytest.fixture(scope="module")
def shut(
    generator: NativeGenerator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    """As installed: no host is allowed."""
    with (
        started(tmp_path_factory.mktemp("shut"), generator, FetchSettings()) as live,
        httpx.Client(base_url=live.url, timeout=60) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def opened(
    generator: NativeGenerator, tmp_path_factory: pytest.TempPathFactory, web: WebServer
) -> Iterator[LiveServer]:
    """Pictures may come from pictures.test, which is `web`, and from public.test."""
    hosts = f"http://pictures.test:{web.port} private, http://public.test"
    fetch = FetchSettings(hosts=hosts, max_seconds=1.0)
    with started(tmp_path_factory.mktemp("opened"), generator, fetch) as live:
        yield live


@pytest.fixture
def names(opened: LiveServer) -> Names:
    """The resolver of `opened`, anew for each test."""
    names = Names(pictures_test="127.0.0.1", public_test="127.0.0.1", evil_test="127.0.0.1")
    fetcher: Fetcher = opened.app.state.runtime.fetcher
    fetcher.resolve = names
    return names


@pytest.fixture
def door(opened: LiveServer, names: Names) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=opened.url, timeout=60) as client:
        yield client


# Everywhere that a picture can be named by an address -------------------------------------------


def chat(url: str) -> tuple[str, Any]:
    content = [{"type": "image_url", "image_url": {"url": url}}, ASKED]
    return "/v1/chat/completions", {
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 2,
    }


def responses(url: str) -> tuple[str, Any]:
    content = [{"type": "input_image", "image_url": url}, {"type": "input_text", "text": "What?"}]
    return "/v1/responses", {
        "input": [{"role": "user", "content": content}],
        "max_output_tokens": 16,
    }


def claude(url: str) -> tuple[str, Any]:
    content = [{"type": "image", "source": {"type": "url", "url": url}}, ASKED]
    return "/v1/messages", {"messages": [{"role": "user", "content": content}], "max_tokens": 2}


def claude_counting(url: str) -> tuple[str, Any]:
    _, body = claude(url)
    del body["max_tokens"]
    return "/v1/messages/count_tokens", body


def responses_counting(url: str) -> tuple[str, Any]:
    _, body = responses(url)
    del body["max_output_tokens"]
    return "/v1/responses/input_tokens", body


def embedding(url: str) -> tuple[str, Any]:
    return "/v1/embeddings", {"input": [{"type": "image_url", "image_url": {"url": url}}]}


ROUTES = [chat, responses, claude, claude_counting, responses_counting, embedding]


def post(client: httpx.Client, route: Any, url: str) -> httpx.Response:
    path, body = route(url)
    body["model"] = "colours" if route is embedding else "tiny-llava"
    return client.post(path, json=body)


def message_of(response: httpx.Response) -> str:
    """The error's sentence, in whichever vendor's shape."""
    message: str = response.json()["error"]["message"]
    return message


@pytest.mark.parametrize("route", ROUTES)
def test_any_address_was_fetched(shut: httpx.Client, victim: WebServer, route: Any) -> None:
    """vLLM, CVE-2025-6242; counting tokens fetched, too: langchain, CVE-2026-26013."""
    response = post(shut, route, f"http://127.0.0.1:{victim.port}/red.png")
    assert response.status_code == 400
    assert "not fetched from addresses" in message_of(response)
    assert "data:image/jpeg;base64" in message_of(response)
    where = "input[0]" if "input" in route("")[1] else "messages[0]"
    assert message_of(response).startswith(where)


def test_counting_before_sending_fetched(
    shut: httpx.Client, door: httpx.Client, victim: WebServer
) -> None:
    """langchain, CVE-2026-26013: the plan of a request is no reason to ask anyone."""
    url = f"http://127.0.0.1:{victim.port}/red.png"
    for body in ({"pictures": [{"url": url}]}, {"messages": chat(url)[1]["messages"]}):
        for client in (shut, door):
            response = client.post("/v1/plan", json=body)
            assert response.status_code == 400, response.text
            assert "fetche" in message_of(response)


@pytest.mark.parametrize("where", ["search", "items"])
def test_collections_take_no_addresses_at_all(
    door: httpx.Client, victim: WebServer, where: str
) -> None:
    assert door.post("/v1/collections", json={"name": f"c-{where}"}).status_code in (201, 409)
    url = f"http://127.0.0.1:{victim.port}/red.png"
    body = {"image": url} if where == "search" else {"items": [{"image": url}]}
    response = door.post(f"/v1/collections/c-{where}/{where}", json=body)
    assert "not fetched from addresses" in response.text


@pytest.mark.parametrize("route", ROUTES)
def test_an_allowed_host_is_asked_and_another_is_not(
    door: httpx.Client, web: WebServer, victim: WebServer, names: Names, route: Any
) -> None:
    before = len(web.requests)
    allowed = post(door, route, f"http://pictures.test:{web.port}/red.png")
    assert allowed.status_code == 200, allowed.text
    assert len(web.requests) == before + 1
    assert names.asked == ["pictures.test"]
    for host in ("127.0.0.1", "localhost", "evil.test", "[::1]", "pictures.test"):
        response = post(door, route, f"http://{host}:{victim.port}/red.png")
        assert response.status_code == 400
    assert names.asked == ["pictures.test"]


def test_what_is_fetched_is_what_is_embedded(door: httpx.Client, web: WebServer) -> None:
    fetched = post(door, embedding, f"http://pictures.test:{web.port}/red.png").json()
    sent = post(door, embedding, data_url(RED)).json()
    assert fetched["data"] == sent["data"]


@pytest.mark.parametrize(
    "url",
    [
        "http://pictures.test:{allowed}\\@127.0.0.1:{victim}/red.png",
        "http://127.0.0.1:{victim}\\@pictures.test:{allowed}/red.png",
        "http:\\\\127.0.0.1:{victim}\\red.png",
        "http:/\\127.0.0.1:{victim}/red.png",
        "http://pictures.test:{allowed}@127.0.0.1:{victim}/red.png",
        "http://127.0.0.1:{victim}#@pictures.test:{allowed}/red.png",
        "http://127.0.0.1:{victim}?@pictures.test:{allowed}/red.png",
        "http://pictures.test:{allowed}\t@127.0.0.1:{victim}/red.png",
        "http://pictures.test:{allowed}\r\n@127.0.0.1:{victim}/red.png",
        "http://pictures.test:{allowed}\u0000.127.0.0.1:{victim}/red.png",
        "http://pictures。test:{allowed}/red.png",
        "http://①②⑦.⓪.⓪.①:{victim}/red.png",
        "http://2130706433:{victim}/red.png",
        "http://0x7f000001:{victim}/red.png",
        "http://0177.0.0.1:{victim}/red.png",
        "http://127.1:{victim}/red.png",
        "http://[::ffff:127.0.0.1]:{victim}/red.png",
        "http://[::1%25lo]:{victim}/red.png",
        "HTTP://127.0.0.1:{victim}/red.png",
        " http://127.0.0.1:{victim}/red.png",
        "\nhttp://127.0.0.1:{victim}/red.png",
        "ftp://127.0.0.1:{victim}/red.png",
        "file:///etc/passwd",
        "//127.0.0.1:{victim}/red.png",
        "/etc/passwd",
    ],
)
def test_two_parsers_disagreed(
    door: httpx.Client, web: WebServer, victim: WebServer, names: Names, url: str
) -> None:
    """vLLM, CVE-2026-24779: what was checked was not what was fetched."""
    before = len(web.requests)
    response = post(door, chat, url.format(allowed=web.port, victim=victim.port))
    assert response.status_code == 400, response.text
    assert names.asked == []
    assert len(web.requests) == before


@pytest.mark.parametrize(
    "to",
    [
        "http://127.0.0.1:{victim}/admin/delete",
        "//127.0.0.1:{victim}/red.png",
        "http://evil.test:{victim}/red.png",
        "http://pictures.test:{victim}/red.png",
        "http://pictures.test:{allowed}\\@127.0.0.1:{victim}/red.png",
        "http://[::1]:{victim}/red.png",
    ],
)
def test_a_redirect_beat_the_check(
    door: httpx.Client, web: WebServer, victim: WebServer, to: str
) -> None:
    """LMDeploy, CVE-2026-33626; LlamaFactory, issue 10646."""
    web.redirect("/leads-on", to.format(allowed=web.port, victim=victim.port))
    web.redirect("/leads-on-twice", "/leads-on")
    for path in ("/leads-on", "/leads-on-twice"):
        response = post(door, chat, f"http://pictures.test:{web.port}{path}")
        assert response.status_code == 400
        assert str(victim.port) not in response.text


def test_redirects_never_ended(door: httpx.Client, web: WebServer) -> None:
    web.redirect("/loop", "/loop")
    before = len(web.requests)
    response = post(door, chat, f"http://pictures.test:{web.port}/loop")
    assert "more than 3 times" in message_of(response)
    assert len(web.requests) - before == 4


def test_the_resolver_changed_its_mind(
    opened: LiveServer, door: httpx.Client, web: WebServer, victim: WebServer
) -> None:
    """The same: one machine when it was checked, another when it was connected to."""
    fetcher: Fetcher = opened.app.state.runtime.fetcher
    with WebServer(host="127.0.0.2", port=web.port) as other:
        other.picture("/red.png", RED)
        fetcher.resolve = changing = ChangingNames("127.0.0.1", "127.0.0.2")
        before = len(web.requests)
        assert post(door, chat, f"http://pictures.test:{web.port}/red.png").status_code == 200
        assert len(web.requests) == before + 1
        assert other.connections == 0
        assert len(changing.asked) == 1
        # A redirect asks anew, and is checked anew.
        web.redirect("/again", "http://public.test/red.png")
        fetcher.resolve = changing = ChangingNames("127.0.0.1", "127.0.0.1")
        again = post(door, chat, f"http://pictures.test:{web.port}/again")
        assert "lies in a network" in message_of(again)
        assert changing.asked == ["pictures.test", "public.test"]


@pytest.mark.parametrize(
    "number",
    [
        "127.0.0.1", "::1", "10.0.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
        "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "fd00:ec2::254", "fe80::1",
    ],
)  # fmt: skip
def test_an_allowed_name_led_inside(
    door: httpx.Client, victim: WebServer, names: Names, number: str
) -> None:
    names.numbers["public.test"] = [number]
    response = post(door, chat, "http://public.test/red.png")
    assert response.status_code == 400
    assert "lies in a network" in message_of(response)
    assert number not in response.text


# What the host sends ----------------------------------------------------------------------------


def test_limits_were_only_for_data_urls(door: httpx.Client, web: WebServer) -> None:
    """vLLM, CVE-2026-34755, and the size of what is fetched."""
    web.picture("/large.png", RED + bytes(1_500_000))
    url = f"http://pictures.test:{web.port}/large.png"
    for route in (chat, embedding):
        response = post(door, route, url)
        assert response.status_code == 413, response.text
        assert error_of(response)["code"] == "image_too_large"
    web.picture("/moving.gif", moving())
    response = post(door, chat, f"http://pictures.test:{web.port}/moving.gif")
    assert error_of(response)["code"] == "animated_image"


def moving() -> bytes:
    import io

    import PIL.Image

    frames = [PIL.Image.new("RGB", (20, 10), colour) for colour in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def test_pages_were_read_through_the_server(door: httpx.Client, web: WebServer) -> None:
    web.picture("/secret", b"<html>the secret of the intranet</html>" * 10, "image/png")
    web.pages["/denied"] = (403, {"x-secret": "secret"}, b"the secret")
    for path, words in {"/secret": "no picture", "/denied": "status 403"}.items():
        response = post(door, chat, f"http://pictures.test:{web.port}{path}")
        assert response.status_code == 400
        assert words in message_of(response)
        assert "secret" not in response.text


def test_a_request_made_a_flood(door: httpx.Client, web: WebServer) -> None:
    before = len(web.requests)
    base = f"http://pictures.test:{web.port}/red.png"
    parts = [{"type": "image_url", "image_url": {"url": f"{base}?{n}"}} for n in range(65)]
    flood = door.post(
        "/v1/chat/completions", json={"messages": [{"role": "user", "content": parts}]}
    )
    assert flood.status_code == 400
    assert "64 are the most" in message_of(flood)
    assert len(web.requests) == before
    same = [{"type": "image_url", "image_url": {"url": base}}] * 5
    body = {"messages": [{"role": "user", "content": [*same, ASKED]}], "max_tokens": 1}
    assert door.post("/v1/chat/completions", json=body).status_code == 200
    assert len(web.requests) == before + 1


def test_cookies_and_keys_went_along(door: httpx.Client, web: WebServer) -> None:
    web.picture("/cookie.png", RED, **{"set-cookie": "session=1; Path=/"})
    web.requests.clear()
    door.headers["authorization"] = "Bearer sk-secret"
    for _ in range(2):
        post(door, embedding, f"http://pictures.test:{web.port}/cookie.png")
    assert len(web.requests) == 2
    for _, headers in web.requests:
        assert not set(headers) & {"cookie", "authorization", "x-request-id", "referer"}
