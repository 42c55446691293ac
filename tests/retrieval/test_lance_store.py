from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from conformance import DIMENSION, OpenStore, StoreConformance, record, records, unit_vectors

from chiasm.errors import CollectionNotFound, StoreError
from chiasm.retrieval import filters, lance_index
from chiasm.retrieval.lance_store import LanceStore


class TestInMemory(StoreConformance):
    @pytest.fixture
    def open_store(self, tmp_path: Path) -> OpenStore:
        folder = tmp_path / "collection"
        folder.mkdir()
        LanceStore.create(folder, DIMENSION)
        return lambda: LanceStore(folder, DIMENSION)


class TestAboveTheMemoryBudget(StoreConformance):
    """The same answers when no vector may be held in memory."""

    @pytest.fixture
    def open_store(self, tmp_path: Path) -> OpenStore:
        folder = tmp_path / "collection"
        folder.mkdir()
        LanceStore.create(folder, DIMENSION)
        return lambda: LanceStore(folder, DIMENSION, exact_bytes=0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "collection"
    folder.mkdir()
    LanceStore.create(folder, DIMENSION)
    return folder


def test_growing_past_the_memory_budget_changes_no_answer(folder: Path) -> None:
    budget = 100 * DIMENSION * 2
    store = LanceStore(folder, DIMENSION, exact_bytes=budget)
    everything = records(160)
    query = unit_vectors(1, seed=1)[0]
    order = [f"item-{i}" for i in np.argsort(-np.stack([r.vector for r in everything]) @ query)]
    store.insert(everything[:90])
    assert [h.id for h in store.search(query, limit=5)] == [id for id in order if int(id[5:]) < 90][
        :5
    ]
    store.insert(everything[90:])
    assert [h.id for h in store.search(query, limit=5)] == order[:5]
    store.delete([f"item-{i}" for i in range(90, 160)])
    assert [h.id for h in store.search(query, limit=90)] == [i for i in order if int(i[5:]) < 90]


def test_the_index_passes_its_test_and_finds_what_exact_search_finds(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lance_index, "GATHER_ROWS", 50)
    monkeypatch.setattr(lance_index, "MIN_ROWS", 1000)
    store = LanceStore(folder, DIMENSION, exact_bytes=0)
    everything = records(3000)
    store.insert(everything)
    assert store.tidy()
    plan = lance_index.read_plan(folder)
    assert plan is not None
    assert plan.recall >= lance_index.RECALL
    assert plan.rows == 3000
    assert not store.tidy()

    late = unit_vectors(1, seed=77)[0]
    store.insert([record("late", late, metadata={"even": True}, moment=10**7)])
    assert store.search(late, limit=1)[0].id == "late"  # not in the index, yet found

    matrix = np.stack([one.vector for one in everything])
    recalls, filtered = [], []
    for query in unit_vectors(40, seed=6):
        scores = matrix @ query
        truth = {f"item-{i}" for i in np.argsort(-scores)[:10]}
        recalls.append(len(truth & {hit.id for hit in store.search(query, limit=10)}) / 10)
        rows = np.arange(0, 3000, 2)
        truth = {f"item-{i}" for i in rows[np.argsort(-scores[rows])[:10]]}
        hits = store.search(query, limit=10, condition=filters.parse({"even": True}))
        assert len(hits) == 10
        assert all(hit.item.metadata["even"] for hit in hits)
        filtered.append(len(truth & {hit.id for hit in hits}) / 10)
    assert np.mean(recalls) >= 0.9
    assert np.mean(filtered) >= 0.9


def test_an_index_that_does_not_find_enough_is_not_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lance_index, "RECALL", 1.01)
    monkeypatch.setattr(lance_index, "MIN_ROWS", 500)
    store = LanceStore(folder, DIMENSION, exact_bytes=0)
    everything = records(600)
    store.insert(everything)
    assert store.tidy()
    assert lance_index.read_plan(folder) is None
    assert not store.tidy()  # it is not built again and again
    query = unit_vectors(1, seed=2)[0]
    best = np.argsort(-np.stack([one.vector for one in everything]) @ query)[:10]
    assert [hit.id for hit in store.search(query, limit=10)] == [f"item-{i}" for i in best]


def test_pictures_that_are_alike_make_an_index_without_complaint(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Lance warns of every partition that stays empty, past Python, to standard error."""
    monkeypatch.setattr(lance_index, "MIN_ROWS", 500)
    store = LanceStore(folder, DIMENSION, exact_bytes=0)
    few = unit_vectors(4, seed=3)
    store.insert([record(f"item-{i}", few[i % 4], moment=i) for i in range(600)])
    assert store.tidy()
    assert capfd.readouterr().err == ""


def test_a_filter_that_points_away_from_the_query(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All matching rows are the farthest ones: what is asked for first holds none of them."""
    monkeypatch.setattr(lance_index, "GATHER_ROWS", 50)
    query = unit_vectors(1, seed=2)[0]
    vectors = unit_vectors(1000, seed=3)
    vectors = vectors[np.argsort(-vectors @ query)]
    store = LanceStore(folder, DIMENSION, exact_bytes=0)
    store.insert(
        [
            record(f"item-{i}", vector, metadata={"far": i >= 900}, moment=i)
            for i, vector in enumerate(vectors)
        ]
    )
    hits = store.search(query, limit=5, condition=filters.parse({"far": True}))
    assert [hit.id for hit in hits] == [f"item-{i}" for i in range(900, 905)]


def test_compaction_gathers_single_writes(folder: Path) -> None:
    store = LanceStore(folder, DIMENSION)
    for i in range(70):
        store.insert(records(1, first=i))
    assert store.tidy()
    assert len(list((folder / "items.lance" / "data").glob("*.lance"))) >= 1
    assert not store.tidy()
    assert LanceStore(folder, DIMENSION).count() == 70


def test_a_deleted_collection_is_not_made_anew_by_a_write(folder: Path) -> None:
    store = LanceStore(folder, DIMENSION)
    store.insert(records(2))
    shutil.rmtree(folder)
    for attempt in (
        lambda: store.insert(records(1, first=5)),
        lambda: store.delete(["item-0"]),
        lambda: store.update("item-0", text="x"),
        lambda: store.count(),
        lambda: store.search(unit_vectors(1)[0], limit=1),
    ):
        with pytest.raises(CollectionNotFound):
            attempt()
    assert not folder.exists()


def test_a_new_collection_in_the_place_of_the_old_is_not_written_to(folder: Path) -> None:
    old = LanceStore(folder, DIMENSION)
    old.insert(records(2))
    shutil.rmtree(folder)
    folder.mkdir()
    LanceStore.create(folder, DIMENSION)
    with pytest.raises(CollectionNotFound):
        old.insert(records(1, first=5))
    assert LanceStore(folder, DIMENSION).count() == 0


def test_a_damaged_table_is_one_clear_error(folder: Path) -> None:
    LanceStore(folder, DIMENSION).insert(records(3))
    for manifest in (folder / "items.lance" / "_versions").glob("*.manifest"):
        manifest.write_bytes(b"damaged")
    with pytest.raises(StoreError, match="collection"):
        LanceStore(folder, DIMENSION).count()


def test_few_rows_get_no_index(folder: Path) -> None:
    store = LanceStore(folder, DIMENSION, exact_bytes=0)
    store.insert(records(400))
    assert not store.tidy()
