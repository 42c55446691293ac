"""`POST /v1/embeddings`: texts and pictures in, vectors out, in OpenAI's shape."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, NoReturn, cast

import numpy as np
import pydantic_core
from fastapi import APIRouter, Response

from chiasm.errors import InvalidRequest
from chiasm.server.batching import BatchingEmbedder, Vectors
from chiasm.server.dependencies import LoadedEmbedder, State, find_model
from chiasm.server.openapi import refusals
from chiasm.server.pictures import Encoded, Opened, from_data_url
from chiasm.server.runtime import Runtime
from chiasm.server.schemas import (
    LONGEST_TEXT,
    MOST_INPUTS,
    EmbeddingRequest,
    EmbeddingResponse,
    is_unicode,
)

if TYPE_CHECKING:
    from chiasm.media import Image

router = APIRouter(prefix="/v1", tags=["embeddings"])

Part = str | Encoded
"""A text, or a picture that is not decoded yet."""


@router.post(
    "/embeddings",
    operation_id="create_embedding",
    summary="Embed texts and pictures",
    response_model=EmbeddingResponse,
    responses=refusals(404, 413, 415),
)
async def create_embedding(
    body: EmbeddingRequest, embedder: LoadedEmbedder, runtime: State
) -> Response:
    """One vector of unit length for each input; texts and pictures share the space.

    An input that is a list of parts gives one vector: the mean of its parts' directions.
    """
    model = embedder.name if body.model is None else find_model(body.model, embedder, runtime)
    if body.dimensions not in (None, embedder.dimension):
        raise InvalidRequest(
            f"This model's vectors have {embedder.dimension} dimensions, no other number.",
            hint="Leave `dimensions` out.",
            param="dimensions",
        )
    inputs = await runtime.run(_read_inputs, body.input, runtime)
    texts = [part for parts in inputs for part in parts if isinstance(part, str)]
    pictures = [part for parts in inputs for part in parts if isinstance(part, Encoded)]
    text_vectors = await runtime.embed(embedder.embed_texts, texts)
    image_vectors = await embed_pictures(pictures, embedder, runtime)

    encode = _base64 if body.encoding_format == "base64" else _floats

    def answer() -> bytes:
        vectors = _joined(inputs, text_vectors, image_vectors)
        tokens = sum(map(embedder.count_tokens, texts))
        return pydantic_core.to_json(
            {
                "object": "list",
                "data": [
                    {"object": "embedding", "index": index, "embedding": encode(vector)}
                    for index, vector in enumerate(vectors)
                ],
                "model": model,
                "usage": {
                    "prompt_tokens": tokens,
                    "total_tokens": tokens,
                    "images": len(pictures),
                },
            }
        )

    # Built here and not by FastAPI: a thousand vectors are a million numbers to validate.
    return Response(await runtime.run(answer), media_type="application/json")


async def embed_pictures(
    pictures: Sequence[Encoded], embedder: BatchingEmbedder, runtime: Runtime
) -> Vectors:
    """Vectors of encoded pictures, float32 [n, d]. Raises the first picture's `ImageError`."""
    parts = [np.zeros((0, embedder.dimension), dtype=np.float32)]
    groups = runtime.pictures.open_groups(pictures, shortest_side=embedder.decode_side)
    async with aclosing(groups):
        async for group in groups:
            vectors = await runtime.embed(embedder.embed_images, _images(group))
            parts.append(vectors)
    return np.concatenate(parts)


def _images(group: Sequence[Opened]) -> list[Image]:
    images = []
    for picture in group:
        if picture.error is not None:
            raise picture.error
        assert picture.image is not None
        images.append(picture.image)
    return images


def _joined(inputs: Sequence[Sequence[Part]], texts: Vectors, images: Vectors) -> list[Vectors]:
    """Each input's parts as one vector of unit length."""
    next_text, next_image = iter(texts), iter(images)
    vectors = []
    for parts in inputs:
        found = [next(next_text if isinstance(part, str) else next_image) for part in parts]
        if len(found) == 1:
            vectors.append(found[0])
            continue
        mean = np.mean(found, axis=0)
        vectors.append((mean / max(float(np.linalg.norm(mean)), 1e-12)).astype(np.float32))
    return vectors


def _base64(vector: Vectors) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")


def _floats(vector: Vectors) -> list[float]:
    return cast("list[float]", vector.tolist())


# Reading `input` --------------------------------------------------------------------------------
# By hand: of the dozen branches of the union pydantic would report each one's failure, and a
# caller who mistyped one part would have to guess which of them was meant.


def _read_inputs(value: Any, runtime: Runtime) -> list[list[Part]]:
    if isinstance(value, str):
        return [[_text(value, "input")]]
    if not isinstance(value, list):
        _refuse("input", "must be a text or a list of inputs")
    if not value:
        _refuse("input", "is empty", hint="Send at least one text or picture.")
    if isinstance(value[0], int) and not isinstance(value[0], bool):
        _refuse_tokens("input")
    if len(value) > MOST_INPUTS:
        _refuse("input", f"has {len(value):,} entries; {MOST_INPUTS:,} are the most")
    inputs: list[list[Part]] = []
    for index, entry in enumerate(value):
        place = f"input[{index}]"
        if isinstance(entry, list):
            if not entry:
                _refuse(place, "is empty", hint="Give it at least one part.")
            if isinstance(entry[0], int) and not isinstance(entry[0], bool):
                _refuse_tokens(place)
            parts = [_part(part, f"{place}[{at}]", runtime) for at, part in enumerate(entry)]
            inputs.append(parts)
        else:
            inputs.append([_part(entry, place, runtime)])
    if sum(map(len, inputs)) > MOST_INPUTS:
        _refuse("input", f"has more than {MOST_INPUTS:,} parts in all, which are the most")
    return inputs


def _part(value: Any, place: str, runtime: Runtime) -> Part:
    if isinstance(value, str):
        return _text(value, place)
    if not isinstance(value, dict):
        _refuse(place, "must be a text, a part or a list of parts")
    if value.get("type") == "text":
        return _text(value.get("text"), f"{place}.text")
    if value.get("type") != "image_url":
        _refuse(f"{place}.type", 'must be "text" or "image_url"')
    image, place = value.get("image_url"), f"{place}.image_url"
    if isinstance(image, dict):
        image, place = image.get("url"), f"{place}.url"
    if not isinstance(image, str):
        _refuse(place, "must be a data URL")
    return from_data_url(image, limits=runtime.settings.media, name=place)


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        _refuse(place, "must be a text")
    if not value:
        _refuse(place, "is an empty text", hint="An empty text has no meaning to embed.")
    if not is_unicode(value):
        _refuse(place, "holds half of a surrogate pair, which is no character")
    if len(value) > LONGEST_TEXT:
        _refuse(place, f"has {len(value):,} characters; {LONGEST_TEXT:,} are the most")
    if value[:5].lower() == "data:" and ";base64," in value[:200]:
        _refuse(
            place,
            "is a data URL where a text belongs",
            hint='Send a picture as {"type": "image_url", "image_url": {"url": "data:…"}}.',
        )
    return value


def _refuse_tokens(place: str) -> NoReturn:
    _refuse(
        place,
        "is a list of token ids, which mean nothing to this model's tokenizer",
        hint="Send the text itself.",
    )


def _refuse(place: str, what: str, *, hint: str | None = None) -> NoReturn:
    raise InvalidRequest(f"{place} {what}.", hint=hint, param=place)
