"""Contrastive training, from a recipe to a model on the disk. Read it from top to bottom."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event
from typing import Any

import torch

from chiasm.models.efficientnet_lite import InvertedBottleneck
from chiasm.models.transformer import Block
from chiasm.training.distributed import World, spread
from chiasm.training.export import blueprint, write_model
from chiasm.training.in_order import captions_of
from chiasm.training.loader import open_loader
from chiasm.training.loop import Report, train
from chiasm.training.measuring import Measuring
from chiasm.training.recipe import ContrastiveRecipe
from chiasm.training.recipe_file import as_table
from chiasm.training.run import (
    MODEL,
    START,
    Trained,
    final_weights,
    first_alone,
    names_in,
    outcome,
    write_down,
)
from chiasm.training.start import begin
from chiasm.training.two_towers import ContrastiveTrainee, TwoTowers, drop_patches, lock


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

    begun = first_alone(world, beginning)
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
    write_down(recipe, folder, world)
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
    weights = final_weights(network, average)
    if world.first:
        write_model(folder / MODEL, empty, weights, begun)
    return outcome(folder, recipe.loop.steps, world, loader.skipped)
