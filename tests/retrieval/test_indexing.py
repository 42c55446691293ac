from __future__ import annotations

import csv
import json
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from colours import ColourEmbedder, picture, write_jpeg

from chiasm.errors import InvalidRequest, PictureMissing
from chiasm.media.decode import open_image
from chiasm.media.encode import encode_png
from chiasm.retrieval import captions
from chiasm.retrieval.collection import Collection
from chiasm.retrieval.indexing import index_folder
from chiasm.retrieval.library import Library
from chiasm.settings import IndexingSettings, Settings

SETTINGS = Settings(indexing=IndexingSettings(batch_size=4, decode_threads=2))


@pytest.fixture
def collection(library: Library) -> Collection:
    return library.create("photos")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for i in range(12):
        write_jpeg(folder / f"{i % 3}" / f"photo-{i:02d}.jpg", picture(i, size=(160, 120)))
    return folder


def test_takes_a_folder_in(folder: Path, collection: Collection) -> None:
    calls: list[tuple[int, int]] = []
    report = index_folder(
        folder, collection, settings=SETTINGS, on_progress=lambda *done: calls.append(done)
    )
    assert (report.total, report.added, report.failures) == (12, 12, [])
    assert not report.interrupted
    assert report.images_per_second > 0
    assert calls == [(i, 12) for i in range(1, 13)]
    items = collection.items(limit=100).items
    assert [item.source for item in items] == sorted(str(path) for path in folder.rglob("*.jpg"))
    for item in items:
        number = int(Path(item.source).stem.split("-")[1])
        (nearest,) = collection.search(image=picture(number, size=(160, 120)), limit=1).hits
        assert nearest.id == item.id
        assert nearest.score > 0.98
        assert (item.width, item.height) == (160, 120)
        assert open_image(collection.picture(item.id, "thumbnail")[0]).size == (160, 120)
        assert open_image(collection.picture(item.id, "full")[0]).size == (160, 120)
    assert json.loads(json.dumps(report.as_dict()))["added"] == 12


