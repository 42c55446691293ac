"""How long after its start `chiasm serve` answers, with weights in the cache.

    python benchmarks/startup.py [--runs 5]

Each run starts a fresh process over a data folder that holds the sample collection, and asks one
thing of it: `/healthz`, a search by words, or the embedding of a picture; the clock runs from the
start of the process to the whole answer. The measure of the machine is a Python process that
imports torch and lancedb as they are and does nothing. The server does better than that: what an
answer does not need of them is not imported, and the collector of cycles rests meanwhile.
"""

from __future__ import annotations

import argparse
import base64
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import httpx

CHIASM = Path(sys.executable).with_name("chiasm")
PICTURE = Path(__file__).parents[1] / "src/chiasm/retrieval/sample/coffee.webp"
TARGET_SECONDS = 5.0

Ask = Callable[[httpx.Client], httpx.Response]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()

    url = f"data:image/webp;base64,{base64.b64encode(PICTURE.read_bytes()).decode()}"
    part = {"type": "image_url", "image_url": {"url": url}}
    asks: dict[str, Ask] = {
        "/healthz": lambda client: client.get("/healthz"),
        "search by words": lambda client: client.post(
            "/v1/collections/sample/search", json={"text": "a cup of coffee"}
        ),
        "embed a picture": lambda client: client.post("/v1/embeddings", json={"input": [part]}),
    }
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"CHIASM_DATA_DIR": folder, "CHIASM_OFFLINE": "1"}
        serve(environment, ready, "--sample")  # makes the sample, warms the disk's cache
        plain = [imports(environment) for _ in range(options.runs)]
        seconds: dict[str, list[float]] = {name: [] for name in asks}
        for _ in range(options.runs):
            for name, ask in asks.items():
                seconds[name].append(serve(environment, ask, "--no-sample"))

    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "lancedb", "fastapi"))
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, {packages}")
    print(f"median of {options.runs} fresh processes, in seconds (fastest, slowest)\n")
    print(f"{'':24}{'seconds':>8}  {'':16}{'x plain':>8}")
    middle = statistics.median(plain)
    for name, values in {"import torch, lancedb": plain, **seconds}.items():
        median = statistics.median(values)
        spread = f"({min(values):.2f}, {max(values):.2f})"
        print(f"{name:24}{median:8.2f}  {spread:16}{median / middle:8.2f}")
    slowest = max(statistics.median(values) for values in seconds.values())
    print(f"\ntarget: the first answer within {TARGET_SECONDS:.0f} s: "
          f"{'met' if slowest <= TARGET_SECONDS else 'MISSED'}")  # fmt: skip


def imports(environment: dict[str, str]) -> float:
    """Seconds that a process takes to import torch and lancedb and to end."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch, lancedb"], env=environment, check=True)
    return time.perf_counter() - started


def serve(environment: dict[str, str], ask: Ask, *flags: str) -> float:
    """Seconds from the start of a server to the whole of its first answer."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(CHIASM), "serve", "--port", str(port), *flags]
    started = time.perf_counter()
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                response = first_answer(client, ask, process)
            seconds = time.perf_counter() - started
            if response.status_code != 200:
                sys.exit(f"the server answered {response.status_code}: {response.text}")
            return seconds
        finally:
            process.terminate()
            process.communicate(timeout=60)


def first_answer(
    client: httpx.Client, ask: Ask, process: subprocess.Popen[bytes]
) -> httpx.Response:
    """Ask until the server listens and is ready; once it listens it mostly makes us wait itself."""
    while True:
        try:
            response = ask(client)
            if response.status_code != 503:
                return response
        except httpx.ConnectError:
            if process.poll() is not None:
                assert process.stderr is not None
                sys.exit(f"the server ended: {process.stderr.read().decode()}")
            time.sleep(0.01)


def ready(client: httpx.Client) -> httpx.Response:
    """`/readyz`, once it says yes."""
    while (response := client.get("/readyz")).status_code != 200:
        time.sleep(0.1)
    return response


if __name__ == "__main__":
    main()
