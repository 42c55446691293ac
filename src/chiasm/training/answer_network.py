"""A vision-language model as a thing to be trained: conversations in, gradients of answers out.

`AnswerNetwork` gives the loss from one call, because DDP and FSDP2 follow a network through its
`forward` alone. `InstructTrainee` turns a batch into gradients with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from chiasm.training.answer_loss import answer_loss
from chiasm.training.distributed import World, bare, exchanging
from chiasm.training.packing import ConversationBatch, attention_mask, positions_in
from chiasm.training.picture_features import FeatureCache, Loaded, SplitsVision, fill


def part_of(name: str) -> str:
    """Of a parameter of a vision-language model: language_model, image_tower or projector.

    What is neither the decoder's nor the tower's stands between them: projectors, resamplers,
    cross-attention, the newline between rows of tiles.
    """
    first = name.partition(".")[0]
    if first == "decoder":
        return "language_model"
    return "image_tower" if first in ("image_tower", "image_head") else "projector"


def let_learn(model: nn.Module, parts: Iterable[str], *, lora: bool) -> None:
    """Give gradients to these parts, and to nothing else.

    lora: of the decoder adapters alone; and nothing that belongs to no module, such as LLaVA-NeXT's
        newline, for which adapters' files have no place.
    """
    wanted = set(parts)
    for name, parameter in model.named_parameters():
        part = part_of(name)
        learns = part in wanted and not name.startswith("image_head.")
        if lora:
            learns = learns and "." in name
            learns = learns and ("lora_" in name or part != "language_model")
        parameter.requires_grad_(learns)


class AnswerNetwork(nn.Module):
    """A vision-language model that computes the loss of answers.

    The image tower is always in evaluation mode: its batch norms, if it has any, keep the
    statistics that they were trained with.
    """

    def __init__(
        self, model: Any, *, precision: str = "fp32", cache: FeatureCache | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self._autocast = torch.bfloat16 if precision == "bf16" else None
        self._cache = cache
        tower = [p for n, p in model.named_parameters() if part_of(n) == "image_tower"]
        self._tower_learns = any(parameter.requires_grad for parameter in tower)
        self._splits = isinstance(model, SplitsVision)

    def train(self, mode: bool = True) -> AnswerNetwork:
        """As any module's, but for the image tower."""
        super().train(mode)
        tower = getattr(self.model, "image_tower", None)
        if tower is not None:
            tower.eval()
        return self

    def forward(self, batch: ConversationBatch, idle: Loaded | None = None) -> Tensor:
        """The sum of the losses of learned tokens, a float32 scalar.

        idle: a picture that is looked at without effect if the batch has none, so that every
        process uses every part of the network.
        """
        device = batch.ids.device
        with torch.autocast(device.type, self._autocast) if self._autocast else nullcontext():
            features = self.features(batch.pictures)
            unused = self.features([idle]) if features is None and idle is not None else None
            positions = mask = None
            if batch.segments is not None:
                positions = positions_in(batch.segments)
                mask = attention_mask(batch.segments)
            with _entering(self.model.decoder, unused):
                hidden = self.model(batch.ids, features, positions=positions, mask=mask)
            return answer_loss(hidden, batch.ids, batch.learned, self.model.logits)

    def features(self, pictures: Sequence[Loaded]) -> Tensor | None:
        """[image tokens of all pictures, decoder width]."""
        if not pictures:
            return None
        if self._splits:
            with torch.set_grad_enabled(self._tower_learns and torch.is_grad_enabled()):
                pictures = fill(self.model, pictures, self._cache)
        dtype = next(self.model.decoder.parameters()).dtype
        return torch.cat([self._one(each, dtype) for each in pictures])

    def _one(self, picture: Loaded, dtype: torch.dtype) -> Tensor:
        if picture.features is not None:
            found: Tensor = self.model.project(picture.features.to(dtype), picture.size)
        else:
            found = self.model.encode_image(picture.inputs)
        return found


@contextmanager
def _entering(decoder: nn.Module, unused: Tensor | None) -> Iterator[None]:
    """Inside, nothing of `unused` is added to what enters the decoder, and gradients flow back.

    Processes exchange gradients in the order in which they arise, which must be the same on all:
    from the decoder's first layer on to the projector, even where nothing comes from there.
    """
    if unused is None:
        yield
        return
    nothing = 0 * unused.float().sum()

    def enter(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        embeddings, *rest = arguments
        return embeddings + nothing.to(embeddings.dtype), *rest

    handle = decoder.register_forward_pre_hook(enter)
    try:
        yield
    finally:
        handle.remove()


class InstructTrainee:
    """Gradients of answers. network: an `AnswerNetwork`, spread over the world."""

    def __init__(
        self, network: Any, world: World, *, micro_size: int = 0, idle: Loaded | None = None
    ) -> None:
        """idle: see `AnswerNetwork.forward`; needed only in a world of several processes."""
        self.network = network
        self._world = world
        self._micro_size = micro_size
        self._idle = idle.to(world.device) if idle is not None and world.group else None

    def backward(
        self, batch: ConversationBatch, *, share: float, exchange: bool
    ) -> dict[str, float]:
        """See `loop.Trainee`. The loss is the mean over the answer tokens of all processes."""
        parts = batch.parts(self._micro_size)
        tokens, most = self._agreed(batch.answer_tokens, len(parts))
        # Gradients are averaged over processes, so each counts its own as often as there are.
        weight = share * self._world.size / tokens
        total = torch.zeros((), device=self._world.device)
        for number in range(most):
            # FSDP wants every process to call the network equally often.
            part = on(parts[min(number, len(parts) - 1)], self._world.device)
            own = 1.0 if number < len(parts) else 0.0
            with exchanging(self.network, exchange and number == most - 1):
                loss = self.network(part, self._idle)
                if loss.requires_grad:  # not if the projector alone learns, and there is no picture
                    (loss * (weight * own)).backward()
            total += loss.detach() * own
        loss_sum = summed(self._world, total)
        return {
            "loss": loss_sum / tokens,
            "answer_tokens": float(tokens),
            "padding": batch.padding,
        }

    def updated(self) -> None:
        """Nothing is to be done."""

    def _agreed(self, tokens: int, parts: int) -> tuple[int, int]:
        """Answer tokens of all processes, and the largest number of parts."""
        if self._world.group is None:
            return tokens, parts
        everyone = self._world.gather((tokens, parts))
        return sum(each for each, _ in everyone), max(each for _, each in everyone)

    @property
    def model(self) -> Any:
        """The vision-language model itself."""
        return bare(self.network).model


def on(batch: ConversationBatch, device: torch.device) -> ConversationBatch:
    """The same batch on another device."""
    return replace(
        batch,
        ids=batch.ids.to(device),
        learned=batch.learned.to(device),
        segments=None if batch.segments is None else batch.segments.to(device),
        pictures=tuple(each.to(device) for each in batch.pictures),
    )


def summed(world: World, value: Tensor) -> float:
    """A number's sum over all processes."""
    if world.group is not None:
        value = value.clone()
        dist.all_reduce(value, group=world.group)
    return float(value)


def unreached(model: Any, picture: Loaded) -> list[str]:
    """Parameters that would learn and that no picture's features depend on.

    A tower is read before its last block, as a rule; what lies behind must not wait for gradients.
    """
    learning = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and part_of(name) == "image_tower"
    }
    if not learning:
        return []
    features = model.encode_image(picture.inputs)
    found = torch.autograd.grad(features.float().sum(), list(learning.values()), allow_unused=True)
    return [name for name, gradient in zip(learning, found, strict=True) if gradient is None]