def test_a_second_run_opens_no_file(
    folder: Path, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    index_folder(folder, collection, settings=SETTINGS)
    version = collection.store.next_moment()

    def refuse(path: Path) -> bytes:
        raise AssertionError(f"{path} was opened")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    report = index_folder(folder, collection, settings=SETTINGS)
    assert (report.skipped, report.added, report.failures) == (12, 0, [])
    assert collection.count() == 12
    assert version > 0


def test_a_touched_file_is_known_by_its_bytes(folder: Path, collection: Collection) -> None:
    index_folder(folder, collection, settings=SETTINGS)
    before = collection.items(limit=100).items
    for path in folder.rglob("*.jpg"):
        os.utime(path, ns=(1, 1))
    assert index_folder(folder, collection, settings=SETTINGS).skipped == 12
    assert collection.items(limit=100).items == before


def test_broken_files_are_listed_and_stop_nothing(folder: Path, collection: Collection) -> None:
    (folder / "cut.jpg").write_bytes((folder / "0/photo-00.jpg").read_bytes()[:700])
    (folder / "empty.png").write_bytes(b"")
    (folder / "words.gif").write_text("not a picture")
    (folder / "nowhere.jpg").symlink_to(folder / "missing.jpg")
    (folder / "notes.txt").write_text("is not even looked at")
    report = index_folder(folder, collection, settings=SETTINGS)
    assert report.added == 12
    assert report.total == 16
    failed = {Path(path).name: reason for path, reason in report.failures}
    assert set(failed) == {"cut.jpg", "empty.png", "words.gif", "nowhere.jpg"}
    assert all(reason for reason in failed.values())
    assert collection.count() == 12


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_name_that_is_no_utf8_is_listed(folder: Path, collection: Collection) -> None:
    data = (folder / "0/photo-00.jpg").read_bytes()
    (folder / os.fsdecode(b"caf\xe9.jpg")).write_bytes(data[:-2] + b"xx\xff\xd9")
    report = index_folder(folder, collection, settings=SETTINGS)
    assert report.added == 12
    ((path, reason),) = report.failures
    assert path.endswith("caf\\udce9.jpg")
    assert "Unicode" in reason
    assert json.dumps(report.as_dict()).isascii()


def test_a_folder_of_broken_files_an_empty_and_a_missing_one(
    tmp_path: Path, collection: Collection
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    report = index_folder(empty, collection, settings=SETTINGS)
    assert (report.total, report.added, report.failures) == (0, 0, [])
    (empty / "a.jpg").write_bytes(b"broken")
    report = index_folder(empty, collection, settings=SETTINGS)
    assert (report.total, report.added, len(report.failures)) == (1, 0, 1)
    with pytest.raises(InvalidRequest, match="missing"):
        index_folder(tmp_path / "missing", collection, settings=SETTINGS)


def test_duplicates_in_a_folder(folder: Path, collection: Collection) -> None:
    original = folder / "0/photo-00.jpg"
    (folder / "same-bytes.jpg").write_bytes(original.read_bytes())
    pixels = open_image(original)
    (folder / "same-pixels.png").write_bytes(encode_png(pixels))
    write_jpeg(folder / "smaller.jpg", pixels, quality=60)
    report = index_folder(folder, collection, settings=SETTINGS)
    assert (report.added, report.duplicates, report.near_duplicates) == (12, 2, 1)
    assert collection.count() == 13
    again = index_folder(folder, collection, settings=SETTINGS)
    assert (again.skipped, again.duplicates, again.added) == (13, 2, 0)


def test_near_duplicates_are_skipped_when_asked(folder: Path, collection: Collection) -> None:
    write_jpeg(folder / "z.jpg", picture(0, size=(160, 120)), quality=60)
    report = index_folder(folder, collection, settings=SETTINGS, near_duplicates="skip")
    assert (report.added, report.near_duplicates) == (12, 1)
    assert collection.count() == 12


def test_a_changed_file_takes_its_items_place(folder: Path, collection: Collection) -> None:
    index_folder(folder, collection, settings=SETTINGS)
    path = folder / "1/photo-04.jpg"
    old = collection.known_files()[str(path)].item
    collection.update(old.id, metadata={"kept": True})
    write_jpeg(path, picture(400, size=(200, 100)))
    report = index_folder(folder, collection, settings=SETTINGS)
    assert (report.updated, report.skipped, report.added) == (1, 11, 0)
    new = collection.get(old.id)
    assert new.digest != old.digest
    assert (new.width, new.height, new.metadata) == (200, 100, {"kept": True})
    assert collection.search(image=picture(400, size=(200, 100)), limit=1).hits[0].id == old.id
    assert collection.count() == 12


def test_a_file_that_became_equal_to_another(folder: Path, collection: Collection) -> None:
    index_folder(folder, collection, settings=SETTINGS)
    changed, other = folder / "1/photo-04.jpg", folder / "0/photo-03.jpg"
    changed.write_bytes(other.read_bytes())
    report = index_folder(folder, collection, settings=SETTINGS)
    assert report.updated == 1
    known = collection.known_files()
    assert known[str(changed)].item.duplicate_of == known[str(other)].item.id
    assert index_folder(folder, collection, settings=SETTINGS).skipped == 12


def test_an_item_follows_its_moved_file(folder: Path, collection: Collection) -> None:
    index_folder(folder, collection, settings=SETTINGS)
    path = folder / "1/photo-04.jpg"
    id = collection.known_files()[str(path)].item.id
    data = path.read_bytes()
    path.unlink()
    with pytest.raises(PictureMissing, match="photo-04"):
        collection.picture(id, "full")
    assert collection.picture(id, "thumbnail")[0]
    (folder / "2/copy.jpg").write_bytes(data)
    (folder / "2/moved.jpg").write_bytes(data)
    report = index_folder(folder, collection, settings=SETTINGS)
    assert (report.updated, report.duplicates, report.skipped) == (1, 1, 11)
    assert Path(collection.get(id).source).name in {"copy.jpg", "moved.jpg"}
    assert collection.picture(id, "full")[0]
    assert collection.count() == 12


def test_stop_keeps_what_was_written_and_the_next_run_goes_on(
    folder: Path, collection: Collection
) -> None:
    for i in range(12, 60):
        write_jpeg(folder / f"photo-{i}.jpg", picture(i, size=(160, 120)))
    stop = threading.Event()

    def stop_soon(done: int, total: int) -> None:
        if done >= 8:
            stop.set()

    first = index_folder(folder, collection, settings=SETTINGS, stop=stop, on_progress=stop_soon)
    assert first.interrupted
    assert 8 <= first.added < 60
    assert collection.count() == first.added
    second = index_folder(folder, collection, settings=SETTINGS)
    assert (second.skipped, second.added) == (first.added, 60 - first.added)
    assert not second.interrupted


def test_an_interrupt_ends_in_a_report(folder: Path, collection: Collection) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    report = index_folder(folder, collection, settings=SETTINGS, on_progress=interrupt)
    assert report.interrupted
    assert index_folder(folder, collection, settings=SETTINGS).failures == []
    assert collection.count() == 12


def test_large_pictures_wait_small(tmp_path: Path, collection: Collection) -> None:
    """A picture's pixels are let go down to what the embedder needs; its digest is of all."""
    rng = np.random.default_rng(0)
    big = picture(1, size=(2600, 1900))
    write_jpeg(tmp_path / "p" / "big.jpg", big, quality=90)
    (tmp_path / "p" / "noise.png").write_bytes(encode_png(picture(2, size=(2000, 1500))))
    assert rng is not None
    report = index_folder(tmp_path / "p", collection, settings=SETTINGS)
    assert report.added == 2
    sizes = {(item.width, item.height) for item in collection.items().items}
    assert sizes == {(2600, 1900), (2000, 1500)}


# Words ------------------------------------------------------------------------------------------


def test_a_table_and_text_files(folder: Path, collection: Collection, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "title", "price", "code", "new", "note"])
        writer.writerow(["0/photo-00.jpg", "by path", "12", "007", "true", ""])
        writer.writerow(["photo-01.jpg", "by name", "-0.5", "x", "false", "ünï"])
        writer.writerow(["photo-02", "by stem", "1e3", "1_000", "yes", "a, b"])
    (folder / "0/photo-00.txt").write_text("beside it\n")
    index_folder(folder, collection, settings=SETTINGS, metadata=table)
    by_name = {Path(item.source).stem: item for item in collection.items(limit=100).items}
    assert by_name["photo-00"].text == "beside it"
    assert by_name["photo-00"].metadata == {"price": 12, "code": "007", "new": True}
    assert by_name["photo-01"].text == "by name"
    assert by_name["photo-01"].metadata == {"price": -0.5, "code": "x", "new": False, "note": "ünï"}
    assert by_name["photo-02"].metadata == {
        "price": 1000.0,
        "code": "1_000",
        "new": "yes",
        "note": "a, b",
    }
    assert by_name["photo-03"].text == ""
    assert collection.count({"price": {"lt": 100}}) == 2


def test_words_that_come_later(folder: Path, collection: Collection, tmp_path: Path) -> None:
    index_folder(folder, collection, settings=SETTINGS)
    table = tmp_path / "table.jsonl"
    table.write_text('{"file": "photo-05", "text": "five", "tags": ["a", {"b": 1}]}\n\n')
    report = index_folder(folder, collection, settings=SETTINGS, metadata=table)
    assert (report.updated, report.skipped) == (1, 11)
    (found,) = (item for item in collection.items(limit=100).items if item.text)
    assert found.metadata == {"tags": ["a", {"b": 1}]}
    assert index_folder(folder, collection, settings=SETTINGS, metadata=table).skipped == 12


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("t.csv", "name,text\na,b\n", "line 2.*'file'"),
        ("t.jsonl", '{"file": "a"}\n{"text": 3}\n', "line 2.*'file'"),
        ("t.jsonl", '{"file": "a"}\nnot json\n', "line 2"),
        ("t.jsonl", "[1]\n", "line 1"),
        ("t.csv", b"file,text\n\xff\xfe,b\n", "could not be read"),
        ("missing.csv", None, "could not be read"),
    ],
)
def test_tables_that_cannot_be(
    tmp_path: Path, name: str, content: str | bytes | None, named: str
) -> None:
    table = tmp_path / name
    if content is not None:
        table.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InvalidRequest, match=named):
        captions.read_captions(tmp_path, table)


def test_two_folders_at_once(tmp_path: Path, library: Library, embedder: ColourEmbedder) -> None:
    """Two processes' worth of handles on one collection, with pictures in common."""
    library.create("shared")
    reports = {}

    def work(name: str, numbers: range) -> None:
        folder = tmp_path / name
        for i in numbers:
            write_jpeg(folder / f"{i}.jpg", picture(i))
        own = Library(tmp_path / "data", embedder).open("shared")
        reports[name] = index_folder(folder, own, settings=SETTINGS)

    threads = [
        threading.Thread(target=work, args=arguments)
        for arguments in (("a", range(0, 20)), ("b", range(10, 30)))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(report.added for report in reports.values()) == 30
    assert sum(report.duplicates for report in reports.values()) == 10
    assert library.open("shared").count() == 30
