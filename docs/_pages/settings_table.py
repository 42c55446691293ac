"""What the settings' dataclasses say of each setting: its kind, its default, its names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from table import table

from chiasm.settings import Settings

_KINDS = {
    bool: "true or false",
    int: "whole number",
    str: "text",
    Path: "path",
    float: "number",
    tuple[str, ...]: "list of texts",
}


def settings(kind: type = Settings, prefix: str = "") -> dict[str, tuple[type, Any]]:
    """Dotted name → (type, default) of every setting."""
    found: dict[str, tuple[type, Any]] = {}
    defaults, hints = kind(), get_type_hints(kind)
    for each in fields(kind):
        name, inner = f"{prefix}{each.name}", hints[each.name]
        if get_origin(inner) is Mapping:
            continue  # a table whose entries the user names: `tables`
        if is_dataclass(inner):
            found |= settings(inner, f"{name}.")
        else:
            found[name] = (inner, getattr(defaults, each.name))
    return found


def tables() -> dict[str, dict[str, tuple[Any, Any]]]:
    """Name of each table whose entries the user names → its fields, as `settings` has them."""
    return {
        name: settings(get_args(kind)[1])
        for name, kind in get_type_hints(Settings).items()
        if get_origin(kind) is Mapping
    }


def write_table(name: str) -> str:
    """One row a field of a table."""
    rows = [
        (f"`{each}`", _KINDS[kind], _shown(default))
        for each, (kind, default) in tables()[name].items()
    ]
    return table(("field", "kind", "default"), rows)


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return f"CHIASM_{name.replace('.', '_').upper()}"


def write_one(name: str) -> str:
    """The line of facts that stands under a setting's heading."""
    kind, default = settings()[name]
    return f"*{_KINDS[kind]}* · default {_shown(default)} · environment `{variable(name)}`"


def write_all() -> str:
    """One row a setting."""
    rows = [
        (f"[`{name}`](#{name.replace('.', '')})", _KINDS[kind], _shown(default))
        for name, (kind, default) in settings().items()
    ]
    return table(("setting", "kind", "default"), rows)


def _shown(default: Any) -> str:
    if isinstance(default, Path):
        return "by operating system"  # it holds the name of whoever builds the site
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, float):
        return f"`{default:g}`"
    if isinstance(default, tuple):
        return "`[]`"
    if isinstance(default, int):
        return f"`{default:_}`" if default >= 10_000 else f"`{default}`"
    return f'`"{default}"`'
