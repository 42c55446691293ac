"""Indexing 12-megapixel photographs end to end, against the straightforward road.

    python benchmarks/indexing.py

Both take the same JPEG files (structure at every scale, grain, quality 90) from disk to a LanceDB
table with the same model. The straightforward road opens a file with Pillow, decodes it in full,
embeds it by itself and adds one row. `index_folder` also makes a thumbnail, a digest and a
perceptual hash, looks for duplicates, and syncs to the disk; it decodes at a quarter of the side,
embeds in batches, and does all of it at once. The two take turns; the ratio is the median of the
rounds' ratios.

The floor is decoding alone, at the scale that the embedder needs, on all cores.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lancedb
import numpy as np
import PIL.Image
import pyarrow as pa
from decode import machine, photograph

from chiasm.media import Image, open_image
from chiasm.retrieval import Embedder, Library, index_folder, load_embedder
from chiasm.settings import Settings

SIZE = (4000, 3000)


def straightforward(paths: list[Path], embedder: Embedder, folder: Path) -> float:
    schema = pa.schema(
        [("path", pa.string()), ("vector", pa.list_(pa.float32(), embedder.dimension))]
    )
    table = lancedb.connect(folder).create_table("pictures", schema=schema)
    started = time.perf_counter()
    for path in paths:
        pixels = np.asarray(PIL.Image.open(path).convert("RGB"))
        image = Image(pixels, original_size=(pixels.shape[1], pixels.shape[0]))
        vector = embedder.embed_images([image])[0]
        table.add([{"path": str(path), "vector": vector}])
    return time.perf_counter() - started


def ours(folder: Path, embedder: Embedder, data: Path, settings: Settings) -> float:
    collection = Library(data, embedder).create("pictures")
    started = time.perf_counter()
    report = index_folder(folder, collection, settings=settings)
    seconds = time.perf_counter() - started
    assert report.added == report.total, report
    return seconds


def decode_alone(paths: list[Path], side: int) -> float:
    started = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda path: open_image(path, shortest_side=side).size, paths))
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=64, help="a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--embedder", default="default")
    options = parser.parse_args()
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("chiasm", "pillow", "lancedb", "torch")
    )
    print(f"{machine()}; {time.strftime('%Y-%m-%d')}")
    print(f"Python {platform.python_version()}, {versions}\n")

    settings = Settings.load({"embedder": options.embedder})
    embedder = load_embedder(settings)
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        paths = make_photographs(home / "photographs", options.pictures)
        megabytes = sum(path.stat().st_size for path in paths) / len(paths) / 1e6
        embedder.embed_images([open_image(paths[0], shortest_side=embedder.decode_side)] * 2)
        times = [
            (
                straightforward(paths, embedder, home / f"peer-{number}"),
                ours(home / "photographs", embedder, home / f"data-{number}", settings),
                decode_alone(paths, embedder.decode_side),
            )
            for number in range(options.rounds)
        ]
    rates = [[len(paths) / seconds for seconds in row] for row in times]
    peer, mine, floor = (statistics.median(column) for column in zip(*rates, strict=True))
    ratio = statistics.median(row[1] / row[0] for row in rates)
    print(
        f"{options.pictures} photographs of {SIZE[0]} × {SIZE[1]}, {megabytes:.1f} MB each; "
        f"{options.rounds} rounds; embedder {embedder.name}\n"
    )
    print("| | images/s | ratio |")
    print("|---|---:|---:|")
    print(f"| straightforward: Pillow in full, one at a time | {peer:.1f} | 1.0× |")
    print(f"| chiasm, `index_folder` | {mine:.1f} | {ratio:.1f}× |")
    print(f"| decoding alone (floor) | {floor:.1f} | {floor / peer:.1f}× |")


def make_photographs(folder: Path, count: int) -> list[Path]:
    """Some pictures, each in its eight orientations: different ones to a model and to a hash."""
    folder.mkdir()
    paths = []
    for number in range(count):
        turn = number % (1 + len(PIL.Image.Transpose))
        if turn == 0:
            upright = photograph(SIZE, seed=number)
        picture = upright.transpose(PIL.Image.Transpose(turn - 1)) if turn else upright
        path = folder / f"{number:04d}.jpg"
        picture.save(path, quality=90)
        paths.append(path)
    return paths


if __name__ == "__main__":
    main()
