"""Which models are served here."""

from __future__ import annotations

from fastapi import APIRouter

from chiasm.server.batching import BatchingEmbedder
from chiasm.server.dependencies import LoadedEmbedder, State, find_model, served_names
from chiasm.server.openapi import refusals
from chiasm.server.runtime import Runtime
from chiasm.server.schemas import Model, ModelList

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("", operation_id="list_models", summary="List the models")
async def list_models(embedder: LoadedEmbedder, runtime: State) -> ModelList:
    """Every name that `/v1/embeddings` takes as `model`."""
    names = served_names(embedder, runtime)
    return ModelList(data=[_model(name, embedder, runtime) for name in names])


@router.get(
    "/{model:path}",
    operation_id="retrieve_model",
    summary="Look at a model",
    responses=refusals(404),
)
async def retrieve_model(model: str, embedder: LoadedEmbedder, runtime: State) -> Model:
    """One model, by its id."""
    return _model(find_model(model, embedder, runtime), embedder, runtime)


def _model(name: str, embedder: BatchingEmbedder, runtime: Runtime) -> Model:
    return Model(
        id=name,
        created=runtime.started_at,
        dimension=embedder.dimension,
        digest=embedder.digest,
    )
