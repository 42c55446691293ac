from __future__ import annotations

import os
from pathlib import Path

import pytest

from chiasm.errors import ConfigurationError
from chiasm.evaluation.results import FILE, Measured, Measurements


def test_the_newest_measurement_counts(tmp_path: Path) -> None:
    measurements = Measurements(tmp_path)
    assert measurements.accuracy("skus", "openai/m") is None
    measurements.add(Measured("skus", "openai/m", 0.9, 400, "2026-11-01T00:00:00Z", (0.87, 0.92)))
    measurements.add(Measured("skus", "other", 0.1, 400, "2026-11-01T00:00:00Z"))
    assert measurements.accuracy("skus", "openai/m") == 0.9
    measurements.add(Measured("skus", "openai/m", 0.8, 400, "2026-11-02T00:00:00Z"))
    assert measurements.accuracy("skus", "openai/m") == 0.8
    assert Measurements(tmp_path).newest("skus", "other") == Measured(
        "skus", "other", 0.1, 400, "2026-11-01T00:00:00Z"
    )
    assert measurements.accuracy("documents", "openai/m") is None


def test_a_file_written_by_hand(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"evaluation": "e", "model": "m", "accuracy": 1}\n\n')
    measurements = Measurements(tmp_path)
    assert measurements.accuracy("e", "m") == 1.0
    (tmp_path / FILE).write_text('{"evaluation": "e", "model": "m", "accuracy": 0.5}\n')
    os.utime(tmp_path / FILE, ns=(1, 1))
    assert measurements.accuracy("e", "m") == 0.5
    (tmp_path / FILE).unlink()
    assert measurements.accuracy("e", "m") is None


@pytest.mark.parametrize(
    "line", ["nonsense", "[]", '{"model": "m"}', '{"evaluation":"e","model":"m","accuracy":93}']
)
def test_a_line_that_is_no_measurement(tmp_path: Path, line: str) -> None:
    good = '{"evaluation": "e", "model": "m", "accuracy": 1}\n'
    (tmp_path / FILE).write_text(good + line + "\n")
    with pytest.raises(ConfigurationError, match="line 2"):
        Measurements(tmp_path).accuracy("e", "m")
