"""Where a picture's bytes come from: memory, a file, or a data URL.

Nothing here fetches anything: an address is refused, not followed (CVE-2025-6242). Sizes are
checked before bytes are read or base64 is decoded.
"""

from __future__ import annotations

import binascii
import errno
import os
import re
import stat
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote_to_bytes

from pydantic_core import SchemaValidator, ValidationError
from pydantic_core.core_schema import CoreConfig, bytes_schema

from chiasm.errors import ImageError, ImageTooLarge
from chiasm.media.container import CountedBytes, CountedFile, Stream
from chiasm.media.limits import Limits

Source = bytes | bytearray | memoryview | Path | str

_ADDRESS = re.compile(r"\s*[a-z][a-z0-9+.-]*:[/\\]{2}", re.IGNORECASE)
_LONGEST_NAME = 200
# What `binascii.a2b_base64` does in a seventh of the time, of text without line ends or escapes.
_BASE64 = SchemaValidator(bytes_schema(), CoreConfig(val_json_bytes="base64"))
_URL_SAFE = str.maketrans("-_", "+/")
_FILE_REASONS = {
    errno.ENOENT: "there is no such file.",
    errno.ENOTDIR: "there is no such file.",
    errno.EISDIR: "this is a folder, not a file.",
    errno.EACCES: "the file may not be read by this user.",
    errno.EPERM: "the file may not be read by this user.",
    errno.ELOOP: "the symbolic link leads back to itself.",
    errno.ENAMETOOLONG: "this is neither a data URL nor the path of a file.",
}


def is_data_url(text: str) -> bool:
    """Whether `text` is meant as a data URL (RFC 2397)."""
    return text[:5].lower() == "data:"


def display_name(source: Source, name: str | None = None) -> str:
    """What to call the picture in a message: printable, and never a megabyte of base64."""
    if name is None:
        if isinstance(source, bytes | bytearray | memoryview):
            return "image"
        name = "data URL" if isinstance(source, str) and is_data_url(source) else str(source)
    if len(name) > _LONGEST_NAME:
        name = f"{name[: _LONGEST_NAME - 1]}…"
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in name)


def open_stream(source: Source, limits: Limits, name: str) -> tuple[Stream, int]:
    """A seekable stream over the encoded picture, and its length in bytes.

    Files are opened, not read. Raises `ImageTooLarge` for more than `limits.max_bytes`, and
    `ImageError` for addresses, malformed data URLs and files that cannot be opened.
    """
    if isinstance(source, str):
        if is_data_url(source):
            source = decode_data_url(source, limits, name)
        elif _ADDRESS.match(source):
            raise ImageError(
                name,
                "pictures are not fetched from addresses.",
                hint="Pass the bytes, the path of a file, or a data URL.",
            )
        else:
            source = Path(source)
    if isinstance(source, Path):
        return _open_file(source, limits, name)
    nbytes = memoryview(source).nbytes
    check_bytes(nbytes, limits, name)
    return CountedBytes(source), nbytes


def check_bytes(nbytes: int, limits: Limits, name: str) -> None:
    """Raise `ImageTooLarge` for more than `limits.max_bytes`."""
    if nbytes > limits.max_bytes:
        raise ImageTooLarge(
            name,
            f"it is larger than the limit of {limits.max_bytes:,} bytes.",
            hint="Make the picture smaller, or raise the setting media.max_bytes.",
        )


def decode_data_url(url: str, limits: Limits, name: str) -> bytes:
    """The bytes in a data URL; the declared media type is not believed, so not looked at.

    Base64 may be percent-encoded, broken into lines, in the URL-safe alphabet, or without its
    padding: all of these arrive in practice. Its length is checked before it is decoded, and
    neither the text nor a part of it is ever in a message.
    """
    comma = url.find(",", 5)
    if comma < 0:
        raise ImageError(name, "a data URL needs a comma before its data.")
    # Percent-encoding writes a byte as three characters and base64 three bytes as four, so no
    # payload within the limit is longer than this; it keeps the counting below bounded, too.
    if len(url) - comma > 4 * limits.max_bytes + 17:
        check_bytes(limits.max_bytes + 1, limits, name)
    payload = url[comma + 1 :]
    if not _is_base64(url, comma):
        check_bytes(len(payload) - 2 * payload.count("%"), limits, name)
        return unquote_to_bytes(payload)
    if not payload.isascii():
        raise ImageError(name, "the data URL's base64 is malformed.")
    if len(payload) * 3 // 4 <= limits.max_bytes + 2:
        try:  # as almost all are written; whatever else arrives is brought into this form below
            data: bytes = _BASE64.validate_strings(payload)  # type: ignore[arg-type]
        except ValidationError:
            pass
        else:
            check_bytes(len(data), limits, name)
            return data
    if "%" in payload:
        payload = unquote_to_bytes(payload).decode("latin-1")
    payload = "".join(payload.split()).rstrip("=")
    check_bytes(len(payload) * 3 // 4, limits, name)
    try:
        return binascii.a2b_base64(
            payload.translate(_URL_SAFE) + "=" * (-len(payload) % 4), strict_mode=True
        )
    except ValueError:  # binascii.Error, or a character beyond ASCII
        raise ImageError(name, "the data URL's base64 is malformed.") from None


def base64_payload(url: str) -> str | None:
    """What stands behind the comma of a data URL, as it came; None if that is not base64."""
    comma = url.find(",", 5)
    return url[comma + 1 :] if comma >= 0 and _is_base64(url, comma) else None


def _is_base64(url: str, comma: int) -> bool:
    return url[5:comma].rpartition(";")[2].strip().lower() == "base64"


def _open_file(path: Path, limits: Limits, name: str) -> tuple[Stream, int]:
    try:
        # Looked at before it is opened: opening a pipe would wait for its writer.
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ImageError(name, _FILE_REASONS[errno.EISDIR])
        if not stat.S_ISREG(mode):
            raise ImageError(name, "this is not an ordinary file.")
        stream = CountedFile(path.open("rb", buffering=0))
    except OSError as error:
        reason = _FILE_REASONS.get(error.errno or 0, "the file could not be opened.")
        raise ImageError(name, reason) from None
    except ValueError:  # a null character, or letters that the file system cannot spell
        raise ImageError(name, "this is not the path of a file.") from None
    try:
        nbytes = os.fstat(stream.fileno()).st_size
        check_bytes(nbytes, limits, name)
    except BaseException:
        stream.close()
        raise
    return stream, nbytes


def read_all(stream: BinaryIO, limits: Limits, name: str) -> bytes:
    """Everything in `stream`, checked once more: a file can grow after it was looked at."""
    try:
        data = stream.read(limits.max_bytes + 1)
    except OSError:
        raise ImageError(name, "the file could not be read to its end.") from None
    check_bytes(len(data), limits, name)
    return data
