from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.errors import InvalidRequest
from chiasm.retrieval import filters

RED = {"color": "red", "price": 10, "tags": ["a", "b"], "size": {"width": 3, "unit": "cm"}}


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        (None, True),
        ({}, True),
        ({"color": "red"}, True),
        ({"color": "Red"}, False),
        ({"color": {"eq": "red"}}, True),
        ({"color": {"ne": "red"}}, False),
        ({"missing": {"ne": "red"}}, True),
        ({"missing": None}, True),
        ({"color": None}, False),
        ({"price": 10.0}, True),
        ({"price": "10"}, False),
        ({"price": True}, False),
        ({"price": {"gte": 10, "lte": 10}}, True),
        ({"price": {"gt": 10}}, False),
        ({"price": {"lt": "z"}}, False),
        ({"color": {"gt": "blue", "lt": "zinc"}}, True),
        ({"missing": {"lt": 3}}, False),
        ({"color": {"in": ["blue", "red"]}}, True),
        ({"color": {"in": []}}, False),
        ({"missing": {"in": [None]}}, True),
        ({"tags": "b"}, True),
        ({"tags": {"ne": "b"}}, False),
        ({"tags": {"in": ["x", "a"]}}, True),
        ({"tags": {"gt": "a"}}, True),
        ({"size.width": 3}, True),
        ({"size.unit": {"exists": True}}, True),
        ({"size.depth": {"exists": False}}, True),
        ({"size": {"exists": True}}, True),
        ({"$or": [{"color": "blue"}, {"price": 10}]}, True),
        ({"$and": [{"color": "red"}, {"price": 11}]}, False),
        ({"$not": {"color": "red"}}, False),
        ({"$not": {}}, False),
        ({"color": "red", "$not": {"price": {"gt": 50}}}, True),
    ],
)
def test_meaning(expression: dict[str, Any] | None, expected: bool) -> None:
    condition = filters.parse(expression)
    assert filters.matches(condition, RED) is expected
    if condition is not None:
        columns = filters.MetadataColumns()
        columns.extend(["{}", json.dumps(RED)])
        assert bool(columns.mask(condition)[1]) is expected


@pytest.mark.parametrize(
    ("expression", "named"),
    [
        ({"$nor": []}, r"\$nor"),
        ({"price": {"between": [1, 2]}}, "between"),
        ({"price": {"between": [1, 2]}}, "price"),
        ({"price": {}}, "price"),
        ({"price": {"lt": None}}, "lt"),
        ({"price": {"lt": True}}, "lt"),
        ({"price": {"lt": float("nan")}}, "price"),
        ({"price": {"eq": [1]}}, "eq"),
        ({"price": [1]}, "price"),
        ({"price": {"in": 3}}, "in"),
        ({"price": {"in": "abc"}}, "in"),
        ({"price": {"in": [[1]]}}, "in"),
        ({"price": {"exists": "yes"}}, "exists"),
        ({"$and": {}}, r"\$and"),
        ({"$or": []}, r"\$or"),
        ({"$and": ["x"]}, "object"),
        ({"$not": 3}, "object"),
        ("color", "object"),
        ({"": 1}, "''"),
        ({"a": {"in": [0] * 3}} | {str(i): i for i in range(2000)}, "1000"),
    ],
)
def test_a_bad_filter_is_named(expression: Any, named: str) -> None:
    with pytest.raises(InvalidRequest, match=named) as caught:
        filters.parse(expression)
    assert caught.value.param == "filter"
    assert len(caught.value.message) < 300


def test_nesting_without_end_is_refused() -> None:
    expression: dict[str, Any] = {"a": 1}
    for _ in range(5000):
        expression = {"$not": expression}
    with pytest.raises(InvalidRequest, match="nested"):
        filters.parse(expression)


# Against an independent reading of the language -------------------------------------------------

