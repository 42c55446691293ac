"""Texts that travel round a ring of processes, and what is summed for them on the way.

Every process keeps its images. Its texts go to the next process, those of the one before come in,
and after as many steps as there are processes each has met all: no process ever holds more than two
shards of texts, and nobody the global matrix (the exchange of SigLIP, Zhai et al. 2023, arXiv
2303.15343, section 3.3; here for the softmax too). What the images of a process add for a text,
sums of exponentials or a gradient, travels with that text and comes home with the last step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup

from chiasm.errors import InvalidRequest
from chiasm.training.tiled import Plan, Tensors


@dataclass(frozen=True)
class Share:
    """What a process tells the others about its part of the batch."""

    images: int
    texts: int
    dimension: int
    grouped: bool
    double: bool
    tile: int
    longest_image: float
    longest_text: float
    image_gradient: bool
    text_gradient: bool
    gradient: bool


def ring_plan(
    group: ProcessGroup, share: Share | None, problem: InvalidRequest | None, device: torch.device
) -> Plan:
    """The plan that all processes of the group follow.

    `share` is None on a process whose part has a `problem`: then all of them raise.
    """
    shares = _meet(group, share, device)
    if problem is not None:
        raise problem
    met = [one for one in shares if one is not None]
    if len(met) < len(shares):
        raise InvalidRequest(
            f"The part of the batch that process {shares.index(None)} has does not fit the loss.",
            hint="See the error of that process.",
        )
    for name in ("dimension", "grouped", "double", "tile"):
        values = [getattr(one, name) for one in met]
        if len(set(values)) > 1:
            raise InvalidRequest(
                f"The processes disagree about the loss: {name} is "
                f"{', '.join(map(str, values))} on processes 0 to {len(values) - 1}.",
                hint="Call it in the same way everywhere.",
            )
    if not sum(one.images for one in met) or not sum(one.texts for one in met):
        raise InvalidRequest(
            "No process has any images, or none has texts.", hint="A loss needs one pair at least."
        )
    rank = group.rank()
    return Plan(
        tile=met[rank].tile,
        longest=max(one.longest_image for one in met) * max(one.longest_text for one in met),
        image_gradient=any(one.image_gradient for one in met),
        text_gradient=any(one.text_gradient for one in met),
        gradient=any(one.gradient for one in met),
        exchange=Ring(group, [one.texts for one in met]),
        before=sum(one.images for one in met[:rank]),
    )


def _meet(group: ProcessGroup, share: Share | None, device: torch.device) -> list[Share | None]:
    """Every process's share, by rank."""
    kinds = [type(value) for value in astuple(share)] if share else []
    numbers = [1.0, *map(float, astuple(share))] if share else [0.0] * (1 + len(fields(Share)))
    mine = torch.tensor(numbers, dtype=torch.float64, device=device)
    all_numbers = [torch.empty_like(mine) for _ in range(group.size())]
    distributed.all_gather(all_numbers, mine, group=group)
    if not kinds:
        return []
    return [
        Share(*(kind(value) for kind, value in zip(kinds, numbers, strict=True))) if there else None
        for there, *numbers in (one.tolist() for one in all_numbers)
    ]


class Ring:
    """An `Exchange` in which shards of any sizes go from each process to the next."""

    def __init__(self, group: ProcessGroup, counts: list[int]) -> None:
        """counts: the texts of each process, by rank in the group."""
        self.group = group
        self.counts = counts
        self.size = group.size()
        self.rank = group.rank()
        self._next = distributed.get_global_rank(group, (self.rank + 1) % self.size)
        self._previous = distributed.get_global_rank(group, (self.rank - 1) % self.size)

    def visits(self, texts: Tensors, sums: Tensors) -> Iterator[tuple[Tensors, Tensors]]:
        home = sums
        for step in range(1, self.size + 1):
            count = self.counts[(self.rank - step) % self.size]  # of what comes next
            last = step == self.size
            # Texts go on while they are being used here; sums when they have been added to.
            coming = () if last else _room(texts, count)
            under_way = [] if last else self._pass_on(texts, coming)
            yield texts, sums
            arriving = home if last else _room(sums, count)
            under_way += self._pass_on(sums, arriving, first_tag=len(texts))
            for work in under_way:
                work.wait()
            texts, sums = coming, arriving

    def _pass_on(
        self, here: Tensors, coming: Tensors, first_tag: int = 0
    ) -> list[distributed.Work]:
        operations = []
        for tag, (out, new) in enumerate(zip(here, coming, strict=True), start=first_tag):
            if out.numel():
                operations.append(
                    distributed.P2POp(distributed.isend, out, self._next, self.group, tag)
                )
            if new.numel():
                operations.append(
                    distributed.P2POp(distributed.irecv, new, self._previous, self.group, tag)
                )
        return distributed.batch_isend_irecv(operations) if operations else []

    def total(self, values: Tensor) -> Tensor:
        values = values.clone()
        distributed.all_reduce(values, group=self.group)
        return values

    def least(self, value: Tensor) -> Tensor:
        value = value.clone()
        distributed.all_reduce(value, op=distributed.ReduceOp.MIN, group=self.group)
        return value


def _room(like: Tensors, count: int) -> Tensors:
    """Empty tensors of `count` rows."""
    return tuple(one.new_empty((count, *one.shape[1:])) for one in like)
