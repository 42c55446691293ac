"""What a name stands for: the models that answer to it, in the order in which they are asked."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from chiasm.errors import ConfigurationError, UnknownModel
from chiasm.settings import ModelSettings, ProviderSettings

KINDS = ("openai", "openai-responses", "anthropic", "gemini", "vllm")
CHOICES = ("first", "cheapest", "fastest")

May = Callable[[str], bool]
"""Whether whoever asks may use a model of that name."""


@dataclass(frozen=True)
class Target:
    """A model that can be asked. provider: empty for one that runs in this server."""

    provider: str
    model: str

    @property
    def name(self) -> str:
        """As it is written in a route."""
        return f"{self.provider}/{self.model}" if self.provider else self.model


@dataclass(frozen=True)
class Route:
    """A name that callers use, its targets, and how they are asked."""

    name: str
    targets: tuple[Target, ...]
    how: ModelSettings


class Routes:
    """Every name that means something here."""

    def __init__(
        self, providers: Mapping[str, ProviderSettings], models: Mapping[str, ModelSettings]
    ) -> None:
        """Raises ConfigurationError for a table that cannot be followed."""
        self._providers = providers
        for name, provider in providers.items():
            _check_provider(name, provider)
        self._routes = {name: self._route(name, how) for name, how in models.items()}

    @property
    def names(self) -> list[str]:
        """Aliases, then `provider/model` for the models that providers list by name."""
        listed = [
            f"{name}/{model}"
            for name, provider in self._providers.items()
            for model in provider.models
            if not set(model) & set("*?[")
        ]
        return [*self._routes, *listed]

    def find(self, name: str, may: May = lambda name: True) -> Route | None:
        """The route of that name; None where it can only mean a model of this server.

        Raises UnknownModel for one that a provider's settings leave out; see `unknown`.
        """
        if name in self._routes:
            return self._routes[name]
        target = self._target(name)
        if not target.provider:
            return None
        allowed = self._providers[target.provider].models
        if allowed and not any(fnmatchcase(target.model, pattern) for pattern in allowed):
            raise unknown(name, self.names, may)
        return Route(name, (target,), ModelSettings())

    def local(self, name: str) -> Route:
        """The route of a model that runs in this server."""
        return Route(name, (Target("", name),), ModelSettings(retries=0))

    def _target(self, text: str) -> Target:
        provider, slash, model = text.partition("/")
        return (
            Target(provider, model) if slash and provider in self._providers else Target("", text)
        )

    def _route(self, name: str, how: ModelSettings) -> Route:
        place = f"models.{name}"
        if not how.targets:
            raise ConfigurationError(
                f"[{place}] names no targets.",
                hint='Write targets = ["provider/model", …].',
                param=place,
            )
        if how.choose not in CHOICES:
            raise ConfigurationError(
                f"{place}.choose is {how.choose!r}.",
                hint=f"It is {', '.join(CHOICES[:-1])} or {CHOICES[-1]}.",
                param=f"{place}.choose",
            )
        if how.min_accuracy and not how.evaluation:
            raise ConfigurationError(
                f"{place}.min_accuracy needs {place}.evaluation.", param=f"{place}.evaluation"
            )
        return Route(name, tuple(map(self._target, how.targets)), how)


def kind_of(name: str, provider: ProviderSettings) -> str:
    """How a provider is spoken to."""
    return provider.kind or name


def _check_provider(name: str, provider: ProviderSettings) -> None:
    place = f"providers.{name}"
    if "/" in name:
        raise ConfigurationError(f"[{place}]: a provider's name has no slash.", param=place)
    if kind_of(name, provider) not in KINDS:
        raise ConfigurationError(
            f"{place}.kind is {kind_of(name, provider)!r}.",
            hint=f"It is one of {', '.join(KINDS)}.",
            param=f"{place}.kind",
        )
    if provider.places < 1 or provider.failures < 1:
        raise ConfigurationError(
            f"{place}: places and failures must be 1 or more.", param=f"{place}.places"
        )


def unknown(name: str, names: Iterable[str], may: May = lambda name: True) -> UnknownModel:
    """The error for a name that nothing answers to, with the nearest that something does.

    It tells of no model that whoever asks may not use.
    """
    names = list(dict.fromkeys(filter(may, names)))
    near = difflib.get_close_matches(name, names, cutoff=0.5)
    if near:
        hint = f"Did you mean {' or '.join(near)}?"
    else:
        hint = f"There is {', '.join(names)}." if names else "None is served."
    return UnknownModel("No model of that name is served here.", hint=hint, param="model")
