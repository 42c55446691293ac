"""What a gateway adds to a request: chiasm beside the LiteLLM proxy, before the same upstream.

    python -m venv litellm && litellm/bin/pip install "litellm[proxy]==1.108.7"
    python benchmarks/gateway.py --litellm litellm/bin/python [--only text] [--out FILE.json]

The upstream is `mock_upstream.py`, which answers at once. Text: one client, one request after the
other, straight to the upstream and through each gateway in turns; what is added is the difference
of the same percentile. Pictures: JPEGs of 1.5 MB as data URLs, several clients at once; the
upstream compares each with the file, byte for byte. Memory: resident size while such requests
pass. Each gateway is one process with one worker, as chiasm is by default and LiteLLM's guide to
production has it (docs.litellm.ai/docs/proxy/prod: LITELLM_MODE, LITELLM_LOG, a master key, one
uvicorn worker). Both ask for a key. chiasm writes its ledger; LiteLLM has no database.

Client, upstream and gateway share the machine. The floor of a picture is what no gateway is spared:
its bytes come in and go out through loopback, the JSON is read and the base64 decoded once.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import binascii
import contextlib
import datetime
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httptools
import numpy as np
import pydantic_core
import uvloop
from mock_upstream import WORDS
from PIL import Image

FIRST, LAST = WORDS[0].encode(), WORDS[-1].strip().encode()
FILES, FILE_BYTES = 8, 1_500_000
MASTER_KEY = "sk-gateway-benchmark-4b7d0c52f0a14f6e"
READY_SECONDS = 180


@dataclass(frozen=True)
class Gateway:
    """Who is asked. pid: None for the upstream itself."""

    name: str
    port: int
    path: str
    model: str
    key: str
    pid: int | None = None

    def request(self, content: Any, *, stream: bool = False) -> bytes:
        """The bytes of one whole request."""
        body = {"model": self.model, "messages": [{"role": "user", "content": content}]}
        if stream:
            body["stream"] = True
        sent = json.dumps(body).encode()
        head = (
            f"POST {self.path} HTTP/1.1\r\nhost: 127.0.0.1:{self.port}\r\n"
            f"authorization: Bearer {self.key}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(sent)}\r\n\r\n"
        )
        return head.encode() + sent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--litellm", metavar="PYTHON", help="of an environment that has the proxy")
    parser.add_argument("--requests", type=int, default=1000, help="of one client, of each kind")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=10, help="of pictures, for each number")
    parser.add_argument("--rounds", type=int, default=3, help="that --seconds are divided into")
    parser.add_argument("--memory", type=int, default=3000, help="requests with pictures")
    parser.add_argument("--only", choices=("text", "pictures", "memory"))
    parser.add_argument("--out", type=Path, metavar="FILE", help="all numbers, as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as running:
        files = made_pictures(Path(folder))
        gateways = running.enter_context(started(Path(folder), files, options.litellm))
        found = uvloop.run(measure(gateways, files, options))
        found["versions"] = versions(options.litellm)
    print(
        f"{found['versions']['machine']}, load {os.getloadavg()[0]:.1f}, "
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}; "
        + ", ".join(
            f"{name} {each}" for name, each in found["versions"].items() if name != "machine"
        )
    )
    if options.out:
        options.out.write_text(json.dumps(found, indent=1))


async def measure(
    gateways: list[Gateway], files: list[Path], options: argparse.Namespace
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    pictures = [data_url(file) for file in files]
    if options.only in (None, "text"):
        found["text"] = await text(gateways, options.requests)
    if options.only in (None, "pictures"):
        found["pictures"] = await many_pictures(gateways, pictures, options)
    if options.only in (None, "memory"):
        found["memory"] = await memory(gateways, pictures, options.memory)
    found["upstream"] = stats = await asked_stats(gateways[0])
    print(f"\nThe upstream saw {stats['pictures']} pictures as sent, {stats['others']} changed.")
    return found


# One client -------------------------------------------------------------------------------------


async def text(gateways: list[Gateway], count: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind in ("whole", "stream"):
        seen = {each.name: Seen() for each in gateways}
        requests = {
            each.name: each.request("What is a bicycle?", stream=kind == "stream")
            for each in gateways
        }
        for turn in range(12):  # two to warm up
            if turn == 2:
                seen = {each.name: Seen() for each in gateways}
            for each in sorted(gateways, key=lambda g: g.name, reverse=bool(turn % 2)):
                asked, own = always(requests[each.name]), seen[each.name]
                with counted_cpu(each, own):
                    await ask_often(each, asked, own, clients=1, count=-(-count // 10))
        found[kind] = {name: own.numbers() for name, own in seen.items()}
        if kind == "stream":
            found["first token"] = {name: own.numbers("first") for name, own in seen.items()}
    titles = {
        "whole": "text, not streamed",
        "stream": f"text, streamed, {len(WORDS)} tokens",
        "first token": "its first token",
    }
    print(
        "| one client | | p50 ms | p95 | p99 | added p50 ms | p95 | p99 | CPU ms a request "
        "| added p50 against LiteLLM |"
    )
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for kind, by_name in found.items():
        direct, parts = by_name["upstream"], ("p50", "p95", "p99")
        peer = by_name.get("LiteLLM", direct)["p50"] - direct["p50"]
        for name, own in by_name.items():
            cells = [titles[kind], name, *(f"{1e3 * own[part]:.2f}" for part in parts)]
            if name == "upstream":
                cells += [""] * 5
            else:
                cells += [f"{1e3 * (own[part] - direct[part]):.2f}" for part in parts]
                cells += ["" if kind == "first token" else f"{1e3 * own['cpu']:.2f}"]
                cells += [ratio(own["p50"] - direct["p50"], peer)]
            print(f"| {' | '.join(cells)} |")
    print(f"\n{count} requests of each kind, in turns of {-(-count // 10)}.\n")
    return found


# Many clients -----------------------------------------------------------------------------------


async def many_pictures(
    gateways: list[Gateway], pictures: list[str], options: argparse.Namespace
) -> dict[str, Any]:
    requests = {each.name: picture_requests(each, pictures) for each in gateways}
    floor = picture_floor(pictures[0])
    found: dict[str, Any] = {"floor": floor}
    size = len(pictures[0]) / 1e6
    print(
        f"| {size:.1f} MB of base64, clients | | requests/s | p50 ms | p95 | CPU ms a request "
        "| requests/s against LiteLLM |"
    )
    print("|---:|---|---:|---:|---:|---:|---:|")
    for each in gateways:
        await ask_often(each, requests[each.name], Seen(), clients=4, count=16)
    for clients in options.clients:
        seen = {each.name: Seen() for each in gateways}
        for turn in range(options.rounds):
            for each in sorted(gateways, key=lambda g: g.name, reverse=bool(turn % 2)):
                seconds = options.seconds / options.rounds
                asked, own = requests[each.name], seen[each.name]
                with counted_cpu(each, own):
                    await ask_often(each, asked, own, clients=clients, seconds=seconds)
        found[str(clients)] = rows = {name: own.numbers() for name, own in seen.items()}
        for name, row in rows.items():
            rate, cpu = row["rate"], row["cpu"]
            peer = rows["LiteLLM"]["rate"] if "LiteLLM" in rows else 0
            print(
                f"| {clients} | {name} | {rate:.1f} | {1e3 * row['p50']:.1f} | "
                f"{1e3 * row['p95']:.1f} | {f'{1e3 * cpu:.1f}' if cpu else ''} | "
                f"{ratio(rate, peer) if name != 'upstream' else ''} |"
            )
    print(
        f"\nThe floor, of one core, is {1e3 * sum(floor.values()):.1f} ms a request: "
        + ", ".join(f"{name} {1e3 * each:.1f}" for name, each in floor.items())
        + ".\n"
    )
    return found


def always(request: bytes) -> Callable[[int], bytes]:
    return lambda _: request


def picture_requests(gateway: Gateway, pictures: list[str]) -> Callable[[int], bytes]:
    made = []
    for number, url in enumerate(pictures):
        question = {"type": "text", "text": f"What is in picture {number}?"}
        made.append(gateway.request([question, {"type": "image_url", "image_url": {"url": url}}]))
    return lambda number: made[number % len(made)]


def picture_floor(url: str) -> dict[str, float]:
    """Seconds for what no gateway is spared, each done alone."""
    body = json.dumps({"messages": [{"content": [{"image_url": {"url": url}}]}]}).encode()
    payload = url.partition(",")[2].encode()
    one, two = socket.socketpair()
    for each in (one, two):
        each.setblocking(False)

    def loopback() -> None:
        sent = received = 0
        while received < len(body):
            with contextlib.suppress(BlockingIOError):
                sent += one.send(memoryview(body)[sent:])
            with contextlib.suppress(BlockingIOError):
                received += len(two.recv(1 << 20))

    # A way in and a way out, of which the other ends' halves are not the gateway's.
    return {
        "in and out": fastest(loopback),
        "JSON": fastest(lambda: pydantic_core.from_json(body)),
        "base64": fastest(lambda: binascii.a2b_base64(payload)),
    }


def fastest(work: Callable[[], object], times: int = 20) -> float:
    best = float("inf")
    for _ in range(times):
        begun = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - begun)
    return best


# Memory -----------------------------------------------------------------------------------------


async def memory(gateways: list[Gateway], pictures: list[str], count: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    print("| 8 clients with pictures | MB before | half-way | at the end | kB a request |")
    print("|---|---:|---:|---:|---:|")
    for each in gateways:
        if each.pid is None:
            continue
        asked = picture_requests(each, pictures)
        sizes = [resident(each.pid)]
        for _ in range(20):
            await ask_often(each, asked, Seen(), clients=8, count=-(-count // 20))
            sizes.append(resident(each.pid))
        passed = np.arange(10, 21) * count / 20
        slope = float(np.polyfit(passed, sizes[10:], 1)[0])
        found[each.name] = {"bytes": sizes, "slope": slope}
        print(
            f"| {each.name} | {sizes[0] / 1e6:.0f} | {sizes[10] / 1e6:.0f} | {sizes[-1] / 1e6:.0f} "
            f"| {slope / 1e3:.1f} |"
        )
    print(f"\n{count} requests; the slope is of the second half.")
    return found


# Asking -----------------------------------------------------------------------------------------


@dataclass
class Seen:
    """What clients measured, in seconds. seconds: of all together; cpu: the server's."""

    whole: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    seconds: float = 0.0
    cpu: float = 0.0

    def numbers(self, what: str = "whole") -> dict[str, float]:
        """Percentiles of `what`, requests a second, and the server's CPU seconds a request."""
        cuts = statistics.quantiles(getattr(self, what), n=100, method="inclusive")
        count = len(self.whole)
        rate, cpu = count / self.seconds, self.cpu / count
        return {"p50": cuts[49], "p95": cuts[94], "p99": cuts[98], "rate": rate, "cpu": cpu}


