"""What was measured of which model: one line a measurement, for whoever chooses by it.

The file is JSON Lines, added to and never rewritten, and may be written by hand:
`{"evaluation": "sku-matching", "model": "openai/gpt-5-mini", "accuracy": 0.93,
"interval": [0.90, 0.95], "samples": 400, "measured": "2026-11-25T12:00:00Z"}`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chiasm.errors import ConfigurationError

FILE = "evaluations.jsonl"


@dataclass(frozen=True)
class Measured:
    """An accuracy from 0 to 1, with its 95 % interval where it is known.

    model: as routes have it, `provider/model` or a generator of this server.
    measured: ISO 8601, UTC.
    """

    evaluation: str
    model: str
    accuracy: float
    samples: int
    measured: str
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.accuracy <= 1:
            raise ValueError(f"an accuracy of {self.accuracy}")


class Measurements:
    """The newest measurement of each model on each evaluation. Threads may share it.

    The file is read again when it has changed.
    """

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / FILE
        self._lock = threading.Lock()
        self._stamp: tuple[int, int] | None = None
        self._newest: dict[tuple[str, str], Measured] = {}

    def accuracy(self, evaluation: str, model: str) -> float | None:
        """None where it was not measured. Raises ConfigurationError for a line that is none."""
        found = self.newest(evaluation, model)
        return None if found is None else found.accuracy

    def newest(self, evaluation: str, model: str) -> Measured | None:
        """The last line of the file about them."""
        with self._lock:
            self._read()
            return self._newest.get((evaluation, model))

    def add(self, measured: Measured) -> None:
        """Write one more line."""
        line = json.dumps(asdict(measured)) + "\n"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.write(line)

    def _read(self) -> None:
        try:
            stat = self._path.stat()
        except FileNotFoundError:
            self._stamp, self._newest = None, {}
            return
        stamp = (stat.st_mtime_ns, stat.st_size)
        if stamp == self._stamp:
            return
        newest = {}
        for number, line in enumerate(self._path.read_text(encoding="utf-8").splitlines(), 1):
            if line.strip():
                one = _measured(line, f"{self._path}, line {number}")
                newest[one.evaluation, one.model] = one
        self._stamp, self._newest = stamp, newest


def _measured(line: str, place: str) -> Measured:
    try:
        value: Mapping[str, Any] = json.loads(line)
        interval = value.get("interval")
        return Measured(
            evaluation=str(value["evaluation"]),
            model=str(value["model"]),
            accuracy=float(value["accuracy"]),
            samples=int(value.get("samples", 0)),
            measured=str(value.get("measured", "")),
            interval=None if interval is None else (float(interval[0]), float(interval[1])),
        )
    except (AttributeError, KeyError, IndexError, TypeError, ValueError):
        raise ConfigurationError(
            f"{place} is no measurement.",
            hint='Write {"evaluation": …, "model": …, "accuracy": 0.93, "samples": 400}.',
        ) from None
