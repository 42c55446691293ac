"""Collections: list, make, look at, delete."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter

from chiasm.server.callers import Asker
from chiasm.server.dependencies import Loaded, State
from chiasm.server.openapi import refusals
from chiasm.server.schemas import (
    CollectionEmbedder,
    CollectionList,
    CollectionObject,
    DeletedCollection,
    NewCollection,
)

if TYPE_CHECKING:
    from chiasm.retrieval import CollectionInfo

router = APIRouter(prefix="/v1/collections", tags=["collections"])


@router.get("", operation_id="list_collections", summary="List the collections")
async def list_collections(planes: Loaded, runtime: State, caller: Asker) -> CollectionList:
    """All that the caller may use, by name."""
    found = await runtime.run(planes.library.collections)
    mine = [info for info in found if caller.may_use_collection(info.name)]
    return CollectionList(data=[_collection(info) for info in mine])


@router.post(
    "",
    operation_id="create_collection",
    summary="Make a collection",
    status_code=201,
    responses=refusals(409, 415),
)
async def create_collection(
    body: NewCollection, planes: Loaded, runtime: State, caller: Asker
) -> CollectionObject:
    """A new, empty collection. It holds vectors of the embedder that is served now."""
    caller.require_collection(body.name)

    def create() -> CollectionInfo:
        return planes.library.create(body.name).info()

    return _collection(await runtime.run(create))


@router.get(
    "/{name}",
    operation_id="retrieve_collection",
    summary="Look at a collection",
    responses=refusals(404),
)
async def retrieve_collection(name: str, planes: Loaded, runtime: State) -> CollectionObject:
    """Its size and its embedder."""

    def find() -> CollectionInfo:
        # Not by opening it: another embedder's collection can be looked at, too.
        for info in planes.library.collections():
            if info.name == name:
                return info
        return planes.library.open(name).info()  # says why there is none

    return _collection(await runtime.run(find))


@router.delete(
    "/{name}",
    operation_id="delete_collection",
    summary="Delete a collection",
    responses=refusals(404),
)
async def delete_collection(name: str, planes: Loaded, runtime: State) -> DeletedCollection:
    """The collection and all its pictures are gone; the files they were indexed from stay."""
    await runtime.run(planes.library.delete, name)
    return DeletedCollection(name=name)


def _collection(info: CollectionInfo) -> CollectionObject:
    return CollectionObject(
        name=info.name,
        items=info.items,
        embedder=CollectionEmbedder(
            name=info.embedder.name,
            digest=info.embedder.digest,
            dimension=info.embedder.dimension,
        ),
        created_at=info.created_at,
    )
