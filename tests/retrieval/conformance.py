"""What every `Store` must do. A store's tests subclass `StoreConformance` and give `open_store`.

`open_store()` opens the collection under test; each call gives another handle on the *same*
rows, as another process would have.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from chiasm.errors import InvalidRequest, ItemNotFound
from chiasm.retrieval import filters
from chiasm.retrieval.store import Item, Record, Store, timestamp

DIMENSION = 24
OpenStore = Callable[[], Store]


def unit_vectors(count: int, seed: int = 0) -> npt.NDArray[np.float32]:
    vectors = np.random.default_rng(seed).standard_normal((count, DIMENSION))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def record(
    id: str,
    vector: npt.NDArray[np.float32],
    *,
    metadata: dict[str, Any] | None = None,
    text: str = "",
    moment: int = 1,
    perceptual_hash: int = 0,
    file_digest: str = "",
    picture: str = "stored",
    source: str = "",
) -> Record:
    item = Item(
        id=id,
        digest=f"digest of {id}",
        source=source or f"{id}.jpg",
        text=text,
        metadata=metadata or {},
        width=640,
        height=480,
        added_at=timestamp(1_700_000_000_000_000 + moment),
    )
    return Record(
        item=item,
        vector=vector,
        thumbnail=f"thumbnail of {id}".encode(),
        perceptual_hash=perceptual_hash,
        picture=picture,  # type: ignore[arg-type]
        file_digest=file_digest,
        file_size=12,
        file_mtime_ns=34,
    )


def records(count: int, *, first: int = 0, seed: int = 0) -> list[Record]:
    vectors = unit_vectors(first + count, seed)
    return [
        record(
            f"item-{i}",
            vectors[i],
            metadata={"number": i, "even": i % 2 == 0, "group": "abc"[i % 3]},
            text=f"text {i}",
            moment=i,
        )
        for i in range(first, first + count)
    ]


class StoreConformance:
    @pytest.fixture
    def open_store(self) -> OpenStore:
        raise NotImplementedError

    @pytest.fixture
    def store(self, open_store: OpenStore) -> Store:
        return open_store()

    # Rows ---------------------------------------------------------------------------------------

    def test_what_goes_in_comes_out(self, store: Store, open_store: OpenStore) -> None:
        metadata = {
            "text": "quote ' and \" and ünïcödé 🦉",
            "number": 0.1,
            "big": 2**60,
            "none": None,
            "list": [1, "a", True],
            "object": {"inner": {"deep": "x"}},
        }
        given = record(
            "a:1.b-c_D",
            unit_vectors(1)[0],
            metadata=metadata,
            text="line\nline ✓",
            source="/x/y'z.jpg",
        )
        store.insert([given])
        for handle in (store, open_store()):
            assert handle.get(["a:1.b-c_D", "other"]) == {"a:1.b-c_D": given.item}
            np.testing.assert_allclose(handle.vectors(["a:1.b-c_D"])[0], given.vector, atol=1e-3)
            assert handle.thumbnail("a:1.b-c_D") == b"thumbnail of a:1.b-c_D"
            assert handle.picture("a:1.b-c_D") == "stored"
            assert handle.count() == 1

    def test_empty(self, store: Store) -> None:
        assert store.count() == 0
        assert store.count(filters.parse({"a": 1})) == 0
        assert store.search(unit_vectors(1)[0], limit=5) == []
        assert store.page(limit=5).items == []
        assert store.page(limit=5).next is None
        assert store.known_files() == {}
        assert store.alike(0, 64) == []
        assert store.with_digest("none") is None
        assert store.delete(["nothing"]) == []
        store.insert([])
        assert store.count() == 0

    def test_update(self, store: Store, open_store: OpenStore) -> None:
        store.insert(records(5))
        other = open_store()
        before = other.get(["item-2"])["item-2"]
        changed = store.update("item-2", text="it's new", metadata={"number": "two"})
        assert (changed.text, changed.metadata) == ("it's new", {"number": "two"})
        assert store.update("item-3", text="only text").metadata["number"] == 3
        assert store.update("item-3", metadata={}).text == "only text"
        assert store.update("item-3").text == "only text"
        for handle in (store, other, open_store()):
            after = handle.get(["item-2"])["item-2"]
            assert after == changed
            assert (after.added_at, after.digest) == (before.added_at, before.digest)
            assert handle.count(filters.parse({"number": 2})) == 0
            assert handle.count(filters.parse({"number": "two"})) == 1
            assert handle.count() == 5
            assert handle.thumbnail("item-2") == b"thumbnail of item-2"
        np.testing.assert_allclose(store.vectors(["item-2"])[0], records(5)[2].vector, atol=1e-3)

    def test_delete(self, store: Store, open_store: OpenStore) -> None:
        store.insert(records(6))
        other = open_store()
        assert other.count() == 6
        assert sorted(store.delete(["item-1", "item-4", "nothing"])) == ["item-1", "item-4"]
        for handle in (store, other):
            assert handle.count() == 4
            assert handle.get(["item-1"]) == {}
            found = {hit.id for hit in handle.search(records(6)[1].vector, limit=10)}
            assert found == {"item-0", "item-2", "item-3", "item-5"}
            for missing in (handle.thumbnail, handle.picture):
                with pytest.raises(ItemNotFound, match="item-1"):
                    missing("item-1")
        with pytest.raises(ItemNotFound, match="item-1"):
            store.vectors(["item-0", "item-1"])
        with pytest.raises(ItemNotFound, match="item-1"):
            store.update("item-1", text="x")

    def test_insert_replacing(self, store: Store, open_store: OpenStore) -> None:
        store.insert(records(4))
        other = open_store()
        assert other.count() == 4
        fresh = unit_vectors(2, seed=9)
        store.insert(
            [
                record("item-1", fresh[0], text="replaced", moment=1),
                record("brand-new", fresh[1], moment=50),
            ],
            replacing=["item-1"],
        )
        for handle in (store, other):
            assert handle.count() == 5
            assert handle.get(["item-1"])["item-1"].text == "replaced"
            hits = handle.search(fresh[0], limit=1)
            assert hits[0].id == "item-1"
            assert hits[0].score == pytest.approx(1, abs=1e-3)

    # Pages --------------------------------------------------------------------------------------

    def test_pages_are_in_order_and_whole(self, store: Store) -> None:
        everything = records(23)
        store.insert(everything[10:])
        store.insert([record("late", unit_vectors(1)[0], moment=1000)])
        seen: list[str] = []
        after = None
        while True:
            page = store.page(limit=5, after=after)
            seen += [item.id for item in page.items]
            assert page.has_more == (page.next is not None)
            if page.next is None:
                break
            after = page.next
        assert seen == [f"item-{i}" for i in range(10, 23)] + ["late"]

    def test_pages_newest_first_stay_put_while_others_are_added(self, store: Store) -> None:
        store.insert(records(11))
        page = store.page(limit=4, newest_first=True)
        store.insert([record("late", unit_vectors(1)[0], moment=1000)])
        store.delete(["item-6"])
        seen = [item.id for item in page.items]
        while page.next is not None:
            page = store.page(limit=4, after=page.next, newest_first=True)
            seen += [item.id for item in page.items]
        assert seen == [f"item-{i}" for i in (10, 9, 8, 7, 5, 4, 3, 2, 1, 0)]
        condition = filters.parse({"even": True})
        newest = store.page(limit=3, condition=condition, newest_first=True)
        assert [item.id for item in newest.items] == ["item-10", "item-8", "item-4"]
        assert store.page(limit=1, newest_first=True).items[0].id == "late"

    def test_a_page_goes_on_after_its_last_item_was_deleted(self, store: Store) -> None:
        store.insert(records(10))
        page = store.page(limit=4)
        store.delete(["item-3", "item-4"])
        assert [item.id for item in store.page(limit=4, after=page.next).items] == [
            "item-5", "item-6", "item-7", "item-8",
        ]  # fmt: skip

    def test_pages_with_a_filter(self, store: Store) -> None:
        store.insert(records(20))
        condition = filters.parse({"even": True})
        first = store.page(limit=6, condition=condition)
        second = store.page(limit=6, after=first.next, condition=condition)
        numbers = [item.metadata["number"] for item in first.items + second.items]
        assert numbers == list(range(0, 20, 2))
        assert second.next is None

    def test_a_cursor_that_is_none(self, store: Store) -> None:
        with pytest.raises(InvalidRequest, match="nonsense"):
            store.page(limit=5, after="nonsense")

    # Search -------------------------------------------------------------------------------------

    def test_search_is_exact_on_a_small_collection(self, store: Store) -> None:
        everything = records(300)
        store.insert(everything)
        matrix = np.stack([one.vector for one in everything]).astype(np.float64)
        for query in unit_vectors(10, seed=5):
            scores = matrix @ query.astype(np.float64)
            best = np.argsort(-scores)[:10]
            hits = store.search(query, limit=10)
            assert [hit.id for hit in hits] == [f"item-{i}" for i in best]
            np.testing.assert_allclose([hit.score for hit in hits], scores[best], atol=1e-3)
            assert hits[0].item == everything[best[0]].item

    def test_offset_continues(self, store: Store) -> None:
        store.insert(records(50))
        query = unit_vectors(1, seed=3)[0]
        whole = [hit.id for hit in store.search(query, limit=50)]
        assert len(set(whole)) == 50
        assert [hit.id for hit in store.search(query, limit=7, offset=5)] == whole[5:12]
        assert store.search(query, limit=7, offset=48) == store.search(query, limit=50)[48:]
        assert store.search(query, limit=7, offset=50) == []

    @pytest.mark.parametrize(
        "expression",
        [
            {"group": "b"},
            {"number": {"lt": 3}},
            {"number": {"gte": 10}, "even": True},
            {"$or": [{"number": 7}, {"group": {"in": ["c"]}}]},
            {"$not": {"even": True}},
            {"number": 123456},
        ],
    )
    def test_search_with_a_filter(self, store: Store, expression: dict[str, Any]) -> None:
        everything = records(120)
        store.insert(everything)
        condition = filters.parse(expression)
        wanted = [one for one in everything if filters.matches(condition, one.item.metadata)]
        assert store.count(condition) == len(wanted)
        query = unit_vectors(1, seed=4)[0]
        scores = {one.item.id: float(one.vector @ query) for one in wanted}
        best = sorted(scores, key=lambda id: -scores[id])[:10]
        assert [hit.id for hit in store.search(query, limit=10, condition=condition)] == best

    def test_exclude(self, store: Store) -> None:
        everything = records(20)
        store.insert(everything)
        hits = store.search(everything[4].vector, limit=20, exclude=["item-4", "nothing"])
        assert len(hits) == 19
        assert "item-4" not in {hit.id for hit in hits}

    # Knowing pictures again ---------------------------------------------------------------------

    def test_digests(self, store: Store, open_store: OpenStore) -> None:
        other = open_store()
        assert other.with_digest("digest of a") is None
        a, b = unit_vectors(2)
        store.insert([record("a", a, file_digest="file a"), record("b", b, moment=2)])
        for handle in (store, other):
            assert handle.with_digest("digest of b") == "b"
            assert handle.with_digest("none", "file a") == "a"
            assert handle.with_digest("none", "") is None
        store.delete(["a"])
        assert other.with_digest("digest of a", "file a") is None
        store.insert([record("a2", a, file_digest="file a", moment=3)])
        assert other.with_digest("none", "file a") == "a2"

    def test_alike(self, store: Store) -> None:
        vectors = unit_vectors(4)
        high = 1 << 63
        hashes = {"same": high | 0b1111, "one": high | 0b0111, "three": high | 0b0001, "far": 0}
        store.insert(
            [
                record(id, vector, perceptual_hash=value, moment=i)
                for i, ((id, value), vector) in enumerate(zip(hashes.items(), vectors, strict=True))
            ]
        )
        assert store.alike(high | 0b1111, 3) == ["same", "one", "three"]
        assert store.alike(high | 0b1111, 0) == ["same"]
        store.delete(["same"])
        assert store.alike(high | 0b1111, 2) == ["one"]

    def test_known_files(self, store: Store) -> None:
        a, b = unit_vectors(2)
        store.insert(
            [
                record("a", a, picture="source", source="/p/a.jpg", file_digest="f"),
                record("b", b, source="/p/b.jpg", moment=2),
            ]
        )
        known = store.known_files()
        assert list(known) == ["/p/a.jpg"]
        one = known["/p/a.jpg"]
        assert (one.item.id, one.size, one.mtime_ns, one.digest) == ("a", 12, 34, "f")
        assert list(store.stored_digests()) == ["digest of b"]

    def test_moments_grow(self, store: Store) -> None:
        now = store.next_moment()
        store.insert([record("future", unit_vectors(1)[0], moment=10**16)])
        assert now < 1_700_000_000_000_000 + 10**16 < store.next_moment()

    # Several at once ----------------------------------------------------------------------------

    def test_another_handle_sees_each_write_at_once(
        self, store: Store, open_store: OpenStore
    ) -> None:
        reader = open_store()
        for i in range(8):
            store.insert(records(1, first=i))
            assert reader.count() == i + 1
            assert reader.search(records(1, first=i)[0].vector, limit=1)[0].id == f"item-{i}"

    def test_writers_at_once_lose_nothing(self, open_store: OpenStore) -> None:
        failures: list[BaseException] = []

        def write(number: int) -> None:
            try:
                store = open_store()
                for i in range(4):
                    first = 1000 * number + i
                    store.insert(records(1, first=first))
                    if i % 4 == 1:
                        store.update(f"item-{first}", text="updated")
                    if i % 4 == 2:
                        store.delete([f"item-{first}"])
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        store = open_store()
        assert store.count() == 3 * 3
        texts = [item.text for item in store.page(limit=100).items]
        assert texts.count("updated") == 3

    def test_look_and_write_is_one_step(self, open_store: OpenStore) -> None:
        inserted: list[str] = []

        def write(number: int) -> None:
            store = open_store()
            for i in range(4):
                with store.writing():
                    if store.with_digest(f"digest of same-{i}") is None:
                        with store.writing():  # reentrant
                            store.insert([record(f"same-{i}", unit_vectors(1)[0], moment=i)])
                        inserted.append(f"same-{i}")

        threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(inserted) == [f"same-{i}" for i in range(4)]
        assert open_store().count() == 4

    def test_tidying_changes_nothing_that_is_seen(
        self, store: Store, open_store: OpenStore
    ) -> None:
        other = open_store()
        for i in range(66):  # enough single writes for a store that must gather them
            store.insert(records(1, first=i))
        store.delete(["item-7"])
        assert other.count() == 65
        query = unit_vectors(1, seed=8)[0]
        before = other.search(query, limit=20)
        thumbnail = other.thumbnail("item-50")
        vector = other.vectors(["item-60"])
        store.tidy()
        for handle in (other, store, open_store()):
            assert [hit.id for hit in handle.search(query, limit=20)] == [h.id for h in before]
            assert handle.thumbnail("item-50") == thumbnail
            np.testing.assert_allclose(handle.vectors(["item-60"]), vector, atol=1e-3)
            assert handle.count() == 65
