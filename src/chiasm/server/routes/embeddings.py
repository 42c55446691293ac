"""`POST /v1/embeddings`: texts and pictures in, vectors out, in OpenAI's shape."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, NoReturn, cast

import numpy as np
import pydantic_core
from fastapi import APIRouter, Request, Response

from chiasm.errors import InvalidRequest
from chiasm.server.batching import BatchingEmbedder, Vectors
from chiasm.server.callers import Asker
from chiasm.server.dependencies import LoadedEmbedder, State, find_model
from chiasm.server.openapi import refusals
from chiasm.server.parts import Part, read_part, read_text, refuse
from chiasm.server.pictures import Encoded, Opened
from chiasm.server.runtime import Runtime
from chiasm.server.schemas import MOST_INPUTS, EmbeddingRequest, EmbeddingResponse

if TYPE_CHECKING:
    from chiasm.media import Image
    from chiasm.media.limits import Limits

router = APIRouter(prefix="/v1", tags=["embeddings"])


@router.post(
    "/embeddings",
    operation_id="create_embedding",
    summary="Embed texts and pictures",
    response_model=EmbeddingResponse,
    responses=refusals(404, 413, 415),
)
async def create_embedding(
    body: EmbeddingRequest,
    embedder: LoadedEmbedder,
    caller: Asker,
    runtime: State,
    request: Request,
) -> Response:
    """One vector of unit length for each input; texts and pictures share the space.

    An input that is a list of parts gives one vector: the mean of its parts' directions.
    """
    model = body.model
    model = embedder.name if model is None else find_model(model, embedder, runtime, caller)
    caller.require_model(model)
    if body.dimensions not in (None, embedder.dimension):
        raise InvalidRequest(
            f"This model's vectors have {embedder.dimension} dimensions, no other number.",
            hint="Leave `dimensions` out.",
            param="dimensions",
        )
    fetched = await runtime.fetch(body.input, "input")
    inputs = await runtime.run(_read_inputs, body.input, runtime.settings.media, fetched)
    texts = [part for parts in inputs for part in parts if isinstance(part, str)]
    pictures = [part for parts in inputs for part in parts if isinstance(part, Encoded)]
    accounts, name = await runtime.accounts(), embedder.name
    counted = accounts.counted(caller, request, alias=model, model=name, images=len(pictures))
    async with counted as count:
        text_vectors = await runtime.embed(embedder.embed_texts, texts)
        image_vectors = await embed_pictures(pictures, embedder, runtime)
        tokens = count.text_tokens = await runtime.run(_tokens, texts, embedder)

    encode = _base64 if body.encoding_format == "base64" else _floats

    def answer() -> bytes:
        vectors = _joined(inputs, text_vectors, image_vectors)
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


def _tokens(texts: Sequence[str], embedder: BatchingEmbedder) -> int:
    return sum(map(embedder.count_tokens, texts))


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


def _read_inputs(value: Any, limits: Limits, fetched: Mapping[str, bytes]) -> list[list[Part]]:
    if isinstance(value, str):
        return [[read_text(value, "input")]]
    if not isinstance(value, list):
        refuse("input", "must be a text or a list of inputs")
    if not value:
        refuse("input", "is empty", hint="Send at least one text or picture.")
    if isinstance(value[0], int) and not isinstance(value[0], bool):
        _refuse_tokens("input")
    if len(value) > MOST_INPUTS:
        refuse("input", f"has {len(value):,} entries; {MOST_INPUTS:,} are the most")
    inputs: list[list[Part]] = []
    for index, entry in enumerate(value):
        place = f"input[{index}]"
        if isinstance(entry, list):
            if not entry:
                refuse(place, "is empty", hint="Give it at least one part.")
            if isinstance(entry[0], int) and not isinstance(entry[0], bool):
                _refuse_tokens(place)
            places = ((part, f"{place}[{at}]") for at, part in enumerate(entry))
            inputs.append([read_part(part, where, limits, fetched) for part, where in places])
        else:
            inputs.append([read_part(entry, place, limits, fetched)])
    if sum(map(len, inputs)) > MOST_INPUTS:
        refuse("input", f"has more than {MOST_INPUTS:,} parts in all, which are the most")
    return inputs


def _refuse_tokens(place: str) -> NoReturn:
    refuse(
        place,
        "is a list of token ids, which mean nothing to this model's tokenizer",
        hint="Send the text itself.",
    )
