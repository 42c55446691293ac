"""The schedule and the groups of AdamW."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from chiasm.errors import ConfigurationError
from chiasm.training.optimizer import make_optimizer, rate_at, set_rate
from chiasm.training.recipe import OptimizerRecipe


def test_warm_up_then_half_a_cosine() -> None:
    recipe = OptimizerRecipe(rate=2.0, warmup_steps=4, final_rate=0.1)
    rates = [rate_at(step, 14, recipe) for step in range(14)]
    assert rates[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert rates[4] == pytest.approx(2.0)
    # Half-way through the ten steps after the warm-up: the mean of the highest and the lowest.
    assert rates[9] == pytest.approx((2.0 + 0.2) / 2)
    assert rates == sorted(rates[:4]) + sorted(rates[4:], reverse=True)
    last = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 9 / 10))
    assert rates[13] == pytest.approx(2.0 * last)


def test_the_schedule_is_torchs_cosine() -> None:
    recipe = OptimizerRecipe(rate=1.0, warmup_steps=0, final_rate=0.0)
    parameter = nn.Parameter(torch.zeros(1))
    theirs = torch.optim.SGD([parameter], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(theirs, T_max=20)
    for step in range(20):
        assert rate_at(step, 20, recipe) == pytest.approx(theirs.param_groups[0]["lr"], abs=1e-9)
        theirs.step()
        schedule.step()


def test_biases_norms_and_positions_do_not_decay() -> None:
    network = nn.ModuleDict({"linear": nn.Linear(3, 2), "norm": nn.LayerNorm(2)})
    network.register_parameter("position_embedding", nn.Parameter(torch.zeros(4, 2)))
    network.register_parameter("logit_scale", nn.Parameter(torch.zeros(())))
    optimizer = make_optimizer(network, OptimizerRecipe(weight_decay=0.3))
    decayed = {
        name: group["weight_decay"]
        for name, parameter in network.named_parameters()
        for group in optimizer.param_groups
        if any(parameter is each for each in group["params"])
    }
    assert {name for name, decay in decayed.items() if decay} == {"linear.weight"}
    assert len(decayed) == 6


def test_rate_factors_go_to_the_longest_name_that_fits() -> None:
    network = nn.ModuleDict({"image_tower": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])})
    recipe = OptimizerRecipe(rate_factors={"image_tower": 0.1, "image_tower.1": 0.5})
    optimizer = make_optimizer(network, recipe)
    set_rate(optimizer, 2.0)
    rates = {
        id(parameter): group["lr"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    first, second = network["image_tower"]
    assert rates[id(first.weight)] == pytest.approx(0.2)
    assert rates[id(second.weight)] == pytest.approx(1.0)


def test_a_factor_for_nothing_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="names tower"):
        make_optimizer(nn.Linear(2, 2), OptimizerRecipe(rate_factors={"tower": 0.1}))


def test_nothing_left_to_train_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="locked"):
        make_optimizer(nn.Linear(2, 2).requires_grad_(False), OptimizerRecipe())
