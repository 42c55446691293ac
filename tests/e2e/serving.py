"""A real `chiasm serve` in a process of its own, with its own data and the user's weights."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

READY_SECONDS = 180  # a few are enough; a machine with other work needs longer


class WeightsMissing(Exception):
    """The weights to serve are not in the cache, or not in the catalogue."""


class ServerProcess:
    """`chiasm serve --offline` on a free port of the loopback address."""

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        sample: bool = True,
        generator: str = "",
    ) -> None:
        self.folder = folder
        self.port = port or _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = (folder / "server.log").open("ab")
        environment = os.environ | {"CHIASM_DATA_DIR": str(folder / "data")}
        self._process = subprocess.Popen(
            [
                *serve_command(),
                "--port",
                str(self.port),
                "--offline",
                *([] if sample else ["--no-sample"]),
                "--generator",
                generator,
            ],
            env=environment,
            cwd=folder,
            stdout=self._log,
            stderr=self._log,
        )

    def wait(self) -> ServerProcess:
        """Until it is ready; the sample collection is then in it, unless it is to have none."""
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            try:
                answer = httpx.get(f"{self.url}/readyz")
                if answer.status_code == 200:
                    return self
                if answer.json().get("status") == "failed":
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        self.stop()
        log = (self.folder / "server.log").read_text(encoding="utf-8", errors="replace")
        unknown = "has no entry called" in log
        if unknown or "chiasm pull" in log or "offline" in log.lower():
            raise WeightsMissing(log[-500:])
        raise AssertionError(f"The server did not become ready:\n{log}")

    def wait_for_generator(self) -> ServerProcess:
        """Until it answers questions. Raises WeightsMissing if it cannot."""
        while True:
            models = self.call("GET", "/v1/models")["data"]
            if any(model["kind"] == "chat" for model in models):
                return self
            question = {"messages": [{"role": "user", "content": "Hello?"}], "max_tokens": 1}
            answer = httpx.post(f"{self.url}/v1/chat/completions", json=question, timeout=60)
            if answer.is_error and answer.json()["error"]["code"] != "not_ready":
                raise WeightsMissing(answer.json()["error"]["message"])

    def stop(self) -> None:
        """As with Ctrl-C."""
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def call(self, method: str, path: str, **options: Any) -> Any:
        """A call of the API; its JSON."""
        answer = httpx.request(method, self.url + path, timeout=60, **options)
        answer.raise_for_status()
        return answer.json()


def serve_command() -> list[str]:
    """What starts a server; the environment and flags say where and how."""
    return [sys.executable, "-m", "chiasm.cli", "serve"]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
