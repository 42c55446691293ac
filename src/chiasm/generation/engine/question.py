"""A request as the engine works on it: read, its pictures ready for the network and let go."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from torch import Tensor

from chiasm.errors import TimedOut
from chiasm.generation.engine.constraint import Constraint, Grammars
from chiasm.generation.engine.ledger import Ledger
from chiasm.generation.engine.prompt import Unit, prompt_of
from chiasm.generation.request import Event, Request
from chiasm.models.generator import GeneratorCheckpoint
from chiasm.models.vision_language import ImageInputs

Said = Event | BaseException | None
"""What an engine says of a question: an event, the error it ended with, or None at its end."""


@dataclass(frozen=True)
class PictureInputs:
    """One picture of a question. at: positions of its image tokens. inputs: its pixels as the
    network wants them, often a hundredth of the picture's own. features: instead of them, if the
    picture was encoded before.
    """

    digest: str
    at: tuple[int, ...]
    inputs: ImageInputs | None = None
    features: Tensor | None = None


@dataclass(eq=False)
class Question:
    """What is asked, and of what it is made."""

    request: Request
    ids: list[int]
    units: list[Unit]
    pictures: list[PictureInputs]
    constraints: list[Constraint | None]
    longest: int
    ledger: Ledger
    say: Callable[[Said], None]
    cancelled: threading.Event = field(default_factory=threading.Event)
    open_answers: int = 0

    @property
    def late(self) -> bool:
        """Whether its deadline has passed."""
        deadline = self.request.deadline
        return deadline is not None and time.perf_counter() > self.ledger.arrived + deadline

    def too_late(self) -> TimedOut:
        """The error to end it with then."""
        return TimedOut("The request's deadline has passed before its answer was there.")


def read_question(
    request: Request,
    checkpoint: GeneratorCheckpoint,
    grammars: Grammars,
    *,
    arrived: float,
    say: Callable[[Said], None],
    context: int,
    known: Callable[[str, str], Tensor | None],
) -> Question:
    """Read a request. context: tokens that prompt and answer may have together. known: gives the
    features of a tenant's picture by its digest, if there are any.

    Takes milliseconds, and more with large pictures; may run beside others.
    Raises what `prompt_of` and `Grammars.constraint` raise.
    """
    ledger = Ledger(arrived)
    with ledger.stage("prepare"):
        prompt, longest = prompt_of(request, checkpoint, context=context)
        ledger.read(prompt)
        pictures = []
        for picture in prompt.pictures:
            assert checkpoint.images is not None
            digest = picture.image.digest
            features = known(request.tenant, digest)
            inputs = checkpoint.images.prepare(picture.image) if features is None else None
            pictures.append(PictureInputs(digest, picture.at, inputs, features))
        constraints = grammars.constraints(request)
    # Of the request nothing that holds pictures is kept.
    lean = replace(request, messages=())
    return Question(
        lean, list(prompt.ids), prompt.units(), pictures, constraints, longest, ledger, say,
        open_answers=request.choices,
    )  # fmt: skip
