"""A library in a temporary folder, with an embedder whose vectors can be reasoned about."""

from __future__ import annotations

from pathlib import Path

import pytest
from colours import ColourEmbedder

from chiasm.retrieval.library import Library


@pytest.fixture
def embedder() -> ColourEmbedder:
    return ColourEmbedder()


@pytest.fixture
def library(tmp_path: Path, embedder: ColourEmbedder) -> Library:
    return Library(tmp_path / "data", embedder)
