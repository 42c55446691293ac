"""The application: what is mounted where, in which order a request passes through."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio.to_thread
from fastapi import Depends, FastAPI

from chiasm import __version__
from chiasm.server import errors, openapi, static
from chiasm.server.callers import identify
from chiasm.server.guard import BodyLimit, Envelope, TrustedOrigin, allowed_hosts
from chiasm.server.routes import (
    chat,
    collections,
    embeddings,
    health,
    items,
    messages,
    models,
    plan,
    responses,
    search,
    session,
)
from chiasm.server.runtime import Runtime

if TYPE_CHECKING:
    from chiasm.generation import Generator
    from chiasm.retrieval import Embedder
    from chiasm.settings import Settings


def create_app(
    settings: Settings,
    *,
    embedder: Embedder | None = None,
    generator: Generator | None = None,
    sample: bool = False,
) -> FastAPI:
    """The server as an ASGI application.

    embedder, generator: used instead of those that the settings name.
    sample: make the sample collection at the start when there is no collection yet.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        runtime = Runtime(settings, embedder=embedder, generator=generator, sample=sample)
        app.state.runtime = runtime
        runtime.start()
        try:
            yield
        finally:
            await anyio.to_thread.run_sync(runtime.close)

    app = FastAPI(
        title="chiasm",
        version=__version__,
        description=openapi.DESCRIPTION,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        lifespan=lifespan,
        responses=openapi.refusals(*openapi.EVERYWHERE),
        # Its pages load their scripts from a content network; ours is in `static`.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    errors.install(app)
    # The last one added is the outermost.
    app.add_middleware(BodyLimit, max_bytes=settings.server.max_request_bytes)
    app.add_middleware(
        TrustedOrigin,
        hosts=allowed_hosts(settings.server.host, settings.server.allowed_hosts),
    )
    app.add_middleware(Envelope)

    for route in (health, session):
        app.include_router(route.router)
    for route in (models, plan, embeddings, chat, responses, messages, collections, items, search):
        app.include_router(route.router, dependencies=[Depends(identify)])
    openapi.describe(app)
    static.serve_folder(app, static.API_PAGE, prefix="/docs", policy=static.API_PAGE_POLICY)
    static.serve_folder(app, static.CONSOLE, prefix="", policy=static.CONSOLE_POLICY)
    return app
