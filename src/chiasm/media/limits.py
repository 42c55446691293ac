"""What a picture may cost before it is refused. All but time is checked before any decode."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on one picture.

    max_bytes: encoded size, in bytes. For base64 the length of the text is checked first.
    max_pixels: width × height as the header states them, all of a frame's pixels.
    max_side: the longer side, in pixels.
    max_seconds: that decoding may take, where it is done in a process that can be stopped
        (`chiasm.media.sandbox`).
    """

    max_bytes: int = 64 * 1024 * 1024
    max_pixels: int = 120_000_000
    max_side: int = 32_768
    max_seconds: int = 10
