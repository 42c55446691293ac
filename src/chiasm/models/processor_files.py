"""What a checkpoint's files say about how it reads pictures.

Three generations of files are about: `preprocessor_config.json` alone, with what the processor
adds left to the network's configuration; the same beside a `processor_config.json`; and since
transformers 5 a `processor_config.json` that holds the image processor's entries too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from chiasm.errors import UnsupportedCheckpoint


@dataclass(frozen=True)
class ProcessorFiles:
    """The entries that a picture's reader is made from.

    image_processor: of `preprocessor_config.json`, or what replaces it.
    processor: of `processor_config.json`. network: of `config.json`.
    tokens: tokens that `tokenizer_config.json` gives a name, such as `image_token`.
    """

    image_processor: Mapping[str, Any]
    processor: Mapping[str, Any] = field(default_factory=dict)
    network: Mapping[str, Any] = field(default_factory=dict)
    tokens: Mapping[str, str] = field(default_factory=dict)

    @property
    def tower(self) -> Mapping[str, Any]:
        """The entries of the image tower."""
        return self.network.get("vision_config") or {}

    def token(self, name: str, default: str) -> str:
        """The token of this name; the tokenizer's file wins over the processor's."""
        return self.tokens.get(name) or self.processor.get(name) or default


def named_tokens(tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    """Name → token, from the entries of a `tokenizer_config.json`."""
    extra = tokenizer_config.get("extra_special_tokens")
    entries = {**tokenizer_config, **(extra if isinstance(extra, Mapping) else {})}
    found = {}
    for name, value in entries.items():
        text = value.get("content") if isinstance(value, Mapping) else value
        if name.endswith("_token") and isinstance(text, str):
            found[name] = text
    return found


def positive(value: Any, name: str) -> int:
    """`value` if it is a positive whole number, else UnsupportedCheckpoint naming the entry."""
    if type(value) is not int or value < 1:
        raise UnsupportedCheckpoint(f"{name} must be a positive number, not {value!r}.")
    return value
