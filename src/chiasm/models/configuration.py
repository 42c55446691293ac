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
    A dataclass may say in `renamed` under which older names a file can hold its entries, or have
    a function `resolve` that gives the kind of it that is meant and the entries respelled. A field
    that holds one of several dataclasses says in its metadata, under `kinds`, which `model_type`
    stands for which; the first is meant where the file is silent.
    Raises UnsupportedCheckpoint when an entry has another type than its field, or a `model_type`
    that its field does not know.
    """
    if (resolve := getattr(kind, "resolve", None)) is not None:
        kind, entries = resolve(entries)
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
        if "kinds" in field.metadata and isinstance(value, Mapping):
            hint = _kind(field.metadata["kinds"], value, name)
        if is_dataclass(hint) or "kinds" in field.metadata:
            if value is None:  # all defaults
                continue
            if not isinstance(value, Mapping):
                raise UnsupportedCheckpoint(f"{name} must be an object.")
            arguments[field.name] = read_config(hint, value, f"{name}.")
        else:
            arguments[field.name] = _checked(value, hint, name)
    return kind(**arguments)


def _kind(kinds: Mapping[str, type[Any]], entries: Mapping[str, Any], name: str) -> type[Any]:
    model_type = entries.get("model_type", next(iter(kinds)))
    kind = kinds.get(str(model_type))
    if kind is None:
        raise UnsupportedCheckpoint(
            f"{name}.model_type is {model_type!r}, which is not known here.",
            hint=f"Known are {', '.join(kinds)}.",
        )
    return kind


def write_config(config: Any) -> dict[str, Any]:
    """The entries that `read_config` would read back, with `model_type` where there is one.

    A dataclass may have a method `as_entries` that says what is written of it.
    """
    if hasattr(config, "as_entries"):
        return dict(config.as_entries())
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
            if (items := _tuple(value, get_args(kind), name)) is not None:
                return items
        elif kind is float:
            if isinstance(value, int | float) and not isinstance(value, bool):
                return float(value)
        elif type(value) is kind:
            return value
    expected = hint.__name__ if isinstance(hint, type) else str(hint).replace(" | None", "")
    raise UnsupportedCheckpoint(f"{name} must be {expected}, not {value!r}.")


def _tuple(value: Any, kinds: tuple[Any, ...], name: str) -> tuple[Any, ...] | None:
    """`value` as a tuple whose items are of `kinds`; None if it is not one."""
    if not isinstance(value, list | tuple):
        return None
    if ... in kinds:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        return None
    try:
        return tuple(_checked(each, kind, name) for each, kind in zip(value, kinds, strict=True))
    except UnsupportedCheckpoint:  # said of the whole, not of one item
        return None
