"""The HTTP server: OpenAI-shaped routes under `/v1`, the console at `/`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chiasm.server.app import create_app
    from chiasm.server.listen import run

_HOMES = {"create_app": "app", "run": "listen"}

__all__ = ["create_app", "run"]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'chiasm.server' has no attribute {name!r}")
    return getattr(import_module(f"chiasm.server.{home}"), name)
