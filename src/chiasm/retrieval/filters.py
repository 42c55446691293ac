"""Filters on metadata: a small JSON language, read once, asked in two ways.

A filter is an object. Each key is a field of the metadata (`a.b` reaches into nested objects) and
each value a scalar it must equal, or an object of operators; all of them must hold:

    {"color": "red", "price": {"gte": 5, "lt": 10}, "$or": [{"tag": "a"}, {"tag": "b"}]}

Operators: `eq ne lt lte gt gte in exists`; between conditions: `$and $or $not`.

What they mean, so that every store can mean the same:

- A list in the metadata satisfies a condition when one of its elements does.
- Numbers compare with numbers (1 equals 1.0), strings with strings by code point, booleans only
  with booleans. A comparison across kinds is false, never an error.
- `eq null` holds for a field that is null or absent; `ne` is exactly "not eq".
- `exists` asks whether the field is there, null included.

`parse(...)` gives a `Filter`. `Filter.matches(metadata)` asks one item; `MetadataColumns.mask`
asks all the items of a collection at once.
"""

from __future__ import annotations

import json
import math
import operator
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from chiasm.errors import InvalidRequest

Scalar = str | int | float | bool | None
Mask = npt.NDArray[np.bool_]

OPERATORS = ("eq", "ne", "lt", "lte", "gt", "gte", "in", "exists")
_ORDER: dict[str, Callable[[Any, Any], Any]] = {
    "lt": operator.lt,
    "lte": operator.le,
    "gt": operator.gt,
    "gte": operator.ge,
}
_MAX_DEPTH = 32
_MAX_CONDITIONS = 1000
_EXACT_IN_FLOAT = 2**53


@dataclass(frozen=True)
class Condition:
    """One operator on one field. `operand`: a scalar, a tuple of scalars for `in`, a bool."""

    field: str
    operator: str
    operand: Any

    def matches(self, fields: Mapping[str, Any]) -> bool:
        """Whether the flattened metadata satisfies it."""
        present = self.field in fields
        if self.operator == "exists":
            return present is self.operand
        return self.holds(fields.get(self.field))

    def holds(self, value: Any) -> bool:
        """Whether a value does (None stands for null and for absent); not for `exists`."""
        if self.operator == "ne":
            return not _equals_any(value, (self.operand,))
        if self.operator == "eq":
            return _equals_any(value, (self.operand,))
        if self.operator == "in":
            return _equals_any(value, self.operand)
        compare = _ORDER[self.operator]
        kind = _kind(self.operand)
        return any(_kind(one) == kind and compare(one, self.operand) for one in _elements(value))


@dataclass(frozen=True)
class AllOf:
    """Every part holds; holds when there are none."""

    parts: tuple[Filter, ...]

    def matches(self, fields: Mapping[str, Any]) -> bool:
        """Whether the flattened metadata satisfies it."""
        return all(part.matches(fields) for part in self.parts)


@dataclass(frozen=True)
class AnyOf:
    """At least one part holds."""

    parts: tuple[Filter, ...]

    def matches(self, fields: Mapping[str, Any]) -> bool:
        """Whether the flattened metadata satisfies it."""
        return any(part.matches(fields) for part in self.parts)


@dataclass(frozen=True)
class Not:
    """The part does not hold."""

    part: Filter

    def matches(self, fields: Mapping[str, Any]) -> bool:
        """Whether the flattened metadata satisfies it."""
        return not self.part.matches(fields)


Filter = Condition | AllOf | AnyOf | Not


# Reading ----------------------------------------------------------------------------------------


def parse(expression: Mapping[str, Any] | None) -> Filter | None:
    """Read a filter; None and `{}` mean everything, and give None.

    Raises InvalidRequest, naming the operator or the field, where the language is not kept.
    """
    if expression is None:
        return None
    budget = [_MAX_CONDITIONS]
    parsed = _parse_object(expression, 0, budget)
    return parsed if parsed.parts else None


