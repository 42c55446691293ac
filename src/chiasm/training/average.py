"""A moving average of the weights, which often tests better than the weights themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class MovingAverage:
    """Exponential moving average of the trained parameters (Polyak and Juditsky 1992).

    decay: the share of the old average that an update keeps; in the first steps it is held to
        (1 + n) / (10 + n), so that the beginning is soon forgotten.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._parameters = {n: p for n, p in network.named_parameters() if p.requires_grad}
        self._decay = decay
        self._updates = 0
        self._average = {n: p.detach().clone() for n, p in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the parameters as they are now."""
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        self._updates += 1
        torch._foreach_lerp_(
            list(self._average.values()), list(self._parameters.values()), 1 - decay
        )

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The network holds the average inside, and its own weights again afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            held = parameter.detach().clone()
            parameter.copy_(self._average[name])
            self._average[name].copy_(held)

    def state(self) -> dict[str, Tensor]:
        """Whole tensors, for a snapshot. All ranks must call it."""
        whole = {n.removeprefix("module."): _whole(t) for n, t in self._average.items()}
        return {**whole, "updates": torch.tensor(self._updates)}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave."""
        self._updates = int(state["updates"])
        for name, tensor in self._average.items():
            _copy(tensor, state[name.removeprefix("module.")])


def _whole(tensor: Tensor) -> Tensor:
    full = getattr(tensor, "full_tensor", None)  # a part of one, under FSDP
    return (full() if full else tensor).cpu().clone()


def _copy(target: Tensor, whole: Tensor) -> None:
    if hasattr(target, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor

        whole = distribute_tensor(
            whole.to(target.device),
            target.device_mesh,  # type: ignore[attr-defined]
            target.placements,  # type: ignore[attr-defined]
        )
    target.copy_(whole)
