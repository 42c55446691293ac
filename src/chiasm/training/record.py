"""What a run writes down while it trains: one JSON line a report, and TensorBoard's events."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger("chiasm.training")

METRICS = "metrics.jsonl"
EVENTS = "tensorboard"


class Record:
    """The metrics of a run, in files. Used by the first rank alone.

    A resumed run leaves no trace of the steps that were lost: what was written after its snapshot
    is cut off first.
    """

    def __init__(self, folder: Path, *, after_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / METRICS
        _cut(self._path, after_step)
        self._file = self._path.open("a", encoding="utf-8", buffering=1)
        self._events = _event_writer(folder / EVENTS, after_step)

    def write(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """One report."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        if self._events is not None:
            for name, value in metrics.items():
                self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Bring everything to the files."""
        self._file.close()
        if self._events is not None:
            self._events.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The reports in a `metrics.jsonl`, without a last line that a killed process left half."""
    rows = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows


def _cut(path: Path, step: int) -> None:
    rows = [row for row in read_metrics(path) if row["step"] <= step]
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    partial.replace(path)


def _event_writer(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.info("TensorBoard is not installed; metrics go to %s alone.", METRICS)
        return None
    # TensorBoard hides what an interrupted run wrote past this step.
    return SummaryWriter(str(folder), purge_step=step + 1)
