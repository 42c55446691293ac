"""The loss of held-out answers, on the way and at the end."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from chiasm.errors import UnusableData
from chiasm.training.answer_network import on, summed
from chiasm.training.answers import ConversationEncoder
from chiasm.training.conversation_loader import Load, conversations_in_order
from chiasm.training.distributed import World, bare
from chiasm.training.instruct_recipe import InstructMeasureRecipe
from chiasm.training.packing import ConversationBatch

Measure = Callable[[Any], dict[str, float]]
"""Figures of a vision-language model, by name; for measures that let it answer."""


class MeasuringAnswers:
    """Call it to measure the network as it is. False where nothing is to be measured."""

    def __init__(
        self,
        recipe: InstructMeasureRecipe,
        network: Any,
        encode: ConversationEncoder,
        load: Load,
        *,
        rows: int,
        pad_id: int,
        world: World,
        more: Measure | None = None,
    ) -> None:
        """network: an `AnswerNetwork`, spread over the world.

        more: measures the model itself; called on every process, with the same model on each
        unless its weights are split, and only the first one's figures count.
        """
        self._recipe = recipe
        self._network = network
        self._encode, self._load = encode, load
        self._rows, self._pad_id = rows, pad_id
        self._world = world
        self._more = more

    def __bool__(self) -> bool:
        return bool(self._recipe.answers or self._more)

    def __call__(self) -> dict[str, float]:
        """Figures by name; the same on every rank."""
        # The generator is left as it was found: measuring must not change the run.
        before = torch.get_rng_state()
        self._network.eval()
        figures: dict[str, float] = {}
        with torch.no_grad():
            if self._recipe.answers:
                figures |= self._answers()
            if self._more:
                figures |= self._world.told(self._more(bare(self._network).model))
        self._network.train()
        torch.set_rng_state(before)
        return figures

    def _answers(self) -> dict[str, float]:
        """The processes measure in step, each its own share."""
        recipe, world = self._recipe.answers, self._world
        assert recipe is not None
        stream = conversations_in_order(
            recipe.data,
            self._encode,
            self._load,
            rows=self._rows,
            pad_id=self._pad_id,
            limit=recipe.limit,
            rank=world.rank,
            world_size=world.size,
        )
        loss = torch.zeros((), device=world.device)
        tokens = torch.zeros((), device=world.device)
        last: ConversationBatch | None = None
        while True:
            batch = next(stream, None)
            if not any(world.gather(batch is not None)):
                break
            last = batch if batch is not None else last
            if last is None:
                raise UnusableData(
                    f"{recipe.data.source} has fewer conversations than there are processes.",
                    param="measure.answers",
                )
            found = self._network(on(last, world.device))
            if batch is not None:
                loss += found
                tokens += batch.answer_tokens
        count = summed(world, tokens)
        if not count:
            raise UnusableData(
                f"There is nothing to measure with in {recipe.data.source}.",
                param="measure.answers",
            )
        mean = summed(world, loss) / count
        return {"answer_loss": mean, "answer_perplexity": math.exp(min(mean, 80.0))}
