"""Captioned pictures as separate files: a table that names them, or a folder of pairs.

A table is CSV, TSV, JSON Lines or Parquet. Several rows of one picture are one sample with several
captions. Rows are held as Arrow arrays: a million of them take as much memory as their letters,
and worker processes share it.
"""

from __future__ import annotations

import csv
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from chiasm.errors import UnusableData
from chiasm.media import find_images
from chiasm.training import storage
from chiasm.training.data_recipe import Columns
from chiasm.training.fields import Fields, Found, image_name, read_fields, require_columns
from chiasm.training.order import Numbers
from chiasm.training.samples import Damage, Sample

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_LARGEST_TEXT = 1024 * 1024
_SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("hard_negatives", pa.list_(pa.string())),
        ("group", pa.string()),
        ("label", pa.string()),
        ("duplicate_of", pa.string()),
        ("contaminated_by", pa.string()),
        ("damage", pa.string()),
    ]
)


@dataclass
class Table:
    """Rows as a source of samples. units: their number; each is a unit with one sample.

    rows: `_SCHEMA`; `damage` says why a row is none that can be used. root: folder or address that
    relative paths begin at.
    """

    rows: Any
    root: str
    options: Mapping[str, Any]

    @property
    def units(self) -> int:
        return int(self.rows.num_rows)

    @property
    def samples(self) -> int | None:
        return self.units

    @property
    def counts(self) -> Numbers | None:
        return np.empty(0, dtype=np.int64)

    @property
    def identity(self) -> str:
        """What must be equal for a position to mean the same."""
        hasher = hashlib.sha256()
        for chunk in self.rows["file"].chunks:
            for buffer in pa.concat_arrays([chunk]).buffers():
                hasher.update(buffer or b"")
        return hasher.hexdigest()

    def read(self, unit: int, start: int = 0) -> Iterator[Sample | Damage]:
        """The sample of a row, or why there is none."""
        if start:
            return
        row = {name: self.rows[name][unit].as_py() for name in _SCHEMA.names}
        if row["damage"]:
            yield Damage(0, row["damage"], row["file"] or f"row {unit + 1}")
            return
        found = Found(
            tuple(row["captions"]),
            tuple(row["hard_negatives"]),
            *(row[name] for name in _SCHEMA.names[3:7]),
        )
        try:
            picture = self._picture(row["file"])
        except OSError:
            yield Damage(0, "picture cannot be opened", row["file"])
            return
        yield found.sample(row["file"], unit, 0, picture, found.captions)

    def pictures(self) -> Iterator[tuple[str, bytes | Path]]:
        """(name, picture) of every row that names one, with captions or without."""
        for file in self.rows["file"].to_pylist():
            try:
                yield file, self._picture(file)
            except OSError:
                yield file, b""  # which opens as badly

    def _picture(self, file: str) -> bytes | Path:
        place = located(self.root, file)
        if not storage.is_address(place):
            return Path(place)
        return storage.read_bytes(place, 1 << 31, self.options)


def located(root: str, file: str) -> str:
    """Where a picture of a table is."""
    if storage.is_address(file) or Path(file).is_absolute() or not root:
        return file
    if storage.is_address(root):
        return f"{root.rstrip('/')}/{file}"
    return str(Path(root) / file)


def read_table(
    source: str,
    root: str,
    columns: Columns,
    options: Mapping[str, Any],
    *,
    need_captions: bool = True,
) -> Table:
    """Read a whole table. Raises UnusableData, naming the line or the column at fault."""
    fields = Fields.of(columns)
    builder = _Rows()
    reader = _parquet if source.endswith(".parquet") else _lines
    try:
        with storage.opened(source, options) as stream:

            def check(names: list[str]) -> None:
                require_columns(names, fields, columns, source, need_captions=need_captions)

            for line, values in reader(stream, source, fields, check):
                if isinstance(values, str):
                    builder.add_damage(line, values)
                    continue
                name = image_name(values, fields)
                file = values[name] if name else None
                if not isinstance(file, str) or not file.strip():
                    builder.add_damage(line, "no picture named")
                    continue
                builder.add(file.strip(), read_fields(values, fields))
    except (FileNotFoundError, IsADirectoryError):
        raise UnusableData(f"There is no table {source}.", param="data.source") from None
    except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException):
        raise UnusableData(
            f"The table {source} could not be read.",
            hint="It must be CSV, TSV or JSON Lines in UTF-8, or Parquet.",
            param="data.source",
        ) from None
    parent = source.rpartition("/")[0] if storage.is_address(source) else str(Path(source).parent)
    return Table(builder.finish(), root or parent, options)


