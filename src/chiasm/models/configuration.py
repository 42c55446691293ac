"""A model's configuration: frozen dataclasses that bear the names of its `config.json`.

The fields are named as the file names them and hold the defaults that apply when the file leaves
one out, so reading is a look-up and there is no table of synonyms. Entries of the file that no
field asks for (dropout, initialisers) are training's business and are passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from chiasm.errors import UnsupportedCheckpoint

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """What every transformer stack needs to know."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12

    def __post_init__(self) -> None:
        at_least_one(self, "hidden_size", "num_hidden_layers", "num_attention_heads")
        if self.hidden_size % self.num_attention_heads:
            raise UnsupportedCheckpoint(
                f"num_attention_heads is {self.num_attention_heads}, which does not divide "
                f"hidden_size, {self.hidden_size}."
            )


def at_least_one(config: Any, *names: str) -> None:
    """Raise UnsupportedCheckpoint unless these fields are positive."""
    for name in names:
        if getattr(config, name) < 1:
            raise UnsupportedCheckpoint(f"{name} is {getattr(config, name)}.")


def read_config(kind: type[T], entries: Mapping[str, Any], path: str = "") -> T:
    """Make the dataclass `kind` from the entries of a `config.json` that bear its fields' names.

    path: where `entries` stand in the file (`text_config.`), for the messages.
    A dataclass may say in `renamed` under which older names a file can hold its entries.
    Raises UnsupportedCheckpoint when an entry has another type than its field.
    """
    hints = get_type_hints(kind)
    older = {
        new: entries[old] for old, new in getattr(kind, "renamed", {}).items() if entries.get(old)
    }
    entries = {**entries, **older}
    arguments: dict[str, Any] = {}
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name not in entries:
            continue
        name, hint, value = f"{path}{field.name}", hints[field.name], entries[field.name]
        if is_dataclass(hint):
            if value is None:  # all defaults
                continue
            if not isinstance(value, Mapping):
                raise UnsupportedCheckpoint(f"{name} must be an object.")
            arguments[field.name] = read_config(hint, value, f"{name}.")  # type: ignore[arg-type]
        else:
            arguments[field.name] = _checked(value, hint, name)
    return kind(**arguments)


def write_config(config: Any) -> dict[str, Any]:
    """The entries that `read_config` would read back, with `model_type` where there is one."""
    entries: dict[str, Any] = {}
    if hasattr(config, "model_type"):
        entries["model_type"] = config.model_type
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            value = write_config(value)
        elif isinstance(value, tuple):
            value = list(value)
        entries[field.name] = value
    return entries


def _checked(value: Any, hint: Any, name: str) -> Any:
    for kind in get_args(hint) if isinstance(hint, UnionType) else (hint,):
        if get_origin(kind) is tuple:
            items = get_args(kind)
            fits = ... in items or (isinstance(value, list | tuple) and len(items) == len(value))
            if isinstance(value, list | tuple) and fits and all(type(n) is int for n in value):
                return tuple(value)
        elif kind is float:
            if isinstance(value, int | float) and not isinstance(value, bool):
                return float(value)
        elif type(value) is kind:
            return value
    expected = hint.__name__ if isinstance(hint, type) else str(hint).replace(" | None", "")
    raise UnsupportedCheckpoint(f"{name} must be {expected}, not {value!r}.")
