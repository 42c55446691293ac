"""The contrastive losses alone: seconds and memory of a forward and a backward pass.

    python benchmarks/losses.py                         # to 32,768 pairs; about 18 GB of memory
    python benchmarks/losses.py --sizes 65536 131072    # tiled only; long
    python benchmarks/losses.py --check                 # values and gradients beside open_clip's

Unit embeddings in 512 dimensions, fp32, learned scale (and bias). Contenders are the plain form,
the tiled form and, where it can be imported, open_clip's `ClipLoss` and `SigLipLoss`; its
environment is described in benchmarks/requirements.txt. Each case runs in a fresh process, and the
contenders take turns, so that a busy moment of the machine hits all alike. Memory is the highest
resident size less that before the loss, the gradients of the embeddings included. Seconds are those
of the clock and those of both cores' work; where other work shares the machine, the second says
more. The floor is the arithmetic of the matrix products (three of 2·N²·d operations, four for the
tiled softmax, which makes the logits twice) at the fastest rate measured in any of the processes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from decode import machine
from torch import Tensor

import chiasm
from chiasm.training.losses import sigmoid_loss, softmax_loss
from chiasm.training.tiled import DEFAULT_TILE

SIZES = [1024, 4096, 8192, 16_384, 32_768]
# Four and five matrices of N² numbers: 17 GB for the plain softmax, 21 GB for open_clip's sigmoid.
UP_TO = {"plain": 32_768, "open_clip": 16_384}
DIMENSION = 512
SCALE, BIAS = 30.0, -10.0
LOSSES = ("softmax", "sigmoid")
# Of the products of embeddings and logits, each of 2·N²·d operations.
PRODUCTS = {"tiled softmax": 4}


def embeddings(count: int) -> tuple[Tensor, Tensor]:
    """Two matrices float32 [count, DIMENSION], unit length; pairs have a cosine of about 0.1."""
    torch.manual_seed(0)
    images = F.normalize(torch.randn(count, DIMENSION), dim=1)
    texts = F.normalize(torch.randn(count, DIMENSION), dim=1).mul_(10).add_(images)
    return images.requires_grad_(), F.normalize(texts, dim=1).requires_grad_()


def function(name: str, loss: str, tile: int) -> Callable[..., Tensor]:
    """`loss` as the contender `name` computes it, of images, texts, scale and bias."""
    if name == "open_clip":
        losses = import_open_clip().loss
        theirs: Any = losses.ClipLoss() if loss == "softmax" else losses.SigLipLoss()
        return theirs  # type: ignore[no-any-return]
    ours: Any = softmax_loss if loss == "softmax" else sigmoid_loss
    side = tile if name == "tiled" else None
    return lambda *given: ours(*given, tile=side)


def import_open_clip() -> Any:
    import embedding  # which brings far more than the other contenders shall carry

    return embedding.import_open_clip()


def numbers(loss: str) -> list[Tensor]:
    given = [torch.tensor(SCALE, requires_grad=True)]
    return given + ([torch.tensor(BIAS, requires_grad=True)] if loss == "sigmoid" else [])


# One case, in a process of its own --------------------------------------------------------------


def one_case(name: str, loss: str, size: int, tile: int) -> dict[str, float]:
    run = function(name, loss, tile)
    few = [part[:64].detach().clone().requires_grad_() for part in embeddings(64)]
    run(*few, *numbers(loss)).backward()  # what is loaded at the first use is nobody's cost
    images, texts = embeddings(size)
    rate = product_rate()
    given = [images, texts, *numbers(loss)]
    before = forget_peak()
    work, clock = time.process_time(), time.perf_counter()
    run(*given).backward()
    seconds, work = time.perf_counter() - clock, time.process_time() - work
    peak = peak_bytes() - before
    repeats = max(1, min(20, (8192 // size) ** 2))
    for _ in range(repeats - 1):
        images.grad = texts.grad = None
        clock, busy = time.perf_counter(), time.process_time()
        run(*given).backward()
        seconds = min(seconds, time.perf_counter() - clock)
        work = min(work, time.process_time() - busy)
    return {"seconds": seconds, "work": work, "peak": peak, "rate": rate}


def product_rate() -> float:
    """Operations a second of a large product, the best of several."""
    left, right = torch.rand(2048, DIMENSION), torch.rand(2048, DIMENSION)
    out = torch.empty(2048, 2048)
    best = float("inf")
    for _ in range(20):
        started = time.perf_counter()
        torch.mm(left, right.T, out=out)
        best = min(best, time.perf_counter() - started)
    return 2 * 2048 * 2048 * DIMENSION / best


def forget_peak() -> int:
    """The resident size now, in bytes, from which on the peak counts (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak_bytes()


def peak_bytes() -> int:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# All of them ------------------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> None:
    print(f"{machine()}; {time.strftime('%Y-%m-%d')}")
    print(f"Python {platform.python_version()}, torch {torch.__version__}, {present()}")
    print(f"chiasm {chiasm.__version__}; {options.threads} threads, tile {options.tile}")
    print(f"{options.rounds} rounds, medians")
    contenders = ["plain", "tiled"] + (["open_clip"] if has_open_clip() else [])
    print("\n| loss | N | form | s | core-s | against plain | core-s against plain ", end="")
    print("| against open_clip | floor s | peak MB | plain / peak |")
    print("|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for size in options.sizes:
        for loss in options.losses:
            names = [name for name in contenders if size <= UP_TO.get(name, size)]
            found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
            for turn in range(options.rounds):
                for name in names if turn % 2 == 0 else reversed(names):
                    found[name].append(in_process(name, loss, size, options))
            rows(loss, size, found)


def rows(loss: str, size: int, found: dict[str, list[dict[str, float]]]) -> None:
    rate = max(one["rate"] for all_of in found.values() for one in all_of)
    for name, mine in found.items():
        products = PRODUCTS.get(f"{name} {loss}", 3)
        cells = [
            f"{statistics.median(one['seconds'] for one in mine):.3g}",
            f"{statistics.median(one['work'] for one in mine):.3g}",
            ratio(found.get("plain"), mine, "seconds"),
            ratio(found.get("plain"), mine, "work"),
            ratio(found.get("open_clip"), mine, "seconds"),
            f"{products * 2 * size * size * DIMENSION / rate:.3g}",
            f"{max(one['peak'] for one in mine) / 1e6:,.0f}",
            ratio(found.get("plain"), mine, "peak"),
        ]
        print(f"| {loss} | {size:,} | {name} | {' | '.join(cells)} |", flush=True)


def ratio(other: list[dict[str, float]] | None, mine: list[dict[str, float]], what: str) -> str:
    """How many times more the other takes: the median over the rounds."""
    if other is None:
        return ""
    each = [there[what] / here[what] for there, here in zip(other, mine, strict=True)]
    return f"{statistics.median(each):.2f}×"


def in_process(name: str, loss: str, size: int, options: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--case", name, loss, str(size)]
    command += ["--tile", str(options.tile), "--threads", str(options.threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} {loss} at {size}: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.splitlines()[-1])


def has_open_clip() -> bool:
    try:
        import_open_clip()
    except ImportError:
        return False
    return True


def present() -> str:
    return f"open_clip {import_open_clip().__version__}" if has_open_clip() else "no open_clip"


# Equality ---------------------------------------------------------------------------------------


def check() -> None:
    """The largest relative differences of value and gradients from open_clip's."""
    print(f"torch {torch.__version__}, {present()}")
    print("\n| loss | N | scale | form | value | images | texts | scale | bias |")
    print("|---|---:|---:|---|---:|---:|---:|---:|---:|")
    for loss in LOSSES:
        for size in (7, 500, 2048):
            for scale in (1.0, 14.3, 100.0):
                theirs = results(function("open_clip", loss, 0), loss, size, scale)
                for name, tile in (("plain", 0), ("tiled", 64), ("tiled", 1024)):
                    ours = results(function(name, loss, tile), loss, size, scale)
                    cells = [
                        f"{float((a - b).abs().max() / b.abs().max()):.1e}"
                        for a, b in zip(ours, theirs, strict=True)
                    ]
                    form = f"{name} {tile}" if tile else name
                    cells += [""] * (5 - len(cells))
                    print(f"| {loss} | {size} | {scale:g} | {form} | {' | '.join(cells)} |")


def results(run: Callable[..., Tensor], loss: str, size: int, scale: float) -> list[Tensor]:
    given = [*embeddings(size), torch.tensor(scale, requires_grad=True)]
    if loss == "sigmoid":
        given.append(torch.tensor(BIAS, requires_grad=True))
    value = run(*given)
    value.backward()
    return [value.detach(), *(one.grad for one in given if one.grad is not None)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=LOSSES)
    parser.add_argument("--tile", type=int, default=DEFAULT_TILE)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--case", nargs=3, metavar=("FORM", "LOSS", "N"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.case:
        name, loss, size = options.case
        print(json.dumps(one_case(name, loss, int(size), options.tile)))
    elif options.check:
        check()
    else:
        measure(options)


if __name__ == "__main__":
    main()
