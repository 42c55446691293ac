"""Small models that talk, one thread each: a second would only wait for the first."""

from __future__ import annotations

import pytest

from chiasm.generation.engine import passes
from chiasm.models.generator import GeneratorCheckpoint
from tests.generation.tiny_models import tiny_language_model
from tests.one_thread import _one_thread  # noqa: F401 -- a fixture of every module here


@pytest.fixture(params=["kernels", "torch"])
def computed_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the compiled kernels, and without them."""
    if request.param == "torch":
        monkeypatch.setattr(passes, "_kernels_can", lambda decoder: False)
    return str(request.param)


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> GeneratorCheckpoint:
    """A language model of random weights."""
    return tiny_language_model(tmp_path_factory.mktemp("talker"))
