"""Decoding JPEG photographs on the way to a model: scaled decoding against the full one.

    python benchmarks/decode.py

For each size: Pillow's full decode and a resize to 224, against `open_image` at the side that an
embedder with 224-pixel input asks for (448) and the same resize. Both start from the same bytes in
memory and run alternately in one thread; times are medians. The error is the mean absolute
difference of the two results, of 255. The floor is the entropy decoding that no scale can avoid:
`open_image` at an eighth.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.features
import PIL.Image

import chiasm
from chiasm.media import open_image, resize

MODEL_SIDE = 224
DECODE_SIDE = 2 * MODEL_SIDE
SIZES = {1: (1152, 864), 3: (2000, 1500), 6: (2828, 2121), 12: (4000, 3000)}


def photograph(size: tuple[int, int], seed: int) -> PIL.Image.Image:
    """Structure at every scale and some grain, so that it compresses as a photograph does."""
    width, height = size
    rng = np.random.default_rng(seed)
    total = np.full((height, width, 3), 127.0, dtype=np.float32)
    for octave in range(2, 11):
        cells = (2**octave * 3 // 4, 2**octave)
        grey = rng.normal(size=(*cells, 1)) + 0.3 * rng.normal(size=(*cells, 3))
        coarse = np.clip(127 + 48 * grey, 0, 255).astype(np.uint8)
        layer = PIL.Image.fromarray(coarse).resize(size, PIL.Image.Resampling.BICUBIC)
        total += (np.asarray(layer, dtype=np.float32) - 127) * 1.2 ** (4 - octave)
    for _ in range(40):  # things with edges
        left, top = rng.integers(0, width), rng.integers(0, height)
        right, bottom = left + rng.integers(9, width // 5), top + rng.integers(9, height // 5)
        total[top:bottom, left:right] += rng.normal(0, 40, 3)
    total += rng.normal(0, 2.5, (height, width, 1))
    return PIL.Image.fromarray(np.clip(total, 0, 255).astype(np.uint8))


def encoded(size: tuple[int, int], seed: int) -> bytes:
    buffer = io.BytesIO()
    photograph(size, seed).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def full(data: bytes) -> np.ndarray:
    picture = PIL.Image.open(io.BytesIO(data)).convert("RGB")
    side = (MODEL_SIDE, MODEL_SIDE)
    return np.asarray(picture.resize(side, PIL.Image.Resampling.BICUBIC))


def scaled(data: bytes) -> np.ndarray:
    return resize(open_image(data, shortest_side=DECODE_SIDE), (MODEL_SIDE, MODEL_SIDE))


def floor(data: bytes) -> np.ndarray:
    return open_image(data, shortest_side=1).pixels


def milliseconds(
    functions: list[Callable[[bytes], np.ndarray]], data: bytes, rounds: int
) -> list[float]:
    """Median time of each function; they take turns, so that a busy moment hits all alike."""
    times: list[list[float]] = [[] for _ in functions]
    for round_number in range(rounds + 1):
        for number, function in enumerate(functions):
            started = time.perf_counter()
            function(data)
            if round_number:  # the first one warms up
                times[number].append(1000 * (time.perf_counter() - started))
    return [statistics.median(taken) for taken in times]


def machine() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.split(":")[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{model}, {os.cpu_count()} cores, {platform.system()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    print(f"{machine()}; {time.strftime('%Y-%m-%d')}")
    print(
        f"Python {platform.python_version()}, Pillow {PIL.__version__} "
        f"(libjpeg-turbo {PIL.features.version_feature('libjpeg_turbo')}), "
        f"numpy {np.__version__}, chiasm {chiasm.__version__}\n"
    )
    print("|  MP | file MB | Pillow, full ms | open_image ms | ratio | error /255 | floor ms |")
    print("|----:|--------:|----------------:|--------------:|------:|-----------:|---------:|")
    for megapixels, size in SIZES.items():
        data = encoded(size, seed=megapixels)
        before, after, least = milliseconds([full, scaled, floor], data, rounds)
        error = np.abs(full(data).astype(int) - scaled(data)).mean()
        print(
            f"| {megapixels:>3} | {len(data) / 1e6:7.1f} | {before:15.1f} | {after:13.1f} "
            f"| {before / after:4.1f}× | {error:10.2f} | {least:8.1f} |"
        )


if __name__ == "__main__":
    main()
