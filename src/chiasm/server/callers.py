"""Whose request it is, and what they may use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request

if TYPE_CHECKING:
    from starlette.datastructures import Headers

    from chiasm.operations.keys import Key
    from chiasm.server.runtime import Runtime

COOKIE = "chiasm-key"

_NOT_COUNTED_HERE = frozenset(
    ("create_chat_completion", "create_message", "create_response", "create_embedding",
     "search_collection",  # `Accounts.hold` counts these, with what they take
     "retrieve_thumbnail")  # a gallery shows fifty at once, and reads them as they are stored
)  # fmt: skip


@dataclass(frozen=True)
class Caller:
    """The holder of a key; without one, whoever reaches a server that has given out none."""

    key: Key | None = None

    def require_model(self, name: str) -> None:
        """Raises KeyForbidden."""
        if self.key is not None:
            self.key.require_model(name)

    def require_collection(self, name: str) -> None:
        """Raises KeyForbidden."""
        if self.key is not None:
            self.key.require_collection(name)

    def may_use_model(self, name: str) -> bool:
        """For lists: show only what may be used."""
        return self.key is None or self.key.may_use_model(name)

    def may_use_collection(self, name: str) -> bool:
        """For lists: show only what may be used."""
        return self.key is None or self.key.may_use_collection(name)

    def tenant(self, salt: str) -> str:
        """Whom caches are shared with: the same key and the same salt alone."""
        return f"{self.key.id} {salt}" if self.key is not None else salt


def presented(headers: Headers) -> str | None:
    """The key that a request carries, as OpenAI's or as Anthropic's clients send it."""
    kind, _, text = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and text.strip():
        return text.strip()
    return headers.get("x-api-key")


async def identify(request: Request) -> Caller:
    """Who asks, once their request has been counted against the key's rate.

    Raises InvalidKey, RateLimited; KeyForbidden for a collection that is not for them.
    """
    runtime: Runtime = request.app.state.runtime
    accounts = await runtime.accounts()
    text = presented(request.headers) or request.cookies.get(COOKIE)
    caller = await accounts.caller(text)
    if "collections" in request.url.path and "name" in request.path_params:
        caller.require_collection(request.path_params["name"])
    route = request.scope["route"]
    if caller.key is not None and route.operation_id not in _NOT_COUNTED_HERE:
        accounts.rates.admit(caller.key)
    request.state.caller = caller
    return caller


Asker = Annotated[Caller, Depends(identify)]
"""Who asks, and what they may use."""
