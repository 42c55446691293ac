"""A loader's saved place means something only to a loader of the same version, seed and data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from chiasm.errors import ConfigurationError


def fingerprint(identity: str) -> str:
    """A source's identity in 32 hexadecimal digits."""
    return hashlib.sha256(identity.encode()).hexdigest()[:32]


def check_position(state: Mapping[str, Any], *, version: int, seed: int, data: str) -> None:
    """Raise ConfigurationError unless `state` was saved under the same circumstances.

    data: the source's `fingerprint`.
    """
    for name, here, what in (
        ("format", version, "a loader of another version"),
        ("seed", seed, "another seed"),
        ("data", data, "other data"),
    ):
        if state.get(name) != here:
            raise ConfigurationError(
                f"The position in the data was saved with {what}, so it means nothing here.",
                hint="Use what the run began with, or begin a new one.",
            )
