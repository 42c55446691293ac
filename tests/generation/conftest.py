"""Small models that talk, one thread each: a second would only wait for the first."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from chiasm.models.generator import GeneratorCheckpoint
from tests.generation.tiny_models import tiny_language_model


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> GeneratorCheckpoint:
    """A language model of random weights."""
    return tiny_language_model(tmp_path_factory.mktemp("talker"))
