"""Searching one collection: chiasm's store against plain numpy and against LanceDB's flat search.

    python benchmarks/search.py                    # 100,000 × 512
    python benchmarks/search.py --size 1000000     # and the index on disk; about 10 GB of memory

Vectors are clustered, as pictures are: 1,000 centres, queries near them. Every search gives ten
items, with their metadata for chiasm and LanceDB, with row numbers alone for numpy. The contenders
take turns, query by query, so that a busy moment hits all alike. Recall is against exact search in
single precision. The filters keep 8 % and 50 % of the items.

The floor is what reading the vectors once takes, in half precision, by the fastest read seen.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from decode import machine

from chiasm.retrieval import filters, lance_index
from chiasm.retrieval.lance_store import LanceStore
from chiasm.retrieval.store import Item, Record, timestamp

K = 10
CENTRES = 1000
BUCKETS = 100
FILTERS = {"none": None, "8 %": 8, "50 %": 50}


@dataclass
class Contender:
    name: str
    search: Callable[[np.ndarray, int | None], list[int]]
    note: str = ""
    times: dict[str, list[float]] = field(default_factory=dict)
    recalls: dict[str, list[float]] = field(default_factory=dict)


def clustered(count: int, dimension: int, rng: np.random.Generator) -> np.ndarray:
    """float32 [count, dimension], unit length."""
    centres = np.random.default_rng(1).standard_normal((CENTRES, dimension), dtype=np.float32)
    vectors = np.empty((count, dimension), np.float32)
    for start in range(0, count, 50_000):
        part = vectors[start : start + 50_000]
        part[:] = rng.standard_normal(part.shape, dtype=np.float32)
        part += centres[rng.integers(0, CENTRES, len(part))]
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return vectors


def fill(folder: Path, vectors: np.ndarray, buckets: np.ndarray) -> LanceStore:
    LanceStore.create(folder, vectors.shape[1])
    store = LanceStore(folder, vectors.shape[1], exact_bytes=0)
    for start in range(0, len(vectors), 20_000):
        store.insert(
            [
                Record(
                    item=Item(
                        id=f"{row:012d}",
                        digest=f"{row:064x}",
                        source=f"/pictures/{row // 1000}/{row}.jpg",
                        text=f"a picture called {row}",
                        metadata={"bucket": int(buckets[row]), "name": f"name {row}"},
                        width=4000,
                        height=3000,
                        added_at=timestamp(row),
                    ),
                    vector=vectors[row],
                    thumbnail=b"",
                    perceptual_hash=row,
                    picture="source",
                )
                for row in range(start, min(start + 20_000, len(vectors)))
            ]
        )
    return store


def numpy_search(vectors: np.ndarray, buckets: np.ndarray) -> Callable[..., list[int]]:
    def search(query: np.ndarray, below: int | None) -> list[int]:
        scores = vectors @ query
        if below is not None:
            scores[buckets >= below] = -np.inf
        best = np.argpartition(scores, -K)[-K:]
        return best[np.argsort(-scores[best])].tolist()

    return search


def chiasm_search(store: LanceStore) -> Callable[..., list[int]]:
    def search(query: np.ndarray, below: int | None) -> list[int]:
        condition = None if below is None else filters.parse({"bucket": {"lt": below}})
        return [int(hit.id) for hit in store.search(query, limit=K, condition=condition)]

    return search


def lance_search(folder: Path, vectors: np.ndarray, buckets: np.ndarray) -> Callable[..., Any]:
    """LanceDB by itself, with the bucket as a column of its own."""
    import lancedb
    import pyarrow as pa

    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    columns = {"id": np.arange(len(vectors)), "bucket": buckets, "vector": flat}
    table = lancedb.connect(folder).create_table("peer", pa.table(columns))

    def search(query: np.ndarray, below: int | None) -> list[int]:
        wanted = table.search(query).distance_type("dot").select(["id", "_distance"]).limit(K)
        if below is not None:
            wanted = wanted.where(f"bucket < {below}", prefilter=True)
        return wanted.to_arrow()["id"].to_pylist()

    return search


def read_gigabytes_per_second() -> float:
    numbers = torch.ones(64 * 1024 * 1024)
    best = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        numbers.sum()
        best = min(best, time.perf_counter() - started)
    return numbers.nbytes / best / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--index", action="store_true", help="also below a million: the index")
    options = parser.parse_args()
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("chiasm", "lancedb", "numpy", "torch")
    )
    print(f"{machine()}; {time.strftime('%Y-%m-%d')}")
    print(f"Python {platform.python_version()}, {versions}\n")

    rng = np.random.default_rng(0)
    vectors = clustered(options.size, options.dimension, rng)
    queries = clustered(options.queries, options.dimension, rng)
    buckets = rng.integers(0, BUCKETS, options.size)
    exact = numpy_search(vectors, buckets)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "collection"
        folder.mkdir()
        on_disk = fill(folder, vectors, buckets)
        started = time.perf_counter()
        in_memory = LanceStore(folder, options.dimension, exact_bytes=2**40)
        in_memory.count()
        loading = time.perf_counter() - started
        contenders = [
            Contender("chiasm, in memory", chiasm_search(in_memory), f"loaded in {loading:.1f} s"),
            Contender("numpy, exact", exact),
            Contender("LanceDB, flat", lance_search(Path(temporary), vectors, buckets)),
        ]
        if options.index or options.size >= 1_000_000:
            started = time.perf_counter()
            on_disk.tidy()
            plan = lance_index.read_plan(folder)
            building = f"index built and tested in {time.perf_counter() - started:.0f} s"
            note = f"{building}, {plan}" if plan else f"{building}: not good enough, flat"
            contenders.insert(1, Contender("chiasm, on disk", chiasm_search(on_disk), note))
        measure(contenders, exact, queries)

    floor = options.size * options.dimension * 2 / read_gigabytes_per_second() / 1e6
    print(
        f"{options.size:,} × {options.dimension}, {options.queries} queries; floor {floor:.1f} ms\n"
    )
    print("| | filter keeps | p50 ms | p95 ms | recall@10 | p50 against numpy |")
    print("|---|---|---:|---:|---:|---:|")
    peer = next(one for one in contenders if one.name.startswith("numpy"))
    for one in contenders:
        for name in FILTERS:
            middle = statistics.median(one.times[name])
            late = float(np.quantile(one.times[name], 0.95))
            ratio = statistics.median(peer.times[name]) / middle
            print(
                f"| {one.name} | {name} | {middle:.1f} | {late:.1f} "
                f"| {statistics.mean(one.recalls[name]):.3f} | {ratio:.1f}× |"
            )
    for one in contenders:
        if one.note:
            print(f"\n{one.name}: {one.note}")


def measure(
    contenders: list[Contender], exact: Callable[..., list[int]], queries: np.ndarray
) -> None:
    for one in contenders:  # the first search loads and builds what later ones use
        for below in FILTERS.values():
            one.search(queries[0], below)
    for query in queries:
        for name, below in FILTERS.items():
            truth = set(exact(query, below))
            for one in contenders:
                started = time.perf_counter()
                found = one.search(query, below)
                one.times.setdefault(name, []).append(1000 * (time.perf_counter() - started))
                one.recalls.setdefault(name, []).append(len(truth & set(found)) / len(truth))


if __name__ == "__main__":
    main()
