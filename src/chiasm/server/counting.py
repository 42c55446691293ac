"""How many tokens a prompt has, for those who ask for that alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chiasm.generation.request import Counting
from chiasm.server.asking import completed

if TYPE_CHECKING:
    from chiasm.generation import Request
    from chiasm.generation.targets import Route
    from chiasm.server.callers import Caller
    from chiasm.server.runtime import Runtime


async def count_tokens(route: Route, request: Request, caller: Caller, runtime: Runtime) -> int:
    """Text and pictures together, for the model that would be asked first.

    By plan where it is elsewhere; a model of this server counts for itself, where it can.

    Raises KeyForbidden; InvalidRequest where pictures cannot be as they are.
    """
    caller.require_model(route.name)
    asked = completed(request, route, caller)
    first = runtime.router.order(route, asked)[0]
    generator = runtime.generator_if_loaded
    if not first.provider and isinstance(generator, Counting):
        fitted = runtime.books.fit(first, asked)
        return await runtime.run(generator.count_tokens, fitted)
    return await runtime.run(runtime.books.count, first, asked)
