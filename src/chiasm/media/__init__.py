"""The only rooms that open a picture. Everything else receives an `Image`.

`chiasm.media.perceptual_hash` is a module of its own; its function of the same name is taken
from there.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chiasm.media.decode import Header, open_data_url, open_image, read_header
    from chiasm.media.encode import encode_jpeg, encode_png, encode_webp
    from chiasm.media.encoded import EncodedImage, read_encoded
    from chiasm.media.folder import IMAGE_SUFFIXES, find_images
    from chiasm.media.image import Image
    from chiasm.media.limits import Limits
    from chiasm.media.sending import Sent, for_sending
    from chiasm.media.transform import resize, thumbnail

_HOMES = {
    "EncodedImage": "encoded",
    "Header": "decode",
    "IMAGE_SUFFIXES": "folder",
    "Image": "image",
    "Limits": "limits",
    "Sent": "sending",
    "encode_jpeg": "encode",
    "encode_png": "encode",
    "encode_webp": "encode",
    "find_images": "folder",
    "for_sending": "sending",
    "open_data_url": "decode",
    "open_image": "decode",
    "read_encoded": "encoded",
    "read_header": "decode",
    "resize": "transform",
    "thumbnail": "transform",
}

__all__ = [
    "IMAGE_SUFFIXES",
    "EncodedImage",
    "Header",
    "Image",
    "Limits",
    "Sent",
    "encode_jpeg",
    "encode_png",
    "encode_webp",
    "find_images",
    "for_sending",
    "open_data_url",
    "open_image",
    "read_encoded",
    "read_header",
    "resize",
    "thumbnail",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'chiasm.media' has no attribute {name!r}")
    return getattr(import_module(f"chiasm.media.{home}"), name)
