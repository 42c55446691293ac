"""Recipe files: TOML in, a frozen dataclass inside, and every value shown again with its meaning.

Works for any tree of frozen dataclasses whose docstrings say what each field is, in lines of the
form `name: what it is`. A field whose name is unknown, or whose value has another type, is an
error that names the file and the field.
"""

from __future__ import annotations

import difflib
import json
import re
import textwrap
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from chiasm.errors import ConfigurationError

T = TypeVar("T")

_NAMED = re.compile(r"\s*(\w+(?:, \w+)*): (\S.*)")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_WIDTH = 96


def read_recipe(kind: type[T], path: Path, changes: Sequence[str] = ()) -> T:
    """The recipe in the TOML file `path`, with `changes` of the form `section.name=value` made.

    A relative path in a recipe is relative to the working directory, as on a command line.
    Raises ConfigurationError.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(f"There is no recipe {path}.") from None
    except (OSError, UnicodeDecodeError):
        raise ConfigurationError(f"{path} could not be read as a text file.") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path} is not valid TOML: {error}.") from None
    for change in changes:
        _change(table, change)
    return build_recipe(kind, table, str(path))


def build_recipe(kind: type[T], table: Mapping[str, Any], where: str) -> T:
    """The dataclass `kind` from nested tables. Raises ConfigurationError that names `where`."""
    _refuse_unknown(kind, table, "", where)
    try:
        return TypeAdapter(kind).validate_python(table)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"] if isinstance(part, str | int))
        if first["type"] == "missing":
            raise ConfigurationError(f"{where}: {name} is missing.", param=name) from None
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigurationError(
            f"{where}: {name or 'the recipe'} cannot be {first['input']!r}: {message}.", param=name
        ) from None


def as_table(recipe: Any) -> dict[str, Any]:
    """Nested tables of every value, as `build_recipe` takes them and JSON can hold them."""
    return {
        field.name: _plain(getattr(recipe, field.name))
        for field in fields(recipe)
        if getattr(recipe, field.name) is not None
    }


def show_recipe(recipe: Any) -> str:
    """The whole recipe as a TOML document: every value, and above it what it is for."""
    return "\n".join(_shown(recipe, "")) + "\n"


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Dotted names under which two tables differ."""
    one, other = _flat(before, ""), _flat(after, "")
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


# Reading ----------------------------------------------------------------------------------------


def _change(table: dict[str, Any], change: str) -> None:
    name, equals, text = change.partition("=")
    name = name.strip()
    if not equals or not name:
        raise ConfigurationError(
            f"{change!r} changes nothing.", hint="Write --set section.name=value.", param="set"
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a text without its quotation marks, as a shell leaves it
    *sections, last = name.split(".")
    for section in sections:
        inner = table.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigurationError(f"{section} in {change!r} is no section.", param="set")
        table = inner
    table[last] = value


def _refuse_unknown(kind: type, table: Mapping[str, Any], prefix: str, where: str) -> None:
    sections = _sections(kind)
    known = [field.name for field in fields(kind)]
    for name, value in table.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ConfigurationError(
                f"{where}: there is no {prefix}{name}.",
                hint=f"Did you mean {prefix}{near[0]}?" if near else f"Known: {', '.join(known)}.",
                param=f"{prefix}{name}",
            )
        if name in sections and isinstance(value, Mapping):
            _refuse_unknown(sections[name], value, f"{prefix}{name}.", where)


def _sections(kind: type) -> dict[str, type]:
    """The fields of a dataclass that are dataclasses themselves, or may be."""
    found = {}
    for name, hint in get_type_hints(kind).items():
        for candidate in get_args(hint) if isinstance(hint, UnionType) else (hint,):
            if isinstance(candidate, type) and is_dataclass(candidate):
                found[name] = candidate
    return found


# Showing ----------------------------------------------------------------------------------------


def _shown(recipe: Any, path: str) -> Iterator[str]:
    meanings = _meanings(type(recipe))
    inner: list[tuple[str, Any]] = []
    for field in fields(recipe):
        value = getattr(recipe, field.name)
        if is_dataclass(value):
            inner.append((field.name, value))
            continue
        if field.name in _sections(type(recipe)):  # one that may be left out, and is
            inner.append((field.name, None))
            continue
        if meaning := meanings.get(field.name):
            yield from textwrap.wrap(meaning, _WIDTH, initial_indent="# ", subsequent_indent="# ")
        yield f"# {field.name} =" if value is None else f"{field.name} = {_toml(value)}"
    for name, value in inner:
        yield ""
        if meaning := meanings.get(name):
            yield from textwrap.wrap(meaning, _WIDTH, initial_indent="# ", subsequent_indent="# ")
        if value is None:
            yield f"# [{path}{name}]"
            continue
        yield f"[{path}{name}]"
        yield from _shown(value, f"{path}{name}.")


def _meanings(kind: type) -> dict[str, str]:
    """Field → what the dataclass's docstring says of it."""
    known = {field.name for field in fields(kind)}
    meanings: dict[str, str] = {}
    current: list[str] = []
    for line in (kind.__doc__ or "").splitlines():
        named = _NAMED.fullmatch(line)
        if named and known.issuperset(names := named[1].split(", ")):
            current = names
            meanings |= dict.fromkeys(names, named[2])
        elif line.strip() and current:
            meanings |= {name: f"{meanings[name]} {line.strip()}" for name in current}
        else:
            current = []
    return meanings


def _toml(value: Any) -> str:
    """A TOML value on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_key(key)} = {_toml(each)}" for key, each in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(each) for each in value)}]"
    if isinstance(value, int | float):
        return repr(value)
    return json.dumps(str(value), ensure_ascii=False)


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else json.dumps(key)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return as_table(value)
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def _flat(table: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
