"""Put the trained model into the package.

    python recipes/default_vlm/finish.py MODEL [--before MODEL --share SHARE]

With `--before`, the weights lie between an earlier model's and MODEL's, at SHARE of the way
(Wortsman et al. 2022, arXiv:2109.01903): the last run makes captions careful and presence hasty,
and validation chooses how much of it is good. The namer's linear map is fitted again, now on every
training concept; the adapters of all runs become one of a smaller rank, by singular values; and
everything is rounded to half precision.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from borrowed import embedder, load_cache
from naming import add_direct, measure
from split import load, nouns, split
from torch import Tensor

from chiasm.models import small_vlm
from chiasm.settings import Settings

RANK = 32


def main() -> None:
    """Refit, measure on validation's concepts, write the shipped folder."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, help="what the last run wrote")
    parser.add_argument("--before", type=Path, help="an earlier run's model")
    parser.add_argument("--share", type=float, default=1.0, help="of the way from it to MODEL")
    parser.add_argument("--to", type=Path, default=small_vlm.SHIPPED)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = load()
    found = split(settings, nouns(settings))
    cache = load_cache(embedder.load())
    opened = small_vlm.load(cache_dir=Settings.load().cache_dir, shipped=arguments.model)
    model: Any = opened.model
    if arguments.before:
        earlier = small_vlm.load(cache_dir=Settings.load().cache_dir, shipped=arguments.before)
        mix(model, earlier.model, arguments.share)
    measure(model, cache, found, "as trained")
    add_direct(model, cache, found, found.parts["train"])
    measure(model, cache, found, "with all concepts")
    kept = []
    for layer, (a, b) in model.earlier.items():
        model.earlier[layer], share = shortened(a, b)
        kept.append(share)
    print(f"adapters of rank {RANK} keep {min(kept):.4f} of the squared change, or more")
    small_vlm.save(arguments.to, model, name="default-vlm", half=True)


@torch.no_grad()
def mix(model: Any, before: Any, share: float) -> None:
    """Move projector and adapters of `model` back towards `before`."""
    for mine, theirs in zip(
        model.projector.parameters(), before.projector.parameters(), strict=True
    ):
        mine.lerp_(theirs, 1 - share)
    for layer, (a, b) in model.earlier.items():
        old_a, old_b = before.earlier[layer]
        both = torch.cat([share * a, (1 - share) * old_a]), torch.cat([b, old_b], dim=1)
        model.earlier[layer] = both


def shortened(a: Tensor, b: Tensor) -> tuple[tuple[Tensor, Tensor], float]:
    """The nearest pair of rank RANK, and its share of the squared norm of b @ a."""
    if len(a) <= RANK:
        return (a, b), 1.0
    left, values, right = torch.linalg.svd(b @ a, full_matrices=False)
    root = values[:RANK].sqrt()
    share = float(values[:RANK].square().sum() / values.square().sum())
    return (root[:, None] * right[:RANK], left[:, :RANK] * root), share


if __name__ == "__main__":
    main()
