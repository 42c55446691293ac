"""What goes in and comes out over HTTP. `docs` and every client library are made from this.

Requests refuse fields that they do not know: an option that is dropped in silence is worse than
one that is refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MOST_INPUTS = 2048  # as OpenAI's own limit
MOST_HITS = 1000
LONGEST_TEXT = 100_000

EXAMPLE_PICTURE = (  # four red pixels, so that the examples can be sent as they are
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAFklEQVR42mM8ISfHwMDAxM"
    "DAwMDAAAANBAEIf62CUQAAAABJRU5ErkJggg=="
)

DataUrl = Annotated[
    str,
    Field(
        description="The picture itself, as a data URL. An address is fetched only "
        "where the server's operator allows its host.",
        examples=[EXAMPLE_PICTURE],
    ),
]
Metadata = Annotated[
    dict[str, Any],
    Field(
        description="Names and values to filter by: texts, numbers, booleans.",
        examples=[{"color": "red", "price": 9.5}],
    ),
]
Filter = Annotated[
    dict[str, Any],
    Field(
        description="Conditions on metadata; the operators are eq, ne, lt, lte, gt, gte, in and"
        " exists; $and, $or and $not combine.",
        examples=[{"color": "red", "price": {"lt": 10}}],
    ),
]


def is_unicode(text: str) -> bool:
    """Whether `text` can be written as UTF-8; JSON can spell halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Request(BaseModel):
    """A body that a caller sends."""

    model_config = ConfigDict(extra="forbid")


def example(**body: Any) -> ConfigDict:
    """A body to try: without one, the API's page makes one up of all optional fields."""
    return ConfigDict(json_schema_extra={"examples": [body]})


# Errors -----------------------------------------------------------------------------------------


class ErrorDetail(BaseModel):
    """What happened, to what, and what to do."""

    message: str = Field(examples=["cats.jpg: it is damaged or cut short."])
    type: str = Field(examples=["invalid_request_error"])
    param: str | None = Field(description="The argument at fault.", examples=["input[3]"])
    code: str | None = Field(description="For programs.", examples=["broken_image"])


class ErrorResponse(BaseModel):
    """OpenAI's error shape; every answer of 400 and above has it."""

    error: ErrorDetail


# Models and embeddings --------------------------------------------------------------------------


class Model(BaseModel):
    """An embedder or a generator that is served here."""

    id: str = Field(examples=["default"])
    object: Literal["model"] = "model"
    created: int = Field(description="Unix time at which the server started.")
    owned_by: str = "chiasm"
    kind: Literal["embedding", "chat"] = Field(description="Which endpoints take it.")
    dimension: int | None = Field(
        default=None, description="Length of an embedder's vectors.", examples=[512]
    )
    context: int | None = Field(
        default=None, description="Tokens a generator reads, pictures and answer included."
    )
    vision: bool | None = Field(default=None, description="Whether a generator reads pictures.")
    digest: str | None = Field(
        default=None, description="SHA-256 over configuration and weights, where they are here."
    )
    targets: list[str] | None = Field(
        default=None, description="Who answers to a route's name, in the order they are asked."
    )


class ModelList(BaseModel):
    """All models that are served here."""

    object: Literal["list"] = "list"
    data: list[Model]


class TextPart(BaseModel):
    """Text, as in a chat message."""

    type: Literal["text"]
    text: str


class ImageUrl(BaseModel):
    """The picture, where OpenAI has the address of one."""

    url: DataUrl


class ImagePart(BaseModel):
    """A picture, as in a chat message."""

    type: Literal["image_url"]
    image_url: ImageUrl | DataUrl


_PART: dict[str, Any] = {"anyOf": [{"$ref": "#/components/schemas/TextPart"},
                   {"$ref": "#/components/schemas/ImagePart"}]}  # fmt: skip
_INPUT: dict[str, Any] = {
    "description": "A text; or a list of inputs, each a text, a part, or a list of parts that"
    " make one vector together (the mean of their directions).",
    "anyOf": [
        {"type": "string", "minLength": 1},
        {
            "type": "array",
            "minItems": 1,
            "maxItems": MOST_INPUTS,
            "items": {
                "anyOf": [
                    {"type": "string", "minLength": 1},
                    _PART,
                    {"type": "array", "minItems": 1, "items": _PART},
                ]
            },
        },
    ],
}


class EmbeddingRequest(Request):
    """Texts and pictures to place in one space.

    Of a text that is longer than the model's context only that much is read;
    `usage.prompt_tokens` says how much it was.
    """

    model_config = example(
        model="default",
        input=[
            "a red bicycle",
            {"type": "image_url", "image_url": {"url": EXAMPLE_PICTURE}},
        ],
    )

    input: Any = Field(json_schema_extra=_INPUT)
    model: str | None = Field(
        default=None,
        description="A served model's id; without it, the default one.",
        examples=["default"],
    )
    encoding_format: Literal["float", "base64"] = Field(
        default="float", description="base64: little-endian float32, a quarter of the size."
    )
    dimensions: int | None = Field(
        default=None, description="Must be the model's own: vectors are not cut here."
    )
    user: str | None = Field(
        default=None, description="Taken as OpenAI's API has it, and not used."
    )


class Embedding(BaseModel):
    """One input's vector, of unit length."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """What was read."""

    prompt_tokens: int = Field(description="Tokens of all texts.")
    total_tokens: int
    images: int = Field(description="Pictures.")


class EmbeddingResponse(BaseModel):
    """Vectors in the order of the inputs."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


