"""What tokens cost: the user's own prices, then a published list, dated and offline.

Of each model the prices in force are kept for a minute, so that pricing a request takes
microseconds.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING

from chiasm.operations.price_list import PriceList, Rate, Rates, Spent, Tokens, vendor_at

if TYPE_CHECKING:
    from chiasm.settings import PriceSettings, ProviderSettings

__all__ = ["FREE", "Prices", "Rate", "Rates", "Spent", "Tokens"]

_KEPT_SECONDS = 60.0
_MOST_KEPT = 1_024  # a provider may be asked for any name
_VENDORS = {
    "openai": "openai",
    "openai-responses": "openai",
    "anthropic": "anthropic",
    "gemini": "google",
    "google": "google",
    "mistral": "mistral",
}
"""Kind of provider → whose prices those are. Of vLLM servers nobody but their owner knows any."""

FREE = Rates(Rate(Decimal(0)), Rate(Decimal(0)), None, None, None, "runs in this server")


class Prices:
    """Prices of the models that settings and the published list know. Safe in several threads."""

    def __init__(
        self,
        own: Mapping[str, PriceSettings] | None = None,
        providers: Mapping[str, ProviderSettings] | None = None,
        *,
        free: frozenset[str] = frozenset(),
        listed: PriceList | None = None,
    ) -> None:
        """own: `[prices]` of the settings. free: names of models that run in this server."""
        self._own = own or {}
        self._providers = providers or {}
        self._free = free
        self.listed = listed or PriceList()
        self._kept: dict[str, tuple[float, Rates | None]] = {}

    def price_of(self, target: str, spent: Spent) -> Decimal | None:
        """USD by list prices; None where nobody knows them.

        target: `provider/model`; or a model of this server, which costs nothing.
        """
        rates = self.rates(target)
        return None if rates is None else rates.cost(spent)

    def rates(self, target: str) -> Rates | None:
        """A model's prices as they are now."""
        now = time.monotonic()
        kept = self._kept.get(target)
        if kept is not None and now - kept[0] < _KEPT_SECONDS:
            return kept[1]
        rates = self._look_up(target)
        if len(self._kept) >= _MOST_KEPT:
            self._kept.clear()
        self._kept[target] = (now, rates)
        return rates

    def _look_up(self, target: str) -> Rates | None:
        own = self._own.get(target)
        if own is not None:
            return _own_rates(own, target)
        if target in self._free:
            return FREE
        provider, slash, model = target.partition("/")
        if not slash:
            return self.listed.look("", target).rates
        vendor = self._vendor(provider)
        return self.listed.look(vendor, model).rates if vendor else None

    def _vendor(self, provider: str) -> str:
        """Whose list prices hold for a provider's models; empty for nobody's."""
        settings = self._providers.get(provider)
        if settings is None:
            return _VENDORS.get(provider, "")
        if settings.base_url and (found := vendor_at(settings.base_url)):
            return found
        # A proxy of one's own in front of a vendor: its models have the vendor's names, and
        # those of other servers that speak the same way are not in that vendor's list.
        return _VENDORS.get(settings.kind or provider, "")


def _own_rates(own: PriceSettings, target: str) -> Rates:
    def rate(price: float) -> Rate:
        return Rate(Decimal(str(price)))  # as it was written, not as a float holds it

    cached = rate(own.cached_input) if own.cached_input else None
    return Rates(rate(own.input), rate(own.output), cached, None, None, f'[prices."{target}"]')
