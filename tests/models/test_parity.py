"""Every architecture against transformers, on random weights and random inputs, both ways."""

from __future__ import annotations

from pathlib import Path

import parity
import pytest


@pytest.mark.parametrize("name", parity.cases())
def test_outputs_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    for difference in parity.measure(name, tmp_path):
        assert difference.largest > 0.1, "a model that says nothing cannot disagree"
        assert difference.read <= 1e-4, difference
        assert difference.written <= 1e-4, difference
