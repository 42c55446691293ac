from __future__ import annotations

import io
import threading
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from colours import ColourEmbedder, picture

from chiasm.errors import InvalidRequest, ItemExists, ItemNotFound
from chiasm.media import Image
from chiasm.media.decode import open_image
from chiasm.media.encode import encode_jpeg
from chiasm.retrieval.collection import Collection
from chiasm.retrieval.library import Library
from chiasm.retrieval.store import NewItem

PALETTE = ("red", "green", "blue", "yellow", "white", "black")


@pytest.fixture
def collection(library: Library) -> Collection:
    return library.create("pictures")


@pytest.fixture
def filled(collection: Collection) -> Collection:
    collection.add(
        [
            NewItem(
                picture(i, colour=PALETTE[i % 6]),
                id=f"p{i}",
                metadata={"n": i},
                text=PALETTE[i % 6],
            )
            for i in range(18)
        ]
    )
    return collection


def test_add_and_get(collection: Collection) -> None:
    image = picture(1, size=(800, 500))
    (added,) = collection.add([NewItem(image, "words", {"a": [1, None]}, source="camera")])
    assert (added.status, added.of, added.stored) == ("added", None, True)
    item = collection.get(added.id)
    assert (item.text, item.metadata, item.source) == ("words", {"a": [1, None]}, "camera")
    assert (item.width, item.height, item.digest) == (800, 500, image.digest)
    assert item.duplicate_of is None
    assert collection.add([]) == []


def test_search_by_text_image_item_and_both(filled: Collection) -> None:
    found = filled.search(text="red", limit=3)
    assert {hit.item.text for hit in found.hits} == {"red"}
    assert found.hits[0].score >= found.hits[1].score >= found.hits[2].score
    assert filled.search(image=picture(2, colour="blue"), limit=1).hits[0].id == "p2"
    neighbours = filled.search(item="p3", limit=2).hits
    assert {hit.item.text for hit in neighbours} == {"yellow"}
    assert "p3" not in {hit.id for hit in neighbours}
    both = filled.search(text="green", image=picture(2, colour="blue"), limit=6).hits
    assert {hit.item.text for hit in both} == {"green", "blue"}
    filtered = filled.search(text="red", filter={"n": {"gt": 6}}, limit=2).hits
    assert {hit.id for hit in filtered} == {"p12", filtered[1].id}
    assert filled.count({"n": {"lt": 5}}) == 5


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({}, "nothing to search for"),
        ({"text": "  "}, "nothing to search for"),
        ({"text": "red", "limit": 0}, "limit"),
        ({"text": "red", "limit": 100_000}, "limit"),
        ({"text": "red", "offset": -1}, "offset"),
        ({"text": "red", "filter": {"n": {"near": 3}}}, "near"),
    ],
)
def test_a_search_that_cannot_be(filled: Collection, arguments: dict, named: str) -> None:
    with pytest.raises(InvalidRequest, match=named):
        filled.search(**arguments)


def test_search_for_the_neighbours_of_nobody(filled: Collection) -> None:
    with pytest.raises(ItemNotFound, match="nobody"):
        filled.search(item="nobody")


def test_the_same_picture_is_not_stored_twice(collection: Collection) -> None:
    image = picture(1)
    first, second = collection.add([NewItem(image), NewItem(image)])
    assert (second.status, second.of, second.id) == ("duplicate", first.id, first.id)
    (third,) = collection.add([NewItem(picture(1))])
    assert (third.status, third.of, third.stored) == ("duplicate", first.id, False)
    assert collection.count() == 1
    collection.delete(first.id)
    assert collection.add([NewItem(image)])[0].status == "added"


def test_the_same_file_decoded_at_another_scale_is_a_duplicate(collection: Collection) -> None:
    (first,) = collection.add([NewItem(picture(1, size=(200, 100)), file_digest="f" * 64)])
    (second,) = collection.add([NewItem(picture(1, size=(100, 50)), file_digest="f" * 64)])
    assert (second.status, second.of) == ("duplicate", first.id)


@pytest.mark.parametrize("same_batch", [True, False])
def test_near_duplicates_are_marked_or_skipped(collection: Collection, same_batch: bool) -> None:
    original = picture(4, size=(400, 300))
    copy = open_image(encode_jpeg(original, quality=70))
    other = picture(5, size=(400, 300))
    batches = [[original, copy, other]] if same_batch else [[original], [copy, other]]
    added = [one for batch in batches for one in collection.add([NewItem(i) for i in batch])]
    assert [one.status for one in added] == ["added", "near_duplicate", "added"]
    assert added[1].of == added[0].id
    assert added[1].stored
    assert collection.get(added[1].id).duplicate_of == added[0].id
    assert collection.count() == 3

    again = open_image(encode_jpeg(original, quality=60))
    (skipped,) = collection.add([NewItem(again)], near_duplicates="skip")
    assert (skipped.status, skipped.stored) == ("near_duplicate", False)
    assert skipped.of in {added[0].id, added[1].id}
    assert collection.count() == 3