FIELDS = ["a", "b", "c", "a.b"]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([2**53, 2**53 + 1, -(2**53) - 1, 2**70]),
    st.sampled_from([0.5, 1.0, -2.0, 1e300]),
    st.sampled_from(["", "a", "b", "B", "ä", "1"]),
)
VALUES = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=3),
    st.dictionaries(st.sampled_from(["b", "x"]), SCALARS, max_size=2),
)
METADATA = st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4)
ORDERED = st.one_of(
    st.integers(-3, 3),
    st.sampled_from([2**53, 2**53 + 1, 2**70, 0.5, -2.0]),
    st.sampled_from(["", "a", "b", "ä"]),
)
CONDITIONS = st.one_of(
    SCALARS.map(lambda value: {"eq": value}),
    SCALARS.map(lambda value: {"ne": value}),
    st.lists(SCALARS, max_size=3).map(lambda values: {"in": values}),
    st.booleans().map(lambda value: {"exists": value}),
    st.tuples(st.sampled_from(["lt", "lte", "gt", "gte"]), ORDERED).map(lambda p: {p[0]: p[1]}),
)
EXPRESSIONS = st.recursive(
    st.dictionaries(st.sampled_from(FIELDS), CONDITIONS, max_size=2),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"$or": parts}),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"$and": parts}),
        inner.map(lambda part: {"$not": part}),
    ),
    max_leaves=6,
)

MISSING = object()


def oracle(expression: dict[str, Any], metadata: dict[str, Any]) -> bool:
    """The language as its description says it, in as few words as possible."""
    for key, value in expression.items():
        if key == "$or":
            held = any(oracle(part, metadata) for part in value)
        elif key == "$and":
            held = all(oracle(part, metadata) for part in value)
        elif key == "$not":
            held = not oracle(value, metadata)
        else:
            held = all(oracle_one(look_up(metadata, key), *one) for one in value.items())
        if not held:
            return False
    return True


def look_up(metadata: dict[str, Any], path: str) -> Any:
    if path in metadata:
        return metadata[path]
    head, _, tail = path.partition(".")
    inner = metadata.get(head)
    return inner.get(tail, MISSING) if tail and isinstance(inner, dict) else MISSING


def oracle_one(found: Any, name: str, operand: Any) -> bool:
    if name == "exists":
        return (found is not MISSING) == operand
    if name == "ne":
        return not oracle_one(found, "eq", operand)
    if name == "in":
        return any(oracle_one(found, "eq", one) for one in operand)
    candidates = found if isinstance(found, list) else [None if found is MISSING else found]
    for one in candidates:
        if isinstance(one, dict):
            continue
        if isinstance(one, bool) or isinstance(operand, bool):
            comparable = type(one) is type(operand)
        elif isinstance(one, str) or isinstance(operand, str):
            comparable = isinstance(one, str) and isinstance(operand, str)
        else:
            comparable = (one is None) == (operand is None)
        if not comparable:
            continue
        if name == "eq" and one == operand:
            return True
        if name in ("lt", "lte", "gt", "gte") and {
            "lt": lambda x, y: x < y,
            "lte": lambda x, y: x <= y,
            "gt": lambda x, y: x > y,
            "gte": lambda x, y: x >= y,
        }[name](one, operand):
            return True
    return False


@settings(max_examples=400, deadline=None)
@given(EXPRESSIONS, st.lists(METADATA, max_size=8), st.integers(0, 8))
def test_one_by_one_and_by_column_agree_with_the_description(
    expression: dict[str, Any], items: list[dict[str, Any]], split: int
) -> None:
    expected = [oracle(expression, metadata) for metadata in items]
    condition = filters.parse(expression)
    assert [filters.matches(condition, metadata) for metadata in items] == expected
    if condition is None:
        assert all(expected)
        return
    columns = filters.MetadataColumns()
    texts = [json.dumps(metadata) for metadata in items]
    columns.extend(texts[:split])
    columns.mask(condition)  # asking in between must not disturb what comes after
    columns.extend(texts[split:])
    assert columns.mask(condition).tolist() == expected


def test_a_column_of_distinct_values_is_fast_and_right() -> None:
    columns = filters.MetadataColumns()
    columns.extend(json.dumps({"price": i * 0.5, "name": f"n{i}"}) for i in range(5000))
    condition = filters.parse({"price": {"gte": 100, "lt": 200}, "name": {"ne": "n250"}})
    assert condition is not None
    expected = [i for i in range(5000) if 100 <= i * 0.5 < 200 and i != 250]
    assert np.flatnonzero(columns.mask(condition)).tolist() == expected
