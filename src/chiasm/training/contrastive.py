"""Contrastive training, from a recipe to a model on the disk. Read it from top to bottom."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import torch

from chiasm.models.efficientnet_lite import InvertedBottleneck
from chiasm.models.transformer import Block
from chiasm.training import snapshots
from chiasm.training.distributed import World, spread
from chiasm.training.export import blueprint, write_model
from chiasm.training.in_order import captions_of
from chiasm.training.loader import open_loader
from chiasm.training.loop import Report, train
from chiasm.training.measuring import Measuring
from chiasm.training.recipe import ContrastiveRecipe
from chiasm.training.recipe_file import as_table, show_recipe
from chiasm.training.record import METRICS, read_metrics
from chiasm.training.start import begin
from chiasm.training.two_towers import ContrastiveTrainee, TwoTowers, drop_patches, lock

MODEL, START, RECIPE = "model", "start", "recipe.toml"
_NAMED = 8  # samples named when a loss is no number


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


def train_contrastive(
    recipe: ContrastiveRecipe,
    folder: Path,
    *,
    world: World,
    resume: bool = False,
    cache_dir: Path,
    offline: bool = False,
    catalogs: Sequence[Path] = (),
    watch: Callable[[int, Report], None] = lambda step, report: None,
    stop: Event | None = None,
) -> Trained:
    """Train as `recipe` says and write the model to `folder/model`.

    folder: of the run: snapshots, metrics, TensorBoard's events and the model. Several machines
        must share it. resume: go on from its newest snapshot, to the same losses, step for step.
    watch: is told each report. stop: ends the run after a snapshot.

    Raises ConfigurationError, TrainingDiverged, TrainingInterrupted, NoSpace, and what reading the
    data or the starting model raises. No error loses a snapshot.
    """
    torch.manual_seed(recipe.loop.seed)

    # The model ----------------------------------------------------------------------------------
    def beginning() -> Any:
        return begin(
            recipe.model,
            lambda: captions_of(recipe.data),
            kept=folder / START,
            seed=recipe.loop.seed,
            cache_dir=cache_dir,
            offline=offline,
            catalogs=catalogs,
        )

    # One process learns the vocabulary or fetches the weights; the others find them there.
    begun = beginning() if world.first else None
    world.barrier()
    begun = begun or beginning()
    model = begun.model.requires_grad_(True)
    lock(model, recipe.model.locked)
    drop_patches(model, recipe.model.patch_dropout)
    empty = blueprint(model)
    towers = TwoTowers(model, recipe.loss, precision=recipe.loop.precision)
    if recipe.loop.compile:
        for module in towers.modules():
            if isinstance(module, Block):
                module.compile(dynamic=True)
    network = spread(
        towers.to(world.device), world, recipe.loop.sharding, (Block, InvertedBottleneck)
    )
    trainee = ContrastiveTrainee(network, recipe.loss, world, micro_size=recipe.batch.micro_size)

    # The data -----------------------------------------------------------------------------------
    loader = open_loader(
        recipe.data,
        preprocessor=begun.preprocessor,
        tokenizer=begun.tokenizer,
        batch_size=recipe.batch.share(world.size),
        rank=world.rank,
        world_size=world.size,
        seed=recipe.loop.seed,
    )
    measure = Measuring(recipe.measure, network, begun.preprocessor, begun.tokenizer, world=world)

    # The run ------------------------------------------------------------------------------------
    if world.first:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RECIPE).write_text(show_recipe(recipe), encoding="utf-8")
    average = train(
        trainee,
        loader,
        recipe.loop,
        recipe.optimizer,
        folder=folder,
        recipe=as_table(recipe),
        world=world,
        samples_per_update=recipe.batch.size * recipe.loop.accumulate,
        resume=resume,
        measure=measure if measure else None,
        watch=watch,
        names_of=names_in,
        stop=stop,
    )

    # The result ---------------------------------------------------------------------------------
    with average.applied() if average else nullcontext():
        weights = snapshots.whole_weights(network)
    if world.first:
        write_model(folder / MODEL, empty, weights, begun)
    world.barrier()
    reports = read_metrics(folder / METRICS)
    figures = {name: value for name, value in reports[-1].items() if name != "step"}
    skipped = summed_counts(world.gather(dict(loader.skipped)))
    return Trained(folder / MODEL, recipe.loop.steps, figures, skipped)


def names_in(batch: Any) -> str:
    """What to call a batch's samples in a message."""
    more = len(batch.keys) - _NAMED
    return ", ".join(batch.keys[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def summed_counts(counts: Sequence[dict[str, int]]) -> dict[str, int]:
    """Counts of several processes, by reason."""
    total: dict[str, int] = {}
    for each in counts:
        for reason, count in each.items():
            total[reason] = total.get(reason, 0) + count
    return total
