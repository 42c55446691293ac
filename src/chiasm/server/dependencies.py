"""What a route asks for in its signature."""

from __future__ import annotations

import difflib
from typing import Annotated

from fastapi import Depends, Request

from chiasm.errors import UnknownModel
from chiasm.generation import Generator
from chiasm.generation.providers.address import is_remote
from chiasm.server.batching import BatchingEmbedder
from chiasm.server.runtime import Planes, Runtime


async def _runtime(request: Request) -> Runtime:
    runtime: Runtime = request.app.state.runtime
    return runtime


async def _embedder(runtime: State) -> BatchingEmbedder:
    return await runtime.embedder()


async def _planes(runtime: State) -> Planes:
    return await runtime.planes()


async def _generator(runtime: State) -> Generator:
    return await runtime.generator()


State = Annotated[Runtime, Depends(_runtime)]
"""The runtime, loaded or not."""

Loaded = Annotated[Planes, Depends(_planes)]
"""Embedder and library; the request waits a moment for them, or ends as `not_ready`."""

LoadedEmbedder = Annotated[BatchingEmbedder, Depends(_embedder)]
"""The embedder alone: for what needs no collection, and need not wait for them."""

LoadedGenerator = Annotated[Generator, Depends(_generator)]
"""The model that answers questions."""


def served_names(embedder: BatchingEmbedder, runtime: Runtime) -> list[str]:
    """Names that mean the embedder served here, its own first."""
    return list(dict.fromkeys((embedder.name, runtime.settings.embedder, "default")))


def find_model(name: str, embedder: BatchingEmbedder, runtime: Runtime) -> str:
    """`name`, if an embedder answers to it here. Raises UnknownModel with the nearest names."""
    return _found(name, served_names(embedder, runtime))


def generator_names(generator: Generator, runtime: Runtime) -> list[str]:
    """Names that mean the generator served here, its own first.

    An address of servers is no name: it is for whoever runs this one.
    """
    setting = runtime.settings.generator
    own = [generator.name] if is_remote(setting) or not setting else [generator.name, setting]
    return list(dict.fromkeys(own))


def find_generator(name: str, generator: Generator, runtime: Runtime) -> str:
    """`name`, if a generator answers to it here; "default" always does. Raises UnknownModel."""
    return _found(name, [*generator_names(generator, runtime), "default"])


def _found(name: str, names: list[str]) -> str:
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, cutoff=0.5)
    raise UnknownModel(
        "No model of that name is served here.",
        hint=f"Did you mean {' or '.join(near)}?" if near else f"There is {', '.join(names)}.",
        param="model",
    )
