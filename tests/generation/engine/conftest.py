"""Small models with eyes, and small models without."""

from __future__ import annotations

import pytest

from chiasm.models.generator import GeneratorCheckpoint
from tests.generation.tiny_models import tiny_llava, tiny_smolvlm


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> GeneratorCheckpoint:
    """16 tokens a picture."""
    return tiny_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def smolvlm(tmp_path_factory: pytest.TempPathFactory) -> GeneratorCheckpoint:
    """Tiles with words between them."""
    return tiny_smolvlm(tmp_path_factory.mktemp("smolvlm"))
