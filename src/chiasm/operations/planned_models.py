"""The models that a plan knows: what a name stands for, and how its pictures and texts count."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from chiasm.errors import ChiasmError
from chiasm.generation.providers.address import is_remote, parse_address
from chiasm.generation.targets import May, kind_of, unknown
from chiasm.operations import open_models
from chiasm.operations.open_models import OpenModel
from chiasm.operations.price_list import PriceList
from chiasm.operations.prices import Prices
from chiasm.operations.text_tokens import TextCounter, counter_for, own_counter
from chiasm.operations.tokens import ImageRule, known_models, rule_for, rule_from_config

if TYPE_CHECKING:
    from pathlib import Path

    from chiasm.settings import Settings

log = logging.getLogger("chiasm.operations")

_VENDOR_OF_KIND = {"gemini": "google", "openai-responses": "openai"}
_VENDORS = ("openai", "anthropic", "google", "gemini", "mistral")
_MOST_KEPT = 1_024
DEFAULT_VLM = "default-vlm"
_ITS_LANGUAGE_MODEL = "smollm2-135m-instruct"


@dataclass(frozen=True)
class Model:
    """A model that can be planned for.

    target: as callers ask for it. name: as its maker calls it. provider: who runs it; empty for
    this server. rule: for its pictures; None where none is known. open: its published sizes.
    folder: where its tokenizer lies, if it does.
    """

    target: str
    name: str
    provider: str
    rule: ImageRule | None
    open: OpenModel | None = None
    folder: Path | None = field(default=None, compare=False)
    context: int | None = None

    @property
    def here(self) -> bool:
        """Whether it runs in this server."""
        return not self.provider

    @cached_property
    def text(self) -> TextCounter:
        """What counts its text."""
        if self.folder is not None:
            try:
                return _own_counter(self.folder, self.name)
            except ChiasmError as error:
                log.warning("The text of %s is estimated: %s", self.name, error.message)
        return counter_for(self.name)


class Models:
    """Every model that has a name here. Safe in several threads."""

    def __init__(self, settings: Settings, listed: PriceList | None = None) -> None:
        self._settings = settings
        self._found: dict[str, Model] = {}
        here = settings.generator if not is_remote(settings.generator) else ""
        self.prices = Prices(
            settings.prices,
            settings.providers,
            free=frozenset(filter(None, [here])),
            listed=listed,
        )
        self._here = here

    @cached_property
    def configured(self) -> list[str]:
        """What the settings name: the model of this server, routes' targets, providers' models."""
        settings = self._settings
        routed = [target for route in settings.models.values() for target in route.targets]
        listed = [
            f"{name}/{model}"
            for name, provider in settings.providers.items()
            for model in provider.models
            if not set(model) & set("*?[")
        ]
        own = [settings.generator] if settings.generator else []
        return list(dict.fromkeys([*own, *routed, *listed]))

    @cached_property
    def known(self) -> list[str]:
        """Models of vendors and open ones whose rules stand here, by the name of their target."""
        return [_qualified(each.provider, each.name) for each in known_models()]

    @property
    def default(self) -> list[str]:
        """What is planned for where nobody names models: those of the settings and those known."""
        names = {self.find(target).name for target in self.configured}
        more = [name for name in self.known if self.find(name).name not in names]
        return [*self.configured, *more]

    def reached(self, may: May) -> frozenset[str]:
        """What is behind the names that whoever asks may use, by the target's own name."""
        routes = {name: route.targets for name, route in self._settings.models.items()}
        if self._settings.generator:
            routes.setdefault("default", (self._settings.generator,))
        return frozenset(
            self.find(target).target
            for name, targets in routes.items()
            if may(name)
            for target in targets
        )

    def named(self, name: str, may: May = lambda name: True) -> list[Model]:
        """What a caller's name means: a route's targets, or a model with a rule or a price.

        Raises UnknownModel with the nearest names of those that whoever asks may use.
        """
        route = self._settings.models.get(name)
        if route is not None:
            return [self.find(target) for target in route.targets]
        if name == "default" and self._settings.generator:
            name = self._settings.generator
        model = self.find(name)
        if not model.here and name not in self.configured:
            told = model.rule is not None or self.prices.rates(name) is not None
            if not told and model.provider not in self._settings.providers:
                names = [self.find(target).target for target in self.configured]
                raise unknown(name, [*self._settings.models, *names, *self.known], may)
        return [model]

    def find(self, target: str) -> Model:
        """The model of a target. Of one that nobody knows little is said."""
        found = self._found.get(target)
        if found is None:
            if len(self._found) >= _MOST_KEPT:
                self._found.clear()
            found = self._found[target] = self._look_up(target)
        return found

    def _look_up(self, target: str) -> Model:
        if target == self._here:
            return self._of_this_server(target)
        if target == self._settings.generator:  # an address of servers
            # The address is for whoever runs this server: a plan shows the model's name.
            address = parse_address(target)
            return self._elsewhere(address.model or "default", address.scheme, address.model or "")
        provider, slash, name = target.partition("/")
        if slash and provider in self._settings.providers:
            kind = kind_of(provider, self._settings.providers[provider])
            return self._elsewhere(target, kind, name, provider)
        if slash and provider in _VENDORS:
            return self._elsewhere(target, provider, name)
        return self._elsewhere(target, "", target)

    def _elsewhere(self, target: str, kind: str, name: str, provider: str = "") -> Model:
        vendor = _VENDOR_OF_KIND.get(kind, kind)
        known = open_models.find(name)
        context = known.context if known is not None else None
        if context is None and vendor != "vllm":
            context = self.prices.listed.look(vendor, name).context
        provider = provider or vendor or "elsewhere"
        return Model(target, name, provider, rule_for(name), known, context=context)

    def _of_this_server(self, target: str) -> Model:
        name = DEFAULT_VLM if target == "default" else target
        folder = self._cached_folder(name)
        known = open_models.find(name)
        rule, context = rule_for(name), known.context if known is not None else None
        if folder is not None and name != DEFAULT_VLM:
            config = _read(folder, "config.json")
            rule = rule_from_config(config, _read(folder, "preprocessor_config.json")) or rule
            context = context or _context(config)
        return Model(target, name, "", rule, known, folder, context)

    def _cached_folder(self, name: str) -> Path | None:
        """Where a checkpoint of this server lies already. Nothing is fetched for a plan."""
        from chiasm.models import catalog

        name = _ITS_LANGUAGE_MODEL if name == DEFAULT_VLM else name
        own = [self._settings.catalog]
        try:
            return catalog.local_folder(name, own) or catalog.pull(
                name, cache_dir=self._settings.cache_dir, offline=True, catalogs=own
            )
        except ChiasmError:
            return None


def _own_counter(folder: Path, name: str) -> TextCounter:
    from chiasm.models.chat import ChatTokenizer

    tokenizer = ChatTokenizer.from_folder(folder)
    if name == DEFAULT_VLM:  # it has its language model's tokenizer, and a template of its own
        template = files("chiasm.models") / "default_vlm" / "chat_template.jinja"
        tokenizer.template = template.read_text(encoding="utf-8")
    return own_counter(tokenizer, f"{name}'s own tokenizer")


def _read(folder: Path, name: str) -> dict[str, Any]:
    from chiasm.models.json_files import read_json_if_there

    return read_json_if_there(folder / name)


def _context(config: Mapping[str, Any]) -> int | None:
    """Tokens that a checkpoint reads, by its configuration."""
    for part in (config, config.get("text_config") or {}):
        value = part.get("max_position_embeddings")
        if isinstance(value, int):
            return value
    return None


def _qualified(provider: str, name: str) -> str:
    return f"{provider}/{name}" if provider in _VENDORS else name
