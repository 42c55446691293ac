"""The rules over arrays count what the rules over one size count."""

from __future__ import annotations

import numpy as np
import pytest

from chiasm.errors import InvalidRequest
from chiasm.operations.tokens import ImageRule, known_models, rule_from_config, rules_for
from chiasm.operations.tokens.fit import all_scaled, scaled
from chiasm.operations.tokens.vectors import REFUSED, counts
from tests.operations.tokens.sizes import sizes


def _every_rule() -> dict[str, ImageRule]:
    named = [rule for model in known_models() for rule in rules_for(model.name)]
    # Constants that no published model has: an odd long side, one over the processor's largest,
    # a canvas of few tiles.
    unusual = [
        rule_from_config(
            {"model_type": "idefics3"},
            {"size": {"longest_edge": longest}, "max_image_size": {"longest_edge": tile}},
        )
        for longest, tile in ((1001, 300), (5000, 512), (300, 364))
    ]
    unusual.append(
        rule_from_config({"model_type": "internvl"}, {"min_patches": 2, "max_patches": 7})
    )
    unusual.append(rule_from_config({"model_type": "llama4"}, {"max_patches": 5}))
    unusual.append(rule_from_config({"model_type": "gemma4"}, {"max_soft_tokens": 70}))
    assert None not in unusual
    return {rule.name: rule for rule in [*named, *unusual] if rule is not None}


RULES = _every_rule()


@pytest.mark.parametrize("name", RULES)
def test_arrays_and_single_sizes_agree(name: str) -> None:
    rule = RULES[name]
    every = sizes()
    widths, heights = (np.array(side, dtype=np.int64) for side in zip(*every, strict=True))
    for detail in rule.details or ("auto",):
        tokens, markers = counts(rule, widths, heights, detail)
        for size, counted, around in zip(every, tokens.tolist(), markers.tolist(), strict=True):
            try:
                cost = rule.cost(*size, detail)
            except InvalidRequest:
                assert counted == REFUSED, size
            else:
                assert (counted, around) == (cost.tokens, cost.markers), size


@pytest.mark.parametrize("size", [(6000, 4000), (4000, 6000), (1023, 17), (333, 333), (3001, 1999)])
def test_many_scaled_are_each_scaled(size: tuple[int, int]) -> None:
    longs = np.arange(1, max(size) + 1, dtype=np.int64)
    widths, heights = all_scaled(*size, longs)
    each = [scaled(*size, int(long)) for long in longs]
    assert list(zip(widths.tolist(), heights.tolist(), strict=True)) == each
