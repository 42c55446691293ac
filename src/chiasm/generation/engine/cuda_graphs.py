"""A step of all texts that decode as one CUDA graph, recorded for each of its shapes.

Such a step is hundreds of small kernels, and to launch them one by one takes longer than most of
them run. A graph is launched at once; what it reads and writes has to lie where it lay when it was
recorded. (CUDA C++ Programming Guide, "CUDA Graphs".)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, Self

import numpy.typing as npt
import torch
from torch import Tensor

from chiasm.generation.engine.paged import SEGMENT_TOKENS, Step, laid_out

MOST_SEGMENTS = 512
"""Beyond it attention alone takes longer than all launches."""

log = logging.getLogger("chiasm.generation")

Read = Callable[[Step], Tensor]
Work = Callable[[], object]


class Recorder:
    """Records work that is launched on one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def __call__(self, work: Work) -> Work:
        """Do the work, and what launches it again."""
        here = torch.cuda.current_stream(self.device)
        # Twice before, aside: at a first call libraries set themselves up, which cannot be
        # recorded.
        aside = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            work()
            work()
        here.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Of this thread's calls alone: others may be using the device for something else.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            work()
        return graph.replay


def shapes(texts: int, context: int) -> Iterator[tuple[int, int]]:
    """Texts and segments of all steps that `shape_of` may give, the largest first.

    texts: at once, at most. context: tokens of one.
    """
    most, each = 1 << (texts - 1).bit_length(), -(-context // SEGMENT_TOKENS)
    while most:
        segments = most << (each - 1).bit_length()
        while segments >= most:
            if segments <= MOST_SEGMENTS:
                yield most, segments
            segments //= 2
        most //= 2


class StepGraphs:
    """Graphs by their shape. They share what memory they work in, so one runs at a time."""

    def __init__(self, read: Read, *, size: int, device: torch.device) -> None:
        """read: see `captured`. size: numbers of the largest step."""
        self._read = read
        self._sent = torch.zeros(size, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._numbers = torch.zeros(size, dtype=torch.int64, device=device)
        self._logits: Tensor | None = None
        self._launches: dict[tuple[int, int], Work] = {}

    @classmethod
    def captured(
        cls, read: Read, spare: int, *, texts: int, context: int, recorder: Recorder
    ) -> Self | None:
        """Graphs of every shape; None, and a warning, where that fails.

        read: a step of tensors → logits [its texts, vocabulary]. spare: block that may be written.
        texts, context: see `shapes`.
        """
        every = list(shapes(texts, context))
        size = max(Step.size(*shape) for shape in every)
        graphs = cls(read, size=size, device=recorder.device)
        try:
            for shape in every:
                graphs._capture(*shape, spare, recorder)
        except RuntimeError:
            log.warning("CUDA graphs failed; going on without them", exc_info=True)
            return None
        return graphs

    def _capture(self, texts: int, segments: int, spare: int, recorder: Recorder) -> None:
        self._send(laid_out([], texts, segments, spare))
        step = Step.over(self._numbers, texts, segments)

        def work() -> None:
            logits = self._read(step)
            if self._logits is None:  # before anything is recorded; the largest step comes first
                self._logits = torch.empty_like(logits)
            self._logits[:texts].copy_(logits)

        self._launches[texts, segments] = recorder(work)

    def run(self, flat: npt.NDArray[Any], texts: int, segments: int) -> Tensor | None:
        """Logits after a step, to be used before the next; None if its shape was not recorded.

        flat: of `laid_out`.
        """
        launch = self._launches.get((texts, segments))
        if launch is None or self._logits is None:
            return None
        self._send(flat)
        launch()
        return self._logits[:texts]

    def _send(self, flat: npt.NDArray[Any]) -> None:
        # Whoever ran before has waited for its logits, so what was sent has been read.
        sent = self._sent[: len(flat)]
        sent.copy_(torch.from_numpy(flat))
        self._numbers[: len(flat)].copy_(sent, non_blocking=True)