def read_pairs(folder: Path, columns: Columns) -> Table:
    """A folder of pictures with `.txt` or `.json` files of the same name beside them."""
    fields, builder = Fields.of(columns), _Rows()
    for path in find_images(folder):
        file = str(path.relative_to(folder))
        values: dict[str, Any] = {}
        beside = path.with_suffix(".json")
        try:
            if beside.is_file():
                values = json.loads(beside.read_bytes()[:_LARGEST_TEXT])
            found = read_fields(values, fields)
            text = path.with_suffix(".txt")
            if not found.captions and text.is_file():
                with text.open("rb") as stream:
                    caption = stream.read(_LARGEST_TEXT).decode("utf-8", errors="replace")
                found = read_fields({**values, "caption": caption}, Fields.of(Columns()))
        except (ValueError, OSError, AttributeError, RecursionError):
            builder.add_damage(0, "unreadable JSON", file)
            continue
        builder.add(file, found)
    return Table(builder.finish(), str(folder), {})


# Rows -------------------------------------------------------------------------------------------


class _Rows:
    """Collects rows, joining those of one file."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self._known: dict[str, int] = {}

    def add(self, file: str, found: Found) -> None:
        captions = [caption for caption in found.captions if caption]
        if file in self._known:
            row = self._rows[self._known[file]]
            row["captions"] = list(dict.fromkeys([*row["captions"], *captions]))
            negatives = [*row["hard_negatives"], *found.hard_negatives]
            row["hard_negatives"] = list(dict.fromkeys(negatives))
            if row["captions"]:
                row["damage"] = None
            return
        self._known[file] = len(self._rows)
        damage = None
        if not captions:
            damage = "empty caption" if found.captions else "no caption"
        self._rows.append(
            {
                "file": file,
                "captions": captions,
                "hard_negatives": list(found.hard_negatives),
                "group": found.group,
                "label": found.label,
                "duplicate_of": found.duplicate_of,
                "contaminated_by": found.contaminated_by,
                "damage": damage,
            }
        )

    def add_damage(self, line: int, reason: str, file: str = "") -> None:
        self._rows.append(
            {
                "file": file or f"line {line}",
                "captions": [],
                "hard_negatives": [],
                "damage": reason,
            }
        )

    def finish(self) -> Any:
        table = pa.Table.from_pylist(self._rows, schema=_SCHEMA)
        return table.combine_chunks()


Row = tuple[int, dict[str, Any] | str]
"""Line number, and the row's values or what is wrong with it."""


Check = Callable[[list[str]], None]
"""Raises UnusableData for a table with these columns."""


def _parquet(stream: Any, source: str, fields: Fields, check: Check) -> Iterator[Row]:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(pa.BufferReader(stream.read()) if not _seeks(stream) else stream)
    names = list(file.schema_arrow.names)
    check(names)
    line = 0
    for batch in file.iter_batches(batch_size=16_384, columns=_wanted(names, fields)):
        for values in batch.to_pylist():
            line += 1
            yield line, values


def _wanted(names: list[str], fields: Fields) -> list[str]:
    """Columns that are looked at; a table may hold the pictures themselves, or embeddings."""
    from chiasm.training.fields import CONTAMINATED_BY, DUPLICATE_OF, caption_names

    known = {*fields.images, *caption_names(fields, names), *fields.groups, *fields.labels}
    known |= {*fields.hard_negatives, DUPLICATE_OF, CONTAMINATED_BY}
    return [name for name in names if name in known]


def _seeks(stream: Any) -> bool:
    return hasattr(stream, "seek")


def _lines(stream: Any, source: str, fields: Fields, check: Check) -> Iterator[Row]:
    if not _seeks(stream):
        from io import BytesIO

        stream = BytesIO(stream.read())
    text = TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    if source.endswith((".jsonl", ".ndjson")):
        yield from _json_lines(text, check)
        return
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.DictReader(text, delimiter="\t" if source.endswith(".tsv") else ",")
    check([name for name in reader.fieldnames or [] if name])
    for row in reader:
        # A line with more cells than the header has them under None.
        if None in row:
            yield reader.line_num, "row with too many cells"
            continue
        yield reader.line_num, {name: value for name, value in row.items() if value}


def _json_lines(text: Any, check: Check) -> Iterator[Row]:
    checked = False
    for number, line in enumerate(text, start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            yield number, "unreadable JSON"
            continue
        if not checked:
            check(list(values))
            checked = True
        yield number, values


# Which kind a source is -------------------------------------------------------------------------


def table_in(folder: Path) -> Path | None:
    """The one table that lies in a folder, or None. Raises UnusableData if there are several."""
    found = sorted(path for path in folder.iterdir() if path.name.endswith(SUFFIXES))
    if len(found) > 1:
        raise UnusableData(
            f"{folder} holds several tables: {', '.join(path.name for path in found)}.",
            hint="Name the one that is meant in data.source.",
            param="data.source",
        )
    return found[0] if found else None


def key_of(file: str) -> str:
    """A file's path without its suffix, as the key of a shard's sample."""
    path = PurePosixPath(file)
    return str(path.with_suffix("")) if path.suffix else str(path)
