"""Which models are served here."""

from __future__ import annotations

from fastapi import APIRouter

from chiasm.generation import Generator
from chiasm.server.batching import BatchingEmbedder
from chiasm.server.dependencies import LoadedEmbedder, State, find_model, served_names
from chiasm.server.openapi import refusals
from chiasm.server.runtime import Runtime
from chiasm.server.schemas import Model, ModelList

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get(
    "", operation_id="list_models", summary="List the models", response_model_exclude_none=True
)
async def list_models(embedder: LoadedEmbedder, runtime: State) -> ModelList:
    """Every name that `/v1/embeddings` or `/v1/chat/completions` takes as `model`.

    A generator is listed once it is loaded.
    """
    models = [_embedder(name, embedder, runtime) for name in served_names(embedder, runtime)]
    generator = runtime.generator_if_loaded
    if generator is not None:
        models += [_generator(name, generator, runtime) for name in runtime.generator_names]
    models += [_elsewhere(name, runtime) for name in runtime.routes.names]
    return ModelList(data=models)


@router.get(
    "/{model:path}",
    operation_id="retrieve_model",
    summary="Look at a model",
    response_model_exclude_none=True,
    responses=refusals(404),
)
async def retrieve_model(model: str, embedder: LoadedEmbedder, runtime: State) -> Model:
    """One model, by its id."""
    generator = runtime.generator_if_loaded
    if generator is not None and model in runtime.generator_names:
        return _generator(model, generator, runtime)
    if model in runtime.routes.names:
        return _elsewhere(model, runtime)
    return _embedder(find_model(model, embedder, runtime), embedder, runtime)


def _embedder(name: str, embedder: BatchingEmbedder, runtime: Runtime) -> Model:
    return Model(
        id=name,
        created=runtime.started_at,
        kind="embedding",
        dimension=embedder.dimension,
        digest=embedder.digest,
    )


def _generator(name: str, generator: Generator, runtime: Runtime) -> Model:
    return Model(
        id=name,
        created=runtime.started_at,
        kind="chat",
        context=generator.context,
        vision=generator.sees,
        digest=generator.digest,
    )


def _elsewhere(name: str, runtime: Runtime) -> Model:
    route = runtime.routes.find(name)
    assert route is not None
    targets = [target.name for target in route.targets]
    return Model(id=name, created=runtime.started_at, kind="chat", targets=targets)
