"""A picture on its way into a collection: what is checked of it, and what is kept of it."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from chiasm.errors import InvalidRequest
from chiasm.media import Image
from chiasm.media.encode import encode_jpeg
from chiasm.media.perceptual_hash import perceptual_hash
from chiasm.media.transform import thumbnail
from chiasm.retrieval.store import Item, NewItem, Record, Vectors, timestamp

THUMBNAIL_SIDE = 384
PICTURE_QUALITY = 92

_THUMBNAIL_QUALITY = 82
_MAX_ITEM_BYTES = 1024 * 1024
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


@dataclass(frozen=True)
class Prepared:
    """What is kept of a picture, before its vector is known.

    picture: the full picture as a file's bytes, where the collection keeps it.
    replaces: the item that it succeeds, for a file that changed.
    """

    new: NewItem
    digest: str
    perceptual_hash: int
    thumbnail: bytes
    picture: bytes | None
    replaces: Item | None = None

    def without_pixels(self) -> Prepared:
        """The same, holding no more memory than it must once the vector is known."""
        stub = Image(np.zeros((1, 1, 3), np.uint8), self.new.image.original_size)
        return replace(self, new=replace(self.new, image=stub))

    @property
    def file_digest(self) -> str:
        """SHA-256 of the encoded bytes, or nothing where they are not known."""
        return self.new.file.digest if self.new.file else self.new.file_digest


def prepare(new: NewItem, *, replaces: Item | None = None) -> Prepared:
    """Check an item and make its thumbnail, its hash and its digest. InvalidRequest."""
    _check(new)
    small = thumbnail(new.image, THUMBNAIL_SIDE)
    return Prepared(
        new=new,
        digest=new.image.digest,
        perceptual_hash=perceptual_hash(new.image),
        thumbnail=encode_jpeg(small, quality=_THUMBNAIL_QUALITY),
        picture=None if new.file else encode_jpeg(new.image, quality=PICTURE_QUALITY),
        replaces=replaces,
    )


def record_of(
    id: str, one: Prepared, vector: Vectors, duplicate_of: str | None, moment: int
) -> Record:
    """The item as a store keeps it. moment: when it was added, microseconds since 1970."""
    width, height = one.new.image.original_size
    file = one.new.file
    item = Item(
        id=id,
        digest=one.digest,
        source=_source(one.new),
        text=one.new.text,
        metadata=one.new.metadata,
        width=width,
        height=height,
        added_at=one.replaces.added_at if one.replaces else timestamp(moment),
        duplicate_of=duplicate_of,
    )
    return Record(
        item=item,
        vector=vector,
        thumbnail=one.thumbnail,
        perceptual_hash=one.perceptual_hash,
        picture="source" if file else "stored",
        file_digest=one.file_digest,
        file_size=file.size if file else 0,
        file_mtime_ns=file.mtime_ns if file else 0,
    )


def id_of(one: Prepared) -> str:
    """The item's id: its predecessor's, the given one, or a new one."""
    if one.replaces is not None:
        return one.replaces.id
    # Ids made here sort by time, which keeps a listing of files or logs readable.
    return one.new.id or f"{time.time_ns() // 1000:013x}{secrets.token_hex(5)}"


def _check(new: NewItem) -> None:
    if new.id is not None and not _ID.fullmatch(new.id):
        raise InvalidRequest(
            f"{new.id!r} cannot be an item's id.",
            hint="Use 1 to 128 letters, digits and . _ : - and begin with a letter or a digit.",
            param="id",
        )
    for what, words in (("source", _source(new)), ("text", new.text)):
        try:
            words.encode()
        except UnicodeEncodeError:
            raise InvalidRequest(
                f"The {what} is not valid Unicode: {_printable(words)[:200]}.", param=what
            ) from None
    check_words(new.text, new.metadata)


def _source(new: NewItem) -> str:
    return str(new.file.path) if new.file else new.source


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def check_words(text: str, metadata: Mapping[str, Any]) -> None:
    """InvalidRequest where an item cannot have this text and metadata."""
    try:
        # Not as ASCII: half of a surrogate pair cannot be written as UTF-8, and is refused here.
        encoded = json.dumps(metadata, allow_nan=False, ensure_ascii=False).encode()
        whole = isinstance(metadata, Mapping) and json.loads(encoded) == dict(metadata)
        size = len(encoded) + len(text.encode())
    except (TypeError, ValueError, RecursionError):
        whole, size = False, 0
    if not whole:
        raise InvalidRequest(
            "Metadata must be a JSON object (texts, finite numbers, true, false, null, lists, "
            "objects with texts as keys).",
            param="metadata",
        )
    if size > _MAX_ITEM_BYTES:
        raise InvalidRequest(
            f"Text and metadata of one item take {size:,} bytes; {_MAX_ITEM_BYTES:,} are allowed.",
            param="metadata",
        )
