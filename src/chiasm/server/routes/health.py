"""Is the process alive, and is it of use?"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from chiasm import __version__
from chiasm.errors import ChiasmError
from chiasm.server.dependencies import State
from chiasm.server.errors import body_of
from chiasm.server.schemas import Health, Ready, Unready

router = APIRouter(tags=["health"])


@router.get("/healthz", operation_id="health", summary="Is the process alive?")
async def health() -> Health:
    """Answers as soon as the server listens, and while it works."""
    return Health(version=__version__)


@router.get(
    "/readyz",
    operation_id="ready",
    summary="Is everything loaded?",
    response_model=Ready,
    responses={503: {"model": Unready, "description": "Not yet, or loading has failed."}},
)
async def ready(runtime: State) -> Any:
    """Answers at once, with 503 until models and collections are there."""
    try:
        model = runtime.check_all().embedder.name
        answering, waiting = runtime.queue
        return Ready(
            model=model, generator=runtime.generator_state, answering=answering, waiting=waiting
        )
    except ChiasmError as error:
        status = "stopping" if runtime.stopping else "failed" if runtime.failure else "starting"
        return JSONResponse({"status": status} | body_of(error), 503)