def _parse_object(expression: Any, depth: int, budget: list[int]) -> AllOf:
    if not isinstance(expression, Mapping):
        raise _bad(f"A filter must be an object, not {_shown(expression)}.")
    if depth > _MAX_DEPTH:
        raise _bad(f"The filter is nested more than {_MAX_DEPTH} deep.")
    parts: list[Filter] = []
    for key, value in expression.items():
        if key in ("$and", "$or"):
            if not isinstance(value, Sequence) or isinstance(value, str) or not value:
                raise _bad(f"{key} needs a list of filters that is not empty.")
            inner = tuple(_parse_object(part, depth + 1, budget) for part in value)
            parts.append(AllOf(inner) if key == "$and" else AnyOf(inner))
        elif key == "$not":
            parts.append(Not(_parse_object(value, depth + 1, budget)))
        elif not isinstance(key, str) or not key or key.startswith("$"):
            raise _bad(f"There is no operator {key!r} in a filter.", "Use $and, $or or $not.")
        elif isinstance(value, Mapping):
            if not value:
                raise _bad(f"The field {key!r} has an empty condition.")
            parts += [_condition(key, name, operand, budget) for name, operand in value.items()]
        else:
            parts.append(_condition(key, "eq", value, budget))
    return AllOf(tuple(parts))


def _condition(field: str, name: str, operand: Any, budget: list[int]) -> Condition:
    budget[0] -= 1
    if budget[0] < 0:
        raise _bad(f"The filter has more than {_MAX_CONDITIONS} conditions.")
    where = f"the field {field!r}"
    if name not in OPERATORS:
        raise _bad(f"There is no operator {name!r} (on {where}).", f"Use {', '.join(OPERATORS)}.")
    if name == "exists":
        if not isinstance(operand, bool):
            raise _bad(f"'exists' on {where} needs true or false, not {_shown(operand)}.")
        return Condition(field, name, operand)
    if name == "in":
        if not isinstance(operand, Sequence) or isinstance(operand, str):
            raise _bad(f"'in' on {where} needs a list, not {_shown(operand)}.")
        if not all(_is_scalar(one) for one in operand):
            raise _bad(f"'in' on {where} needs a list of texts, numbers, true, false or null.")
        return Condition(field, name, tuple(operand))
    if name in _ORDER and _kind(operand) not in ("number", "text"):
        raise _bad(f"{name!r} on {where} needs a number or a text, not {_shown(operand)}.")
    if not _is_scalar(operand):
        raise _bad(
            f"{name!r} on {where} needs a text, a number, true, false or null, "
            f"not {_shown(operand)}."
        )
    return Condition(field, name, operand)


def _bad(message: str, hint: str | None = None) -> InvalidRequest:
    return InvalidRequest(message, hint=hint, param="filter")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _is_scalar(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, str | int)


# Meaning ----------------------------------------------------------------------------------------


