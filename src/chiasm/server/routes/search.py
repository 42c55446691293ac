"""Search a collection by words, by a picture, by both, or by an item's neighbours."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, TypeAlias

from fastapi import APIRouter, Request

from chiasm.errors import InvalidRequest
from chiasm.server.callers import Asker
from chiasm.server.dependencies import Loaded, State
from chiasm.server.openapi import refusals
from chiasm.server.pictures import from_data_url
from chiasm.server.routes.items import item_object
from chiasm.server.schemas import (
    EmbeddingUsage,
    SearchHit,
    SearchRequest,
    Timing,
)
from chiasm.server.schemas import SearchResult as SearchAnswer

if TYPE_CHECKING:
    from chiasm.media import Image
    from chiasm.retrieval import SearchResult
    from chiasm.server.runtime import Planes, Runtime

router = APIRouter(prefix="/v1/collections", tags=["search"])

Found: TypeAlias = "tuple[int, SearchResult]"
"""Tokens of the question's text, and what was found."""


@router.post(
    "/{name}/search",
    operation_id="search_collection",
    summary="Find pictures",
    responses=refusals(404, 409, 413, 415),
)
async def search_collection(
    name: str,
    body: SearchRequest,
    planes: Loaded,
    caller: Asker,
    runtime: State,
    request: Request,
) -> SearchAnswer:
    """The nearest pictures first; `filter` narrows before the search, not after it."""
    if not (body.text or body.image or body.item):
        raise InvalidRequest(
            "A search needs `text`, `image` or `item`.", hint="Give one of them.", param="text"
        )

    def search(image: Image | None) -> Found:
        tokens = planes.embedder.count_tokens(body.text) if body.text else 0
        return tokens, planes.library.open(name).search(
            text=body.text or None,
            image=image,
            item=body.item,
            filter=body.filter,
            limit=body.limit,
            offset=body.offset,
        )

    accounts, model = await runtime.accounts(), planes.embedder.name
    images = 1 if body.image else 0
    counted = accounts.counted(caller, request, alias=model, model=model, images=images)
    async with counted as count:
        tokens, result = await _found(search, body, planes, runtime)
        count.text_tokens = tokens
    return SearchAnswer(
        data=[
            SearchHit(id=hit.id, score=hit.score, item=item_object(name, hit.item))
            for hit in result.hits
        ],
        timing=Timing(embed_seconds=result.embed_seconds, search_seconds=result.search_seconds),
        usage=EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens, images=images),
    )


async def _found(
    search: Callable[[Image | None], Found], body: SearchRequest, planes: Planes, runtime: Runtime
) -> Found:
    if body.image:
        encoded = from_data_url(body.image, limits=runtime.settings.media, name="image")
        opened = runtime.pictures.open_groups([encoded], shortest_side=planes.embedder.decode_side)
        async with aclosing(opened):
            (picture,) = await anext(opened)
            if picture.error is not None:
                raise picture.error
            return await runtime.embed(search, picture.image)
    return await runtime.embed(search, None)