class Connection(asyncio.Protocol):
    """A client that is itself cheap: ready bytes out, little done with what comes."""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError("The server has closed the connection."))

    _answer: asyncio.Future[None] | None = None

    async def ask(self, request: bytes, seen: Seen) -> None:
        self._parser, self._pieces, self._first = httptools.HttpResponseParser(self), [], 0.0
        self._answer = asyncio.get_running_loop().create_future()
        begun = time.perf_counter()
        self._transport.write(request)
        await self._answer
        seen.whole.append(time.perf_counter() - begun)
        seen.first.append(self._first - begun)
        body = b"".join(self._pieces)
        if self._parser.get_status_code() != 200 or FIRST not in body or LAST not in body:
            raise RuntimeError(f"{self._parser.get_status_code()} {body[:500]!r}")

    def on_body(self, piece: bytes) -> None:
        self._pieces.append(piece)
        if not self._first and FIRST in piece:
            self._first = time.perf_counter()

    def on_message_complete(self) -> None:
        assert self._answer is not None
        self._answer.set_result(None)

    def close(self) -> None:
        self._answer = None
        self._transport.close()


async def ask_often(
    gateway: Gateway,
    request: Callable[[int], bytes],
    seen: Seen,
    *,
    clients: int,
    count: int = sys.maxsize,
    seconds: float = float("inf"),
) -> None:
    """`count` requests, or as many as are begun in `seconds`, by so many clients at once."""
    numbers, begun = iter(range(count)), time.perf_counter()

    async def client() -> None:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, "127.0.0.1", gateway.port)
        while time.perf_counter() - begun < seconds and (n := next(numbers, None)) is not None:
            await connection.ask(request(n), seen)
        connection.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    seen.seconds += time.perf_counter() - begun


