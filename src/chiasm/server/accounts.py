"""Who asks, what they may spend, and what becomes of it: operations as the server uses them.

Opened in the background when the server starts. A request is held against its key's rates and
budgets before anything is sent, charged when its answer has ended, and written to the ledger.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from chiasm.errors import InvalidKey, KeyForbidden
from chiasm.generation.messages import TextPart
from chiasm.operations.budgets import Budgets, Reservation, Spend
from chiasm.operations.database import open_database
from chiasm.operations.keys import Key, Keys
from chiasm.operations.ledger import Ledger
from chiasm.operations.rate_limits import RateLimits
from chiasm.server.callers import Caller

if TYPE_CHECKING:
    from chiasm.generation import Request
    from chiasm.operations.plan import Estimate
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

    async def hold(self, caller: Caller, estimate: Estimate, *, local: bool) -> Hold:
        """Set aside what a request may take.

        Raises RateLimited, BudgetExceeded, and KeyForbidden where a budget in money meets a model
        whose price is not known.
        """
        key = caller.key
        if key is None:
            return Hold(self, None)
        if estimate.cost is None and not local and _bounds_money(key):
            raise KeyForbidden(
                f"The key {key.name!r} has a budget in money, and this model has no known price.",
                hint='The operator can state it in chiasm.toml: [prices."provider/model"].',
                param="model",
            )
        self.rates.admit(key, estimate.image_tokens)
        if not key.budgets:
            return Hold(self, None)
        spend = Spend(estimate.cost or Decimal(0), estimate.image_tokens)
        return Hold(self, await anyio.to_thread.run_sync(self.budgets.reserve, key, spend))


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
