"""What is refused before any route: too much, from the wrong place, of the wrong kind."""

from __future__ import annotations

import http.client
import json
import logging
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from chiasm.media import Image
from chiasm.server.guard import allowed_hosts, host_name
from tests.server.conftest import (
    ColourEmbedder,
    LiveServer,
    add,
    data_url,
    error_of,
    image_part,
    make_server,
    picture,
)

LIMIT = 200_000


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server that takes bodies of at most 200,000 bytes."""
    folder = tmp_path_factory.mktemp("small")
    with make_server(folder, max_request_bytes=LIMIT, allowed_hosts="pictures.example") as live:
        yield live


def body_of(size: int) -> bytes:
    """A valid request of exactly `size` bytes."""
    frame = len(json.dumps({"input": ""}))
    return json.dumps({"input": "x" * (size - frame)}).encode()


# Errors in one shape ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "not_found"),
        ("GET", "/nothing.js", 404, "not_found"),
        ("GET", "/v1/collections/", 404, "not_found"),
        ("GET", "/v1/embeddings", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("OPTIONS", "/v1/embeddings", 405, "method_not_allowed"),
        ("DELETE", "/", 405, "method_not_allowed"),
    ],
)
def test_paths_and_methods(
    client: httpx.Client, method: str, path: str, status: int, code: str
) -> None:
    response = client.request(method, path)
    assert response.status_code == status
    assert error_of(response)["code"] == code
    if status == 405:
        assert response.headers["allow"]


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"{", "invalid_json"),
        (b"[]", "invalid_json"),
        (b'"text"', "invalid_json"),
        (b"null", "invalid_json"),
        (b"", "missing_body"),
        (b"\xff\xfe", "invalid_json"),
        (b"[" * 100_000, "invalid_body"),
        (b'{"input": ' + b"[" * 100_000, "invalid_body"),
        (b'{"input": NaN}', None),
        (b'{"input": "a", "model": 7}', "invalid_value"),
        (b'{"input": "a", "encoding_format": "hex"}', "invalid_value"),
        (b"{}", "missing_required_parameter"),
    ],
)
def test_bodies_that_cannot_be_read(client: httpx.Client, content: bytes, code: str | None) -> None:
    headers = {"content-type": "application/json"}
    for path in ("/v1/embeddings", "/v1/collections"):
        response = client.post(path, content=content, headers=headers)
        assert response.status_code == 400, response.text
        error = error_of(response)
    response = client.post("/v1/embeddings", content=content, headers=headers)
    error = error_of(response)
    assert error["code"] == code
    assert error["type"] == "invalid_request_error"


def test_a_long_argument_name_is_not_repeated_whole(client: httpx.Client) -> None:
    name = data_url(picture(seed=1, size=(200, 200)))
    response = client.post("/v1/embeddings", json={"input": "a", name: 1})
    assert response.status_code == 400
    assert len(response.content) < 1000


def test_each_answer_has_an_id_and_the_callers_own_is_kept(client: httpx.Client) -> None:
    first, second = (client.get("/healthz").headers["x-request-id"] for _ in range(2))
    assert first != second
    for sent, kept in (("trace-7", True), ("two words", False), ("x" * 200, False)):
        returned = client.get("/nothing", headers={"x-request-id": sent}).headers["x-request-id"]
        assert (returned == sent) is kept


def test_an_error_that_nobody_foresaw(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    secret = data_url(picture(size=(100, 100), seed=5))

    class Failing(ColourEmbedder):
        def embed_texts(self, texts):  # type: ignore[no-untyped-def]
            raise RuntimeError(f"0x7f3a at /home/somebody with {secret}")

    with (
        make_server(tmp_path, embedder=Failing()) as live,
        httpx.Client(base_url=live.url, timeout=60) as client,
        caplog.at_level(logging.INFO, logger="chiasm"),
    ):
        response = client.post("/v1/embeddings", json={"input": "red"})
        assert response.status_code == 500
        error = error_of(response)
        assert error["type"] == "server_error"
        assert error["code"] == "internal_error"
        assert "somebody" not in response.text
        assert "0x7f3a" not in response.text
        # The trace is in the log under the answer's id, and the picture is not.
        assert response.headers["x-request-id"] in caplog.text
        assert "RuntimeError" in caplog.text
        assert secret[30:60] not in caplog.text
        # One bad request ends no other.
        pictures = client.post("/v1/embeddings", json={"input": [image_part(picture())]})
        assert pictures.status_code == 200


def test_no_picture_ever_reaches_the_log(
    client: httpx.Client, collection: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = data_url(picture(size=(200, 200), seed=6))
    cut = whole[: len(whole) // 2]
    with caplog.at_level(logging.DEBUG):
        for url in (whole, cut, f"{whole}@", f"https://example.com/{whole}"):
            part = {"type": "image_url", "image_url": {"url": url}}
            client.post("/v1/embeddings", json={"input": [part]})
            client.post("/v1/embeddings", json={"input": url})
            client.post(f"{collection}/search", json={"image": url})
            client.post(f"{collection}/items", json={"items": [{"image": url, "text": 7}]})
            client.post(f"{collection}/items", json={"items": [{"image": url, "source": url}]})
            client.get("/v1/collections", params={"filter": url[:2000]})
    ours = "\n".join(r.getMessage() for r in caplog.records if r.name.startswith("chiasm"))
    assert "POST /v1/embeddings" in ours
    assert whole[40:70] not in ours


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/embeddings", r'{"input": "\ud800"}'),
        ("POST", "/v1/embeddings", r'{"\ud800": "\ud800"}'),
        ("POST", "/v1/collections", r'{"name": "\ud800"}'),
        ("POST", "{collection}/search", r'{"text": "\ud800"}'),
        ("POST", "{collection}/items", r'{"items": [{"image": "\ud800"}]}'),
        ("PATCH", "{collection}/items/one", r'{"text": "\ud800"}'),
        ("PATCH", "{collection}/items/one", r'{"metadata": {"\ud800": 1}}'),
        ("PATCH", "{collection}/items/one", r'{"metadata": {"a": "\ud800"}}'),
        ("PATCH", "{collection}/items/one", r'{"metadata": {"a": NaN}}'),
    ],
)
def test_what_json_can_spell_and_utf8_cannot(
    client: httpx.Client, collection: str, method: str, path: str, body: str
) -> None:
    add(client, collection, picture(), id="one")
    headers = {"content-type": "application/json"}
    response = client.request(
        method, path.format(collection=collection), content=body, headers=headers
    )
    assert response.status_code == 400, response.text
    error_of(response)


def test_a_damaged_store_names_no_folder_to_callers(
    server: LiveServer,
    client: httpx.Client,
    collection: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = server.app.state.runtime.settings.data_dir
    about = folder / "collections" / collection.rpartition("/")[2] / "collection.json"
    whole = about.read_text()
    about.write_text("{")
    response = client.get(f"{collection}/items")
    about.write_text(whole)
    assert response.status_code == 500
    assert error_of(response)["code"] == "store_error"
    assert str(folder) not in response.text
    assert str(folder) in caplog.text
    assert response.headers["x-request-id"] in caplog.text
    assert client.get(f"{collection}/items").status_code == 200


def test_a_caller_that_goes_away_is_no_error(
    server: LiveServer, collection: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="chiasm"):
        for path, content_type in (
            (f"{collection}/items", "multipart/form-data; boundary=x"),
            (f"{collection}/items", "application/json"),
            ("/v1/embeddings", "application/json"),
        ):
            with socket.create_connection(("127.0.0.1", server.port)) as connection:
                connection.sendall(
                    f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\n"
                    'Content-Length: 1000\r\n\r\n--x\r\n{"'.encode()
                )
                time.sleep(0.1)
        deadline = time.monotonic() + 10
        while caplog.text.count("POST /v1/") < 3:
            assert time.monotonic() < deadline, caplog.text
            time.sleep(0.02)
    assert "unexpected error" not in caplog.text
    assert f"POST {collection}/items 499" in caplog.text


# Too much ---------------------------------------------------------------------------------------


def test_a_body_at_the_limit_passes_and_one_byte_more_does_not(small: LiveServer) -> None:
    headers = {"content-type": "application/json"}
    with httpx.Client(base_url=small.url, timeout=60) as client:
        at_limit = client.post("/v1/embeddings", content=body_of(LIMIT), headers=headers)
        assert error_of(at_limit)["param"] == "input"  # read, and found to be too long a text
        response = client.post("/v1/embeddings", content=body_of(LIMIT + 1), headers=headers)
    assert response.status_code == 413
    assert error_of(response)["code"] == "request_too_large"
    assert "200,000 bytes" in error_of(response)["message"]


def test_a_declared_length_is_refused_before_the_body_is_sent(small: LiveServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", small.port, timeout=5)
    connection.putrequest("POST", "/v1/embeddings")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(10**12))
    connection.endheaders()
    response = connection.getresponse()  # not a byte of the terabyte was sent
    assert response.status == 413
    assert json.loads(response.read())["error"]["code"] == "request_too_large"
    connection.close()


@pytest.mark.parametrize("kind", ["json", "multipart"])
def test_a_body_without_a_length_is_counted_while_it_streams(small: LiveServer, kind: str) -> None:
    with httpx.Client(base_url=small.url, timeout=60) as client:
        client.post("/v1/collections", json={"name": "c"})
    connection = socket.create_connection(("127.0.0.1", small.port), timeout=10)
    path, content_type, start = {
        "json": ("/v1/embeddings", "application/json", b'{"input": "'),
        "multipart": (
            "/v1/collections/c/items",
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n',
        ),
    }[kind]
    connection.sendall(
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {content_type}\r\n"
        "Transfer-Encoding: chunked\r\n\r\n".encode()
    )
    sent, piece = 0, b"x" * 10_000
    connection.sendall(b"%x\r\n%s\r\n" % (len(start), start))
    answer = b""
    connection.settimeout(0.05)
    while b"\r\n\r\n" not in answer and sent < 20 * LIMIT:
        try:
            connection.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
            sent += len(piece)
            answer += connection.recv(65536)
        except TimeoutError:
            continue
        except OSError:
            break
    connection.close()
    assert b" 413 " in answer.partition(b"\r\n")[0]
    assert b"request_too_large" in answer
    # Refused on the way, not after everything had come (buffers on the way hold some).
    assert sent < 10 * LIMIT


def test_bodies_that_are_too_much_together(small: LiveServer) -> None:
    """Each within the limit, and more at once than there is room for: the last has to wait."""
    head = (
        b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: application/json\r\nContent-Length: 150000\r\n\r\n"
    )
    connections = []
    for _ in range(6):
        connections.append(socket.create_connection(("127.0.0.1", small.port), timeout=10))
        connections[-1].sendall(head + b" " * 149_000)
        time.sleep(0.05)
    answer = connections[-1].recv(65536)
    assert b" 503 " in answer.partition(b"\r\n")[0]
    assert b"overloaded" in answer
    assert b"retry-after" in answer.lower()
    for connection in connections:
        connection.close()
    deadline = time.monotonic() + 5
    while (
        httpx.post(f"{small.url}/v1/embeddings", json={"input": "red"}, timeout=60).status_code
        != 200
    ):
        assert time.monotonic() < deadline
        time.sleep(0.05)


# From the wrong place ---------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost.evil"])
def test_a_foreign_host_is_refused(small: LiveServer, host: str) -> None:
    with httpx.Client(base_url=small.url, timeout=60) as client:
        for path in ("/", "/healthz", "/v1/collections"):
            response = client.get(path, headers={"host": host})
            assert response.status_code == 403
            assert error_of(response)["code"] == "host_not_allowed"


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:80", "127.0.0.1:9", "[::1]:8000", "pictures.example"]
)
def test_its_own_names_are_not(small: LiveServer, host: str) -> None:
    assert httpx.get(f"{small.url}/healthz", headers={"host": host}).status_code == 200


def test_names_depend_on_where_it_listens() -> None:
    loopback = {"localhost", "127.0.0.1", "::1"}
    assert allowed_hosts("127.0.0.1", "") == loopback
    assert allowed_hosts("::1", "a.example, B.example:80") == loopback | {"a.example", "b.example"}
    assert allowed_hosts("0.0.0.0", "") is None
    assert allowed_hosts("192.168.0.7", "a.example") == {"a.example"}
    assert allowed_hosts("127.0.0.1", "*") is None
    assert host_name("[::1]") == host_name("[::1]:80") == host_name("::1") == "::1"
    assert host_name("example.com:") == "example.com"
    assert host_name("example.com:80:90") == "example.com:80:90"


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:1"},
    ],
)
def test_a_foreign_page_may_not_write(
    client: httpx.Client, collection: str, headers: dict[str, str]
) -> None:
    file = [("files", ("a.png", picture()))]
    for response in (
        client.post("/v1/collections", json={"name": "intruder"}, headers=headers),
        client.post(f"{collection}/items", files=file, headers=headers),
        client.delete(collection, headers=headers),
    ):
        assert response.status_code == 403
        assert error_of(response)["code"] == "cross_site_request"
    assert client.get(collection).json()["items"] == 0


def test_its_own_page_may(server: LiveServer, client: httpx.Client, collection: str) -> None:
    for headers in (
        {"sec-fetch-site": "same-origin", "origin": server.url},
        {"sec-fetch-site": "none"},
        {"origin": server.url},
    ):
        response = client.post(f"{collection}/search", json={"text": "red"}, headers=headers)
        assert response.status_code == 200


def test_no_other_origin_is_granted_anything(client: httpx.Client) -> None:
    headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    for response in (
        client.options("/v1/collections", headers=headers),
        client.get("/v1/collections", headers=headers),
    ):
        assert not [name for name in response.headers if name.startswith("access-control-")]
        assert response.headers["cross-origin-resource-policy"] == "same-origin"


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "application/x-www-form-urlencoded", "text/json"]
)
def test_types_that_a_form_could_send_are_refused(
    client: httpx.Client, content_type: str | None
) -> None:
    headers = {"content-type": content_type} if content_type else {}
    response = client.post("/v1/collections", content=b'{"name": "intruder"}', headers=headers)
    assert response.status_code == 415
    assert error_of(response)["code"] == "unsupported_media_type"
    assert client.get("/v1/collections/intruder").status_code == 404
    form = client.post("/v1/collections", files=[("name", ("intruder", b"x"))])
    assert form.status_code == 400
    error_of(form)


# Under load -------------------------------------------------------------------------------------


def test_health_and_galleries_wait_for_no_embedding(tmp_path: Path) -> None:
    class Slow(ColourEmbedder):
        def embed_images(self, images: list[Image]) -> np.ndarray:  # type: ignore[override]
            time.sleep(0.3)
            return super().embed_images(images)

    with (
        make_server(tmp_path, embedder=Slow()) as live,
        ThreadPoolExecutor(40) as threads,
        httpx.Client(base_url=live.url, timeout=60) as client,
    ):
        part = image_part(picture(size=(800, 800), seed=1))
        body = {"input": [part] * 2}
        work = [threads.submit(client.post, "/v1/embeddings", json=body) for _ in range(40)]
        waits: dict[str, list[float]] = {"/healthz": [], "/v1/collections": []}
        while not all(one.done() for one in work):
            for path, seconds in waits.items():
                started = time.perf_counter()
                assert client.get(path).status_code == 200
                seconds.append(time.perf_counter() - started)
            time.sleep(0.01)
        assert {one.result().status_code for one in work} == {200}
        for seconds in waits.values():
            assert len(seconds) > 10
            assert float(np.median(seconds)) < 0.25
