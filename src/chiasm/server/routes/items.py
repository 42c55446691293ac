"""The pictures of a collection: add, list, look at, change, delete."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile

from chiasm.errors import ChiasmError, ImageError, InvalidRequest
from chiasm.server.dependencies import Loaded, State
from chiasm.server.errors import body_of, shown
from chiasm.server.openapi import refusals
from chiasm.server.pictures import Encoded, Opened, from_data_url, from_upload
from chiasm.server.runtime import Planes, Runtime
from chiasm.server.schemas import (
    MOST_INPUTS,
    AddedItem,
    AddedItems,
    DeletedItem,
    ErrorDetail,
    ItemChanges,
    ItemObject,
    ItemPage,
    NewItems,
)
from chiasm.server.static import matches

if TYPE_CHECKING:
    from chiasm.retrieval import Added, Collection, Item, NewItem, Page

router = APIRouter(prefix="/v1/collections/{name}/items", tags=["items"])

_FOREVER = "private, max-age=31536000, immutable"
_REVALIDATE = "private, no-cache"
_BODIES = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/NewItems"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["files"],
                    "properties": {
                        "files": {
                            "type": "array",
                            "maxItems": MOST_INPUTS,
                            "items": {"type": "string", "format": "binary"},
                        },
                        "metadata": {
                            "type": "string",
                            "description": "A JSON object; becomes the metadata of every file.",
                        },
                    },
                }
            },
        },
    }
}


_PICTURE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The picture.",
        "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
    },
    304: {"description": "The picture of that ETag is still the right one."},
}
_VERSION_DIGITS = 16


@dataclass(frozen=True)
class _Incoming:
    """A picture of a request, not yet decoded; or the error that it already ended with."""

    name: str
    picture: Encoded | None
    error: ImageError | None = None
    text: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    id: str | None = None


@router.post(
    "",
    operation_id="add_items",
    summary="Add pictures",
    response_model_exclude_unset=True,
    openapi_extra=_BODIES,
    responses=refusals(404, 409, 413, 415),
)
async def add_items(name: str, request: Request, planes: Loaded, runtime: State) -> AddedItems:
    """Add pictures, as data URLs in JSON or as the files of a form.

    Each picture has its own result, in the order of the request: one that cannot be opened is
    `failed` with its reason, and the others are added all the same. A picture that is there
    already is a `duplicate` and is not stored again.
    """
    collection = await runtime.run(planes.library.open, name)
    if request.headers["content-type"].lower().startswith("multipart/"):
        async with request.form(max_files=MOST_INPUTS, max_fields=8) as form:
            return await _add(_from_form(form, runtime), collection, runtime)
    incoming = await runtime.run(_from_json, await request.body(), runtime)
    return await _add(incoming, collection, runtime)


@router.get("", operation_id="list_items", summary="List the pictures", responses=refusals(404))
async def list_items(
    name: str,
    planes: Loaded,
    runtime: State,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    after: Annotated[str | None, Query(description="`next` of the page before.")] = None,
    filter: Annotated[  # the query's own name for it
        str | None,
        Query(description='A filter as JSON: {"color": "red"}.', examples=['{"color": "red"}']),
    ] = None,
    order: Annotated[
        Literal["asc", "desc"], Query(description="By the time of adding: desc is newest first.")
    ] = "asc",
) -> ItemPage:
    """Pictures in the order they were added. Pages stay put while pictures are being added."""
    condition = _json_object(filter, "filter") if filter else None

    def page() -> Page:
        return planes.library.open(name).items(
            limit=limit, after=after, filter=condition, newest_first=order == "desc"
        )

    found = await runtime.run(page)
    return ItemPage(
        data=[item_object(name, item) for item in found.items],
        has_more=found.has_more,
        next=found.next,
    )


@router.get(
    "/{id}", operation_id="retrieve_item", summary="Look at a picture", responses=refusals(404)
)
async def retrieve_item(name: str, id: str, planes: Loaded, runtime: State) -> ItemObject:
    """What is known of it."""
    return item_object(name, await runtime.run(lambda: planes.library.open(name).get(id)))


@router.patch(
    "/{id}",
    operation_id="update_item",
    summary="Change text or metadata",
    responses=refusals(404, 415),
)
async def update_item(
    name: str, id: str, body: ItemChanges, planes: Loaded, runtime: State
) -> ItemObject:
    """Replaces what is given and keeps the rest; the picture itself never changes."""
    if body.text is None and body.metadata is None:
        raise InvalidRequest("There is nothing to change.", hint="Give `text` or `metadata`.")

    def update() -> Item:
        return planes.library.open(name).update(id, text=body.text, metadata=body.metadata)

    return item_object(name, await runtime.run(update))


@router.delete(
    "/{id}", operation_id="delete_item", summary="Delete a picture", responses=refusals(404)
)
async def delete_item(name: str, id: str, planes: Loaded, runtime: State) -> DeletedItem:
    """The picture is gone from the collection; a file it was indexed from stays."""

    def delete() -> None:
        collection = planes.library.open(name)
        collection.get(id)  # says so when there is none
        collection.delete([id])

    await runtime.run(delete)
    return DeletedItem(id=id)


@router.get(
    "/{id}/thumbnail",
    operation_id="retrieve_thumbnail",
    summary="A small picture",
    response_class=Response,
    responses=_PICTURE | refusals(404),
)
async def retrieve_thumbnail(
    name: str,
    id: str,
    planes: Loaded,
    runtime: State,
    v: Annotated[str, Query(description="With it, the answer may be kept for ever.")] = "",
    if_none_match: Annotated[str, Header()] = "",
) -> Response:
    """The picture at the size of a gallery, without any of the original's metadata."""
    return await _picture(name, id, "thumbnail", planes, runtime, v, if_none_match)


