"""The approximate index of a collection too large for exact search in memory, and its search.

An index is used only after it has been asked: for a sample of the collection's own vectors its
ten nearest neighbours must be, on average, at least 95 % of those that exact search finds. More
partitions are probed and more candidates are compared exactly, step by step, until that is so.
When no step suffices the collection is searched flat: slowly, but rightly.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from chiasm.retrieval.exact import Rows
from chiasm.retrieval.filters import Mask
from chiasm.retrieval.lance import IvfRq
from chiasm.retrieval.lance_rows import vectors_on_disk
from chiasm.retrieval.resident import ResidentRows, vectors_of
from chiasm.retrieval.store import Vectors

RECALL = 0.95
NEIGHBOURS = 10
# Fewer rows are read in a few milliseconds: no index is worth its errors.
MIN_ROWS = 20_000
# A filter that leaves no more rows than this is answered by comparing exactly those.
GATHER_ROWS = 2048

_SAMPLE = 64
_GROWTH_BEFORE_REBUILD = 1.5
_PLAN = "index.json"
# (share of the partitions that are probed, candidates compared exactly for each one asked for)
_STEPS = ((0.02, 5), (0.04, 10), (0.08, 10), (0.16, 20), (0.32, 40), (0.75, 100))


@dataclass(frozen=True)
class Plan:
    """How to ask the index, and what it found when it was tested. rows: at that time."""

    nprobes: int
    refine_factor: int
    recall: float
    rows: int
    passed: bool


def read_plan(folder: Path) -> Plan | None:
    """The plan to search by; None when there is no index that passed."""
    plan = _read(folder)
    return plan if plan is not None and plan.passed else None


def is_due(folder: Path, rows: int) -> bool:
    """Whether there is no index yet, or the collection has outgrown it."""
    if rows < MIN_ROWS:
        return False
    plan = _read(folder)
    return plan is None or rows > plan.rows * _GROWTH_BEFORE_REBUILD


def build(table: Any, folder: Path, dimension: int) -> Plan:
    """Build the index, find the cheapest step that passes, and write the plan down."""
    rows = table.count_rows()
    partitions = max(1, round(rows**0.5))
    # Sums in one bit a dimension (RaBitQ): small and quick to build; the exact vectors refine.
    table.create_index(
        "vector",
        config=IvfRq(distance_type="dot", num_partitions=partitions),
        replace=True,
    )
    queries = _sample(table, rows)
    truth = exact_neighbours(table, queries, dimension)
    plan = Plan(0, 0, 0.0, rows, False)
    for share, refine in _STEPS:
        trial = Plan(max(8, round(partitions * share)), refine, 0.0, rows, False)
        found = [set(query(table, one, NEIGHBOURS + 1, trial)["id"].to_pylist()) for one in queries]
        hits = [len(a & b) / len(b) for a, b in zip(found, truth, strict=True)]
        recall = float(np.mean(hits))
        plan = Plan(trial.nprobes, refine, recall, rows, recall >= RECALL)
        if plan.passed:
            break
    partial = folder / f"{_PLAN}.partial"
    partial.write_text(json.dumps(asdict(plan)))
    os.replace(partial, folder / _PLAN)  # noqa: PTH105 (the atomic one, by its own name)
    return plan


def search(
    table: Any,
    folder: Path,
    rows: ResidentRows,
    vector: Vectors,
    wanted: int,
    mask: Mask | None,
    *,
    size: int,
) -> tuple[Rows, Vectors]:
    """The nearest rows and their cosines, by the index where it passed its test, else flat.

    A filter is applied to what comes back, and how many to ask for follows from the share of
    rows that satisfy it. Where few rows do, those are compared exactly. Where too few came
    back, because the filter and the query point to different places, more are asked for, at
    last all. mask: bool [size]. Rows from `size` on came after the mask was made.
    """
    living = rows.living
    matching = living if mask is None else int(np.count_nonzero(mask))
    wanted = min(wanted, matching)
    if wanted == 0:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    asked = wanted
    if mask is not None:
        if matching <= GATHER_ROWS:
            return _compare(table, rows, vector, wanted, np.flatnonzero(mask))
        asked = min(living, int(wanted * living / matching * 1.5) + 16)
    plan = read_plan(folder)
    while True:
        found = query(table, vector, asked, plan)
        numbers = [rows.row_of.get(id, -1) for id in found["id"].to_pylist()]
        candidates = np.array(numbers, np.int64)
        scores = 1.0 - found["_distance"].to_numpy()
        candidates[candidates >= size] = -1
        kept = candidates >= 0
        if mask is not None:
            kept &= mask[candidates]
        if np.count_nonzero(kept) >= wanted or asked >= living:
            return candidates[kept][:wanted], scores[kept][:wanted].astype(np.float32)
        plan = None if asked >= GATHER_ROWS else plan
        asked = min(living, asked * 8)


def _compare(
    table: Any, rows: ResidentRows, vector: Vectors, wanted: int, candidates: Rows
) -> tuple[Rows, Vectors]:
    scores = vectors_on_disk(table, rows, candidates) @ vector
    best = np.lexsort((candidates, -scores))[:wanted]
    return candidates[best], scores[best]


def query(table: Any, vector: Vectors, limit: int, plan: Plan | None) -> pa.Table:
    """`id` and `_distance` (1 − cosine) of the nearest rows; flat when there is no plan."""
    search = table.search(vector, vector_column_name="vector").distance_type("dot")
    if plan is None:
        search = search.bypass_vector_index()
    else:
        search = search.nprobes(plan.nprobes).refine_factor(plan.refine_factor)
    return search.select(["id", "_distance"]).limit(limit).to_arrow()


def exact_neighbours(table: Any, queries: Vectors, dimension: int) -> list[set[str]]:
    """For each query the ids of its nearest rows, itself among them; one pass over the table."""
    wanted = NEIGHBOURS + 1
    best_scores = np.full((len(queries), wanted), -np.inf, np.float32)
    best_ids = np.full((len(queries), wanted), "", object)
    scan = table.search().select(["id", "vector"]).limit(None)
    for batch in scan.to_batches(16_384):
        scores = queries @ vectors_of(batch.column("vector")).T  # [queries, batch]
        ids = np.array(batch.column("id").to_pylist(), object)
        scores = np.concatenate([best_scores, scores], axis=1)
        everyone = np.concatenate([best_ids, np.broadcast_to(ids, (len(queries), len(ids)))], 1)
        top = np.argpartition(-scores, wanted - 1, axis=1)[:, :wanted]
        best_scores = np.take_along_axis(scores, top, axis=1)
        best_ids = np.take_along_axis(everyone, top, axis=1)
    return [set(ids) - {""} for ids in best_ids]


def _sample(table: Any, rows: int) -> Vectors:
    offsets = np.linspace(0, rows - 1, min(_SAMPLE, rows)).astype(int)
    taken = table.take_offsets(sorted(set(offsets.tolist()))).select(["vector"]).to_arrow()
    return vectors_of(taken["vector"].combine_chunks())


def _read(folder: Path) -> Plan | None:
    try:
        return Plan(**json.loads((folder / _PLAN).read_text()))
    except FileNotFoundError:
        return None