def test_pictures_that_share_a_hash_but_not_a_look_are_different(collection: Collection) -> None:
    plain = [
        Image(np.full((50, 50, 3), colour, np.uint8), (50, 50))
        for colour in ((250, 0, 0), (0, 0, 250))
    ]
    assert [one.status for one in collection.add([NewItem(i) for i in plain])] == ["added"] * 2


def test_what_is_served_is_pixels_alone(collection: Collection) -> None:
    image = picture(1, size=(1200, 900))
    (added,) = collection.add([NewItem(image)])
    small, kind = collection.picture(added.id, "thumbnail")
    assert kind == "image/jpeg"
    assert open_image(small).size == (384, 288)
    full, kind = collection.picture(added.id, "full")
    assert kind == "image/jpeg"
    decoded = open_image(full)
    assert decoded.size == (1200, 900)
    assert np.abs(decoded.pixels.astype(int) - image.pixels).mean() < 3
    for data in (small, full):
        opened = PIL.Image.open(io.BytesIO(data))
        assert not opened.getexif()
        assert "exif" not in opened.info


def test_an_upload_cannot_name_a_file_to_be_read(collection: Collection, tmp_path: Path) -> None:
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(encode_jpeg(picture(99, size=(64, 64))))
    (added,) = collection.add([NewItem(picture(1), source=str(secret))])
    assert open_image(collection.picture(added.id, "full")[0]).size == (96, 72)


def test_delete_removes_the_stored_picture(collection: Collection, tmp_path: Path) -> None:
    a, b = collection.add([NewItem(picture(1)), NewItem(picture(2))])
    stored = tmp_path / "data" / "collections" / "pictures" / "pictures"
    assert len(list(stored.rglob("*.jpg"))) == 2
    assert collection.delete([a.id, "nobody"]) == [a.id]
    assert len(list(stored.rglob("*.jpg"))) == 1
    with pytest.raises(ItemNotFound, match=a.id):
        collection.picture(a.id, "full")
    assert collection.picture(b.id, "full")[0]


def test_update(filled: Collection) -> None:
    assert filled.update("p1", text="new").text == "new"
    assert filled.update("p1", metadata={"n": "x"}).metadata == {"n": "x"}
    assert filled.get("p1").text == "new"
    with pytest.raises(ItemNotFound, match="nobody"):
        filled.update("nobody", text="x")
    with pytest.raises(InvalidRequest, match="JSON"):
        filled.update("p1", metadata={"n": float("inf")})


@pytest.mark.parametrize(
    "metadata", [{"a": float("nan")}, {"a": {1, 2}}, {1: "a"}, {"a": (1, 2)}, ["a"], {"a": b"x"}]
)
def test_metadata_that_is_no_json(collection: Collection, metadata: object) -> None:
    with pytest.raises(InvalidRequest, match="JSON object"):
        collection.add([NewItem(picture(1), metadata=metadata)])  # type: ignore[arg-type]
    assert collection.count() == 0


def test_too_many_words(collection: Collection) -> None:
    with pytest.raises(InvalidRequest, match="bytes"):
        collection.add([NewItem(picture(1), text="x" * 2_000_000)])


@pytest.mark.parametrize("id", ["", "a b", "../x", "-a", "a" * 129, "a'b", "ä"])
def test_ids_that_cannot_be(collection: Collection, id: str) -> None:
    with pytest.raises(InvalidRequest, match="id"):
        collection.add([NewItem(picture(1), id=id)])


def test_an_id_that_is_taken(filled: Collection) -> None:
    with pytest.raises(ItemExists, match="p1"):
        filled.add([NewItem(picture(100)), NewItem(picture(101), id="p1")])
    assert filled.count() == 18
    with pytest.raises(InvalidRequest, match="twice"):
        filled.add([NewItem(picture(100), id="twice"), NewItem(picture(101), id="twice")])


def test_threads_share_a_collection(collection: Collection) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for i in range(6):
                collection.add([NewItem(picture(100 * number + i), metadata={"by": number})])
                collection.search(text="red", filter={"by": number}, limit=5)
                collection.add([NewItem(picture(5000 + i))])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert collection.count() == 3 * 6 + 6


def test_restart(filled: Collection, tmp_path: Path, embedder: ColourEmbedder) -> None:
    before = filled.search(text="blue", limit=10).hits
    items = filled.items(limit=100).items
    reopened = Library(tmp_path / "data", embedder).open("pictures")
    assert reopened.search(text="blue", limit=10).hits == before
    assert reopened.items(limit=100).items == items
