"""Words that lie beside pictures: a text file of the same name, or a table for a whole folder.

A table is CSV or JSON Lines. Its column `file` names a picture: by its path below the folder, by
its file name, or by that without the suffix. The first of the columns `text`, `caption` and
`title` that is there is the item's text; all other columns are its metadata.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chiasm.errors import InvalidRequest

_FILE = "file"
_TEXTS = ("text", "caption", "title")
_MAX_SIDECAR_BYTES = 64 * 1024
# A number that no leading zero or plus sign marks as a code: 12, -0.5, 1e9, but not 007.
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")


@dataclass(frozen=True)
class Caption:
    """What is said about one picture. None: nothing is."""

    text: str | None = None
    metadata: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Captions:
    """What is said about the pictures of a folder."""

    folder: Path
    rows: Mapping[str, Caption] = field(default_factory=dict)

    def of(self, path: Path) -> Caption:
        """For one picture; a text file beside it wins over the table's text. OSError."""
        row = self._row(path)
        text = _beside(path)
        return row if text is None else Caption(text, row.metadata)

    def _row(self, path: Path) -> Caption:
        if not self.rows:
            return Caption()
        relative = path.relative_to(self.folder)
        names = (relative.as_posix(), relative.with_suffix("").as_posix(), path.name, path.stem)
        return next((self.rows[name] for name in names if name in self.rows), Caption())


def read_captions(folder: Path, table: Path | None = None) -> Captions:
    """Read the table, if there is one. InvalidRequest, naming the line that cannot be used."""
    if table is None:
        return Captions(folder)
    rows: dict[str, Caption] = {}
    for number, row in _rows(table):
        name = row.pop(_FILE, None)
        if not isinstance(name, str) or not name:
            raise InvalidRequest(
                f"{table}, line {number}: the column {_FILE!r} must name a picture.",
                param="metadata",
            )
        text = next((str(row.pop(key)) for key in _TEXTS if row.get(key)), None)
        rows[name.removeprefix("./")] = Caption(text, row)
    return Captions(folder, rows)


def _beside(path: Path) -> str | None:
    for beside in (path.with_suffix(".txt"), path.with_name(f"{path.name}.txt")):
        if beside.is_file():
            with beside.open("rb") as file:
                return file.read(_MAX_SIDECAR_BYTES).decode("utf-8", errors="replace").strip()
    return None


def _rows(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            if table.suffix.lower() == ".csv":
                reader = csv.DictReader(file)
                for row in reader:
                    # A line with more cells than the header has them under None.
                    filled = {key: value for key, value in row.items() if key and value}
                    name = filled.pop(_FILE, None)
                    values = {key: _value(text) for key, text in filled.items()}
                    yield reader.line_num, {_FILE: name, **values}
            else:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        yield number, _object(line, table, number)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidRequest(
            f"The table {table} could not be read.",
            hint="It must be CSV, or JSON Lines, in UTF-8.",
            param="metadata",
        ) from error


def _object(line: str, table: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise InvalidRequest(
            f"{table}, line {number} is not a JSON object.",
            hint="A table that is not called .csv must be JSON Lines: one object a line.",
            param="metadata",
        )
    return row


def _value(text: str) -> Any:
    """A cell of a CSV file as what it plainly is: a number, true or false, otherwise text."""
    if text in ("true", "false"):
        return text == "true"
    if _NUMBER.fullmatch(text):
        number = float(text)
        return int(text) if text.lstrip("-").isdigit() else number
    return text
