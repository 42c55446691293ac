"""Answers of a model to many questions, each asked by itself, greedily, through the engine.

Questions about one picture come one after the other, so it is read once for all of them.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from chiasm.generation import Message, NativeGenerator, Request, TextDelta
from chiasm.media import Image
from chiasm.models.generator import GeneratorCheckpoint

_AT_ONCE = 8


def answers(
    found: GeneratorCheckpoint,
    images: Sequence[Image],
    questions: Sequence[str],
    *,
    longest: int = 28,
    precision: str = "float32",
) -> list[str]:
    """images: of each question its picture. precision: of the language model's weights."""
    engine = NativeGenerator(found, precision=precision, running=_AT_ONCE)
    said = [""] * len(questions)
    turn = iter(range(len(questions)))
    lock = threading.Lock()

    def ask() -> None:
        while True:
            with lock:
                at = next(turn, None)
            if at is None:
                return
            request = Request((Message.user(images[at], questions[at]),), max_tokens=longest)
            pieces = (each.text for each in engine.run(request) if isinstance(each, TextDelta))
            said[at] = "".join(pieces).strip()

    threads = [threading.Thread(target=ask) for _ in range(_AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.close()
    return said
