"""Which rule a model's name means. The data lie in `rules/`, a file a vendor."""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from fnmatch import fnmatchcase
from importlib.resources import files
from typing import Any

from chiasm.operations.tokens import closed, open
from chiasm.operations.tokens.rule import Arithmetic, ImageRule

ARITHMETIC: Mapping[str, tuple[Arithmetic, bool]] = {
    # Whether it is monotonic. A rounded short side alone can move a tile's border.
    "openai-tiles": (closed.openai_tiles, False),
    "openai-patches": (closed.openai_patches, False),
    "claude": (closed.claude, False),
    "gemini-tiles": (closed.gemini_tiles, False),
    "gemini-grid": (closed.gemini_grid, False),
    "fixed-by-level": (closed.fixed_by_level, True),
    "fixed": (open.fixed, True),
    "llava-next": (open.llava_next, False),
    "qwen": (open.qwen, False),
    "idefics3": (open.idefics3, False),
    "internvl": (open.internvl, False),
    "pixtral": (open.pixtral, False),
    "llama4": (open.llama4, False),
}
_DATED = re.compile(r"[-@](?:20\d{6}|20\d{2}-\d{2}-\d{2}|latest|preview(?:-\d{2}-\d{2,4})?)$")
_RESOLD = ("us.", "eu.", "apac.", "global.", "openai.", "anthropic.", "meta.", "mistral.")


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model that has a rule here. provider: who sells it; "open" for weights that one has."""

    name: str
    family: str
    provider: str


@dataclass(frozen=True)
class _Entry:
    patterns: tuple[str, ...]
    rule: ImageRule


def rule_for(model: str, *, as_of: date | None = None) -> ImageRule | None:
    """The newest rule for a model's pictures; None where none is known.

    model: as its vendor writes it, with a provider before it, a date or a version behind it, or
        neither: `openai/gpt-5-mini-2025-08-07`, `Qwen/Qwen2.5-VL-7B-Instruct`.
    as_of: the rule as it was known on that day.
    """
    found = rules_for(model)
    if as_of is not None:
        found = [rule for rule in found if rule.read <= as_of]
    return found[0] if found else None


@functools.lru_cache(maxsize=4096)
def _entries_for(model: str) -> tuple[ImageRule, ...]:
    for name in spellings(model):
        found = [
            entry.rule
            for entry in _entries()
            if any(fnmatchcase(name, pattern) for pattern in entry.patterns)
        ]
        if found:
            # Newest first; of one day the one whose pattern stands first.
            return tuple(sorted(found, key=lambda rule: rule.read, reverse=True))
    return ()


def rules_for(model: str) -> list[ImageRule]:
    """Every statement about a model's pictures, the newest first."""
    return list(_entries_for(model))


def known_models() -> list[KnownModel]:
    """The models that the data name, one line each, in the order of the files."""
    return list(_known())


def spellings(model: str) -> list[str]:
    """Names to look for, the most exact first: in lower case, without provider, without date."""
    name = model.lower()
    spellings = [name]
    last = name.rpartition("/")[2]
    spellings.append(last)
    for before in _RESOLD:  # a region of Bedrock's, then a vendor
        last = last.removeprefix(before)
    last = re.sub(r"-v\d+(:\d+)?$", "", last)  # Bedrock's versions
    spellings.append(last)
    spellings.append(_DATED.sub("", last))
    spellings.append(last.replace(".", "-"))  # claude-opus-4.7, as resellers write it
    return list(dict.fromkeys(spellings))


@functools.cache
def _data() -> list[tuple[str, Mapping[str, Any]]]:
    folder = files(__package__).joinpath("rules")
    names = ("openai", "anthropic", "google", "open")
    return [
        (name, tomllib.loads(folder.joinpath(f"{name}.toml").read_text(encoding="utf-8")))
        for name in names
    ]


@functools.cache
def _entries() -> tuple[_Entry, ...]:
    return tuple(
        _Entry(tuple(each["patterns"]), rule_of(each))
        for _, table in _data()
        for each in table["rule"]
    )


@functools.cache
def _known() -> tuple[KnownModel, ...]:
    found: dict[str, KnownModel] = {}
    for provider, table in _data():
        for entry in table["rule"]:
            for name in entry.get("models", ()):
                found.setdefault(name, KnownModel(name, entry["family"], provider))
    return tuple(found.values())


def rule_of(entry: Mapping[str, Any]) -> ImageRule:
    """A rule from its line of data."""
    arithmetic, monotonic = ARITHMETIC[entry["family"]]
    return ImageRule(
        name=entry["name"],
        family=entry["family"],
        source=entry["source"],
        read=entry["read"],
        evidence=entry["evidence"],
        details=tuple(entry.get("details", ())),
        monotonic=monotonic,
        note=entry.get("note", ""),
        arithmetic=arithmetic,
        constants=entry["constants"],
    )