@router.get(
    "/{id}/image",
    operation_id="retrieve_image",
    summary="The picture",
    response_class=Response,
    responses=_PICTURE | refusals(404),
)
async def retrieve_image(
    name: str,
    id: str,
    planes: Loaded,
    runtime: State,
    v: Annotated[str, Query(description="With it, the answer may be kept for ever.")] = "",
    if_none_match: Annotated[str, Header()] = "",
) -> Response:
    """The picture at full size, encoded anew from its pixels."""
    return await _picture(name, id, "full", planes, runtime, v, if_none_match)


def item_object(collection: str, item: Item) -> ItemObject:
    """An item as the API shows it."""
    path = f"/v1/collections/{quote(collection, safe='')}/items/{quote(item.id, safe='')}"
    return ItemObject(
        id=item.id,
        source=item.source,
        text=item.text,
        metadata=dict(item.metadata),
        width=item.width,
        height=item.height,
        digest=item.digest,
        added_at=item.added_at,
        duplicate_of=item.duplicate_of,
        thumbnail_url=f"{path}/thumbnail?v={item.digest[:_VERSION_DIGITS]}",
        image_url=f"{path}/image?v={item.digest[:_VERSION_DIGITS]}",
    )


# Pictures out -----------------------------------------------------------------------------------


async def _picture(
    name: str,
    id: str,
    kind: Literal["thumbnail", "full"],
    planes: Planes,
    runtime: Runtime,
    version: str,
    if_none_match: str,
) -> Response:
    def answer() -> Response:
        collection = planes.library.open(name)
        item = collection.get(id)
        # An address that names these very pixels can never mean others.
        named = version == item.digest[:_VERSION_DIGITS]
        headers = {
            "etag": f'"{item.digest}-{kind}"',
            "cache-control": _FOREVER if named else _REVALIDATE,
            # Opened by itself in a tab, it is a picture and nothing else.
            "content-security-policy": "default-src 'none'; sandbox",
        }
        if matches(if_none_match, headers["etag"]):
            return Response(status_code=304, headers=headers)
        data, media_type = collection.picture(id, kind)
        return Response(data, media_type=media_type, headers=headers)

    return await runtime.run(answer)


# Pictures in ------------------------------------------------------------------------------------


