from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from colours import ColourEmbedder, picture

from chiasm.errors import (
    CollectionExists,
    CollectionNotFound,
    EmbedderMismatch,
    InvalidRequest,
    StoreError,
)
from chiasm.retrieval.library import Library, delete_collection, list_collections
from chiasm.retrieval.store import NewItem


def test_create_open_list_delete(library: Library, tmp_path: Path) -> None:
    assert library.collections() == []
    library.create("b")
    library.create("a").add([NewItem(picture(1))])
    infos = library.collections()
    assert [(info.name, info.items) for info in infos] == [("a", 1), ("b", 0)]
    assert infos[0] == library.open("a").info()
    assert infos[0].embedder.name == "colours"
    assert json.loads(json.dumps(infos[0].as_dict()))["embedder"]["dimension"] == 1088
    assert list_collections(tmp_path / "data") == infos
    library.delete("a")
    assert [info.name for info in library.collections()] == ["b"]
    for act in (library.open, library.delete):
        with pytest.raises(CollectionNotFound, match="'a'"):
            act("a")
    delete_collection(tmp_path / "data", "b")
    assert list((tmp_path / "data" / "collections").iterdir()) == []


@pytest.mark.parametrize(
    "name",
    ["", "..", ".", "../x", "a/b", "a\\b", "A", "-a", ".hidden", "a b", "a" * 65, "ä", "a\n"],
)
def test_names_that_cannot_be(library: Library, name: str) -> None:
    for act in (library.create, library.open, library.delete):
        with pytest.raises(InvalidRequest, match="name"):
            act(name)


def test_create_what_is_there(library: Library) -> None:
    collection = library.create("a")
    collection.add([NewItem(picture(1))])
    with pytest.raises(CollectionExists, match="'a'"):
        library.create("a")
    assert library.create("a", exist_ok=True).count() == 1
    assert library.create("a", recreate=True).count() == 0
    with pytest.raises(CollectionNotFound):
        collection.count()


def test_another_embedder_is_refused_with_the_way_out(library: Library, tmp_path: Path) -> None:
    library.create("a").add([NewItem(picture(1))])
    other = Library(tmp_path / "data", ColourEmbedder(digest="f" * 64))
    for act in (other.open, lambda name: other.create(name, exist_ok=True)):
        with pytest.raises(EmbedderMismatch, match="--collection a --recreate"):
            act("a")
    assert [info.name for info in other.collections()] == ["a"]
    fresh = other.create("a", recreate=True)
    assert fresh.info().embedder.digest == "f" * 64
    assert fresh.count() == 0
    with pytest.raises(EmbedderMismatch):
        library.open("a")


def test_two_makers_at_once(tmp_path: Path, embedder: ColourEmbedder) -> None:
    made: list[str] = []
    failures: list[BaseException] = []

    def make() -> None:
        try:
            made.append(Library(tmp_path, embedder).create("same", exist_ok=True).info().uid)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(set(made)) == 1
    assert [path.name for path in (tmp_path / "collections").iterdir()] == ["same"]


def test_an_open_collection_that_another_process_made_anew(
    library: Library, tmp_path: Path, embedder: ColourEmbedder
) -> None:
    library.create("a").add([NewItem(picture(1))])
    Library(tmp_path / "data", embedder).create("a", recreate=True)
    assert library.open("a").count() == 0


@pytest.mark.parametrize("content", ["", "{}", "not json", '{"schema_version": 99}'])
def test_a_damaged_description(library: Library, tmp_path: Path, content: str) -> None:
    library.create("a")
    (tmp_path / "data" / "collections" / "a" / "collection.json").write_text(content)
    with pytest.raises(StoreError, match="'a'"):
        library.open("a")


def test_a_damaged_collection_hides_no_other(
    library: Library, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    library.create("a")
    library.create("b")
    (tmp_path / "data" / "collections" / "a" / "collection.json").write_text("damaged")
    assert [info.name for info in library.collections()] == ["b"]
    assert "'a'" in caplog.text


def test_a_layout_of_the_future(library: Library, tmp_path: Path) -> None:
    library.create("a")
    path = tmp_path / "data" / "collections" / "a" / "collection.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(StoreError, match="layout 2"):
        library.open("a")


def test_leftovers_of_a_killed_process_are_not_collections(
    library: Library, tmp_path: Path
) -> None:
    library.create("a")
    (tmp_path / "data" / "collections" / ".new-0123").mkdir()
    (tmp_path / "data" / "collections" / "empty").mkdir()
    assert [info.name for info in library.collections()] == ["a"]
