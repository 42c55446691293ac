"""Which models are served here."""

from __future__ import annotations

from fastapi import APIRouter

from chiasm.server.dependencies import Loaded, State, find_model, served_names
from chiasm.server.openapi import refusals
from chiasm.server.runtime import Planes, Runtime
from chiasm.server.schemas import Model, ModelList

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("", operation_id="list_models", summary="List the models")
async def list_models(planes: Loaded, runtime: State) -> ModelList:
    """Every name that `/v1/embeddings` takes as `model`."""
    return ModelList(data=[_model(name, planes, runtime) for name in served_names(planes, runtime)])


@router.get(
    "/{model:path}",
    operation_id="retrieve_model",
    summary="Look at a model",
    responses=refusals(404),
)
async def retrieve_model(model: str, planes: Loaded, runtime: State) -> Model:
    """One model, by its id."""
    return _model(find_model(model, planes, runtime), planes, runtime)


def _model(name: str, planes: Planes, runtime: Runtime) -> Model:
    return Model(
        id=name,
        created=runtime.started_at,
        dimension=planes.embedder.dimension,
        digest=planes.embedder.digest,
    )
