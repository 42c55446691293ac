"""The server as it is started: with the default embedder and its real weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import httpx
import numpy as np
import openai
import pytest

from chiasm.errors import WeightsError
from chiasm.retrieval import load_embedder
from chiasm.retrieval.embedder import Embedder
from chiasm.server import create_app
from chiasm.settings import Settings
from tests.server.conftest import LiveServer, image_part, make_settings, picture

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    try:
        return load_embedder(replace(Settings(), offline=True))
    except WeightsError as error:
        pytest.skip(f"The default weights are not in the cache (chiasm pull default): {error}")


@pytest.fixture(scope="module")
def live(embedder: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """With the sample collection."""
    settings = make_settings(tmp_path_factory.mktemp("default"))
    with LiveServer(create_app(settings, embedder=embedder, sample=True)) as live:
        yield live


def test_vectors_are_the_embedders_own(live: LiveServer, embedder: Embedder) -> None:
    texts = ["a cat on a sofa", "a rocket", "tea"]
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none") as sdk:
        response = sdk.embeddings.create(model="default", input=texts)
        other = sdk.embeddings.create(model="default", input=texts, encoding_format="float")
    vectors = np.array([entry.embedding for entry in response.data], dtype=np.float32)
    assert vectors.shape == (3, embedder.dimension)
    np.testing.assert_allclose(vectors, embedder.embed_texts(texts), atol=1e-5)
    np.testing.assert_allclose(
        vectors, np.array([entry.embedding for entry in other.data]), atol=1e-6
    )
    assert response.usage.prompt_tokens == sum(map(embedder.count_tokens, texts)) > 5


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (7, 5)])
def test_odd_sizes_do_not_stop_the_engine(live: LiveServer, size: tuple[int, int]) -> None:
    body = {"input": [image_part(picture("red", size=size))]}
    response = httpx.post(f"{live.url}/v1/embeddings", json=body, timeout=60)
    assert response.status_code == 200
    vector = np.array(response.json()["data"][0]["embedding"])
    assert np.isfinite(vector).all()
    assert abs(np.linalg.norm(vector) - 1) < 1e-5


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("a cat", {"cat", "chelsea"}), ("a cup of coffee", {"coffee", "coffee-mug"})],
)
def test_words_find_pictures_of_the_sample(live: LiveServer, text: str, wanted: set[str]) -> None:
    url = f"{live.url}/v1/collections/sample/search"
    hits = httpx.post(url, json={"text": text, "limit": 5}, timeout=60).json()["data"]
    assert wanted & {hit["id"] for hit in hits}
