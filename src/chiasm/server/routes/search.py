"""Search a collection by words, by a picture, by both, or by an item's neighbours."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

from fastapi import APIRouter

from chiasm.errors import InvalidRequest
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

router = APIRouter(prefix="/v1/collections", tags=["search"])


@router.post(
    "/{name}/search",
    operation_id="search_collection",
    summary="Find pictures",
    responses=refusals(404, 409, 413, 415),
)
async def search_collection(
    name: str, body: SearchRequest, planes: Loaded, runtime: State
) -> SearchAnswer:
    """The nearest pictures first; `filter` narrows before the search, not after it."""
    if not (body.text or body.image or body.item):
        raise InvalidRequest(
            "A search needs `text`, `image` or `item`.", hint="Give one of them.", param="text"
        )

    def search(image: Image | None) -> tuple[int, SearchResult]:
        tokens = planes.embedder.count_tokens(body.text) if body.text else 0
        return tokens, planes.library.open(name).search(
            text=body.text or None,
            image=image,
            item=body.item,
            filter=body.filter,
            limit=body.limit,
            offset=body.offset,
        )

    if body.image:
        encoded = from_data_url(body.image, limits=runtime.settings.media, name="image")
        opened = runtime.pictures.open_groups([encoded], shortest_side=planes.embedder.decode_side)
        async with aclosing(opened):
            (picture,) = await anext(opened)
            if picture.error is not None:
                raise picture.error
            tokens, result = await runtime.embed(search, picture.image)
    else:
        tokens, result = await runtime.embed(search, None)
    return SearchAnswer(
        data=[
            SearchHit(id=hit.id, score=hit.score, item=item_object(name, hit.item))
            for hit in result.hits
        ],
        timing=Timing(embed_seconds=result.embed_seconds, search_seconds=result.search_seconds),
        usage=EmbeddingUsage(
            prompt_tokens=tokens, total_tokens=tokens, images=1 if body.image else 0
        ),
    )
