"""Fetching, with real servers and a resolver of the test's own."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import anyio
import pytest
from picture_files import encode, scene
from web_servers import ChangingNames, Names, WebServer

from chiasm.errors import ImageError, ImageTooLarge, NotAnImage
from chiasm.media import Limits
from chiasm.media.address import read_hosts
from chiasm.media.fetch import Fetcher

PNG = encode(scene(), "PNG")
HOME = {"pictures_test": "127.0.0.1", "other_test": "127.0.0.1"}


@pytest.fixture
def web() -> Iterator[WebServer]:
    with WebServer() as web:
        web.picture("/a.png", PNG)
        yield web


def fetcher(web: WebServer, *, names: Any = None, hosts: str = "", **options: Any) -> Fetcher:
    """One that may ask `pictures.test`, which is the server here."""
    allowed = hosts or f"http://pictures.test:{web.port} private"
    seconds = options.pop("max_seconds", 10)
    resolver = names or Names(**HOME)
    limits = options.pop("limits", Limits())
    return Fetcher(read_hosts(allowed), limits, max_seconds=seconds, resolve=resolver, **options)


def get(fetcher: Fetcher, url: str) -> bytes:
    async def run() -> bytes:
        return await fetcher.fetch(url, name="picture")

    return anyio.run(run)


def refused(fetcher: Fetcher, url: str, words: str, kind: type[ImageError] = ImageError) -> None:
    with pytest.raises(kind, match=words) as caught:
        get(fetcher, url)
    assert str(caught.value).startswith("picture: ")


def test_a_picture_of_an_allowed_host(web: WebServer) -> None:
    names = Names(**HOME)
    url = f"http://pictures.test:{web.port}/a.png?signed=%2Fyes#fragment"
    assert get(fetcher(web, names=names), url) == PNG
    ((path, headers),) = web.requests
    assert path == "/a.png?signed=%2Fyes"
    assert headers["host"] == f"pictures.test:{web.port}"
    assert not set(headers) & {"cookie", "authorization", "referer", "x-forwarded-for"}
    assert names.asked == ["pictures.test"]


def test_other_hosts_are_not_even_resolved(web: WebServer) -> None:
    names = Names(**HOME)
    for url in (f"http://other.test:{web.port}/a.png", "https://pictures.test/a.png"):
        refused(fetcher(web, names=names), url, "no pictures from that host")
    assert not names.asked
    assert not web.connections


def test_without_hosts_nothing_is_fetched(web: WebServer) -> None:
    nothing = Fetcher((), Limits(), max_seconds=1, resolve=Names(**HOME))
    refused(nothing, f"http://pictures.test:{web.port}/a.png", "not fetched from addresses")
    assert not web.connections


@pytest.mark.parametrize(
    "number", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1"]
)
def test_a_name_that_leads_inside_is_refused(web: WebServer, number: str) -> None:
    ours = fetcher(web, names=Names(pictures_test=number), hosts=f"http://pictures.test:{web.port}")
    refused(ours, f"http://pictures.test:{web.port}/a.png", "lies in a network")
    assert not web.connections


def test_one_inner_address_among_public_ones_is_enough(web: WebServer) -> None:
    ours = fetcher(
        web,
        names=Names(pictures_test=["8.8.8.8", "127.0.0.1"]),
        hosts=f"http://pictures.test:{web.port}",
    )
    refused(ours, f"http://pictures.test:{web.port}/a.png", "lies in a network")


def test_clouds_secrets_are_never_asked_for(web: WebServer) -> None:
    ours = fetcher(web, names=Names(pictures_test="169.254.169.254"))
    refused(ours, f"http://pictures.test:{web.port}/a.png", "lies in a network")


def test_a_changed_mind_of_the_resolver_changes_nothing(web: WebServer) -> None:
    # The first answer is checked and used; the second would have been another machine.
    names = ChangingNames("127.0.0.1", "192.0.2.1")
    assert get(fetcher(web, names=names), f"http://pictures.test:{web.port}/a.png") == PNG
    assert names.asked == ["pictures.test"]


def test_the_next_number_is_tried_where_one_does_not_listen(web: WebServer) -> None:
    ours = fetcher(web, names=Names(pictures_test=["127.0.0.2", "127.0.0.1"]))
    assert get(ours, f"http://pictures.test:{web.port}/a.png") == PNG


def test_an_unknown_name_and_a_closed_port(web: WebServer) -> None:
    ours = fetcher(web, names=Names())
    refused(ours, f"http://pictures.test:{web.port}/a.png", "cannot be resolved")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    ours = fetcher(web, hosts=f"http://pictures.test:{port} private")
    refused(ours, f"http://pictures.test:{port}/a.png", "cannot be reached")


# Redirects --------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_within_what_is_allowed(web: WebServer, status: int) -> None:
    web.redirect("/start", "next?x=1", status)
    web.redirect("/next", f"http://pictures.test:{web.port}/a.png", status)
    assert get(fetcher(web), f"http://pictures.test:{web.port}/start") == PNG


@pytest.mark.parametrize(
    "to",
    [
        "http://other.test:{port}/a.png",
        "//other.test:{port}/a.png",
        "https://pictures.test/a.png",
        "http://127.0.0.1:{port}/a.png",
        "http://localhost:{port}/a.png",
        "http://169.254.169.254/latest/meta-data/",
    ],
)
def test_a_redirect_is_checked_like_the_first_address(web: WebServer, to: str) -> None:
    web.redirect("/start", to.format(port=web.port))
    refused(fetcher(web), f"http://pictures.test:{web.port}/start", "no pictures from that host")
    assert [path for path, _ in web.requests] == ["/start"]


@pytest.mark.parametrize(
    "to",
    [
        "http://pictures.test:{port}\\@other.test/a.png",
        "http:\\\\other.test/a.png",
        "http://user@pictures.test:{port}/a.png",
        "file:///etc/passwd",
        "gopher://pictures.test/",
    ],
)
def test_a_redirect_to_what_two_parsers_read_differently(web: WebServer, to: str) -> None:
    web.redirect("/start", to.format(port=web.port))
    refused(fetcher(web), f"http://pictures.test:{web.port}/start", "plain form")
    assert [path for path, _ in web.requests] == ["/start"]


def test_redirects_end(web: WebServer) -> None:
    web.redirect("/loop", "/loop")
    refused(fetcher(web), f"http://pictures.test:{web.port}/loop", "more than 3 times")
    assert len(web.requests) == 4


# What comes back --------------------------------------------------------------------------------


def test_bytes_are_believed_and_not_the_type(web: WebServer) -> None:
    web.picture("/odd", PNG, "text/html")
    assert get(fetcher(web), f"http://pictures.test:{web.port}/odd") == PNG
    for path, body in {
        "/page": b"<html>secret</html>" * 100,
        "/short": b"no",
        "/none": b"",
    }.items():
        web.picture(path, body, "image/png")
        url = f"http://pictures.test:{web.port}{path}"
        refused(fetcher(web), url, "no picture", NotAnImage)


def test_reading_ends_at_the_limit(web: WebServer) -> None:
    sent = 0

    def endless(handler: BaseHTTPRequestHandler) -> None:
        nonlocal sent
        handler.send_response(200)
        handler.send_header("transfer-encoding", "chunked")
        handler.end_headers()
        piece = PNG + bytes(60_000)
        try:
            for _ in range(1_000):
                handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                sent += len(piece)
        except OSError:
            pass
        handler.close_connection = True

    web.pages["/endless"] = endless
    web.pages["/stated"] = (200, {"content-length": "999999999"}, PNG)
    ours = fetcher(web, limits=Limits(max_bytes=100_000))
    for path in ("/endless", "/stated"):
        refused(ours, f"http://pictures.test:{web.port}{path}", "100,000 bytes", ImageTooLarge)
    assert sent < 10_000_000


def test_waiting_ends(web: WebServer) -> None:
    over = threading.Event()

    def slow(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("content-length", "1000")
        handler.end_headers()
        handler.wfile.write(PNG[:70])
        handler.wfile.flush()
        over.wait(20)
        handler.close_connection = True

    web.pages["/slow"] = slow
    ours = fetcher(web, max_seconds=0.3)
    refused(ours, f"http://pictures.test:{web.port}/slow", "longer than the limit of 0.3 seconds")
    over.set()


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ((404, {}, b"secret"), "status 404"),
        ((500, {}, b"secret"), "status 500"),
        ((206, {}, PNG), "status 206"),
        ((302, {}, b"secret"), "status 302"),
        ((200, {"content-encoding": "gzip"}, PNG), "compressed"),
        ((200, {"content-length": str(len(PNG) + 10), "connection": "close"}, PNG), "broke off"),
    ],
)
def test_answers_that_are_none(web: WebServer, page: Any, words: str) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        status, headers, body = page
        handler.send_response(status)
        for name, value in ({"content-length": str(len(body))} | headers).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)
        handler.close_connection = True

    web.pages["/page"] = answer
    with pytest.raises(ImageError, match=words) as caught:
        get(fetcher(web), f"http://pictures.test:{web.port}/page")
    assert "secret" not in str(caught.value)


def test_what_is_no_http(web: WebServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer() -> None:
            connection, _ = other.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"SSH-2.0-secret\r\n" * 20)

        thread = threading.Thread(target=answer)
        thread.start()
        port = other.getsockname()[1]
        ours = fetcher(web, hosts=f"http://pictures.test:{port} private")
        refused(ours, f"http://pictures.test:{port}/a.png", "spoke no HTTP")
        thread.join(10)


def test_proxies_of_the_environment_are_not_used(
    web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert get(fetcher(web), f"http://pictures.test:{web.port}/a.png") == PNG


# TLS --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate for pictures.test, in one file."""
    if shutil.which("openssl") is None:
        pytest.skip("makes its certificate with openssl")
    file = tmp_path_factory.mktemp("tls") / "pictures.pem"
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650"
    extra = ["-subj", "/CN=pictures.test", "-addext", "subjectAltName=DNS:pictures.test"]
    files = ["-keyout", f"{file}.key", "-out", f"{file}.crt"]
    subprocess.run([*make.split(), *extra, *files], check=True, capture_output=True)
    file.write_bytes(Path(f"{file}.key").read_bytes() + Path(f"{file}.crt").read_bytes())
    return file


def test_the_certificate_must_be_the_names(certificate: Path) -> None:
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(certificate)
    asked: list[str | None] = []
    server_side.sni_callback = lambda _socket, name, _context: asked.append(name)
    ours = ssl.create_default_context(cafile=str(certificate))
    with WebServer(server_side) as web:
        web.picture("/a.png", PNG)
        hosts = f"pictures.test:{web.port} private, other.test:{web.port} private"
        good = fetcher(web, hosts=hosts, tls=ours)
        assert get(good, f"https://pictures.test:{web.port}/a.png") == PNG
        assert asked == ["pictures.test"]
        refused(good, f"https://other.test:{web.port}/a.png", "cannot be reached")
        unknown = fetcher(web, hosts=hosts)
        refused(unknown, f"https://pictures.test:{web.port}/a.png", "cannot be reached")
        assert len(web.requests) == 1
