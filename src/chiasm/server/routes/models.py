"""Which models are served here."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request

from chiasm.generation import Generator
from chiasm.generation.targets import unknown
from chiasm.server.batching import BatchingEmbedder
from chiasm.server.callers import Asker, Caller
from chiasm.server.dependencies import LoadedEmbedder, State, find_model, served_names
from chiasm.server.errors import speaks_messages
from chiasm.server.messages_schemas import MessagesModel, MessagesModelList, Page
from chiasm.server.openapi import refusals
from chiasm.server.runtime import Runtime
from chiasm.server.schemas import Model, ModelList

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get(
    "", operation_id="list_models", summary="List the models", response_model_exclude_none=True
)
async def list_models(
    embedder: LoadedEmbedder,
    runtime: State,
    caller: Asker,
    request: Request,
    page: Annotated[Page, Query()],
) -> ModelList | MessagesModelList:
    """Every name that the caller may give `/v1/embeddings` or `/v1/chat/completions` as `model`.

    A generator is listed once it is loaded. A client that sends `anthropic-version` is shown the
    models that answer questions, in Anthropic's shape; the arguments are for it alone.
    """
    models = [_embedder(name, embedder, runtime) for name in served_names(embedder, runtime)]
    generator = runtime.generator_if_loaded
    if generator is not None:
        models += [_generator(name, generator, runtime) for name in runtime.generator_names]
    models += [_elsewhere(name, runtime) for name in runtime.routes.names]
    models = [model for model in models if caller.may_use_model(model.id)]
    if speaks_messages(request.scope):
        return _page([_as_anthropic_has_it(each) for each in models if each.kind == "chat"], page)
    return ModelList(data=models)


@router.get(
    "/{model:path}",
    operation_id="retrieve_model",
    summary="Look at a model",
    response_model_exclude_none=True,
    responses=refusals(404),
)
async def retrieve_model(
    model: str, embedder: LoadedEmbedder, runtime: State, caller: Asker, request: Request
) -> Model | MessagesModel:
    """One model, by its id."""
    found = _find(model, embedder, runtime, caller)
    caller.require_model(found.id)
    return _as_anthropic_has_it(found) if speaks_messages(request.scope) else found


def _find(model: str, embedder: BatchingEmbedder, runtime: Runtime, caller: Caller) -> Model:
    generator = runtime.generator_if_loaded
    if generator is not None and model in runtime.generator_names:
        return _generator(model, generator, runtime)
    if model in runtime.routes.names:
        return _elsewhere(model, runtime)
    return _embedder(find_model(model, embedder, runtime, caller), embedder, runtime)


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


# In Anthropic's shape ---------------------------------------------------------------------------


def _as_anthropic_has_it(model: Model) -> MessagesModel:
    return MessagesModel(
        id=model.id,
        display_name=model.id,
        created_at=datetime.fromtimestamp(model.created, UTC),
        max_input_tokens=model.context,
    )


def _page(models: list[MessagesModel], page: Page) -> MessagesModelList:
    """Some of the models: those after one, or before one. Raises UnknownModel for neither."""
    names = [each.id for each in models]
    for cursor in filter(None, (page.after_id, page.before_id)):
        if cursor not in names:
            raise unknown(cursor, names)
    first = names.index(page.after_id) + 1 if page.after_id else 0
    last = names.index(page.before_id) if page.before_id else len(names)
    if page.before_id:
        first = max(first, last - page.limit)
    shown = models[first : min(last, first + page.limit)]
    more = first > 0 if page.before_id else first + len(shown) < len(models)
    return MessagesModelList(
        data=shown,
        has_more=more,
        first_id=shown[0].id if shown else None,
        last_id=shown[-1].id if shown else None,
    )
