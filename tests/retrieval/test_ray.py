"""The Ray engine against the local one, on a Ray of two workers on this machine."""

from __future__ import annotations

import json
import os
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import colours
import numpy as np
import pyarrow as pa
import pytest
from colours import ColourEmbedder, picture, write_jpeg
from typer.testing import CliRunner

import chiasm
from chiasm.cli import app
from chiasm.errors import ChiasmError, ConfigurationError, InvalidRequest
from chiasm.media.decode import open_image
from chiasm.media.encode import encode_png
from chiasm.media.limits import Limits
from chiasm.retrieval import ray_engine
from chiasm.retrieval.collection import Collection
from chiasm.retrieval.indexing import IndexReport, index_folder
from chiasm.retrieval.library import Library, list_collections
from chiasm.retrieval.ray_engine import RayEngine
from chiasm.retrieval.ray_worker import Found, Worker, packed
from chiasm.settings import IndexingSettings, Settings

pytestmark = pytest.mark.slow

SETTINGS = Settings(indexing=IndexingSettings(batch_size=4, decode_threads=1))
COUNTED = ("total", "added", "updated", "skipped", "duplicates", "near_duplicates", "failures")


def same_weights(settings: Settings) -> ColourEmbedder:
    return ColourEmbedder()


def other_weights(settings: Settings) -> ColourEmbedder:
    return ColourEmbedder(digest="0" * 64)


def out_of_memory(settings: Settings) -> ColourEmbedder:
    raise MemoryError("no room for the weights")


