"""How soon an answer starts: the model's load, the first question about a picture, the second.

    python benchmarks/asking.py [--generator default-vlm] [--pictures 5] [--rounds 3]

Load: `load_generator` in a fresh process with the files in the cache, with and without the time
that importing torch takes. Questions: of each picture the first is asked of an engine that has
read nothing, so the picture is encoded and its tokens are read; then another one, for which keys
and values of all before the question are there already. Every second answer is compared with that
of an engine that has read nothing. Target: the second starts at least 5 times sooner.

The floor of a start is one reading of the weights: nothing can be said before that.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch

from chiasm.generation import Completed, Message, Request, TextDelta, Usage
from chiasm.generation.engine.runner import Runner
from chiasm.media import Image, open_image
from chiasm.models.generator import GeneratorCheckpoint, load_generator
from chiasm.settings import Settings

SAMPLE = Path(__file__).parents[1] / "src/chiasm/retrieval/sample"
FIRST = "What is in this picture?"
SECOND = "Is there a dog in this picture?"

LOAD = """
import json, sys, time
started = time.perf_counter()
import torch
imported = time.perf_counter()
from chiasm.models.generator import load_generator
from chiasm.settings import Settings
settings = Settings.load({"offline": True})
checkpoint = load_generator(
    sys.argv[1], cache_dir=settings.cache_dir, offline=True, catalogs=[settings.catalog]
)
done = time.perf_counter()
print(json.dumps([imported - started, done - imported]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generator", default="default-vlm")
    parser.add_argument("--pictures", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=5, help="fresh processes that load")
    options = parser.parse_args()

    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}; Python {platform.python_version()}, "
        f"torch {version('torch')}, chiasm {version('chiasm')}; {time.strftime('%Y-%m-%d')}\n"
    )
    print_loading(options.generator, options.runs)
    settings = Settings.load({"offline": True})
    checkpoint = load_generator(
        options.generator,
        cache_dir=settings.cache_dir,
        offline=True,
        catalogs=[settings.catalog],
    )
    print_questions(checkpoint, options.pictures, options.rounds)


def print_loading(name: str, runs: int) -> None:
    imports, loads = [], []
    for _ in range(runs):
        said = subprocess.run(
            [sys.executable, "-c", LOAD, name], capture_output=True, text=True, check=True
        )
        imported, loaded = json.loads(said.stdout)
        imports.append(imported)
        loads.append(loaded)
    print("| load from the cache, fresh process | s |")
    print("|---|---:|")
    print(f"| import torch | {statistics.median(imports):.2f} |")
    print(f"| load {name} | {statistics.median(loads):.2f} |\n")


def print_questions(checkpoint: GeneratorCheckpoint, pictures: int, rounds: int) -> None:
    paths = sorted(SAMPLE.glob("*.webp"))[:: max(1, 80 // pictures)][:pictures]
    images = [open_image(path) for path in paths]
    ask(Runner(checkpoint), images[0], FIRST)  # torch's own first time
    firsts, seconds, equal, usage = [], [], 0, None
    for _ in range(rounds):
        for image in images:
            runner = Runner(checkpoint)
            _, first = ask(runner, image, FIRST)
            again, second = ask(runner, image, SECOND)
            alone, _ = ask(Runner(checkpoint, prefix_bytes=0), image, SECOND)
            equal += again == alone
            firsts.append(first.seconds["first_token"])
            seconds.append(second.seconds["first_token"])
            usage = (first, second)
    assert usage is not None
    weights = sum(p.nbytes for p in checkpoint.decoder.parameters())
    floor = weights / bandwidth()
    first, second = statistics.median(firsts), statistics.median(seconds)
    print("| question | prompt tokens | read again | time to first token, s | floor s |")
    print("|---|---:|---:|---:|---:|")
    for name, spent, took in (("first", usage[0], first), ("second", usage[1], second)):
        read = spent.prompt_tokens - spent.cached_tokens
        print(f"| {name} | {spent.prompt_tokens} | {read} | {took:.3f} | {floor:.3f} |")
    asked = len(images) * rounds
    print(f"\nThe second starts {first / second:.1f} times sooner; medians of {asked}.")
    print(f"{equal} of {asked} second answers equal those without a cache.")


def ask(runner: Runner, image: Image, question: str) -> tuple[str, Usage]:
    request = Request((Message.user(image, question),), max_tokens=24)
    events = list(runner.run(request, arrived=None))
    assert isinstance(events[-1], Completed)
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    return text, events[-1].usage


def bandwidth() -> float:
    """Bytes a second that a sum over 512 MB reads; the best of five."""
    data = torch.ones(128 * 1024 * 1024)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        data.sum()
        best = min(best, time.perf_counter() - started)
    return data.nbytes / best


if __name__ == "__main__":
    main()
