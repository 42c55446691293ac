"""Bodies that hold pictures, read here and then let go.

FastAPI would hold on to one until the answer's end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

if TYPE_CHECKING:
    from chiasm.server.runtime import Runtime

Body = TypeVar("Body", bound=BaseModel)
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_QUICK_BYTES = 64 * 1024


async def read_body(kind: type[Body], request: Request) -> Body:
    """The body as this kind of object. Whether work on it is quick, is on the request's state.

    Called by the routes themselves: a dependency would cost more than the reading of a short one.
    Raises RequestValidationError.
    """
    body = await request.body()
    request.state.quick = len(body) <= _QUICK_BYTES and b"data:" not in body
    try:
        return kind.model_validate_json(body or b"null")
    except ValidationError as error:
        found = [{**each, "loc": ("body", *each["loc"])} for each in error.errors()]
        raise RequestValidationError(found) from None
    finally:
        request._body = b""


async def off_the_loop(
    request: Request,
    runtime: Runtime,
    work: Callable[Arguments, Result],
    *args: Arguments.args,
    **kwargs: Arguments.kwargs,
) -> Result:
    """`work` on what `read_body` has read: in a thread, unless that takes longer than the work.

    A short body without pictures is read in some microseconds; a thread's turn may come only
    after milliseconds where the processor is busy.
    """
    if request.state.quick:
        return work(*args, **kwargs)
    return await runtime.read(work, *args, **kwargs)
