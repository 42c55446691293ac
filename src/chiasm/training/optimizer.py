"""AdamW with the decay where it belongs, and a learning rate that is a function of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from chiasm.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class OptimizerRecipe:
    """How parameters move.

    rate: the learning rate at its highest.
    warmup_steps: over which the rate rises from zero in a straight line.
    schedule: cosine falls to `final_rate` at the last step; constant stays.
    final_rate: the share of `rate` that is left at the end of a cosine.
    weight_decay: AdamW's, on matrices alone: no bias, norm, scale or position is pulled to zero.
    betas, epsilon: AdamW's.
    gradient_clip: longest gradient, over all parameters; 0 clips nothing.
    rate_factors: factors on the rate of the parameters whose names begin so, for fine-tuning:
        `{ "image_tower" = 0.1 }`. The longest name that fits holds.
    """

    rate: Annotated[float, Field(gt=0)] = 5e-4
    warmup_steps: Annotated[int, Field(ge=0)] = 500
    schedule: Literal["cosine", "constant"] = "cosine"
    final_rate: Annotated[float, Field(ge=0, le=1)] = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.2
    betas: tuple[float, float] = (0.9, 0.98)
    epsilon: Annotated[float, Field(gt=0)] = 1e-6
    gradient_clip: Annotated[float, Field(ge=0)] = 1.0
    rate_factors: Mapping[str, float] = field(default_factory=dict)


def make_optimizer(network: nn.Module, recipe: OptimizerRecipe) -> torch.optim.AdamW:
    """AdamW over what is to be trained, in groups of one decay and one factor on the rate.

    Raises ConfigurationError if a rate factor names no parameter, or nothing is to be trained.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    trained = {
        name.removeprefix("module."): parameter
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
    }
    if not trained:
        raise ConfigurationError("Every part of the network is locked: nothing is left to train.")
    unused = set(recipe.rate_factors)
    for name, parameter in trained.items():
        fitting = [prefix for prefix in recipe.rate_factors if name.startswith(prefix)]
        unused.difference_update(fitting)
        factor = recipe.rate_factors[max(fitting, key=len)] if fitting else 1.0
        decay = recipe.weight_decay if decays(name, parameter) else 0.0
        groups.setdefault((decay, factor), []).append(parameter)
    if unused:
        raise ConfigurationError(
            f"optimizer.rate_factors names {', '.join(sorted(unused))}, but no trained parameter "
            "begins so.",
            hint=f"The first parts are {', '.join(sorted({n.partition('.')[0] for n in trained}))}.",
        )
    return torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": decay, "factor": factor}
            for (decay, factor), parameters in groups.items()
        ],
        lr=recipe.rate,
        betas=recipe.betas,
        eps=recipe.epsilon,
        fused=True,
    )


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: to matrices and filters, not to biases, norms, positions."""
    return parameter.ndim >= 2 and "position" not in name


def rate_at(step: int, steps: int, recipe: OptimizerRecipe) -> float:
    """The learning rate of update number `step`, counted from 0, of `steps`."""
    if step < recipe.warmup_steps:
        return recipe.rate * (step + 1) / recipe.warmup_steps
    if recipe.schedule == "constant":
        return recipe.rate
    done = (step - recipe.warmup_steps) / max(1, steps - recipe.warmup_steps)
    share = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return recipe.rate * (recipe.final_rate + (1 - recipe.final_rate) * share)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]
