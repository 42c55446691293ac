"""Gradient caching: a contrastive batch larger than memory, with the gradients of the whole batch.

Gao, Zhang, Han and Callan 2021, arXiv 2101.06983, section 3. A contrastive loss sees the towers
through their embeddings alone, so its gradient falls into two factors. All parts of the batch are
embedded without a graph; the loss of all embeddings gives the gradient at each; then each part is
embedded again, with a graph this time, and the gradient goes on through it. Memory is that of one
part and of all embeddings; the price is a second forward pass.

What is drawn at random (dropout, dropped patches) must be drawn alike both times, so the state of
the random generators is kept from before each part and set again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from chiasm.errors import InvalidRequest

Part = TypeVar("Part")


class Embedded(Protocol):
    """What encoding gives: a named tuple of embeddings, of the loss's scalars, and of Nones.

    Embeddings [rows of a part, dimension] are joined over the parts, in their order; None stands
    for what a part does not have. Scalars must be the same in every part; the last part's carry
    the gradient.
    """

    @property
    def scale(self) -> Tensor:
        """The loss's scale, among other fields of any names."""

    @property
    def _fields(self) -> tuple[str, ...]: ...


Encoded = TypeVar("Encoded", bound=Embedded)


def cached_backward(
    encode: Callable[[Part], Encoded],
    parts: Sequence[Part],
    loss_of: Callable[[Encoded], Tensor],
    *,
    exchanging: Callable[[bool], AbstractContextManager[Any]] = lambda last: nullcontext(),
) -> tuple[Tensor, Tensor]:
    """Add the gradients of `loss_of` the whole batch to the parameters, part by part.

    Args:
        encode: embeds one part; called twice for each. It must depend on nothing but the part, the
            parameters and torch's random generators. (Running statistics, as batch normalisation
            keeps them in training, would be updated twice.)
        parts: of the batch. A part may hold images, texts, or some of both.
        loss_of: of what `encode` would give for the whole batch. It may use a process group, on
            which each process may have a number of parts of its own.
        exchanging: makes the context in which a part is embedded and its gradients are made; told
            whether it is the last one. Under DDP give `no_sync` to all but the last: then gradients
            are averaged over the processes once. The last part must use every parameter that is
            trained, as DDP demands of any pass.

    Returns:
        The loss and the scale, both without a graph.

    Raises:
        InvalidRequest: no parts.
    """
    if not parts:
        raise InvalidRequest("There are no parts of the batch to embed.", hint="Give one at least.")
    states, encoded = [], []
    with torch.no_grad(), exchanging(False):
        for part in parts:
            states.append(_RandomState.now())
            encoded.append(encode(part))
    # Autocast keeps weights in half precision from the first pass, which had no graph.
    torch.clear_autocast_cache()

    whole = _joined(encoded)
    loss = loss_of(whole)
    loss.backward()
    gradients = [_shares(of_all, encoded, name) for name, of_all in _named(whole)]
    scale = encoded[-1].scale
    del whole, encoded

    after = _RandomState.now()
    for number, part in enumerate(parts):
        with exchanging(number == len(parts) - 1):
            states[number].set()
            again = encode(part)
            pairs = [
                (one, shares[number])
                for (_, one), shares in zip(_named(again), gradients, strict=True)
                if one is not None and one.requires_grad and shares[number] is not None
            ]
            if pairs:
                torch.autograd.backward([one for one, _ in pairs], [share for _, share in pairs])
    after.set()
    return loss.detach(), scale.detach()


def _named(encoded: Embedded) -> list[tuple[str, Tensor | None]]:
    return [(name, getattr(encoded, name)) for name in encoded._fields]


def _joined(encoded: Sequence[Encoded]) -> Encoded:
    """All parts as one, the leaves of the loss's graph."""
    fields: list[Tensor | None] = []
    for name, last in _named(encoded[-1]):
        here = [one for one in (getattr(each, name) for each in encoded) if one is not None]
        if not here:
            fields.append(None)
            continue
        scalar = last is not None and last.dim() == 0
        one = here[-1].clone() if scalar else torch.cat(here)
        fields.append(one.detach().requires_grad_(one.is_floating_point()))
    kind: Any = type(encoded[-1])
    made: Encoded = kind(*fields)
    return made


def _shares(whole: Tensor | None, encoded: Sequence[Embedded], name: str) -> list[Tensor | None]:
    """The gradient at one field, for each part.

    Zero where the loss does not depend on the field, so that DDP sees the parameters behind it all
    the same.
    """
    if whole is None or not whole.requires_grad:
        return [None] * len(encoded)
    gradient = torch.zeros_like(whole) if whole.grad is None else whole.grad
    if whole.dim() == 0:
        return [*([None] * (len(encoded) - 1)), gradient]
    counts = [0 if (one := getattr(each, name)) is None else len(one) for each in encoded]
    return list(gradient.split(counts))


class _RandomState(NamedTuple):
    """Where torch's generators stand: the CPU's, and the accelerator's that is in use."""

    cpu: Tensor
    cuda: Tensor | None
    mps: Tensor | None

    @classmethod
    def now(cls) -> _RandomState:
        return cls(
            torch.get_rng_state(),
            torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
            torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
        )

    def set(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda)
        if self.mps is not None:
            torch.mps.set_rng_state(self.mps)
