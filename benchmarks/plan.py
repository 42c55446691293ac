"""How long a plan takes: of one picture over thirty models, of a request on its way, of a fit.

    python benchmarks/plan.py [--requests 2000]

Prints the median and the 95th percentile, and microseconds a rule. Every plan is of a size that
was not seen before, so that nothing is remembered; the planner is warm, as in a server. The goals
are 5 ms a plan of thirty models, 100 µs an estimate of text, 300 µs one with a picture.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from chiasm.generation import ImagePart, Message, Request, TextPart
from chiasm.media.encoded import EncodedImage
from chiasm.operations.plan import Picture, Planner
from chiasm.settings import Settings

MODELS = 30
PROMPT = "What is in this picture? Answer in one sentence, and say how sure you are."


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--requests", type=int, default=2000)
    count = arguments.parse_args().requests
    folder = Path(tempfile.mkdtemp())
    planner = Planner(Settings(cache_dir=folder, data_dir=folder))
    models = planner.models.default[:MODELS]
    planner.plan([Picture(640, 480)], PROMPT)  # the first one imports the list of prices
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
          f"genai-prices {version('genai-prices')}, load {os.getloadavg()[0]:.1f}\n")  # fmt: skip
    print(f"{'':58} {'median':>9} {'95 %':>9}")

    few = max(20, count // 20)
    show(f"plan, 1 picture × {MODELS} models, default detail", few,
         lambda n: planner.plan([new(n)], PROMPT, models=models, details=["auto"]))  # fmt: skip
    show(f"plan, 1 picture × all {len(planner.models.default)} models, every detail", few,
         lambda n: planner.plan([new(n + 5_000)], PROMPT))  # fmt: skip
    words = "Describe the drawing in the order of its numbers, and what each part is for. "
    for target in ("openai/gpt-5-mini", "anthropic/claude-opus-4-7"):
        show(f"estimate {target}, text of 300 letters", count,
             lambda n, t=target: planner.estimate(t, asked(f"{n} " + words * 4)))  # fmt: skip
        show(f"estimate {target}, text of 30,000 letters", count // 4,
             lambda n, t=target: planner.estimate(t, asked(f"{n} " + words * 400)))  # fmt: skip
        show(f"estimate {target}, text and a picture", count,
             lambda n, t=target: planner.estimate(t, asked(PROMPT, size_of(n))))  # fmt: skip
        show(f"fit {target}, one picture to 500 tokens", few,
             lambda n, t=target: planner.fit(t, asked(PROMPT, size_of(n), tokens=500)))  # fmt: skip
        show(f"fit {target}, three pictures to 900 tokens", few,
             lambda n, t=target: planner.fit(t, asked(PROMPT, *three(n), tokens=900)))  # fmt: skip
    rules(planner, count)
    print(f"\n`chiasm plan`, a fresh process: {start(folder):.2f} s of processor time")


def show(what: str, count: int, work: Callable[[int], Any]) -> None:
    """One line of the table."""
    times = []
    for number in range(count):
        begun = time.perf_counter()
        work(number)
        times.append(time.perf_counter() - begun)
    times.sort()
    middle, late = times[count // 2], times[int(count * 0.95)]
    print(f"{what:58} {shown(middle)} {shown(late)}")


def rules(planner: Planner, count: int) -> None:
    """Each family's arithmetic alone."""
    print(f"\n{'one picture, by its rule':58} {'median':>9}")
    seen = set()
    for target in planner.models.default:
        rule = planner.models.find(target).rule
        if rule is None or rule.family in seen:
            continue
        seen.add(rule.family)
        times = []
        for number in range(count):
            begun = time.perf_counter()
            rule.cost(*size_of(number))
            times.append(time.perf_counter() - begun)
        print(f"{rule.family:58} {shown(sorted(times)[count // 2])}")


def start(folder: Path) -> float:
    """Seconds of processor time of the whole command, the second time on a day."""
    environment = {**os.environ, "CHIASM_CACHE_DIR": str(folder), "CHIASM_DATA_DIR": str(folder)}
    command = [sys.executable, "-m", "chiasm.cli", "plan", "--size", "1920x1080", "--json"]
    spent = []
    for _ in range(4):
        before = os.times()
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        after = os.times()
        spent.append(after.children_user + after.children_system
                     - before.children_user - before.children_system)  # fmt: skip
    return min(spent[1:])


def shown(seconds: float) -> str:
    return f"{seconds * 1e3:6.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:6.1f} µs"


def size_of(number: int) -> tuple[int, int]:
    return 640 + number * 7 % 3000, 480 + number * 13 % 2500


def three(number: int) -> list[tuple[int, int]]:
    return [size_of(each) for each in (number, number + 7, number + 9)]


def new(number: int) -> Picture:
    return Picture(*size_of(number))


def asked(text: str, *sizes: tuple[int, int], tokens: int | None = None) -> Request:
    parts = [ImagePart(EncodedImage(b"", "a", "JPEG", size)) for size in sizes]
    return Request((Message("user", (TextPart(text), *parts)),), max_image_tokens=tokens)


if __name__ == "__main__":
    main()
