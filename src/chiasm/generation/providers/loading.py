"""The providers that the settings name: their generators, made when first asked for."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING

from chiasm.errors import ProviderKeyRefused
from chiasm.generation.providers.address import VLLM, Address, parse_address
from chiasm.generation.providers.kept import Kept, Lent
from chiasm.generation.targets import Target, kind_of

if TYPE_CHECKING:
    from chiasm.generation.request import Generator
    from chiasm.media.limits import Limits
    from chiasm.settings import ProviderSettings

KEY_VARIABLES: Mapping[str, tuple[str, ...]] = {
    "openai": ("OPENAI_API_KEY",),
    "openai-responses": ("OPENAI_API_KEY",),
    "anthropic": ("ANTHROPIC_API_KEY",),
    "gemini": ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    "vllm": ("VLLM_API_KEY",),
}
"""Where a provider's key is looked for when its settings do not say."""

_HOSTED = {
    "openai": ("openai_chat", "OpenAIChat"),
    "openai-responses": ("openai_responses", "OpenAIResponses"),
    "anthropic": ("anthropic_messages", "AnthropicMessages"),
    "gemini": ("gemini", "Gemini"),
}
"""Kind of provider → module and class, imported when first asked for."""

Make = Callable[[str, "ProviderSettings", str], "Generator"]


class Providers:
    """Generators by target, kept once made; no more questions at once than a provider takes.

    Used in one event loop; making one imports an SDK, which takes a thread a second or two.
    """

    def __init__(
        self,
        settings: Mapping[str, ProviderSettings],
        *,
        make: Make | None = None,
        limits: Limits | None = None,
    ) -> None:
        """limits: of pictures that must be decoded before they are sent."""
        self.settings = settings
        self._make = make or functools.partial(make_generator, limits=limits)
        self._kept = {name: Kept() for name in settings}
        self._making: dict[Target, asyncio.Task[Lent]] = {}
        self._places = {name: asyncio.Semaphore(each.places) for name, each in settings.items()}

    async def generator(self, target: Target) -> Lent:
        """Raises ConfigurationError, ProviderKeyRefused where no key is set, and of vLLM
        GeneratorUnreachable.
        """
        found = self._kept[target.provider].find(target.model)
        if found is not None:
            return found
        task = self._making.get(target)
        if task is None:
            task = self._making[target] = asyncio.create_task(self._made(target))
        return await asyncio.shield(task)

    async def _made(self, target: Target) -> Lent:
        """Even if whoever asked for it has gone."""
        try:
            made = await asyncio.to_thread(
                self._make, target.provider, self.settings[target.provider], target.model
            )
            return self._kept[target.provider].keep(target.model, made)
        finally:
            del self._making[target]

    @asynccontextmanager
    async def place(self, provider: str) -> AsyncGenerator[None]:
        """Hold one of the questions that the provider is asked at once."""
        async with self._places[provider]:
            yield

    def close(self) -> None:
        """Let go of every connection."""
        for kept in self._kept.values():
            kept.close()


def key_for(name: str, provider: ProviderSettings) -> str | None:
    """The key in the environment, if there is one.

    A vendor's key is for the vendor: another address gets the one that its settings name, or none.
    """
    kind = kind_of(name, provider)
    if provider.key_variable:
        variables: tuple[str, ...] = (provider.key_variable,)
    else:
        variables = KEY_VARIABLES[kind] if kind == "vllm" or not provider.base_url else ()
    return next((os.environ[each] for each in variables if os.environ.get(each)), None)


def generator_at(address: Address, limits: Limits | None = None) -> Generator:
    """The model at an address of the setting `generator`. Blocks, see `make_generator`.

    limits: of pictures that must be decoded before they are sent.
    Raises what `Providers.generator` raises.
    """
    if address.scheme == VLLM:
        from chiasm.generation.providers.vllm import VLLMGenerator

        return VLLMGenerator(address, limits=limits)
    from chiasm.settings import ProviderSettings

    # Whoever writes an address on the command line has set the key for it beside it.
    names = KEY_VARIABLES[address.scheme]
    variable = next((each for each in names if os.environ.get(each)), names[0])
    provider = ProviderSettings(base_url=",".join(address.urls), key_variable=variable)
    return make_generator(address.scheme, provider, address.model or "", limits=limits)


def make_generator(
    name: str, provider: ProviderSettings, model: str, *, limits: Limits | None = None
) -> Generator:
    """A provider's model. Blocks: it imports an SDK, and asks vLLM servers what they serve.

    limits: of pictures that must be decoded before they are sent.
    Raises what `Providers.generator` raises.
    """
    from chiasm.generation.providers.patience import Patience

    kind, key = kind_of(name, provider), key_for(name, provider)
    patience = Patience(
        provider.connect_seconds, provider.first_token_seconds, provider.between_seconds
    )
    if kind == "vllm":
        from chiasm.generation.providers.vllm import VLLMGenerator

        address = parse_address(f"{VLLM}:{provider.base_url}#{model}")
        return VLLMGenerator(address, patience=patience, key=key, limits=limits)
    if key is None and not provider.base_url:
        variable = provider.key_variable or KEY_VARIABLES[kind][0]
        raise ProviderKeyRefused(
            f"There is no key for {name}.", hint=f"Put it into the environment as {variable}."
        )
    module, name_of_class = _HOSTED[kind]
    made: Generator = getattr(import_module(f"{__package__}.{module}"), name_of_class)(
        model=model, base_url=provider.base_url or None, key=key, patience=patience, limits=limits
    )
    return made
