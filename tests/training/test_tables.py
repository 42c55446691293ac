"""Tables of captioned pictures, and folders of pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from captioned import picture

from chiasm.errors import UnusableData
from chiasm.training.data_recipe import Columns, DataRecipe
from chiasm.training.samples import Damage, Sample
from chiasm.training.sources import open_source

ROWS = [
    {"file": "a.jpg", "caption": "an apple, red", "sku": "007"},
    {"file": "sub/b.png", "caption": 'a "boat"', "sku": "8"},
    {"file": "c.jpg", "caption": "ein Käse\nmit Loch", "sku": "007"},
]


def read(source: Path | str, **options: Any) -> list[Sample | Damage]:
    opened = open_source(DataRecipe(source=str(source), **options))
    return [found for unit in range(opened.units) for found in opened.read(unit)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A table in the format that the suffix names, by libraries that are not under test."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    else:
        import csv

        with path.open("w", newline="", encoding="utf-8-sig") as file:
            delimiter = "\t" if path.suffix == ".tsv" else ","
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_formats_say_the_same(tmp_path: Path, suffix: str) -> None:
    found = read(write(tmp_path / f"table.{suffix}", ROWS))
    assert found == [
        Sample("a.jpg", 0, 0, tmp_path / "a.jpg", ("an apple, red",), group="007"),
        Sample("sub/b.png", 1, 0, tmp_path / "sub/b.png", ('a "boat"',), group="8"),
        Sample("c.jpg", 2, 0, tmp_path / "c.jpg", ("ein Käse\nmit Loch",), group="007"),
    ]


def test_a_folder_with_one_table_is_that_table(tmp_path: Path) -> None:
    write(tmp_path / "metadata.jsonl", ROWS)
    assert len(read(tmp_path)) == 3
    write(tmp_path / "more.csv", ROWS)
    with pytest.raises(UnusableData, match=r"several tables: metadata\.jsonl, more\.csv"):
        read(tmp_path)


def test_paths_begin_at_the_table_or_at_a_root(tmp_path: Path) -> None:
    table = write(tmp_path / "table.csv", [*ROWS, {"file": "/d.jpg", "caption": "d", "sku": ""}])
    found = read(table, root=str(tmp_path / "pictures"))
    assert [each.picture for each in found] == [
        tmp_path / "pictures" / "a.jpg",
        tmp_path / "pictures" / "sub/b.png",
        tmp_path / "pictures" / "c.jpg",
        Path("/d.jpg"),
    ]
    assert found[3].group is None


def test_several_captions_from_columns_lists_and_rows(tmp_path: Path) -> None:
    rows = [
        {"image": "a.jpg", "caption_1": "one", "caption_2": "two", "title": "not this"},
        {"image": "b.jpg", "caption_1": '["three", "four"]', "caption_2": ""},
        {"image": "a.jpg", "caption_1": "five", "caption_2": "one"},
    ]
    found = read(write(tmp_path / "t.csv", rows))
    assert [(each.key, each.captions) for each in found] == [
        ("a.jpg", ("one", "two", "five")),
        ("b.jpg", ("three", "four")),
    ]
    lists = [{"path": "a.jpg", "texts": ["one", "two"], "hard_negatives": ["no", "never"]}]
    for suffix in ("jsonl", "parquet"):
        [only] = read(write(tmp_path / f"lists.{suffix}", lists))
        assert (only.captions, only.hard_negatives) == (("one", "two"), ("no", "never"))


def test_named_columns(tmp_path: Path) -> None:
    rows = [{"Foto": "a.jpg", "Text A": "x", "Text B": "y", "Artikel": 3, "path": "wrong"}]
    columns = Columns(image="Foto", captions=("Text A", "Text B"), group="Artikel")
    for suffix in ("csv", "jsonl", "parquet"):
        [found] = read(write(tmp_path / f"t.{suffix}", rows), columns=columns)
        assert (found.key, found.captions, found.group) == ("a.jpg", ("x", "y"), "3")


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_a_missing_column_lists_those_there_are(tmp_path: Path, suffix: str) -> None:
    rows = [{"file": "a.jpg", "beschreibung": "x", "preis": "3"}]
    table = write(tmp_path / f"t.{suffix}", rows)
    with pytest.raises(UnusableData, match=r"hold captions.*file, beschreibung, preis") as caught:
        read(table)
    assert caught.value.param == "data.columns.captions"
    for columns, words in (
        (Columns(captions=("alt",)), r"no column 'alt', which data\.columns\.captions names"),
        (Columns(captions=("preis",), group="sku"), "no column 'sku'"),
        (Columns(captions=("preis",), image="bild"), "no column 'bild'"),
    ):
        with pytest.raises(UnusableData, match=words):
            read(table, columns=columns)
    nameless = write(tmp_path / f"u.{suffix}", [{"url": "a.jpg", "caption": "x"}])
    with pytest.raises(UnusableData, match=r"name pictures.*url, caption"):
        read(nameless)


def test_rows_that_cannot_be_used_are_counted_not_fatal(tmp_path: Path) -> None:
    lines = [
        '{"file": "a.jpg", "caption": "a"}',
        '{"file": "b.jpg", "caption": ""}',
        '{"file": "c.jpg"}',
        '{"file": "d.jpg", "caption": "d"',
        '{"caption": "e"}',
        '{"file": "f.jpg", "caption": ["", "f"]}',
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    found = read(tmp_path / "t.jsonl")
    assert [each.reason if isinstance(each, Damage) else "ok" for each in found] == [
        "ok", "empty caption", "no caption", "unreadable JSON", "no picture named", "ok",
    ]  # fmt: skip
    assert found[5].captions == ("f",)
    (tmp_path / "t.csv").write_text("file,caption\na.jpg,a\nb.jpg,b,extra,cells\nc.jpg\n")
    assert [getattr(each, "reason", "ok") for each in read(tmp_path / "t.csv")] == [
        "ok", "row with too many cells", "no caption",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet"])
def test_what_is_no_table_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnusableData, match="no table"):
        read(tmp_path / name)
    (tmp_path / name).write_bytes(b"\xff\xfe\x00garbage\n\x80\x81")
    with pytest.raises(UnusableData):
        read(tmp_path / name)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UnusableData):
        read(tmp_path / name)


def test_a_folder_of_pairs(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a.jpg", "b.jpg", "sub/c.png", "d.jpg", "e.jpg"):
        (tmp_path / name).write_bytes(picture(1))
    (tmp_path / "a.txt").write_text(" an apple \n")
    (tmp_path / "b.json").write_text('{"captions": ["a boat", "ship"], "sku": 4}')
    (tmp_path / "sub/c.txt").write_text("a cheese")
    (tmp_path / "sub/c.json").write_text('{"sku": "s"}')
    (tmp_path / "e.json").write_text("{")
    found = read(tmp_path)
    assert found[:2] == [
        Sample("a.jpg", 0, 0, tmp_path / "a.jpg", ("an apple",)),
        Sample("b.jpg", 1, 0, tmp_path / "b.jpg", ("a boat", "ship"), group="4"),
    ]
    assert [each.reason for each in found[2:4]] == ["no caption", "unreadable JSON"]
    assert found[4] == Sample("sub/c.png", 4, 0, tmp_path / "sub/c.png", ("a cheese",), group="s")


def test_tables_and_pictures_in_object_storage(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    try:
        for suffix in ("csv", "parquet"):
            table = write(tmp_path / f"t.{suffix}", ROWS[:1])
            memory.pipe_file(f"/shop/t.{suffix}", table.read_bytes())
            memory.pipe_file("/shop/a.jpg", picture(7))
            [found] = read(f"memory://shop/t.{suffix}")
            assert (found.picture, found.captions) == (picture(7), ("an apple, red",))
        memory.rm("/shop/a.jpg")
        [lost] = read("memory://shop/t.csv")
        assert lost.reason == "picture cannot be opened"
    finally:
        memory.rm("/shop", recursive=True)