def flatten(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata with nested objects' fields beside the rest, under dotted names.

    A field that is written with a dot wins over one that is reached through an object.
    """
    fields: dict[str, Any] = dict(metadata)
    for key, value in metadata.items():
        if isinstance(value, Mapping):
            for inner, one in flatten(value).items():
                fields.setdefault(f"{key}.{inner}", one)
    return fields


def matches(condition: Filter | None, metadata: Mapping[str, Any]) -> bool:
    """Whether one item's metadata satisfies a filter."""
    return condition is None or condition.matches(flatten(metadata))


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "text"
    return "null" if value is None else "other"


def _elements(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else (value,)


def _equals_any(value: Any, operands: Sequence[Scalar]) -> bool:
    return any(
        _kind(one) == _kind(operand) and one == operand
        for one in _elements(value)
        for operand in operands
    )


# Columns ----------------------------------------------------------------------------------------


class MetadataColumns:
    """The metadata of many items by field, so that a filter costs far less than asking each.

    A field's values are numbered in the order they are first seen; each item holds a number. A
    condition is then decided once for each *distinct* value and spread by one gather. Numbers and
    equality take shorter ways, so that a field with a different value for each item (a price, a
    timestamp) stays fast.
    """

    def __init__(self) -> None:
        self._rows = 0
        self._columns: dict[str, _Column] = {}

    def __len__(self) -> int:
        return self._rows

    def extend(self, metadata: Iterable[str]) -> None:
        """Append items, given their metadata as JSON objects."""
        for text in metadata:
            if text != "{}":
                for field, value in flatten(json.loads(text)).items():
                    column = self._columns.get(field)
                    if column is None:
                        column = self._columns[field] = _Column()
                    column.put(self._rows, value)
            self._rows += 1

    def mask(self, condition: Filter) -> Mask:
        """Which items satisfy the filter: bool [items]."""
        if isinstance(condition, Not):
            return ~self.mask(condition.part)
        if isinstance(condition, AllOf | AnyOf):
            every = isinstance(condition, AllOf)
            result = np.full(self._rows, every)
            for part in condition.parts:
                held = self.mask(part)
                result = (result & held) if every else (result | held)
            return result
        column = self._columns.get(condition.field)
        if column is None:
            if condition.operator == "exists":
                return np.full(self._rows, condition.operand is False)
            return np.full(self._rows, condition.holds(None))
        mask: Mask = column.decide(condition)[column.codes(self._rows)]
        return mask


class _Column:
    """One field: `codes` [rows], 0 for absent, else 1 + the number of its value."""

    def __init__(self) -> None:
        self._codes = array("i")
        self._values: list[Any] = [None]  # code 0: absent, which compares as null does
        self._code_of: dict[Any, int] = {}
        self._numbers = array("d", [math.nan])  # a value as a float where that is exact, else NaN
        self._special: list[int] = []  # codes of lists and of huge integers: asked one by one

    def put(self, row: int, value: Any) -> None:
        self._pad(row)
        key = _key(value)
        code = self._code_of.get(key)
        if code is None:
            code = self._code_of[key] = len(self._values)
            self._values.append(value)
            number = _kind(value) == "number"
            exact = number and (isinstance(value, float) or abs(value) <= _EXACT_IN_FLOAT)
            self._numbers.append(value if exact else math.nan)
            if isinstance(value, list) or (number and not exact):
                self._special.append(code)
        self._codes.append(code)

    def codes(self, rows: int) -> npt.NDArray[np.int32]:
        self._pad(rows)
        return np.array(self._codes, dtype=np.int32)

    def decide(self, condition: Condition) -> Mask:
        """Whether each value satisfies the condition: bool [1 + distinct values]."""
        name, operand = condition.operator, condition.operand
        decided: Mask = np.zeros(len(self._values), dtype=np.bool_)
        if name == "exists":
            decided[1:] = operand
            decided[0] = not operand
            return decided
        if name in ("eq", "ne", "in"):
            wanted = operand if name == "in" else (operand,)
            for one in wanted:
                code = self._code_of.get(_key(one))
                if code is not None:
                    decided[code] = True
            decided[0] = None in wanted
            equal = Condition(condition.field, "in", tuple(wanted))
            self._ask_special(decided, equal)
            return ~decided if name == "ne" else decided
        if _kind(operand) == "number" and abs(operand) <= _EXACT_IN_FLOAT:
            decided = _ORDER[name](np.array(self._numbers), float(operand))  # NaN compares false
            self._ask_special(decided, condition)
            return decided
        for code, value in enumerate(self._values):
            decided[code] = condition.holds(value)
        return decided

    def _ask_special(self, decided: Mask, condition: Condition) -> None:
        for code in self._special:
            decided[code] = condition.holds(self._values[code])

    def _pad(self, rows: int) -> None:
        missing = rows - len(self._codes)
        if missing > 0:
            self._codes.frombytes(bytes(missing * self._codes.itemsize))


def _key(value: Any) -> Any:
    """A dictionary key that is equal exactly where `eq` holds; Python's own True == 1 is not."""
    kind = _kind(value)
    if kind == "other":
        return kind, json.dumps(value, sort_keys=True)
    return kind, value
