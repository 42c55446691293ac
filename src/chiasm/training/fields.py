"""Which field of a row, or of a shard's JSON, says what: by names that were given, or guesses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from chiasm.errors import UnusableData
from chiasm.training.data_recipe import Columns
from chiasm.training.samples import Sample

_IMAGES = (
    "file", "file_name", "filename", "file_path", "filepath", "image", "image_path", "img",
    "picture", "path",
)  # fmt: skip
_CAPTION = re.compile(r"(caption|text|title)s?[ _-]?\d*", re.IGNORECASE)
_GROUPS = ("group", "sku")
_LABELS = ("label",)
_HARD_NEGATIVES = ("hard_negatives", "hard_negative")
DUPLICATE_OF = "duplicate_of"
CONTAMINATED_BY = "contaminated_by"


@dataclass(frozen=True)
class Fields:
    """Names to look under, the first that is there counting. captions: None to guess by pattern."""

    images: tuple[str, ...]
    captions: tuple[str, ...] | None
    groups: tuple[str, ...]
    labels: tuple[str, ...]
    hard_negatives: tuple[str, ...]

    @classmethod
    def of(cls, columns: Columns) -> Fields:
        """Given names, or the guesses where none is given."""
        return cls(
            (columns.image,) if columns.image else _IMAGES,
            columns.captions or None,
            (columns.group,) if columns.group else _GROUPS,
            (columns.label,) if columns.label else _LABELS,
            (columns.hard_negatives,) if columns.hard_negatives else _HARD_NEGATIVES,
        )


@dataclass(frozen=True)
class Found:
    """What a row says. Empty captions are kept as empty texts."""

    captions: tuple[str, ...]
    hard_negatives: tuple[str, ...]
    group: str | None
    label: str | None
    duplicate_of: str | None
    contaminated_by: str | None

    def sample(
        self, key: str, unit: int, position: int, picture: bytes | Path, captions: tuple[str, ...]
    ) -> Sample:
        """Together with a picture."""
        return Sample(
            key,
            unit,
            position,
            picture,
            captions,
            self.hard_negatives,
            self.group,
            self.label,
            self.duplicate_of,
            self.contaminated_by,
        )


def caption_names(fields: Fields, names: Iterable[str]) -> list[str]:
    """Those of `names` that hold captions. Numbered ones go with the first kind that is there."""
    return _caption_names(fields, tuple(names))


@lru_cache(maxsize=256)  # asked for every row, and rows have the same names
def _caption_names(fields: Fields, names: tuple[str, ...]) -> list[str]:
    if fields.captions is not None:
        return [name for name in fields.captions if name in names]
    found = [name for name in names if _CAPTION.fullmatch(name)]
    kinds = [_kind(name) for name in found]
    first = next((kind for kind in ("caption", "text", "title") if kind in kinds), None)
    return [name for name, kind in zip(found, kinds, strict=True) if kind == first]


def read_fields(values: Mapping[str, Any], fields: Fields) -> Found:
    """Pick out what is known of a row or a JSON object."""
    captions: list[str] = []
    for name in caption_names(fields, values):
        captions += texts(values[name])
    return Found(
        tuple(dict.fromkeys(captions)),
        tuple(filter(None, texts(_first(values, fields.hard_negatives)))),
        word(_first(values, fields.groups)),
        word(_first(values, fields.labels)),
        word(values.get(DUPLICATE_OF)),
        word(values.get(CONTAMINATED_BY)),
    )


def require_columns(
    names: list[str], fields: Fields, columns: Columns, where: str, *, need_captions: bool = True
) -> None:
    """Raise UnusableData, listing what there is, unless pictures and captions can be found."""
    listing = f"It has: {', '.join(names)}." if names else "It has no columns."
    wanted: dict[str, tuple[str, ...]] = {
        "image": (columns.image,),
        "captions": columns.captions,
        "group": (columns.group,),
        "label": (columns.label,),
        "hard_negatives": (columns.hard_negatives,),
    }
    for name, given in wanted.items():
        for column in given:
            if column and column not in names:
                raise UnusableData(
                    f"{where} has no column {column!r}, which data.columns.{name} names.",
                    hint=listing,
                    param=f"data.columns.{name}",
                )
    if image_name(names, fields) is None:
        raise UnusableData(
            f"{where} has no column that is known to name pictures.",
            hint=f"{listing} Name it in data.columns.image.",
            param="data.columns.image",
        )
    if need_captions and not caption_names(fields, names):
        raise UnusableData(
            f"{where} has no column that is known to hold captions.",
            hint=f"{listing} Name it in data.columns.captions.",
            param="data.columns.captions",
        )


def image_name(names: Iterable[str], fields: Fields) -> str | None:
    """The column that names the picture."""
    known = set(names)
    return next((name for name in fields.images if name in known), None)


def texts(value: Any) -> list[str]:
    """One text, a list of them, or a JSON list in a cell; stripped."""
    if value is None:
        return []
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            parsed = json.loads(value)
        except ValueError:
            parsed = None
        if isinstance(parsed, list) and all(isinstance(each, str) for each in parsed):
            value = parsed
    if isinstance(value, list | tuple):
        return [str(each).strip() for each in value if each is not None]
    return [str(value).strip()]


def word(value: Any) -> str | None:
    """A value that is compared for equality: 7 and "7" are the same."""
    if value is None or isinstance(value, list | dict):
        return None
    text = str(value).strip()
    return text or None


def _first(values: Mapping[str, Any], names: Iterable[str]) -> Any:
    return next((values[name] for name in names if values.get(name) not in (None, "")), None)


def _kind(name: str) -> str:
    return name.lower().rstrip("0123456789 _-").removesuffix("s")
