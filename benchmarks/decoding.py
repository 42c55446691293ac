"""Time greedy decoding of one stream against `transformers.generate`, on the same fp32 weights.

    chiasm pull smollm2-135m-instruct
    python benchmarks/decoding.py

prints a Markdown table. Both read the same folder, and their tokens are compared before anything
counts. Rounds of the two alternate, so that a disturbance of the machine meets both. A token's time
is that from the token before it, so the prompt does not count; times are medians of all rounds'
tokens, and the ratio is that of the medians.

The floor is reading every weight once a token: their bytes over the speed at which this machine
was seen to read as many bytes that no cache holds.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import itertools
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from chiasm.models.cache import KeyValueCache
from chiasm.models.checkpoint import load_model, locate
from chiasm.models.decoder import Decoder
from chiasm.settings import Settings

PROMPT = (
    "<|im_start|>user\nTell me about the history of the bicycle, from the first ones to "
    "today's.<|im_end|>\n<|im_start|>assistant\n"
)
LOAD = """
import time
start = time.perf_counter()
from pathlib import Path
from chiasm.models.checkpoint import load_model
imported = time.perf_counter()
model = load_model(Path({folder!r}))
loaded = time.perf_counter()
model.fuse()
print(imported - start, loaded - imported, time.perf_counter() - loaded)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    folder = locate(arguments.model, cache_dir=Settings.load().cache_dir, offline=True)
    loads = [load_seconds(folder) for _ in range(3)]

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    plain, fused = network(folder), network(folder)
    fused.fuse()
    runs = {
        "chiasm": lambda *options: ours(fused, ids, *options),
        "chiasm, weights as in the file": lambda *options: ours(plain, ids, *options),
        "transformers": lambda *options: peer(theirs, ids, *options),
    }
    answers = {name: run(arguments.tokens, []) for name, run in runs.items()}
    if any(not torch.equal(answer, answers["transformers"]) for answer in answers.values()):
        raise SystemExit("The answers differ; nothing was timed.")

    busy = os.getloadavg()[0]
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(arguments.rounds):
        for name in sorted(runs, reverse=bool(number % 2)):
            stamps: list[float] = []
            runs[name](arguments.tokens, stamps)
            seconds[name] += [after - before for before, after in itertools.pairwise(stamps)]
    busy = max(busy, os.getloadavg()[0])
    bytes_ = sum(parameter.nbytes for parameter in fused.parameters())
    speed = reading_speed(bytes_)
    print(
        "| greedy decoding, one stream | tokens/s | ms a token | transformers / it | of the floor |"
    )
    print("|---|---:|---:|---:|---:|")
    for name, times in seconds.items():
        each = statistics.median(times)
        ratio = statistics.median(seconds["transformers"]) / each
        floor = bytes_ / speed
        print(
            f"| {name} | {1 / each:.1f} | {1e3 * each:.1f} | **{ratio:.2f}×** | "
            f"{floor / each:.0%} |"
        )
    print()
    imported, loaded, fuse = (statistics.median(each) for each in zip(*loads, strict=True))
    print(
        f"The same {arguments.tokens} tokens from each after a prompt of {ids.shape[1]}; medians "
        f"of {arguments.rounds} rounds. Floor {1e3 * bytes_ / speed:.1f} ms a token: "
        f"{bytes_ / 1e6:.0f} MB at {speed / 1e9:.1f} GB/s. Loading in a fresh process (median of "
        f"3): {loaded:.2f} s mapped from the cache, {fuse:.2f} s more to lay the weights out for "
        f"decoding, after {imported:.2f} s of imports."
    )
    print(
        f"{machine()}, {arguments.threads} threads, load average up to {busy:.1f}. "
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"chiasm {importlib.metadata.version('chiasm')}."
    )


def network(folder: Path) -> Decoder:
    model = load_model(folder)
    assert isinstance(model, Decoder)
    return model.requires_grad_(False)


@torch.inference_mode()
def ours(model: Decoder, ids: Tensor, count: int, stamps: list[float]) -> Tensor:
    """int64 [count]: what is likeliest after `ids`. stamps: gets the time of each token."""
    cache = KeyValueCache(model.config, capacity=ids.shape[1] + count)
    chosen: list[Tensor] = []
    while len(chosen) < count:
        hidden = model(model.embed(ids), cache=cache)
        ids = model.logits(hidden[:, -1:]).argmax(dim=-1)
        chosen.append(ids)
        stamps.append(time.perf_counter())
    return torch.cat(chosen, dim=1)[0]


def peer(model: Any, ids: Tensor, count: int, stamps: list[float]) -> Tensor:
    """The same from transformers."""

    def stamp(ids: Tensor, scores: Any, **_: Any) -> Tensor:
        stamps.append(time.perf_counter())
        return torch.zeros(len(ids), dtype=torch.bool)

    options = {"do_sample": False, "max_new_tokens": count, "min_new_tokens": count}
    made = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        eos_token_id=None,
        stopping_criteria=transformers.StoppingCriteriaList([stamp]),
        **options,
    )
    return made[0, ids.shape[1] :]


def reading_speed(bytes_: int) -> float:
    """Bytes a second that this machine was seen to read, the best of several ways and times."""
    rows = torch.ones(4096, bytes_ // 4 // 4096)
    row = torch.ones(1, 4096)
    best = float("inf")
    for _ in range(12):
        for read in (rows.sum, lambda: row @ rows):
            start = time.perf_counter()
            read()
            best = min(best, time.perf_counter() - start)
    return rows.nbytes / best


def load_seconds(folder: Path) -> list[float]:
    """Seconds in a fresh process: imports, `load_model`, `fuse`."""
    code = LOAD.format(folder=str(folder))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def machine() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{model}, {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
