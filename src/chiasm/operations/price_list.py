"""The published list of prices: the package `genai-prices`, which is dated and needs no network.

It has prices by the million of tokens, tiers by the length of the prompt, and prices that begin on
a day or hold at some hours.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo

_MILLION = Decimal(1_000_000)
BY_NAME = ("openai", "anthropic", "google")
"""Vendors whose models are known by their names alone."""


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


@dataclass(frozen=True, slots=True)
class Listed:
    """What the list says of a model; None of what it does not. context: tokens that it reads."""

    rates: Rates | None = None
    context: int | None = None


_NOTHING = Listed()


class PriceList:
    """Looks models up. With a file, what was found is kept there for the rest of the day.

    Importing the list takes longer than a whole plan, and a command that is quick is used more.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._stamp = None if file is None else _stamp()
        self._known = {} if file is None else _read(file, self._stamp)
        self._new = False

    def look(self, vendor: str, model: str, *, at: datetime | None = None) -> Listed:
        """A vendor's model as it is at a time, now if None.

        vendor: an id of the list; empty is any whose models are known by name.
        """
        name = f"{vendor}/{model}"
        if name in self._known and at is None:
            return self._known[name]
        vendors = (vendor,) if vendor else BY_NAME
        found = next(filter(None, (_model(each, model) for each in vendors)), None)
        listed = _NOTHING if found is None else _listed(found, at or datetime.now(UTC))
        if self._file is not None and at is None and (found is None or not _by_the_hour(found)):
            self._known[name] = listed
            self._new = True
        return listed

    def save(self) -> None:
        """Write what was found to the file; without one, or where it cannot be, nothing."""
        if self._file is None or not self._new:
            return
        said = {
            "stamp": self._stamp,
            "models": {name: _as_json(each) for name, each in self._known.items()},
        }
        with suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            part = self._file.with_name(f"{self._file.name}.{os.getpid()}")
            part.write_text(json.dumps(said), encoding="utf-8")
            part.replace(self._file)


def vendor_at(base_url: str) -> str | None:
    """Whose API an address is, as far as the list knows."""
    from genai_prices.data_snapshot import get_snapshot

    try:
        return str(get_snapshot().find_provider(None, None, base_url).id)
    except LookupError:
        return None


def _model(vendor: str, model: str) -> ModelInfo | None:
    from genai_prices.data_snapshot import get_snapshot

    # A model may be for sale under its preview's name alone.
    for name in (model, f"{model}-preview"):
        try:
            return get_snapshot().find_provider_model(name, None, vendor, None)[1]
        except LookupError:
            continue
    return None


def _listed(model: ModelInfo, at: datetime) -> Listed:
    from genai_prices import __version__

    prices = model.get_prices(at)
    base, output = _rate(prices.input_mtok), _rate(prices.output_mtok)
    if base is None or output is None:
        return Listed(None, model.context_window)
    rates = Rates(
        base,
        output,
        _rate(prices.cache_read_mtok),
        _rate(prices.cache_write_mtok),
        _rate(prices.input_image_mtok),
        f"genai-prices {__version__}",
    )
    return Listed(rates, model.context_window)


def _rate(price: Any) -> Rate | None:
    if price is None:
        return None
    if isinstance(price, Decimal):
        return Rate(price)
    return Rate(price.base, tuple((tier.start, tier.price) for tier in price.tiers))


def _by_the_hour(model: ModelInfo) -> bool:
    """Whether its prices depend on more than the day."""
    from genai_prices.types import TimeOfDateConstraint

    conditions = model.prices if isinstance(model.prices, list) else []
    return any(isinstance(each.constraint, TimeOfDateConstraint) for each in conditions)


# What is kept -----------------------------------------------------------------------------------


def _stamp() -> str:
    """Changes with the day, UTC, and with the list."""
    found = find_spec("genai_prices")
    where = Path(found.origin).with_name("data.py") if found and found.origin else None
    state = where.stat() if where is not None and where.is_file() else None
    size = None if state is None else (state.st_size, state.st_mtime_ns)
    return f"{datetime.now(UTC):%Y-%m-%d} {size}"


def _read(file: Path, stamp: str | None) -> dict[str, Listed]:
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        if said["stamp"] != stamp:
            return {}
        return {name: _from_json(each) for name, each in said["models"].items()}
    except (OSError, ValueError, ArithmeticError, KeyError, TypeError, AttributeError):
        return {}  # it is only a memory: what is not there is looked up


_RATES = ("input", "output", "cached", "written", "image")


def _as_json(listed: Listed) -> dict[str, Any]:
    rates = listed.rates
    if rates is None:
        return {"context": listed.context}
    prices = {name: getattr(rates, name) for name in _RATES}
    return {
        "context": listed.context,
        "source": rates.source,
        **{
            name: [str(rate.base), [[start, str(price)] for start, price in rate.steps]]
            for name, rate in prices.items()
            if rate is not None
        },
    }


def _from_json(said: Mapping[str, Any]) -> Listed:
    if "input" not in said:
        return Listed(None, said["context"])
    rates: dict[str, Any] = dict.fromkeys(_RATES)
    for name in _RATES:
        if name in said:
            base, steps = said[name]
            rates[name] = Rate(
                Decimal(base), tuple((int(start), Decimal(price)) for start, price in steps)
            )
    return Listed(Rates(**rates, source=said["source"]), said["context"])
