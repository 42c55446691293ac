"""AdamW with the decay where it belongs, and a learning rate that is a function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn

from chiasm.errors import ConfigurationError
from chiasm.training.recipe import OptimizerRecipe


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
            hint=f"Their first parts are {', '.join(sorted({n.split('.')[0] for n in trained}))}.",
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
