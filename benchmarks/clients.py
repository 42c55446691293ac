"""Many clients at once, pictures and texts mixed, against one client alone: does anybody fail?

    python benchmarks/clients.py [--clients 64] [--minutes 5]

Starts the server, lets one client ask for half a minute and then all of them for as long as told.
Every client asks one question after the other, streamed, through HTTP: half of them about one of
40 pictures of different sizes, half plain ones; each answer has up to 32 tokens. Prints failures,
times to the first token and between tokens, and the server's memory by the minute. Target: no
failure, and a 95th percentile of the time between tokens of at most three times that of the single
client.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import itertools
import json
import os
import platform
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

SAMPLE = Path(__file__).parents[1] / "src/chiasm/retrieval/sample"
TEXTS = (
    "What is a {}?", "Tell me about the {}.", "Write a sentence with the word {}.",
    "Where do people use a {}?",
)  # fmt: skip
THINGS = ("bicycle", "violin", "bridge", "lamp", "river", "clock", "garden", "ship", "map", "coin")


@dataclass
class Seen:
    """What clients have measured, in seconds."""

    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    tokens: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--alone", type=float, default=30, help="seconds of the single client")
    options = parser.parse_args()
    pictures = made_pictures()
    with tempfile.TemporaryDirectory() as data:
        port = free_port()
        server = subprocess.Popen(
            [sys.executable, "-m", "chiasm.cli", "serve", "--port", str(port)],
            env={**os.environ, "CHIASM_DATA_DIR": data},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            asyncio.run(measure(f"http://127.0.0.1:{port}", server.pid, pictures, options))
        finally:
            server.terminate()
            server.wait(60)


async def measure(url: str, pid: int, pictures: list[str], options: argparse.Namespace) -> None:
    limits = httpx.Limits(max_connections=options.clients + 4)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as http:
        await ready(http)
        alone, many = Seen(), Seen()
        await run(http, 1, options.alone, pictures, alone)
        before = resident(pid)
        sizes: list[int] = []
        watching = asyncio.create_task(watch(pid, sizes))
        await run(http, options.clients, 60 * options.minutes, pictures, many)
        watching.cancel()
        state = (await http.get("/readyz")).json()
    print("| clients | answers | failures | tokens/s | first token p50 / p95, s |"
          " between tokens p50 / p95, ms |")  # fmt: skip
    print("|---:|---:|---:|---:|---:|---:|")
    for count, seconds, seen in (
        (1, options.alone, alone),
        (options.clients, 60 * options.minutes, many),
    ):
        first, between = (sorted(each) for each in (seen.first, seen.between))
        print(
            f"| {count} | {len(seen.whole)} | {len(seen.failures)} | {seen.tokens / seconds:.0f} | "
            f"{at(first, 0.5):.2f} / {at(first, 0.95):.2f} | "
            f"{1e3 * at(between, 0.5):.1f} / {1e3 * at(between, 0.95):.1f} |"
        )
    ratio = at(sorted(many.between), 0.95) / at(sorted(alone.between), 0.95)
    print(f"\nBetween tokens, p95: **{ratio:.2f}×** that of one client. At the end: {state}.")
    print(f"Resident memory, MB: {before} before, then each minute {sizes}.")
    for failure in sorted(set(many.failures + alone.failures))[:10]:
        print(f"Failure: {failure}")
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, clients on the same machine; Python "
        f"{platform.python_version()}, chiasm {version('chiasm')}, {time.strftime('%Y-%m-%d')}."
    )


async def run(
    http: httpx.AsyncClient, clients: int, seconds: float, pictures: list[str], seen: Seen
) -> None:
    until = time.monotonic() + seconds
    await asyncio.gather(*(client(http, n, until, pictures, seen) for n in range(clients)))


async def client(
    http: httpx.AsyncClient, number: int, until: float, pictures: list[str], seen: Seen
) -> None:
    chance = random.Random(number)
    while time.monotonic() < until:
        parts: list[dict[str, Any]] = []
        if chance.random() < 0.5:
            picture = {"url": chance.choice(pictures)}
            parts.append({"type": "image_url", "image_url": picture})
            text = chance.choice(("What is in this picture?", "Is there a dog? Say why.",
                                  "Describe the picture."))  # fmt: skip
        else:
            text = chance.choice(TEXTS).format(chance.choice(THINGS))
        parts.append({"type": "text", "text": text})
        body = {
            "messages": [{"role": "user", "content": parts}],
            "max_tokens": 32,
            "stream": True,
            "temperature": 0.8,
            "seed": chance.randrange(2**31),
        }
        started = time.perf_counter()
        try:
            await ask(http, body, started, seen)
        except Exception as error:
            seen.failures.append(f"{type(error).__name__}: {error}")


async def ask(http: httpx.AsyncClient, body: dict[str, Any], started: float, seen: Seen) -> None:
    stamps: list[float] = []
    finished = False
    async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            raise RuntimeError(f"{answer.status_code} {(await answer.aread())[:200]!r}")
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                raise RuntimeError(chunk["error"]["message"])
            for choice in chunk["choices"]:
                if choice["delta"].get("content"):
                    stamps.append(time.perf_counter())
                finished = finished or choice["finish_reason"] is not None
    if not finished:
        raise RuntimeError("the stream ended before the answer")
    seen.whole.append(time.perf_counter() - started)
    seen.tokens += len(stamps)
    if stamps:
        seen.first.append(stamps[0] - started)
        seen.between += [after - before for before, after in itertools.pairwise(stamps)]


def made_pictures(count: int = 40) -> list[str]:
    """Sample pictures in many sizes, up to 3 megapixels, as data URLs of JPEGs."""
    chance = random.Random(0)
    paths = sorted(SAMPLE.glob("*.webp"))
    made = []
    for number in range(count):
        picture = Image.open(paths[number % len(paths)]).convert("RGB")
        size = (chance.randrange(100, 2000), chance.randrange(100, 1500))
        encoded = io.BytesIO()
        picture.resize(size).save(encoded, "JPEG")
        made.append("data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode())
    return made


async def ready(http: httpx.AsyncClient) -> None:
    for _ in range(600):
        try:
            answer = await http.get("/readyz")
            if answer.status_code == 200 and answer.json()["generator"] == "ready":
                return
        except httpx.TransportError:
            pass
        await asyncio.sleep(0.2)
    raise SystemExit("The server did not become ready.")


async def watch(pid: int, sizes: list[int]) -> None:
    while True:
        await asyncio.sleep(60)
        sizes.append(resident(pid))


def resident(pid: int) -> int:
    """Megabytes of memory that a process has."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 2**20


def at(values: list[float], share: float) -> float:
    if not values:
        return float("nan")
    return statistics.quantiles(values, n=100, method="inclusive")[round(share * 100) - 1]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