def _from_json(body: bytes, runtime: Runtime) -> list[_Incoming]:
    try:
        request = NewItems.model_validate_json(body)
    except ValidationError as error:
        raise RequestValidationError(
            error.errors(include_url=False, include_context=False, include_input=False)
        ) from None
    incoming = []
    for index, item in enumerate(request.items):
        name = shown(item.source) or f"items[{index}]"
        try:
            picture = from_data_url(item.image, limits=runtime.settings.media, name=name)
        except ImageError as error:
            incoming.append(_Incoming(name, None, error))
        else:
            incoming.append(
                _Incoming(
                    name,
                    picture,
                    text=item.text,
                    metadata=item.metadata,
                    source=item.source,
                    id=item.id,
                )
            )
    return incoming


def _from_form(form: FormData, runtime: Runtime) -> list[_Incoming]:
    metadata: dict[str, Any] = {}
    incoming: list[_Incoming] = []
    for key, value in form.multi_items():
        if key == "files" and isinstance(value, UploadFile):
            name = shown(value.filename or f"files[{len(incoming)}]")
            picture = from_upload(value, limits=runtime.settings.media, name=name)
            incoming.append(_Incoming(name, picture, source=name))
        elif key == "metadata" and isinstance(value, str):
            metadata = _json_object(value, "metadata")
        else:
            raise InvalidRequest(
                f"The form has a field {shown(key)} that does not belong there.",
                hint="It takes the files as `files`, and a JSON object as `metadata`.",
                param=shown(key),
            )
    if not incoming:
        raise InvalidRequest(
            "The form holds no files.", hint="Send them as `files`.", param="files"
        )
    return [replace(one, metadata=metadata) for one in incoming]


def _json_object(text: str, param: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InvalidRequest(f"{param} must be a JSON object.", param=param)
    return value


async def _add(
    incoming: Sequence[_Incoming], collection: Collection, runtime: Runtime
) -> AddedItems:
    """Decode and add, group by group; a picture that fails harms no other."""
    results: dict[int, AddedItem] = {
        index: _failed(one, one.error)
        for index, one in enumerate(incoming)
        if one.error is not None
    }
    places = iter([index for index in range(len(incoming)) if index not in results])
    pictures = [one.picture for one in incoming if one.picture is not None]
    # At full size: the collection keeps a copy of what was uploaded.
    async with aclosing(runtime.pictures.open_groups(pictures, shortest_side=None)) as groups:
        async for group in groups:
            indices = list(islice(places, len(group)))
            results |= await runtime.embed(_add_group, group, indices, incoming, collection)
    return AddedItems(object="list", data=[results[index] for index in range(len(incoming))])


def _add_group(
    group: Sequence[Opened],
    indices: Sequence[int],
    incoming: Sequence[_Incoming],
    collection: Collection,
) -> dict[int, AddedItem]:
    """Add the pictures of a group in one commit. indices: their places in `incoming`."""
    results = {}
    decoded = []
    for picture, index in zip(group, indices, strict=True):
        if picture.error is not None:
            results[index] = _failed(incoming[index], picture.error)
        else:
            decoded.append((index, _new_item(incoming[index], picture)))
    outcomes = _add_all([new for _, new in decoded], collection)
    for (index, _), outcome in zip(decoded, outcomes, strict=True):
        if isinstance(outcome, InvalidRequest):
            results[index] = _failed(incoming[index], outcome)
        else:
            results[index] = AddedItem(
                name=incoming[index].name, status=outcome.status, id=outcome.id, of=outcome.of
            )
    return results


def _add_all(new: Sequence[NewItem], collection: Collection) -> list[Added | InvalidRequest]:
    """Add all in one commit; where one of them is refused, each in its own."""
    try:
        return list(collection.add(new))
    except InvalidRequest as error:
        if len(new) == 1:
            return [error]
        return [outcome for one in new for outcome in _add_all([one], collection)]


def _new_item(incoming: _Incoming, picture: Opened) -> NewItem:
    from chiasm.retrieval import NewItem

    assert picture.image is not None
    return NewItem(
        image=picture.image,
        text=incoming.text,
        metadata=incoming.metadata,
        source=incoming.source,
        id=incoming.id,
        file_digest=picture.file_digest,
    )


def _failed(incoming: _Incoming, error: ChiasmError) -> AddedItem:
    detail = ErrorDetail(**body_of(error)["error"])
    return AddedItem(name=incoming.name, status="failed", error=detail)
