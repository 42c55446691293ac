"""What a request has spent so far."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from chiasm.generation.engine.prompt import Prompt
from chiasm.generation.request import Usage


@dataclass
class Ledger:
    """Filled while the request is answered. arrived: `time.perf_counter` when it came."""

    arrived: float
    text_tokens: int = 0
    image_tokens: int = 0
    images: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    vision_flops: int = 0
    language_flops: int = 0
    cached: int = 0
    answer_tokens: int = 0

    def add(self, stage: str, seconds: float) -> None:
        """So much more time in a stage."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """The time that the block takes goes to a stage."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - begun)

    def count_token(self) -> None:
        """One more token of an answer is there."""
        self.answer_tokens += 1
        self.seconds.setdefault("first_token", time.perf_counter() - self.arrived)

    def read(self, prompt: Prompt) -> None:
        """The prompt is known."""
        self.text_tokens, self.image_tokens = prompt.text_tokens, prompt.image_tokens
        self.images = len(prompt.pictures)

    def usage(self) -> Usage:
        """The account of a request that is done."""
        return Usage(
            text_tokens=self.text_tokens,
            image_tokens=self.image_tokens,
            cached_tokens=self.cached,
            answer_tokens=self.answer_tokens,
            images=self.images,
            vision_flops=self.vision_flops,
            language_flops=self.language_flops,
            seconds=dict(self.seconds),
        )