# Collections and items --------------------------------------------------------------------------


class NewCollection(Request):
    """A collection to make."""

    name: str = Field(max_length=200, examples=["holiday-photos"])


class CollectionEmbedder(BaseModel):
    """Which embedder's vectors a collection holds."""

    name: str
    digest: str
    dimension: int


class CollectionObject(BaseModel):
    """A set of pictures that are searched together."""

    object: Literal["collection"] = "collection"
    name: str
    items: int = Field(description="How many pictures are in it.")
    embedder: CollectionEmbedder
    created_at: str = Field(description="UTC, ISO 8601.")


class CollectionList(BaseModel):
    """All collections."""

    object: Literal["list"] = "list"
    data: list[CollectionObject]


class DeletedCollection(BaseModel):
    """A collection that is gone."""

    object: Literal["collection.deleted"] = "collection.deleted"
    name: str
    deleted: Literal[True] = True


class ItemObject(BaseModel):
    """A picture in a collection."""

    object: Literal["item"] = "item"
    id: str
    source: str = Field(description="Where it came from, as whoever added it said.")
    text: str
    metadata: Metadata
    width: int
    height: int
    digest: str = Field(description="SHA-256 over the decoded pixels.")
    added_at: str = Field(description="UTC, ISO 8601.")
    duplicate_of: str | None = Field(description="Id of the picture it nearly equals.")
    thumbnail_url: str
    image_url: str


class ItemPage(BaseModel):
    """Some of a collection's pictures."""

    object: Literal["list"] = "list"
    data: list[ItemObject]
    has_more: bool
    next: str | None = Field(description="Pass it as `after` to get the next page.")


class NewItemObject(Request):
    """A picture to add."""

    image: DataUrl
    text: str = Field(default="", max_length=LONGEST_TEXT, description="Words that belong to it.")
    metadata: Metadata = Field(default_factory=dict)
    source: str = Field(
        default="", max_length=4096, description="Where it comes from: a name, a path."
    )
    id: str | None = Field(
        default=None, max_length=200, description="Your own id; one is made up without it."
    )


class NewItems(Request):
    """Pictures to add."""

    model_config = example(
        items=[{"image": EXAMPLE_PICTURE, "text": "a red square", "metadata": {"color": "red"}}]
    )

    items: list[NewItemObject] = Field(min_length=1, max_length=MOST_INPUTS)


class AddedItem(BaseModel):
    """What became of one picture."""

    name: str = Field(description="Its file name, or its place in the request.")
    status: Literal["added", "updated", "duplicate", "near_duplicate", "failed"]
    id: str | None = Field(
        default=None, description="The item's id; of the one there, for a duplicate."
    )
    of: str | None = Field(default=None, description="Id of the picture that it (nearly) equals.")
    error: ErrorDetail | None = Field(default=None, description="Why it was not added.")


class AddedItems(BaseModel):
    """What became of each picture, in the order of the request; a bad one harms no other."""

    object: Literal["list"] = "list"
    data: list[AddedItem]


class ItemChanges(Request):
    """What to change; what is absent stays."""

    model_config = example(text="a red square", metadata={"color": "red", "price": 9.5})

    text: str | None = Field(default=None, max_length=LONGEST_TEXT)
    metadata: Metadata | None = Field(default=None, description="Replaces all of the old metadata.")


class DeletedItem(BaseModel):
    """An item that is gone."""

    object: Literal["item.deleted"] = "item.deleted"
    id: str
    deleted: Literal[True] = True


# Search -----------------------------------------------------------------------------------------


class SearchRequest(Request):
    """What to look for: words, a picture, both, or the neighbours of an item."""

    model_config = example(text="a cat on a sofa", limit=10)

    text: str | None = Field(default=None, max_length=LONGEST_TEXT, examples=["a cat on a sofa"])
    image: DataUrl | None = None
    item: str | None = Field(
        default=None, max_length=200, description="Id of an item whose neighbours are wanted."
    )
    filter: Filter | None = None
    limit: int = Field(default=10, ge=1, le=MOST_HITS)
    offset: int = Field(default=0, ge=0, le=100_000)


class SearchHit(BaseModel):
    """A picture that was found."""

    id: str
    score: float = Field(description="Cosine similarity to the query; higher is nearer.")
    item: ItemObject


class Timing(BaseModel):
    """Where the time went, in seconds."""

    embed_seconds: float
    search_seconds: float


class SearchResult(BaseModel):
    """Pictures, the nearest first."""

    object: Literal["search.result"] = "search.result"
    data: list[SearchHit]
    timing: Timing
    usage: EmbeddingUsage


# Health -----------------------------------------------------------------------------------------


class Health(BaseModel):
    """The process is alive."""

    status: Literal["ok"] = "ok"
    version: str


class Ready(BaseModel):
    """Everything is loaded."""

    status: Literal["ready"] = "ready"
    model: str
    generator: Literal["ready", "starting", "failed", "off"] = Field(
        description="The model that answers questions; searches do not wait for it."
    )
    answering: int = Field(description="Questions that are being answered.")
    waiting: int = Field(description="Questions that wait for their turn.")


class Unready(BaseModel):
    """Not everything is loaded, and why."""

    status: Literal["starting", "failed", "stopping"]
    error: ErrorDetail
