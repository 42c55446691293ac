"""Fitting to a budget, against trying every size."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.errors import InvalidRequest
from chiasm.operations.tokens import ImageRule, fit, rule_for
from chiasm.operations.tokens.fit import SMALLEST, scaled
from tests.operations.tokens.test_vectors import RULES

Size = tuple[int, int]


def _tried(rule: ImageRule, width: int, height: int, detail: str) -> list[tuple[Size, int]]:
    """Every size that may be chosen, the largest first, with its tokens."""
    floor = min(SMALLEST, width, height)
    found = []
    for long in range(max(width, height), 0, -1):
        size = scaled(width, height, long)
        if min(size) < floor:
            break
        try:
            found.append((size, rule.cost(*size, detail).tokens))
        except InvalidRequest:
            continue
    return found


def _agrees(
    rule: ImageRule, size: Size, budget: int, detail: str, every: list[tuple[Size, int]]
) -> None:
    best = next((each for each, tokens in every if tokens <= budget), None)
    if best is not None:
        assert fit(rule, *size, budget, detail) == best
        return
    with pytest.raises(InvalidRequest) as caught:
        fit(rule, *size, budget, detail)
    if every:
        least = min(tokens for _, tokens in every)
        at = next(each for each, tokens in every if tokens == least)
        assert f"{least:,}, at {at[0]:,}×{at[1]:,}" in caught.value.message
        assert caught.value.param == "max_image_tokens"


@pytest.mark.parametrize("name", RULES)
def test_is_the_largest_of_all_sizes(name: str) -> None:
    rule = RULES[name]
    random_ = random.Random(name)
    for size in ((900, 600), (601, 1003), (640, 640), (1203, 97)):
        detail = random_.choice(rule.details or ("auto",))
        every = _tried(rule, *size, detail)
        costs = sorted({tokens for _, tokens in every})
        budgets = {1, *random_.sample(costs, min(4, len(costs)))}
        budgets |= {budget - 1 for budget in budgets if budget > 1}
        for budget in budgets:
            _agrees(rule, size, budget, detail, every)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(RULES)),
    st.integers(1, 300),
    st.integers(1, 300),
    st.integers(1, 2_000),
)
def test_never_over_budget_and_never_smaller_than_need_be(
    name: str, width: int, height: int, budget: int
) -> None:
    size = (width, height)
    _agrees(RULES[name], size, budget, "auto", _tried(RULES[name], *size, "auto"))


def test_a_smaller_picture_can_cost_more() -> None:
    rule = rule_for("InternVL3-8B")
    assert rule is not None
    tokens = dict(_tried(rule, 999, 701, "auto"))
    assert tokens[999, 701] == 7 * 256  # 3×2 and the thumbnail
    assert max(tokens.values()) == 13 * 256  # 4×3: a rounded side made the aspect a little flatter
    dearer = next(size for size, count in tokens.items() if count == 13 * 256)
    smaller = fit(rule, *dearer, 7 * 256)
    assert tokens[dearer] > 7 * 256
    assert rule.cost(*smaller).tokens <= 7 * 256


def test_a_picture_is_never_scaled_to_a_thread() -> None:
    rule = rule_for("InternVL3-8B")
    assert rule is not None
    with pytest.raises(InvalidRequest, match="takes 500 tokens"):
        fit(rule, 900, 600, 500)  # at 1×1 it would fit
    thin = rule_for("claude-haiku-4-5")
    assert thin is not None
    assert min(fit(thin, 4000, 400, 6)) >= SMALLEST
    assert fit(thin, 600, 9, 21) == (588, 9)  # nor is a thread made thinner


def test_one_that_is_refused_at_its_size_is_scaled_until_it_is_taken() -> None:
    rule = rule_for("claude-opus-4-7")
    assert rule is not None
    with pytest.raises(InvalidRequest):
        rule.cost(9_000, 9_000)
    assert fit(rule, 9_000, 9_000, 5_000) == (8_000, 8_000)


def test_one_that_no_scaling_helps_is_refused_with_the_vendors_reason() -> None:
    rule = rule_for("Qwen2.5-VL-7B-Instruct")
    assert rule is not None
    with pytest.raises(InvalidRequest, match="200 times"):
        fit(rule, 8_000, 20, 5_000)


def test_a_detail_that_there_is_not_is_refused_as_such() -> None:
    rule = rule_for("gpt-4o")
    assert rule is not None
    with pytest.raises(InvalidRequest, match="original") as caught:
        fit(rule, 100, 100, 5_000, "original")
    assert caught.value.param == "detail"
