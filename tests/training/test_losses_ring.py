"""Losses and gradients over several processes equal those of one process with the whole batch.

Four processes are started once. All four, and then the group of the second and the fourth alone,
compute every case and leave what they got in files, which the tests read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from chiasm.errors import InvalidRequest
from chiasm.training.gradient_cache import cached_backward
from chiasm.training.losses import sigmoid_loss, softmax_loss

LOSSES = {"softmax": softmax_loss, "sigmoid": sigmoid_loss}
SCALE, BIAS = 20.0, -4.0
MEMBERS = {2: [1, 3], 4: [0, 1, 2, 3]}


@dataclass(frozen=True)
class Case:
    """A batch and how many images and texts each of four (of two: every second) processes has."""

    images: Tensor
    texts: Tensor
    groups: tuple[Tensor, Tensor] | None
    image_counts: dict[int, list[int]]
    text_counts: dict[int, list[int]]
    tile: int | None = None


def unit(count: int, dimension: int = 16) -> Tensor:
    return F.normalize(torch.randn(count, dimension), dim=1)


def cases() -> dict[str, Case]:
    torch.manual_seed(0)
    equal = {2: [12, 12], 4: [6, 6, 6, 6]}
    unequal = {2: [17, 7], 4: [9, 1, 8, 6]}
    images = unit(24)
    classes = torch.randint(0, 9, (24,)), torch.randint(0, 11, (31,))
    return {
        "pairs": Case(images, F.normalize(images + unit(24), dim=1), None, equal, equal),
        "unequal shares": Case(images, unit(24), None, unequal, unequal, tile=5),
        "groups": Case(images, unit(31), classes, unequal, {2: [10, 21], 4: [3, 15, 2, 11]}),
        "a process without texts": Case(
            images, unit(31), classes, equal, {2: [31, 0], 4: [20, 0, 7, 4]}, tile=4
        ),
        # Texts opposite to the images: the sums need a maximum of their own on every process.
        "far apart": Case(
            F.normalize(3 + unit(24), dim=1), F.normalize(-3 + unit(24), dim=1), None, equal, equal
        ),
    }


CASES = cases()


class Towers(nn.Module):
    """The smallest model with two towers, a scale and a bias."""

    class Embedded(NamedTuple):
        images: Tensor | None
        texts: Tensor | None
        scale: Tensor
        bias: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.image = nn.Linear(16, 8)
        self.text = nn.Linear(16, 8)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))
        self.bias = nn.Parameter(torch.tensor(-3.0))

    def forward(self, pair: tuple[Tensor, Tensor]) -> Towers.Embedded:
        images, texts = (
            F.normalize(one, dim=1) for one in (self.image(pair[0]), self.text(pair[1]))
        )
        return self.Embedded(images, texts, self.logit_scale.exp(), self.bias)


def loss_of(kind: str, embedded: Towers.Embedded, **options: Any) -> Tensor:
    if kind == "softmax":
        # The bias takes part, so that DDP finds a gradient for every parameter.
        numbers = [embedded.scale]
        return (
            softmax_loss(embedded.images, embedded.texts, *numbers, **options) + 0 * embedded.bias
        )
    return sigmoid_loss(embedded.images, embedded.texts, embedded.scale, embedded.bias, **options)


# What each process does -------------------------------------------------------------------------


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=4
    )
    for size, members in MEMBERS.items():
        group = distributed.new_group(members)
        if rank in members:
            results = {
                **{
                    (name, kind): shares_of(CASES[name], kind, group)
                    for name in CASES
                    for kind in LOSSES
                },
                **{("towers", kind): towers_of(kind, group) for kind in LOSSES},
                "misfits": misfits_of(group),
            }
            torch.save(results, f"{folder}/{size}-{members.index(rank)}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def mine(tensor: Tensor, counts: list[int], group: Any) -> Tensor:
    return tensor.split(counts)[group.rank()].clone()


def shares_of(case: Case, kind: str, group: Any) -> list[Tensor]:
    image_counts, text_counts = case.image_counts[group.size()], case.text_counts[group.size()]
    leaves = [mine(case.images, image_counts, group), mine(case.texts, text_counts, group)]
    leaves += [torch.tensor(SCALE)] + ([torch.tensor(BIAS)] if kind == "sigmoid" else [])
    options: dict[str, Any] = {"tile": case.tile, "process_group": group}
    if case.groups is not None:
        options["image_groups"] = mine(case.groups[0], image_counts, group)
        options["text_groups"] = mine(case.groups[1], text_counts, group)
    for leaf in leaves:
        leaf.requires_grad_()
    loss = LOSSES[kind](*leaves, **options)
    (1.7 * loss).backward()
    return [loss.detach(), *(leaf.grad for leaf in leaves)]


def towers_of(kind: str, group: Any) -> dict[str, dict[str, Tensor]]:
    """The gradients of the towers' parameters after DDP's averaging, at once and in parts."""
    case = CASES["unequal shares"]
    counts = case.image_counts[group.size()]
    batch = mine(case.images, counts, group), mine(case.texts, counts, group)
    at_once = DistributedDataParallel(Towers(), process_group=group)
    in_parts = DistributedDataParallel(Towers(), process_group=group)
    found = {}
    for _ in range(2):  # a second step shows that DDP was left in order
        at_once.zero_grad()
        in_parts.zero_grad()
        loss_of(kind, at_once(batch), process_group=group, tile=4).backward()
        cached_backward(
            in_parts,
            list(zip(*(one.split(3) for one in batch), strict=True)),
            lambda whole: loss_of(kind, whole, process_group=group, tile=4),
            exchanging=lambda last: distributed_sync(in_parts, last),
        )
    for name, network in (("at once", at_once), ("in parts", in_parts)):
        found[name] = {key: one.grad for key, one in network.module.named_parameters()}
    return found


def distributed_sync(network: DistributedDataParallel, last: bool) -> Any:
    from contextlib import nullcontext

    return nullcontext() if last else network.no_sync()


def misfits_of(group: Any) -> list[str]:
    """What every process is told when one of them calls with something that does not fit."""
    first = group.rank() == 0
    scale, messages = torch.tensor(1.0), []
    for texts, tile in (
        (torch.zeros(3 if first else 2, 4), None),
        (torch.zeros(2, 4), 8 if first else 16),
        (torch.zeros(2, 4), 0 if first else 16),
    ):
        try:
            softmax_loss(torch.zeros(2, 4), texts, scale, tile=tile, process_group=group)
        except InvalidRequest as error:
            messages.append(str(error))
    return messages


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[Any, Any]]]:
    folder: Path = tmp_path_factory.mktemp("ring")
    multiprocessing.spawn(process, args=(str(folder),), nprocs=4)
    return {size: [torch.load(folder / f"{size}-{i}.pt") for i in range(size)] for size in MEMBERS}


# What they must have got ------------------------------------------------------------------------


@pytest.mark.parametrize("size", MEMBERS)
@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("name", CASES)
def test_processes_together_are_one_process(results: Any, name: str, kind: str, size: int) -> None:
    case = CASES[name]
    groups = case.groups or (None, None)
    leaves = [case.images.double(), case.texts.double(), torch.tensor(SCALE).double()]
    leaves += [torch.tensor(BIAS).double()] if kind == "sigmoid" else []
    for leaf in leaves:
        leaf.requires_grad_()
    loss = LOSSES[kind](*leaves, image_groups=groups[0], text_groups=groups[1])
    (1.7 * loss).backward()

    found = [each[name, kind] for each in results[size]]
    for each in found:  # the loss of the whole batch, on every process
        torch.testing.assert_close(each[0].double(), loss.detach(), rtol=1e-5, atol=0)
    for number, leaf in enumerate(leaves, start=1):
        parts = [each[number].double() for each in found]
        # A process's gradient is its share times the number of processes, for the mean's sake.
        total = torch.cat(parts) / size if leaf.dim() else torch.stack(parts).mean()
        difference = (total - leaf.grad).abs().max()
        assert difference <= 1e-5 * leaf.grad.abs().max() + 1e-7


@pytest.mark.parametrize("size", MEMBERS)
@pytest.mark.parametrize("way", ["at once", "in parts"])
@pytest.mark.parametrize("kind", LOSSES)
def test_ddp_averages_to_the_gradient_of_one_process(
    results: Any, kind: str, way: str, size: int
) -> None:
    case = CASES["unequal shares"]
    towers = Towers().double()
    loss_of(kind, towers((case.images.double(), case.texts.double()))).backward()
    for each in results[size]:
        for name, parameter in towers.named_parameters():
            found = each["towers", kind][way][name].double()
            torch.testing.assert_close(found, parameter.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", MEMBERS)
def test_no_process_waits_for_one_that_cannot(results: Any, size: int) -> None:
    first, *others = (each["misfits"] for each in results[size])
    assert "2 images and 3 texts" in first[0]
    assert "side 0" in first[2]
    for messages in others:
        assert "process 0 has does not fit" in messages[0]
        assert "process 0 has does not fit" in messages[2]
    for messages in (first, *others):
        assert "disagree" in messages[1]
        assert "tile is 8, 16" in messages[1]
