"""What every run has in common, whatever it trains: its folder, its beginning and its outcome."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from chiasm.training import snapshots
from chiasm.training.average import MovingAverage
from chiasm.training.distributed import World
from chiasm.training.recipe_file import show_recipe
from chiasm.training.record import METRICS, read_metrics

MODEL, START, RECIPE = "model", "start", "recipe.toml"
_NAMED = 8  # samples named when a loss is no number

T = TypeVar("T")


@dataclass(frozen=True)
class Trained:
    """What a run has left.

    figures: of its last report. skipped: damaged samples, by reason. shortened: those that were
    used in part, being too long.
    """

    model: Path
    steps: int
    figures: dict[str, float]
    skipped: dict[str, int]
    shortened: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "model": str(self.model),
            "steps": self.steps,
            "figures": self.figures,
            "skipped": self.skipped,
            "shortened": self.shortened,
        }


def first_alone(world: World, begin: Callable[[], T]) -> T:
    """`begin()` on every process, on the first one before the others.

    It learns the vocabulary or fetches the weights; the others find them there.
    """
    begun = begin() if world.first else None
    world.barrier()
    return begin() if begun is None else begun


def write_down(recipe: Any, folder: Path, world: World) -> None:
    """The recipe, with every default, into the run's folder."""
    if world.first:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RECIPE).write_text(show_recipe(recipe), encoding="utf-8")


def final_weights(network: nn.Module, average: MovingAverage | None) -> dict[str, Tensor]:
    """What to write: the moving average's where there is one. All processes must call it."""
    with average.applied() if average else nullcontext():
        return snapshots.whole_weights(network)


def outcome(
    folder: Path, steps: int, world: World, skipped: Mapping[str, int], *, shortened: int = 0
) -> Trained:
    """What the run has left; waits until the first process has written it.

    skipped, shortened: counted by this process.
    """
    world.barrier()
    reports = read_metrics(folder / METRICS)
    figures = {name: value for name, value in reports[-1].items() if name != "step"}
    total = _summed(world.gather(dict(skipped)))
    return Trained(folder / MODEL, steps, figures, total, sum(world.gather(shortened)))


def names_in(batch: Any) -> str:
    """What to call a batch's samples in a message."""
    more = len(batch.keys) - _NAMED
    return ", ".join(batch.keys[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _summed(counts: Sequence[dict[str, int]]) -> dict[str, int]:
    """Counts of several processes, by reason."""
    total: dict[str, int] = {}
    for each in counts:
        for reason, count in each.items():
            total[reason] = total.get(reason, 0) + count
    return total
