"""`kill -9` in the middle of indexing: no acknowledged picture is lost, nothing is damaged."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from colours import ColourEmbedder, picture, write_jpeg

from chiasm.media.decode import open_image
from chiasm.retrieval.collection import Collection
from chiasm.retrieval.indexing import index_folder
from chiasm.retrieval.library import Library
from chiasm.settings import Settings

PICTURES = 300
ROUNDS = 6
WRITER = Path(__file__).with_name("killed_writer.py")


@pytest.mark.slow
def test_kill_nine(tmp_path: Path) -> None:
    data, folder = tmp_path / "data", tmp_path / "photos"
    for i in range(PICTURES):
        write_jpeg(folder / f"{i:03d}.jpg", picture(i, size=(128, 96)))
    (folder / "table.jsonl").write_text(
        "".join(
            json.dumps({"file": f"{i:03d}.jpg", "text": f"text {i}", "number": i}) + "\n"
            for i in range(PICTURES)
        )
    )
    chance = random.Random(7)
    acknowledged: dict[str, tuple[str, str]] = {}
    killed_at_work = 0
    for _ in range(ROUNDS):
        lines, finished = _run_and_kill(data, folder, wait=chance.uniform(0.05, 0.6))
        killed_at_work += not finished
        for source, id, digest in lines:
            assert source not in acknowledged, "an acknowledged picture was written again"
            acknowledged[source] = (id, digest)
        collection = Library(data, ColourEmbedder()).open("photos")
        _check_acknowledged(collection, acknowledged)
        _check_whole(collection, random.Random(0).sample(range(collection.count()), 10))
    assert killed_at_work >= 5
    assert 0 < len(acknowledged) < PICTURES

    report = index_folder(folder, collection, settings=Settings(), metadata=folder / "table.jsonl")
    assert report.failures == []
    assert report.duplicates + report.near_duplicates == 0
    assert collection.count() == PICTURES
    sources = [item.source for item in collection.items(limit=1000).items]
    assert sorted(sources) == sorted(str(path) for path in folder.glob("*.jpg"))
    _check_acknowledged(collection, acknowledged)
    _check_whole(collection, range(PICTURES))


def _run_and_kill(
    data: Path, folder: Path, *, wait: float
) -> tuple[list[tuple[str, str, str]], bool]:
    """Run the writer and kill it some moments after its first acknowledgement."""
    process = subprocess.Popen(
        [sys.executable, str(WRITER), str(data), str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    lines: list[str] = []
    first = threading.Event()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if "\t" in line or line.startswith("done"):
                first.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert first.wait(90), "the writer wrote nothing"
    time.sleep(wait)
    process.kill()
    process.wait()
    reader.join()
    # A last line without its end was cut off by the kill: it acknowledged nothing.
    complete = [line.rstrip("\n").split("\t") for line in lines if line.endswith("\n")]
    acknowledged = [(line[0], line[1], line[2]) for line in complete if len(line) == 3]
    return acknowledged, ["done"] in complete


def _check_acknowledged(collection: Collection, acknowledged: dict[str, tuple[str, str]]) -> None:
    found = {item.id: item for item in collection.items(limit=1000).items}
    for source, (id, digest) in acknowledged.items():
        assert id in found, f"{source} was acknowledged and is lost"
        number = int(Path(source).stem)
        item = found[id]
        assert (item.source, item.digest) == (source, digest)
        assert (item.text, item.metadata) == (f"text {number}", {"number": number})


def _check_whole(collection: Collection, places: Sequence[int]) -> None:
    """Each row, acknowledged or not, has its vector and its thumbnail, and no picture has two."""
    items = collection.items(limit=1000).items
    assert len({item.source for item in items}) == len(items)
    chosen = [items[place] for place in places]
    vectors = collection.store.vectors([item.id for item in chosen])
    images = [open_image(Path(item.source)) for item in chosen]
    np.testing.assert_allclose(vectors, ColourEmbedder().embed_images(images), atol=2e-3)
    for item, image in zip(chosen, images, strict=True):
        small = open_image(collection.picture(item.id, "thumbnail")[0])
        assert small.size == (128, 96)
        assert np.abs(small.pixels.astype(int) - image.pixels).mean() < 6
    hits = collection.search(image=images[0], limit=1).hits
    assert hits[0].id == chosen[0].id


@pytest.mark.slow
def test_a_reader_follows_a_writer_in_another_process(tmp_path: Path) -> None:
    data, folder = tmp_path / "data", tmp_path / "photos"
    for i in range(60):
        write_jpeg(folder / f"{i:03d}.jpg", picture(i, size=(128, 96)))
    (folder / "table.jsonl").write_text("")
    collection = Library(data, ColourEmbedder()).create("photos")
    process = subprocess.Popen(
        [sys.executable, str(WRITER), str(data), str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    seen = 0
    for line in process.stdout:
        if "\t" in line:
            source, id, _ = line.split("\t")
            hit = collection.search(image=open_image(Path(source)), limit=1).hits[0]
            assert (hit.id, hit.item.source) == (id, source)
            assert collection.picture(id, "thumbnail")[0]
            seen += 1
    assert process.wait() == 0
    assert seen == collection.count() == 60
