"""What tokens cost: the user's own prices, then a published list, dated and offline.

The list is the package `genai-prices`. It has prices by the million of tokens, tiers by the
length of the prompt, and prices that begin on a day or hold at some hours. Of each model the
prices in force are kept for a minute, so that pricing a request takes microseconds.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo

    from chiasm.settings import PriceSettings, ProviderSettings

_MILLION = Decimal(1_000_000)
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

_BY_NAME = ("openai", "anthropic", "google")  # their models are known by their names alone


class Spent(Protocol):
    """Tokens of one request, as `Usage` has them. cached, written: of the prompt."""

    @property
    def prompt_tokens(self) -> int: ...
    @property
    def image_tokens(self) -> int: ...
    @property
    def cached_tokens(self) -> int: ...
    @property
    def written_tokens(self) -> int: ...
    @property
    def answer_tokens(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Tokens:
    """The same, for whoever has no usage at hand."""

    prompt_tokens: int
    answer_tokens: int = 0
    image_tokens: int = 0
    cached_tokens: int = 0
    written_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Rate:
    """USD per million tokens. steps: (prompt tokens, price for requests above them), ascending."""

    base: Decimal
    steps: tuple[tuple[int, Decimal], ...] = ()

    def at(self, prompt_tokens: int) -> Decimal:
        """The price for a request with so long a prompt: it holds for all of its tokens."""
        price = self.base
        for start, above in self.steps:
            if prompt_tokens <= start:
                break
            price = above
        return price


@dataclass(frozen=True, slots=True)
class Rates:
    """A model's prices. cached, written, image: as `input` where the list has none of their own.

    source: where they are from.
    """

    input: Rate
    output: Rate
    cached: Rate | None
    written: Rate | None
    image: Rate | None
    source: str

    @property
    def free(self) -> bool:
        """Whether nothing costs anything."""
        return not (self.input.base or self.output.base)

    def cost(self, spent: Spent) -> Decimal:
        """USD, exactly."""
        prompt = spent.prompt_tokens
        plain = max(0, prompt - spent.cached_tokens - spent.written_tokens)
        pictures = min(spent.image_tokens, plain) if self.image is not None else 0
        total = self.input.at(prompt) * (plain - pictures)
        total += self.output.at(prompt) * spent.answer_tokens
        if pictures:
            total += (self.image or self.input).at(prompt) * pictures
        if spent.cached_tokens:
            total += (self.cached or self.input).at(prompt) * spent.cached_tokens
        if spent.written_tokens:
            total += (self.written or self.input).at(prompt) * spent.written_tokens
        return total / _MILLION


FREE = Rates(Rate(Decimal(0)), Rate(Decimal(0)), None, None, None, "runs in this server")


class Prices:
    """Prices of the models that settings and the published list know. Safe in several threads."""

    def __init__(
        self,
        own: Mapping[str, PriceSettings] | None = None,
        providers: Mapping[str, ProviderSettings] | None = None,
        *,
        free: frozenset[str] = frozenset(),
    ) -> None:
        """own: `[prices]` of the settings. free: names of models that run in this server."""
        self._own = own or {}
        self._providers = providers or {}
        self._free = free
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
            return next(filter(None, (published(each, target) for each in _BY_NAME)), None)
        return published(self._vendor(provider), model)

    def _vendor(self, provider: str) -> str:
        """Whose list prices hold for a provider's models; empty for nobody's."""
        settings = self._providers.get(provider)
        if settings is None:
            return _VENDORS.get(provider, "")
        if settings.base_url and (found := _vendor_at(settings.base_url)):
            return found
        # A proxy of one's own in front of a vendor: its models have the vendor's names, and
        # those of other servers that speak the same way are not in that vendor's list.
        return _VENDORS.get(settings.kind or provider, "")


def _own_rates(own: PriceSettings, target: str) -> Rates:
    def rate(price: float) -> Rate:
        return Rate(Decimal(str(price)))  # as it was written, not as a float holds it

    cached = rate(own.cached_input) if own.cached_input else None
    return Rates(rate(own.input), rate(own.output), cached, None, None, f'[prices."{target}"]')


# The published list -----------------------------------------------------------------------------


def published(vendor: str, model: str, *, at: datetime | None = None) -> Rates | None:
    """The listed prices of a vendor's model at a time, now if None.

    vendor: an id of the list; empty is nobody.
    """
    found = _listed(vendor, model)
    if found is None:
        return None
    prices = found.get_prices(at or datetime.now(UTC))
    base, output = _rate(prices.input_mtok), _rate(prices.output_mtok)
    if base is None or output is None:
        return None
    return Rates(
        base,
        output,
        _rate(prices.cache_read_mtok),
        _rate(prices.cache_write_mtok),
        _rate(prices.input_image_mtok),
        source(),
    )


def context_of(vendor: str, model: str) -> int | None:
    """Tokens that a model reads at most, where the list says; for the vendor see `published`."""
    vendors = (vendor,) if vendor else _BY_NAME
    found = next(filter(None, (_listed(each, model) for each in vendors)), None)
    return None if found is None else found.context_window


def _listed(vendor: str, model: str) -> ModelInfo | None:
    if not vendor:
        return None
    from genai_prices.data_snapshot import get_snapshot

    # A model may be for sale under its preview's name alone.
    for name in (model, f"{model}-preview"):
        try:
            return get_snapshot().find_provider_model(name, None, vendor, None)[1]
        except LookupError:
            continue
    return None


def source() -> str:
    """Which list of prices this is."""
    from genai_prices import __version__

    return f"genai-prices {__version__}"


def _vendor_at(base_url: str) -> str | None:
    from genai_prices.data_snapshot import get_snapshot

    try:
        return str(get_snapshot().find_provider(None, None, base_url).id)
    except LookupError:
        return None


def _rate(price: Any) -> Rate | None:
    if price is None:
        return None
    if isinstance(price, Decimal):
        return Rate(price)
    return Rate(price.base, tuple((tier.start, tier.price) for tier in price.tiers))
