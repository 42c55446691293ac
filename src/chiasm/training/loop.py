"""The loop that every kind of training here runs in.

What is trained comes in as a `Trainee`, which turns one batch into gradients; what is measured
comes in as a function. The loop owns the rest: the updates, their schedule, the moving average,
the snapshots, and going on after a kill as if nothing had happened.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import Event
from typing import Any, Protocol

import torch
from torch import nn

from chiasm.errors import ConfigurationError, TrainingDiverged, TrainingInterrupted
from chiasm.training import snapshots
from chiasm.training.average import MovingAverage
from chiasm.training.distributed import World
from chiasm.training.optimizer import make_optimizer, rate_at, set_rate
from chiasm.training.recipe import LoopRecipe, OptimizerRecipe
from chiasm.training.recipe_file import differences
from chiasm.training.record import Record
from chiasm.training.snapshots import Snapshot

log = logging.getLogger("chiasm.training")

SNAPSHOTS = "snapshots"


# What may change between a run and its continuation; anything else would make it another run.
_MAY_CHANGE = (
    "loop.steps",
    "loop.sharding",
    "loop.compile",
    "loop.snapshot_every",
    "loop.keep_snapshots",
    "loop.report_every",
    "loop.measure_every",
    "data.workers",
    "data.threads",
    "data.prefetch",
    "batch.micro_size",
)


class Batches(Protocol):
    """An endless stream of batches that knows its place."""

    def __iter__(self) -> Iterator[Any]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Trainee(Protocol):
    """What is trained. network: as `distributed.spread` gave it."""

    network: nn.Module

    def backward(self, batch: Any, *, share: float, exchange: bool) -> dict[str, float]:
        """Add `share` times the batch's gradient to the parameters, and give its figures.

        One of the figures is `loss`. exchange: whether other processes' gradients are to be
        averaged in, which one batch an update does.
        """
        ...

    def updated(self) -> None:
        """The weights have moved."""
        ...


Report = Mapping[str, float | int]
Measure = Callable[[], dict[str, float]]


def train(
    trainee: Trainee,
    batches: Batches,
    loop: LoopRecipe,
    optimizer_recipe: OptimizerRecipe,
    *,
    folder: Path,
    recipe: dict[str, Any],
    world: World,
    samples_per_update: int,
    resume: bool = False,
    measure: Measure | None = None,
    watch: Callable[[int, Report], None] = lambda step, report: None,
    names_of: Callable[[Any], str] = lambda batch: "",
    stop: Event | None = None,
    frozen_in_snapshots: bool = True,
) -> MovingAverage | None:
    """Train for `loop.steps` updates and give the moving average, if there is one.

    folder: of the run; snapshots and metrics are kept in it.
    recipe: of the whole run, which a continuation must share.
    samples_per_update: over all processes, for the speed.
    watch: is told each report, on the first rank.
    names_of: what to call a batch's samples when its loss is no number.
    stop: when set, the run makes a snapshot and ends with TrainingInterrupted.
    frozen_in_snapshots: whether snapshots hold the weights that do not learn, too. Without them
        the network must come with the same ones when the run goes on.

    Raises TrainingDiverged, NoSpace, ConfigurationError, UnsupportedCheckpoint. The newest
    snapshot survives them all.
    """
    optimizer = make_optimizer(trainee.network, optimizer_recipe)
    average = MovingAverage(trainee.network, loop.average) if loop.average else None
    start = 0
    if resume:
        start = _resume(
            folder,
            trainee.network,
            optimizer,
            average,
            batches,
            recipe,
            world,
            frozen_in_snapshots,
        )
    elif snapshots.paths(folder / SNAPSHOTS):
        raise ConfigurationError(
            f"{folder} holds the snapshots of an earlier run.",
            hint="Go on with it (--resume), or give another folder (--output).",
        )
    record = Record(folder, after_step=start) if world.first else None
    try:
        stream = iter(batches)
        pace = _Pace(start)
        for step in range(start, loop.steps):
            rate = rate_at(step, loop.steps, optimizer_recipe)
            set_rate(optimizer, rate)
            figures = _update(trainee, optimizer, stream, loop, optimizer_recipe, step, names_of)
            if average is not None:
                average.update()
            done = step + 1
            report: dict[str, float | int] = {}
            if done % loop.report_every == 0 or done == loop.steps:
                speed = pace.lap(done) * samples_per_update
                report = {**figures, "rate": rate, "samples_per_second": speed}
            if measure and _due(done, loop.measure_every, loop.steps):
                with pace.stopped(), average.applied() if average else nullcontext():
                    report |= measure()
            if report and record is not None:
                record.write(done, report)
                watch(done, report)
            stopping = _stopping(stop, world, done, loop)
            if stopping or _due(done, loop.snapshot_every, loop.steps):
                with pace.stopped():
                    _snapshot(
                        done,
                        folder,
                        trainee,
                        optimizer,
                        average,
                        batches,
                        recipe,
                        world,
                        loop,
                        frozen_in_snapshots,
                    )
            if stopping and done < loop.steps:
                raise TrainingInterrupted(
                    f"Stopped after update {done} of {loop.steps}; a snapshot was made.",
                    hint="Go on with --resume.",
                )
    finally:
        if record is not None:
            record.close()
        close = getattr(batches, "close", None)
        if close is not None:
            close()
    return average


# One update -------------------------------------------------------------------------------------


def _update(
    trainee: Trainee,
    optimizer: torch.optim.Optimizer,
    stream: Iterator[Any],
    loop: LoopRecipe,
    recipe: OptimizerRecipe,
    step: int,
    names_of: Callable[[Any], str],
) -> dict[str, float]:
    """Gradients of `loop.accumulate` batches, then one move of the weights."""
    trainee.network.train()
    optimizer.zero_grad(set_to_none=True)
    totals: dict[str, float] = {}
    for number in range(loop.accumulate):
        batch = next(stream)
        last = number == loop.accumulate - 1
        figures = trainee.backward(batch, share=1 / loop.accumulate, exchange=last)
        if not math.isfinite(figures["loss"]):
            raise TrainingDiverged(
                f"The loss of update {step + 1} is {figures['loss']}"
                f"{_among(names_of(batch))}; the weights were not moved.",
                hint="Lower optimizer.rate, raise optimizer.warmup_steps, or set "
                "optimizer.gradient_clip; then go on from the newest snapshot with --resume.",
            )
        for name, value in figures.items():
            totals[name] = totals.get(name, 0.0) + value / loop.accumulate
    norm = nn.utils.clip_grad_norm_(
        trainee.network.parameters(), recipe.gradient_clip or math.inf, foreach=True
    )
    whole = getattr(norm, "full_tensor", None)  # under FSDP a rank holds its part of the norm
    totals["gradient_norm"] = float(whole() if whole else norm)
    if not math.isfinite(totals["gradient_norm"]):
        raise TrainingDiverged(
            f"The gradient of update {step + 1} is {totals['gradient_norm']}; the weights were not "
            "moved.",
            hint="Lower optimizer.rate or raise optimizer.warmup_steps; then go on with --resume.",
        )
    optimizer.step()
    trainee.updated()
    return totals


def _among(names: str) -> str:
    return f" (its samples: {names})" if names else ""


def _stopping(stop: Event | None, world: World, done: int, loop: LoopRecipe) -> bool:
    """Whether to stop now; several processes agree on it when a report is due."""
    if stop is None:
        return False
    if world.group is None:
        return stop.is_set()
    return done % loop.report_every == 0 and any(world.gather(stop.is_set()))


def _due(done: int, every: int, steps: int) -> bool:
    return done == steps or bool(every and done % every == 0)


class _Pace:
    """Updates a second, leaving out what was no training."""

    def __init__(self, done: int) -> None:
        self._since = time.perf_counter()
        self._done = done

    def lap(self, done: int) -> float:
        """Since the last lap."""
        now = time.perf_counter()
        rate = (done - self._done) / (now - self._since)
        self._since, self._done = now, done
        return rate

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """The clock stands still inside."""
        before = time.perf_counter()
        yield
        self._since += time.perf_counter() - before


# Stopping and going on --------------------------------------------------------------------------


def _snapshot(
    step: int,
    folder: Path,
    trainee: Trainee,
    optimizer: torch.optim.Optimizer,
    average: MovingAverage | None,
    batches: Batches,
    recipe: dict[str, Any],
    world: World,
    loop: LoopRecipe,
    frozen: bool,
) -> None:
    """Every rank tells its part; the first one writes."""
    model, state = snapshots.collect(trainee.network, optimizer, frozen=frozen)
    averaged = average.state() if average else None
    ranks = world.gather({"random": snapshots.random_state(), "data": batches.state_dict()})
    if world.first:
        snapshot = Snapshot(step, recipe, model, state, averaged, ranks)
        snapshots.save(snapshot, folder / SNAPSHOTS, keep=loop.keep_snapshots)
    world.barrier()


def _resume(
    folder: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: MovingAverage | None,
    batches: Batches,
    recipe: dict[str, Any],
    world: World,
    frozen: bool,
) -> int:
    """Put everything back as it was, and give the number of updates that were done."""
    snapshot, damaged = snapshots.load_newest(folder / SNAPSHOTS)
    for path in damaged:
        log.warning("%s is damaged and was passed over.", path)
    if snapshot is None:
        if damaged:
            raise ConfigurationError(f"None of the snapshots in {folder} can be read.")
        log.info("%s holds no snapshot: the run begins.", folder)
        return 0
    changed = [
        name for name in differences(snapshot.recipe, recipe) if not name.startswith(_MAY_CHANGE)
    ]
    snapshots.restore(network, optimizer, snapshot, frozen=frozen)
    if changed:
        raise ConfigurationError(
            f"The run in {folder} has another recipe: {', '.join(changed[:5])} changed.",
            hint="Resume with the recipe it began with, or train into another folder (--output).",
        )
    if average is not None and snapshot.average is not None:
        average.load(snapshot.average)
    batches.load_state_dict(snapshot.ranks[min(world.rank, len(snapshot.ranks) - 1)]["data"])
    if world.rank < len(snapshot.ranks):
        snapshots.set_random_state(snapshot.ranks[world.rank]["random"])
    return snapshot.step
