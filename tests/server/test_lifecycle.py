"""Starting, failing to start, and stopping."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from chiasm.errors import ConfigurationError, DownloadFailed
from chiasm.retrieval import embedder as embedders
from chiasm.retrieval import library
from chiasm.server import create_app, run, runtime
from tests.server.conftest import ColourEmbedder, LiveServer, error_of, make_settings

ROOT = Path(__file__).parents[2]


class StartingServer(LiveServer):
    """A server that one may ask before it is ready."""

    def __enter__(self) -> StartingServer:
        self._thread.start()
        return self


def wait_until(ask: Callable[[], httpx.Response], words: str) -> httpx.Response:
    deadline = time.monotonic() + 240
    while words not in (response := ask()).text:
        assert time.monotonic() < deadline, response.text
        time.sleep(0.02)
    return response


def ready_in_the_end(client: httpx.Client) -> None:
    deadline = time.monotonic() + 240
    while client.get("/readyz").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_health_answers_at_once_and_requests_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = threading.Event()

    def load(settings: Any, *, progress: Any) -> ColourEmbedder:
        progress.start("weights.bin", 80_000_000)
        progress.advance(20_000_000)
        loaded.wait(100)
        progress.finish()
        return ColourEmbedder()

    monkeypatch.setattr(embedders, "load_embedder", load)
    with (
        StartingServer(create_app(make_settings(tmp_path))) as live,
        httpx.Client(base_url=live.url, timeout=60) as client,
        ThreadPoolExecutor() as threads,
    ):
        assert client.get("/healthz").json()["status"] == "ok"
        asked = wait_until(lambda: client.get("/readyz"), "20 of 80 MB")
        assert asked.status_code == 503
        body = asked.json()
        assert body["status"] == "starting"
        assert body["error"]["code"] == "not_ready"
        assert "weights.bin" in body["error"]["message"]
        early = threads.submit(client.post, "/v1/embeddings", json={"input": "red"})
        time.sleep(0.2)
        assert not early.done()
        loaded.set()
        assert early.result().status_code == 200
        ready_in_the_end(client)
        assert client.get("/readyz").json() == {
            "status": "ready",
            "model": "colours",
            "generator": "off",
            "answering": 0,
            "waiting": 0,
        }


def test_the_application_is_made_without_what_takes_seconds_to_import() -> None:
    """`/healthz` answers while torch is imported: nothing above the loading thread may do it."""
    code = (
        "import sys\n"
        "import chiasm.server.app\n"
        "print(sorted({'torch', 'lancedb', 'llguidance', 'tokenizers'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_embeddings_do_not_wait_for_the_collections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = threading.Event()
    whole = library.Library

    def open_slowly(*args: Any, **kwargs: Any) -> library.Library:
        opened.wait(100)
        return whole(*args, **kwargs)

    monkeypatch.setattr(library, "Library", open_slowly)
    with (
        StartingServer(create_app(make_settings(tmp_path), embedder=ColourEmbedder())) as live,
        httpx.Client(base_url=live.url, timeout=60) as client,
        ThreadPoolExecutor() as threads,
    ):
        response = client.post("/v1/embeddings", json={"input": "red", "model": "colours"})
        assert response.status_code == 200
        assert client.get("/v1/models/colours").json()["dimension"] == 64
        body = wait_until(lambda: client.get("/readyz"), "collections").json()
        assert body["status"] == "starting"
        early = threads.submit(client.get, "/v1/collections")
        time.sleep(0.2)
        assert not early.done()
        opened.set()
        assert early.result().json()["data"] == []
        ready_in_the_end(client)


def test_patience_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = threading.Event()

    def load(settings: Any, *, progress: Any) -> ColourEmbedder:
        loaded.wait(100)
        return ColourEmbedder()

    monkeypatch.setattr(embedders, "load_embedder", load)
    monkeypatch.setattr(runtime, "PATIENCE_SECONDS", 0.1)
    with (
        StartingServer(create_app(make_settings(tmp_path))) as live,
        httpx.Client(base_url=live.url, timeout=60) as client,
    ):
        response = client.get("/v1/collections")
        assert response.status_code == 503
        assert response.headers["retry-after"]
        assert error_of(response)["code"] == "not_ready"
        loaded.set()


def test_missing_weights_are_told_and_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mended = threading.Event()

    def load(settings: Any, *, progress: Any) -> ColourEmbedder:
        if not mended.is_set():
            raise DownloadFailed("The index did not answer.", hint="Is there a network?")
        return ColourEmbedder()

    monkeypatch.setattr(embedders, "load_embedder", load)
    monkeypatch.setattr(runtime, "_FIRST_RETRY_SECONDS", 0.3)
    with (
        StartingServer(create_app(make_settings(tmp_path))) as live,
        httpx.Client(base_url=live.url, timeout=60) as client,
    ):
        body = wait_until(lambda: client.get("/readyz"), "download_failed").json()
        assert body["status"] == "failed"
        assert "Is there a network?" in body["error"]["message"]
        response = client.get("/v1/models")
        assert response.status_code == 503
        assert error_of(response)["code"] == "download_failed"
        mended.set()
        ready_in_the_end(client)
        assert client.get("/v1/models").status_code == 200


@pytest.mark.parametrize(("name", "code"), [("default", "offline"), ("defualt", "model_not_found")])
def test_an_embedder_that_cannot_be_had(tmp_path: Path, name: str, code: str) -> None:
    settings = replace(make_settings(tmp_path), embedder=name)
    with (
        StartingServer(create_app(settings)) as live,
        httpx.Client(base_url=live.url, timeout=60) as client,
    ):
        response = client.get("/v1/collections")
        assert response.status_code == 503
        assert error_of(response)["code"] == code
        assert client.get("/healthz").status_code == 200
        body = client.get("/readyz").json()
        assert body["status"] == "failed"
        assert body["error"]["code"] == code


def test_the_sample_is_made_once(tmp_path: Path) -> None:
    app = create_app(make_settings(tmp_path), embedder=ColourEmbedder(), sample=True)
    with LiveServer(app) as live, httpx.Client(base_url=live.url, timeout=60) as client:
        (sample,) = client.get("/v1/collections").json()["data"]
        assert sample["name"] == "sample"
        assert sample["items"] > 50
        found = client.post("/v1/collections/sample/search", json={"text": "yellow"}).json()
        assert len(found["data"]) == 10
        client.delete("/v1/collections/sample")
        client.post("/v1/collections", json={"name": "mine"})
    app = create_app(make_settings(tmp_path), embedder=ColourEmbedder(), sample=True)
    with LiveServer(app) as live, httpx.Client(base_url=live.url, timeout=60) as client:
        (mine,) = client.get("/v1/collections").json()["data"]
        assert mine["name"] == "mine"


def wait_until_it_refuses(url: str) -> httpx.Response:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        answer = httpx.get(f"{url}/readyz", timeout=60)
        if answer.status_code == 503:
            return answer
        time.sleep(0.01)
    raise AssertionError("the server still takes requests")


# A process of its own ---------------------------------------------------------------------------


@pytest.fixture
def process(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.server.slow_server", str(tmp_path)]
    started = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    yield started
    started.kill()
    started.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_server_answers_what_is_under_way(
    process: subprocess.Popen[str], tmp_path: Path, number: signal.Signals
) -> None:
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    with httpx.Client(base_url=url, timeout=60) as client, ThreadPoolExecutor() as threads:
        ready_in_the_end(client)
        answer = threads.submit(client.post, "/v1/embeddings", json={"input": "red"})
        assert process.stdout.readline() == "embedding\n"
        process.send_signal(number)
        assert wait_until_it_refuses(url).json()["status"] == "stopping"
        late = httpx.post(f"{url}/v1/embeddings", json={"input": "blue"}, timeout=60)
        assert late.status_code == 503
        assert int(late.headers["retry-after"]) >= 1
        assert httpx.get(f"{url}/healthz", timeout=60).status_code == 200
        assert not answer.done()
        (tmp_path / "go").touch()
        assert answer.result().status_code == 200
    _, log = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in log
    assert log.count("POST /v1/embeddings 200") == 1


def test_told_twice_it_stops_at_once(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    with httpx.Client(base_url=url, timeout=60) as client, ThreadPoolExecutor() as threads:
        ready_in_the_end(client)
        answer = threads.submit(client.post, "/v1/embeddings", json={"input": "red"})
        assert process.stdout.readline() == "embedding\n"
        process.send_signal(signal.SIGTERM)
        wait_until_it_refuses(url)
        process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                httpx.get(f"{url}/healthz", timeout=60)
            except httpx.HTTPError:
                break
        else:
            raise AssertionError("the server still listens")
        process.kill()
        assert answer.exception(60) is not None


def test_a_taken_port_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = make_settings(tmp_path, port=taken.getsockname()[1])
        with pytest.raises(ConfigurationError, match="in use") as caught:
            run(settings)
    assert caught.value.hint
    with pytest.raises(ConfigurationError, match="not an address"):
        run(make_settings(tmp_path, host="203.0.113.7", port=0))
