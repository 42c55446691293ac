"""What a route asks for in its signature."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from chiasm.generation.targets import unknown
from chiasm.server.batching import BatchingEmbedder
from chiasm.server.callers import Caller
from chiasm.server.runtime import Planes, Runtime


async def _runtime(request: Request) -> Runtime:
    runtime: Runtime = request.app.state.runtime
    return runtime


async def _embedder(runtime: State) -> BatchingEmbedder:
    return await runtime.embedder()


async def _planes(runtime: State) -> Planes:
    return await runtime.planes()


State = Annotated[Runtime, Depends(_runtime)]
"""The runtime, loaded or not."""

Loaded = Annotated[Planes, Depends(_planes)]
"""Embedder and library; the request waits a moment for them, or ends as `not_ready`."""

LoadedEmbedder = Annotated[BatchingEmbedder, Depends(_embedder)]
"""The embedder alone: for what needs no collection, and need not wait for them."""


def served_names(embedder: BatchingEmbedder, runtime: Runtime) -> list[str]:
    """Names that mean the embedder served here, its own first."""
    return list(dict.fromkeys((embedder.name, runtime.settings.embedder, "default")))


def find_model(name: str, embedder: BatchingEmbedder, runtime: Runtime, caller: Caller) -> str:
    """`name`, if an embedder answers to it here.

    Raises UnknownModel with the nearest names of those that the caller may use.
    """
    names = served_names(embedder, runtime)
    if name not in names:
        raise unknown(name, names, caller.may_use_model)
    return name