async def asked_stats(upstream: Gateway) -> dict[str, int]:
    reader, writer = await asyncio.open_connection("127.0.0.1", upstream.port)
    writer.write(b"GET /stats HTTP/1.1\r\nhost: x\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    stats: dict[str, int] = json.loads(await reader.readuntil(b"}"))
    writer.close()
    return stats


# What is measured -------------------------------------------------------------------------------


@contextlib.contextmanager
def started(folder: Path, files: list[Path], litellm: str | None) -> Iterator[list[Gateway]]:
    """The upstream and each gateway, every one a process, once they answer."""
    with contextlib.ExitStack() as running:
        port, path = free_port(), "/v1/chat/completions"
        mock = Path(__file__).parent / "mock_upstream.py"
        begin(running, folder, "upstream", [sys.executable, mock, port, *files], {})
        wait_for(port, "/")
        gateways = [
            Gateway("upstream", port, path, "gpt", "none"),
            chiasm_gateway(running, folder, port),
        ]
        if litellm:
            gateways.append(litellm_gateway(running, folder, port, litellm))
        yield gateways


def chiasm_gateway(running: contextlib.ExitStack, folder: Path, upstream: int) -> Gateway:
    settings = folder / "chiasm.toml"
    settings.write_text(
        'generator = ""\n[providers.mock]\nkind = "openai"\n'
        f'base_url = "http://127.0.0.1:{upstream}/v1"\nkey_variable = "MOCK_KEY"\n'
    )
    environment = {
        "CHIASM_CONFIG": str(settings),
        "CHIASM_DATA_DIR": str(folder / "data"),
        "MOCK_KEY": "sk-none",
    }
    port, run = free_port(), [sys.executable, "-m", "chiasm.cli"]
    made = subprocess.run(
        [*run, "keys", "create", "benchmark", "--json"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    key = json.loads(made.stdout)["key"]
    pid = begin(running, folder, "chiasm", [*run, "serve", "--port", port], environment)
    wait_for(port, "/readyz")
    return Gateway("chiasm", port, "/v1/chat/completions", "mock/gpt", key, pid)


def litellm_gateway(
    running: contextlib.ExitStack, folder: Path, upstream: int, python: str
) -> Gateway:
    config = {
        "model_list": [
            {
                "model_name": "gpt",
                "litellm_params": {
                    "model": "openai/gpt",
                    "api_base": f"http://127.0.0.1:{upstream}/v1",
                    "api_key": "sk-none",
                },
            }
        ],
        "litellm_settings": {"set_verbose": False, "request_timeout": 600},
        "general_settings": {"master_key": MASTER_KEY},
    }
    settings = folder / "litellm.yaml"
    settings.write_text(json.dumps(config))  # which is YAML, too
    port = free_port()
    pid = begin(
        running,
        folder,
        "LiteLLM",
        [Path(python).parent / "litellm", "--config", settings, "--port", port,
         "--host", "127.0.0.1", "--num_workers", 1],
        {"LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR"},
    )  # fmt: skip
    wait_for(port, "/health/readiness")
    return Gateway("LiteLLM", port, "/v1/chat/completions", "gpt", MASTER_KEY, pid)


def begin(
    running: contextlib.ExitStack,
    folder: Path,
    name: str,
    command: list[Any],
    environment: dict[str, str],
) -> int:
    process = subprocess.Popen(
        [str(each) for each in command],
        env={**os.environ, **environment},
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    running.callback(process.wait, 60)
    running.callback(process.terminate)
    return process.pid


def wait_for(port: int, path: str) -> None:
    """Until a GET there is answered with 200."""
    until = time.monotonic() + READY_SECONDS
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as to:
            to.sendall(f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n\r\n".encode())
            if b" 200 " in to.recv(100):
                return
        time.sleep(0.2)
    raise SystemExit(f"What should answer at port {port} does not.")


def made_pictures(folder: Path) -> list[Path]:
    """JPEGs of 1.5 MB and 7 megapixels, as from a camera but without metadata."""
    files = [folder / f"picture-{number}.jpg" for number in range(FILES)]
    quality = 95
    for number, file in enumerate(files):
        chance = np.random.default_rng(number)
        small = Image.fromarray(chance.integers(0, 256, (40, 60, 3), dtype=np.uint8))
        smooth = np.asarray(small.resize((3240, 2160), Image.Resampling.BICUBIC), dtype=np.int16)
        noise = chance.integers(-9, 10, (*smooth.shape[:2], 1), dtype=np.int16)
        picture = Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))
        picture.save(file, quality=quality)
        while number == 0 and file.stat().st_size > FILE_BYTES:
            quality -= 1
            picture.save(file, quality=quality)
    return files


def data_url(file: Path) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(file.read_bytes()).decode()


# The machine ------------------------------------------------------------------------------------


def family(pid: int) -> list[int]:
    """A process and all that it has started."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found


@contextlib.contextmanager
def counted_cpu(gateway: Gateway, seen: Seen) -> Iterator[None]:
    """What the gateway computes meanwhile is added to `seen`."""
    before = 0.0 if gateway.pid is None else cpu_seconds(gateway.pid)
    yield
    if gateway.pid is not None:
        seen.cpu += cpu_seconds(gateway.pid) - before


def cpu_seconds(pid: int) -> float:
    ticks = 0
    for each in family(pid):
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> int:
    """Bytes of memory that a process and its children have."""
    pages = sum(int(Path(f"/proc/{each}/statm").read_text().split()[1]) for each in family(pid))
    return pages * os.sysconf("SC_PAGE_SIZE")


def ratio(one: float, two: float) -> str:
    return f"**{one / two:.2f}×**" if two else ""


def versions(litellm: str | None) -> dict[str, str]:
    found = {"machine": machine(), "Python": platform.python_version(), "chiasm": version("chiasm")}
    found |= {name: version(name) for name in ("uvicorn", "openai")}
    if litellm:
        code = "from importlib.metadata import version as v; print(v('litellm'), v('uvicorn'))"
        done = subprocess.run([litellm, "-c", code], capture_output=True, text=True, check=True)
        found["LiteLLM"], found["its uvicorn"] = done.stdout.split()
    return found


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((x.partition(": ")[2] for x in lines if x.startswith("model name")), "")
    return f"{model or platform.machine()}, {os.cpu_count()} cores"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
