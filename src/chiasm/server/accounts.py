"""Who asks, what they may spend, and what becomes of it: operations as the server uses them.

Opened in the background when the server starts. A request is held against its key's rates and
budgets before anything is sent, charged when its answer has ended, and written to the ledger.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from chiasm.errors import ChiasmError, InvalidKey, KeyForbidden
from chiasm.generation.messages import TextPart
from chiasm.operations.budgets import Budgets, Reservation, Spend
from chiasm.operations.database import open_database
from chiasm.operations.keys import Key, Keys
from chiasm.operations.ledger import Entry, Ledger
from chiasm.operations.rate_limits import RateLimits
from chiasm.server.callers import Caller

if TYPE_CHECKING:
    from fastapi import Request as Http

    from chiasm.generation import Request
    from chiasm.settings import Settings

_LOOK_AGAIN_SECONDS = 2.0  # for a first key, made while the server runs
_UNBOUNDED_ANSWER = 4096  # tokens that an answer may have where its cost must be bounded


class Accounts:
    """Keys, rates, budgets and the ledger of one database. Used in one event loop."""

    def __init__(self, settings: Settings) -> None:
        """Opens the database. Blocks. Raises StoreError and ConfigurationError."""
        database = open_database(settings.database, settings.data_dir)
        self.database = database
        self.keys = Keys(database)
        self.rates = RateLimits()
        self.budgets = Budgets(database)
        self.content = settings.server.ledger_content
        self.ledger = Ledger(database, content=self.content)
        self._required = settings.server.require_keys
        self._looked = -_LOOK_AGAIN_SECONDS

    def close(self) -> None:
        """Write what is left. Blocks."""
        self.ledger.close()
        self.database.close()

    async def caller(self, text: str | None) -> Caller:
        """Whose key this is; nobody's in particular, where the server has given out none.

        Raises InvalidKey.
        """
        if not self._required and time.monotonic() - self._looked >= _LOOK_AGAIN_SECONDS:
            self._required = await anyio.to_thread.run_sync(self.keys.any)
            self._looked = time.monotonic()
        if not self._required:
            return Caller()
        if text is None:
            raise InvalidKey(
                "This server answers to holders of a key.",
                hint="Send it as Authorization: Bearer chk-…; the operator makes them.",
            )
        key = self.keys.cached(text)
        return Caller(key or await anyio.to_thread.run_sync(self.keys.check, text))

    async def hold(self, caller: Caller, most: Spend | None) -> Hold:
        """Set aside what a request may take. most: None where nobody knows the price.

        Raises RateLimited, BudgetExceeded, and KeyForbidden where a budget in money meets a model
        whose price is not known.
        """
        key = caller.key
        if key is None:
            return Hold(self, None)
        if most is None and _bounds_money(key):
            raise KeyForbidden(
                f"The key {key.name!r} has a budget in money, and this model has no known price.",
                hint='The operator can state it in chiasm.toml: [prices."provider/model"].',
                param="model",
            )
        spend = most or Spend()
        self.rates.admit(key, spend.image_tokens)
        if not key.budgets:
            return Hold(self, None)
        return Hold(self, await anyio.to_thread.run_sync(self.budgets.reserve, key, spend))

    @asynccontextmanager
    async def counted(
        self, caller: Caller, http: Http, *, alias: str, model: str, images: int
    ) -> AsyncGenerator[Counted]:
        """A request that this server answers by itself and that costs no money, as a row.

        Fill in its tokens within the block. Raises what `hold` raises.
        """
        count, begun, when = Counted(), time.perf_counter(), datetime.now(UTC)
        error: ChiasmError | None = None
        try:
            hold = await self.hold(caller, Spend())
            try:
                yield count
            finally:
                await hold.settle(Decimal(0), 0)
        except ChiasmError as raised:
            error = raised
            raise
        finally:
            self.ledger.put(
                Entry(
                    time=when,
                    request_id=http.state.request_id,
                    route=http.url.path,
                    alias=alias,
                    provider="",
                    model=model,
                    status=200 if error is None else error.http_status,
                    error=None if error is None else error.code or error.kind,
                    key=None if caller.key is None else caller.key.id,
                    images=images,
                    text_tokens=count.text_tokens,
                    cost=Decimal(0),
                    seconds=time.perf_counter() - begun,
                )
            )


@dataclass
class Counted:
    """What a request took, filled in while it is answered."""

    text_tokens: int = 0


@dataclass(frozen=True)
class Hold:
    """What is set aside for one request; None where nothing needs to be."""

    accounts: Accounts
    reservation: Reservation | None

    async def settle(self, cost: Decimal | None, image_tokens: int, *, requests: int = 1) -> None:
        """Charge what it took instead. Even if the request was cancelled."""
        if self.reservation is not None:
            spend = Spend(cost or Decimal(0), image_tokens, requests)
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(
                    self.accounts.budgets.settle, self.reservation, spend
                )


def bounded(request: Request, caller: Caller) -> Request:
    """The request with an end to its answers, where a budget in money needs one."""
    key = caller.key
    if request.max_tokens is None and key is not None and _bounds_money(key):
        return replace(request, max_tokens=_UNBOUNDED_ANSWER)
    return request


def _bounds_money(key: Key) -> bool:
    return any(budget.of == "money" for budget in key.budgets)


def content_of(request: Request) -> str:
    """What a ledger that is told to keep content keeps: texts, and the digests of pictures."""
    messages = [
        {
            "role": message.role,
            "text": "".join(part.text for part in message.parts if isinstance(part, TextPart)),
            "pictures": [image.digest for image in message.images],
        }
        for message in request.messages
    ]
    return json.dumps({"messages": messages}, ensure_ascii=False)