@pytest.fixture(scope="module")
def ray() -> Iterator[RayEngine]:
    from ray import cloudpickle

    for module in (colours, sys.modules[__name__]):  # which workers do not find
        cloudpickle.register_pickle_by_value(module)
    with RayEngine(workers=2, load=same_weights) as engine:
        yield engine


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures, three kinds of duplicates, and files that cannot be opened."""
    folder = tmp_path / "photos"
    for i in range(10):
        write_jpeg(folder / f"{i % 3}" / f"photo-{i:02d}.jpg", picture(i, size=(160, 120)))
    first = folder / "0/photo-00.jpg"
    pixels = open_image(first)
    (folder / "same-bytes.jpg").write_bytes(first.read_bytes())
    (folder / "same-pixels.png").write_bytes(encode_png(pixels))
    write_jpeg(folder / "smaller.jpg", pixels, quality=60)
    (folder / "cut.jpg").write_bytes(first.read_bytes()[:700])
    (folder / "empty.png").write_bytes(b"")
    (folder / "nowhere.jpg").symlink_to(folder / "missing.jpg")
    if sys.platform == "linux":
        (folder / os.fsdecode(b"caf\xe9.jpg")).write_bytes(first.read_bytes() + b"x")
    (folder / "1/photo-01.txt").write_text("beside it")
    (folder / "table.jsonl").write_text('{"file": "photo-02", "text": "two", "number": 2}\n')
    return folder


def both_ways(
    folder: Path, library: Library, ray: RayEngine, **options: Any
) -> dict[str, IndexReport]:
    return {
        name: index_folder(
            folder,
            library.create(name, exist_ok=True),
            settings=SETTINGS,
            metadata=folder / "table.jsonl",
            ray=engine,
            **options,
        )
        for name, engine in (("here", None), ("ray", ray))
    }


def kept(collection: Collection) -> list[tuple[Any, ...]]:
    """All of it, but for the ids, and the moments, which order the items."""
    items = collection.items(limit=100).items
    sources = {item.id: item.source for item in items}
    vectors = collection.store.vectors([item.id for item in items])
    return [
        (
            item.source,
            (item.digest, item.text, dict(item.metadata), item.width, item.height),
            sources[item.duplicate_of] if item.duplicate_of else None,
            collection.picture(item.id, "thumbnail")[0],
            collection.known_files()[item.source].digest,
            vector,
        )
        for item, vector in zip(items, vectors, strict=True)
    ]


def assert_alike(library: Library, reports: dict[str, IndexReport]) -> None:
    here, there = ([getattr(reports[name], what) for what in COUNTED] for name in ("here", "ray"))
    assert there == here
    ours, theirs = kept(library.open("here")), kept(library.open("ray"))
    assert [row[:-1] for row in theirs] == [row[:-1] for row in ours]
    np.testing.assert_allclose(
        np.stack([row[-1] for row in theirs]), np.stack([row[-1] for row in ours]), atol=1e-6
    )


def test_a_folder_and_its_changes_become_the_same_collection(
    folder: Path, library: Library, ray: RayEngine
) -> None:
    calls: list[tuple[int, int]] = []
    reports = both_ways(folder, library, ray, on_progress=lambda *done: calls.append(done))
    assert_alike(library, reports)
    report = reports["ray"]
    assert (report.added, report.duplicates, report.near_duplicates) == (10, 2, 1)
    assert {Path(path).name for path, _ in report.failures} >= {"cut.jpg", "nowhere.jpg"}
    assert report.images_per_second > 0
    total = report.total
    assert calls[total:] == [(i, total) for i in range(1, total + 1)]

    write_jpeg(folder / "1/photo-04.jpg", picture(400, size=(200, 100)))  # changed
    os.utime(folder / "2/photo-05.jpg", ns=(1, 1))  # touched
    (folder / "0/photo-06.jpg").rename(folder / "moved.jpg")
    write_jpeg(folder / "new.jpg", picture(500))
    (folder / "table.jsonl").write_text('{"file": "photo-02", "text": "other words"}\n')
    reports = both_ways(folder, library, ray)
    assert_alike(library, reports)
    assert (reports["ray"].added, reports["ray"].updated) == (1, 3)


def test_stopped_it_keeps_what_it_wrote_and_goes_on(
    tmp_path: Path, library: Library, ray: RayEngine
) -> None:
    for i in range(40):
        write_jpeg(tmp_path / "p" / f"{i:02d}.jpg", picture(i))
    collection, stop = library.create("stopped"), threading.Event()
    first = index_folder(
        tmp_path / "p",
        collection,
        settings=SETTINGS,
        stop=stop,
        ray=ray,
        on_progress=lambda done, total: stop.set() if done >= 8 else None,
    )
    assert first.interrupted
    assert 8 <= first.added < 40
    assert collection.count() == first.added
    second = index_folder(tmp_path / "p", collection, settings=SETTINGS)
    assert (second.skipped, second.added) == (first.added, 40 - first.added)
    assert not second.interrupted


@pytest.mark.parametrize(
    ("load", "words"),
    [(other_weights, "colours has other weights"), (out_of_memory, "MemoryError.*no room")],
)
def test_workers_that_cannot_go_on_say_why(
    tmp_path: Path, library: Library, ray: RayEngine, load: Any, words: str
) -> None:
    write_jpeg(tmp_path / "p" / "a.jpg", picture(1))
    collection = library.create("none")
    with RayEngine(workers=1, load=load) as engine, pytest.raises(ChiasmError, match=words):
        index_folder(tmp_path / "p", collection, settings=SETTINGS, ray=engine)
    assert collection.count() == 0


def test_gpus_that_are_not_there(tmp_path: Path, library: Library, ray: RayEngine) -> None:
    write_jpeg(tmp_path / "p" / "a.jpg", picture(1))
    with (
        RayEngine(gpus=64.0, load=same_weights) as engine,
        pytest.raises(ConfigurationError, match="64 GPU"),
    ):
        index_folder(tmp_path / "p", library.create("none"), settings=SETTINGS, ray=engine)


# Without a cluster ------------------------------------------------------------------------------


def worked(path: Path, *, host: str, version: str = chiasm.__version__) -> Found:
    """What a worker on this machine says of a file, when the writer is on `host`."""
    worker = Worker(ColourEmbedder, ColourEmbedder().digest, Limits(), 1, host, version)
    table = worker(pa.table({"file": [packed(0, path, 1, 1, "")]}))
    (found,) = (pickle.loads(row) for row in table["found"].to_pylist())
    return found


def test_a_worker_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    found = worked(tmp_path / "a.jpg", host="the-writer")
    assert found.reason is not None
    assert "does not see it" in found.reason
    assert "every node" in found.reason


def test_a_worker_of_another_version_says_so(tmp_path: Path) -> None:
    found = worked(tmp_path / "a.jpg", host="the-writer", version="0.0.1")
    assert found.trouble is not None
    message, hint = found.trouble
    assert "0.0.1" in message
    assert hint is not None
    assert "every node" in hint


def test_without_ray_nothing_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, embedder: ColourEmbedder
) -> None:
    monkeypatch.setenv("CHIASM_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(ray_engine, "find_spec", lambda name: None)
    Library(tmp_path / "data", embedder).create("photos")
    write_jpeg(tmp_path / "p" / "a.jpg", picture(1))
    arguments = ["index", str(tmp_path / "p"), "-c", "photos", "--recreate", "--engine", "ray"]
    with pytest.raises(ConfigurationError, match=r"chiasm\[ray\]"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert [info.name for info in list_collections(tmp_path / "data")] == ["photos"]


def test_an_address_where_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    code = (
        "from chiasm.retrieval.ray_engine import RayEngine\n"
        f"with RayEngine(address='127.0.0.1:{port}'):\n    pass\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert f"ConfigurationError: The Ray cluster at 127.0.0.1:{port}" in done.stderr


def test_flags_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    wrong = CliRunner().invoke(app, ["index", str(tmp_path), "--engine", "spark"])
    assert wrong.exit_code == 2
    assert "spark" in wrong.output
    with pytest.raises(InvalidRequest, match="--engine ray"):
        CliRunner().invoke(
            app, ["index", str(tmp_path), "--ray-workers", "2"], catch_exceptions=False
        )


# With the default weights -----------------------------------------------------------------------


@pytest.mark.weights
def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray: RayEngine) -> None:
    monkeypatch.setenv("CHIASM_DATA_DIR", str(tmp_path / "data"))
    for i in range(3):
        write_jpeg(tmp_path / "p" / f"{i}.jpg", picture(i, size=(320, 240)))
    (tmp_path / "p" / "broken.jpg").write_bytes(b"no picture")
    for name, *flags in (("here",), ("ray", "--engine", "ray", "--ray-workers", "1")):
        done = CliRunner().invoke(
            app,
            ["index", str(tmp_path / "p"), "-c", name, "--device", "cpu", *flags, "--json"],
            catch_exceptions=False,
        )
        assert done.exit_code == 0
        report = json.loads(done.stdout)
        assert (report["added"], len(report["failures"])) == (3, 1)
    vectors = [_vectors(tmp_path / "data", name) for name in ("here", "ray")]
    np.testing.assert_allclose(vectors[1], vectors[0], atol=1e-6)


def _vectors(data: Path, name: str) -> Any:
    from chiasm.retrieval import load_embedder

    store = Library(data, load_embedder(Settings(device="cpu"))).open(name).store
    return store.vectors([item.id for item in store.page(limit=10).items])
