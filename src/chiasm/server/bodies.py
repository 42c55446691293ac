"""Bodies that hold pictures, read here and then let go.

FastAPI would hold on to one until the answer's end.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

Body = TypeVar("Body", bound=BaseModel)


def reading(kind: type[Body]) -> Callable[[Request], Awaitable[Body]]:
    """A dependency that reads a body of this kind. Raises RequestValidationError."""

    async def read(request: Request) -> Body:
        try:
            return kind.model_validate_json(await request.body() or b"null")
        except ValidationError as error:
            found = [{**each, "loc": ("body", *each["loc"])} for each in error.errors()]
            raise RequestValidationError(found) from None
        finally:
            request._body = b""

    return read
