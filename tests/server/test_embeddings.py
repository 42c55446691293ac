"""`/v1/embeddings`, mostly through the official client."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from tests.server.conftest import (
    ColourEmbedder,
    LiveServer,
    data_url,
    error_of,
    image_part,
    picture,
)


@pytest.fixture
def sdk(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def vectors_of(response: Any) -> np.ndarray:
    return np.array([entry.embedding for entry in response.data], dtype=np.float32)


def test_text_is_embedded_as_the_embedder_does(sdk: openai.OpenAI) -> None:
    response = sdk.embeddings.create(model="default", input="red and blue")
    assert response.model == "default"
    assert response.data[0].index == 0
    expected = ColourEmbedder().embed_texts(["red and blue"])
    np.testing.assert_array_equal(vectors_of(response), expected)
    assert response.usage.prompt_tokens == response.usage.total_tokens == 3


def test_float_and_base64_carry_equal_numbers(sdk: openai.OpenAI) -> None:
    inputs: Any = ["a green sea", image_part(picture("blue")), "something else"]
    # Without a format the client asks for base64 and decodes it.
    by_base64 = vectors_of(sdk.embeddings.create(model="default", input=inputs))
    by_float = vectors_of(
        sdk.embeddings.create(model="default", input=inputs, encoding_format="float")
    )
    assert by_base64.shape == (3, ColourEmbedder.dimension)
    np.testing.assert_array_equal(by_base64, by_float)
    np.testing.assert_allclose(np.linalg.norm(by_base64, axis=1), 1, atol=1e-6)


def test_a_batch_keeps_its_order(sdk: openai.OpenAI) -> None:
    colours = ["red", "green", "blue", "yellow", "white", "black"]
    inputs: Any = []
    for colour in colours * 8:
        inputs += [image_part(picture(colour)), colour]
    response = sdk.embeddings.create(model="default", input=inputs)
    assert [entry.index for entry in response.data] == list(range(96))
    vectors = vectors_of(response)
    np.testing.assert_allclose(vectors[0::2], vectors[1::2], atol=1e-6)
    assert response.usage.model_dump()["images"] == 48


def test_parts_of_one_input_make_one_vector(sdk: openai.OpenAI) -> None:
    inputs: Any = [[{"type": "text", "text": "red"}, image_part(picture("blue"))]]
    (vector,) = vectors_of(sdk.embeddings.create(model="default", input=inputs))
    red, blue = ColourEmbedder().embed_texts(["red", "blue"])
    mean = (red + blue) / 2
    np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-6)


def test_async_client(server: LiveServer) -> None:
    async def many() -> Any:
        url = f"{server.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as sdk:
            part: Any = image_part(picture("red"))
            requests = [sdk.embeddings.create(model="colours", input=[part]) for _ in range(20)]
            with pytest.raises(openai.NotFoundError):
                await sdk.embeddings.create(model="colour", input="red")
            return await asyncio.gather(*requests)

    for response in asyncio.run(many()):
        assert response.model == "colours"
        expected = ColourEmbedder().embed_texts(["red"])
        np.testing.assert_allclose(vectors_of(response), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("media_type", "kind"),
    [("image/jpeg", "JPEG"), ("image/webp", "WEBP"), ("image/gif", "GIF"), ("image/bmp", "BMP")],
)
def test_picture_formats(sdk: openai.OpenAI, media_type: str, kind: str) -> None:
    url = data_url(picture("red", kind=kind), media_type)
    part: Any = {"type": "image_url", "image_url": url}
    response = sdk.embeddings.create(model="default", input=[part])
    similarity = vectors_of(response)[0] @ ColourEmbedder().embed_texts(["red"])[0]
    assert similarity > 0.95


def test_the_smallest_picture(sdk: openai.OpenAI) -> None:
    part: Any = image_part(picture("green", size=(1, 1)))
    (vector,) = vectors_of(sdk.embeddings.create(model="default", input=[part]))
    np.testing.assert_allclose(vector, ColourEmbedder().embed_texts(["green"])[0], atol=1e-6)


def test_an_unknown_model_is_answered_with_the_nearest_name(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        sdk.embeddings.create(model="defualt", input="red")
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    assert "Did you mean default?" in str(caught.value)


def test_models_are_listed_and_found(sdk: openai.OpenAI) -> None:
    ids = [model.id for model in sdk.models.list()]
    assert ids == ["colours", "default"]
    assert sdk.models.retrieve("colours").owned_by == "chiasm"
    with pytest.raises(openai.NotFoundError) as caught:
        sdk.models.retrieve("gpt-4")
    assert caught.value.code == "model_not_found"


REFUSED: list[tuple[Any, str, str]] = [
    ([], "input", "is empty"),
    ("", "input", "empty text"),
    (["red", ""], "input[1]", "empty text"),
    ([1, 2, 3], "input", "token ids"),
    ([[1, 2, 3]], "input[0]", "token ids"),
    ([[]], "input[0]", "is empty"),
    (7, "input", "must be a text or a list"),
    (None, "input", "must be a text or a list"),
    ([None], "input[0]", "must be a text, a part"),
    ([{"type": "audio"}], "input[0].type", 'must be "text" or "image_url"'),
    ([{"type": "text"}], "input[0].text", "must be a text"),
    ([{"type": "image_url"}], "input[0].image_url", "must be a data URL"),
    ([{"type": "image_url", "image_url": {}}], "input[0].image_url.url", "must be a data URL"),
    (["red"] * 2049, "input", "2,048 are the most"),
    ("x" * 100_001, "input", "100,000 are the most"),
    ("data:image/png;base64,iVBORw0KGgo=", "input", "data URL where a text belongs"),
]


@pytest.mark.parametrize(("value", "param", "message"), REFUSED)
def test_inputs_that_make_no_sense(
    sdk: openai.OpenAI, value: Any, param: str, message: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.embeddings.create(model="default", input=value)
    assert caught.value.param == param
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("url", "code", "reason"),
    [
        ("https://example.com/cat.jpg", "invalid_image", "not fetched from addresses"),
        ("http:\\\\127.0.0.1/", "invalid_image", "not fetched from addresses"),
        ("file:///etc/passwd", "invalid_image", "not a data URL"),
        ("/etc/passwd", "invalid_image", "not a data URL"),
        ("data:image/png;base64", "invalid_image", "comma"),
        ("data:image/png;base64,", "invalid_image", "empty"),
        ("data:image/png;base64,@@@@", "invalid_image", "malformed"),
        ("data:image/png;base64,aGVsbG8=", "not_an_image", "not a picture"),
    ],
)
def test_pictures_that_are_none(sdk: openai.OpenAI, url: str, code: str, reason: str) -> None:
    inputs: Any = ["red", {"type": "image_url", "image_url": {"url": url}}]
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.embeddings.create(model="default", input=inputs)
    assert caught.value.code == code
    assert reason in str(caught.value)
    assert "input[1].image_url.url" in str(caught.value)


def test_a_truncated_data_url(sdk: openai.OpenAI) -> None:
    whole = data_url(picture("red", size=(300, 200), seed=4))
    part: Any = {"type": "image_url", "image_url": {"url": whole[: len(whole) // 2 // 4 * 4 + 2]}}
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.embeddings.create(model="default", input=[part])
    assert caught.value.code == "broken_image"
    assert whole[40:60] not in str(caught.value)


def test_dimensions_other_than_the_models_are_refused(sdk: openai.OpenAI) -> None:
    assert sdk.embeddings.create(model="default", input="red", dimensions=64).data
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.embeddings.create(model="default", input="red", dimensions=32)
    assert caught.value.param == "dimensions"
    assert "64" in str(caught.value)


def test_model_may_be_left_out_and_unknown_arguments_may_not(client: httpx.Client) -> None:
    body = client.post("/v1/embeddings", json={"input": "red"}).json()
    assert body["model"] == "colours"
    assert len(body["data"][0]["embedding"]) == 64
    response = client.post("/v1/embeddings", json={"input": "red", "truncate": True})
    assert response.status_code == 400
    assert error_of(response)["code"] == "unknown_parameter"
    assert error_of(response)["param"] == "truncate"
