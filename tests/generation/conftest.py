"""Small models that talk, one thread each: a second would only wait for the first."""

from __future__ import annotations

import pytest

from chiasm.models.generator import GeneratorCheckpoint
from tests.generation.tiny_models import tiny_language_model
from tests.one_thread import _one_thread  # noqa: F401 -- a fixture of every module here


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> GeneratorCheckpoint:
    """A language model of random weights."""
    return tiny_language_model(tmp_path_factory.mktemp("talker"))
