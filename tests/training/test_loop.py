"""The loop: what it reports, what it keeps, and that a continued run is the run it continues."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from chiasm.errors import (
    ConfigurationError,
    NoSpace,
    TrainingDiverged,
    TrainingInterrupted,
    UnsupportedCheckpoint,
)
from chiasm.training import snapshots
from chiasm.training.distributed import World
from chiasm.training.loop import SNAPSHOTS, train
from chiasm.training.recipe import LoopRecipe, OptimizerRecipe
from chiasm.training.record import METRICS, read_metrics

RATE = OptimizerRecipe(rate=0.05, warmup_steps=2, weight_decay=0.01)


class Rows:
    """Batches of numbers that know their place. poisoned: number of a batch that holds a NaN."""

    def __init__(self, poisoned: int | None = None) -> None:
        self.place = 0
        self.poisoned = poisoned

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            generator = torch.Generator().manual_seed(self.place)
            batch = torch.randn(8, 4, generator=generator)
            if self.place == self.poisoned:
                batch[3] = math.nan
            self.place += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.place = state["place"]


class Regression:
    """Learns a sum, through dropout, so that the random state matters."""

    def __init__(self, width: int = 6) -> None:
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(4, width), nn.Dropout(0.3), nn.Linear(width, 1))
        self.moved = 0

    def backward(self, batch: Tensor, *, share: float, exchange: bool) -> dict[str, float]:
        loss = (self.network(batch)[:, 0] - batch.sum(dim=1)).square().mean()
        (share * loss).backward()
        return {"loss": float(loss.detach())}

    def updated(self) -> None:
        self.moved += 1


def run(folder: Path, steps: int, **options: Any) -> tuple[Regression, Any]:
    """A run of `steps` updates with a report each."""
    trainee = options.pop("trainee", None) or Regression()
    recipe = options.pop("recipe", {"loop": {"seed": 0}})
    settings = {"snapshot_every": 5, "report_every": 1, **options.pop("loop", {})}
    loop = LoopRecipe(steps=steps, **settings)
    average = train(
        trainee,
        options.pop("batches", None) or Rows(),
        loop,
        options.pop("optimizer", RATE),
        folder=folder,
        recipe=recipe,
        world=World(),
        samples_per_update=8,
        **options,
    )
    return trainee, average


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in read_metrics(folder / METRICS)]


def test_it_learns(tmp_path: Path) -> None:
    trainee, _ = run(tmp_path, 60)
    found = losses(tmp_path)
    assert [step for step, _ in found] == list(range(1, 61))
    assert trainee.moved == 60
    first, last = (sum(loss for _, loss in part) for part in (found[:10], found[-10:]))
    assert last < 0.7 * first


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_a_continued_run_gives_the_same_losses(tmp_path: Path, average: float) -> None:
    whole, whole_average = run(tmp_path / "whole", 20, loop={"average": average})

    class Killed(Exception):
        pass

    def kill(step: int, report: Any) -> None:
        if step == 13:
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path / "parts", 20, loop={"average": average}, watch=kill)
    torch.manual_seed(99)  # a new process begins with other random numbers
    parts, parts_average = run(tmp_path / "parts", 20, loop={"average": average}, resume=True)
    # Steps 11 to 13 were done twice, and the record holds them once.
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    for one, other in zip(whole.network.parameters(), parts.network.parameters(), strict=True):
        assert torch.equal(one, other)
    if average:
        ours, theirs = parts_average.state(), whole_average.state()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_accumulated_batches_make_one_update(tmp_path: Path) -> None:
    """Two batches of 8 move the weights as one batch of 16 does, where there is no dropout."""

    class Plain(Regression):
        def __init__(self) -> None:
            super().__init__()
            self.network[1] = nn.Identity()

    class Pairs(Rows):
        def __iter__(self) -> Iterator[Tensor]:
            rows = super().__iter__()
            while True:
                yield torch.cat([next(rows), next(rows)])

    two, _ = run(tmp_path / "two", 3, trainee=Plain(), loop={"accumulate": 2})
    one, _ = run(tmp_path / "one", 3, trainee=Plain(), batches=Pairs())
    for ours, theirs in zip(two.network.parameters(), one.network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_loss_that_is_no_number_stops_before_the_weights_move(tmp_path: Path) -> None:
    trainee = Regression()
    with pytest.raises(TrainingDiverged, match=r"update 8 is nan .*row seven"):
        run(tmp_path, 20, trainee=trainee, batches=Rows(poisoned=7), names_of=lambda _: "row seven")
    assert all(parameter.isfinite().all() for parameter in trainee.network.parameters())
    assert [path.name for path in snapshots.paths(tmp_path / SNAPSHOTS)] == ["step-000000005.pt"]


def test_a_run_is_not_begun_over_another(tmp_path: Path) -> None:
    run(tmp_path, 5)
    with pytest.raises(ConfigurationError, match="earlier run"):
        run(tmp_path, 5)


def test_a_snapshot_of_another_architecture_is_refused(tmp_path: Path) -> None:
    run(tmp_path, 5)
    before = (tmp_path / SNAPSHOTS / "step-000000005.pt").read_bytes()
    with pytest.raises(UnsupportedCheckpoint, match="another architecture: 3 tensors"):
        run(tmp_path, 10, trainee=Regression(width=7), resume=True)
    assert (tmp_path / SNAPSHOTS / "step-000000005.pt").read_bytes() == before


def test_another_recipe_is_refused_and_more_steps_are_not(tmp_path: Path) -> None:
    run(tmp_path, 5, recipe={"loop": {"steps": 5}, "data": {"source": "a"}})
    with pytest.raises(ConfigurationError, match=r"data\.source changed"):
        run(tmp_path, 9, recipe={"loop": {"steps": 9}, "data": {"source": "b"}}, resume=True)
    run(tmp_path, 9, recipe={"loop": {"steps": 9}, "data": {"source": "a"}}, resume=True)
    assert losses(tmp_path)[-1][0] == 9


def test_a_damaged_snapshot_is_passed_over(tmp_path: Path) -> None:
    run(tmp_path, 10)
    newest = tmp_path / SNAPSHOTS / "step-000000010.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    run(tmp_path, 12, resume=True)
    assert [step for step, _ in losses(tmp_path)] == list(range(1, 13))


def test_a_full_disk_loses_no_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_little(content: Any, file: Any) -> None:
        file.write(b"x" * 100)
        raise OSError(28, "No space left on device")

    run(tmp_path, 5)
    monkeypatch.setattr(torch, "save", write_little)
    with pytest.raises(NoSpace, match=r"step-000000005\.pt is still there"):
        run(tmp_path, 10, resume=True)
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / SNAPSHOTS).iterdir()] == ["step-000000005.pt"]
    run(tmp_path, 10, resume=True)
    assert losses(tmp_path)[-1][0] == 10


def test_old_snapshots_are_removed(tmp_path: Path) -> None:
    run(tmp_path, 9, loop={"snapshot_every": 2, "keep_snapshots": 3})
    names = [path.name for path in snapshots.paths(tmp_path / SNAPSHOTS)]
    assert names == ["step-000000006.pt", "step-000000008.pt", "step-000000009.pt"]


def test_stopping_makes_a_snapshot(tmp_path: Path) -> None:
    stop = Event()
    with pytest.raises(TrainingInterrupted, match="after update 3 of 20"):
        run(tmp_path, 20, watch=lambda step, _: stop.set() if step == 3 else None, stop=stop)
    run(tmp_path / "whole", 20)
    run(tmp_path, 20, resume=True)
    assert losses(tmp_path) == losses(tmp_path / "whole")


def test_measuring_is_recorded_and_happens_on_the_average(tmp_path: Path) -> None:
    trainee = Regression()
    seen = []

    def measure() -> dict[str, float]:
        seen.append(trainee.network[0].weight[0, 0].item())
        return {"accuracy": 0.5}

    _, average = run(
        tmp_path, 6, trainee=trainee, loop={"measure_every": 4, "average": 0.5}, measure=measure
    )
    rows = read_metrics(tmp_path / METRICS)
    assert [row["step"] for row in rows if "accuracy" in row] == [4, 6]
    assert seen[-1] == float(average.state()["0.weight"][0, 0])
    assert seen[-1] != trainee.network[0].weight[0, 0].item()


def test_the_moving_average_is_the_sum_it_should_be(tmp_path: Path) -> None:
    """Against the recurrence, written out."""
    trainee = Regression()
    expected = trainee.network[0].weight.detach().double().clone()
    history = []

    class Watching(Rows):
        pass

    def watch(step: int, report: Any) -> None:
        history.append(trainee.network[0].weight.detach().double().clone())

    _, average = run(tmp_path, 12, trainee=trainee, loop={"average": 0.8}, watch=watch)
    for number, weight in enumerate(history):
        decay = min(0.8, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * weight
    torch.testing.assert_close(average.state()["0.weight"].double(), expected, atol=1e-6, rtol=1e-5)


def test_a_line_that_a_kill_left_half_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / METRICS
    path.write_text(json.dumps({"step": 1, "loss": 2.0}) + '\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1, "loss": 2.0}]
