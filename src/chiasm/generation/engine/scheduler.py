"""Who is served in the next pass: texts, and how many tokens of each.

Texts that decode come first, a token each, so that answers flow. What a pass has room for beside
them is shared evenly among the texts that are still being read: one with forty pictures takes as
long as it takes, and a short question beside it no longer than it would beside any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from chiasm.generation.engine.answer import Answer
from chiasm.generation.engine.blocks import BLOCK_TOKENS
from chiasm.generation.engine.prompt import Unit
from chiasm.generation.engine.question import PictureInputs, Question


@dataclass(eq=False)
class Text:
    """A prompt and what has been answered so far.

    units, ids: all tokens, read or not; see `Prompt.units`. computed: how many have been read.
    answers: what goes on from here: all of a request's until its prompt has been read, one then.
    blocks, keys: the memory of what has been read, and the keys of the blocks that are full.
    features: of pictures that have been encoded and not yet been read, by their number.
    encoded: how many pictures the engine has had to encode for it.
    """

    question: Question
    arrival: int
    units: list[Unit]
    ids: list[int]
    answers: list[Answer]
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    features: dict[int, Tensor] = field(default_factory=dict)
    encoded: int = 0

    def recall_pictures(self) -> None:
        """Have only the features that were known when the question was read."""
        known = enumerate(self.question.pictures)
        self.features = {n: each.features for n, each in known if each.features is not None}

    @property
    def order(self) -> tuple[int, int]:
        """The smaller, the sooner served and the later put aside."""
        return self.question.request.priority, self.arrival

    @property
    def left(self) -> int:
        """Tokens to read before the next one can be chosen."""
        return len(self.ids) - self.computed

    def unseen(self) -> Iterator[tuple[int, PictureInputs]]:
        """The pictures that have to be encoded, with their numbers."""
        for number, picture in enumerate(self.question.pictures):
            if picture.at[-1] >= self.computed and number not in self.features:
                yield number, picture

    @property
    def missing(self) -> tuple[int, PictureInputs] | None:
        """The next picture that has to be encoded, with its number."""
        return next(self.unseen(), None)

    def give(self, tenant: str, digest: str, features: Tensor) -> None:
        """A picture has been encoded, maybe one of its own."""
        if tenant == self.question.request.tenant:
            for number, picture in list(self.unseen()):
                if picture.digest == digest:
                    self.features[number] = features

    @property
    def blocks_to_come(self) -> int:
        """How many more it needs for what is to be read now."""
        return -(-len(self.ids) // BLOCK_TOKENS) - len(self.blocks)

    @property
    def readable(self) -> int:
        """Tokens that can be read already: those before the next picture that is missing."""
        missing = self.missing
        return self.left if missing is None else max(missing[1].at[0] - self.computed, 0)


def share_out(texts: Sequence[Text], *, rows: int, beside: int) -> dict[Text, int]:
    """How many tokens of each text the next pass reads.

    rows: of a pass at most. beside: of a pass in which somebody decodes.
    """
    decoding = [text for text in texts if text.left == 1 and text.readable]
    decoding = sorted(decoding, key=lambda text: text.order)[:rows]
    shares = dict.fromkeys(decoding, 1)
    room = min(beside, rows) if decoding else rows
    room = min(max(room - len(decoding), 1), rows - len(decoding))  # whoever reads goes on reading
    reading = [text for text in texts if text.left > 1 and text.readable]
    # Where there is not a token for each the first have one; who they are changes as they are read.
    reading = sorted(reading, key=lambda text: text.order)[:room]
    # Those with little to read leave the rest of their share to the others.
    reading.sort(key=lambda text: text.readable)
    for number, text in enumerate(reading):
        shares[text] = min(text.readable, room // (len(reading) - number))
        room -= shares[text]
    return shares


def next_to_encode(texts: Sequence[Text]) -> Text | None:
    """Whose picture is encoded next: of those with the first priority, who has had the fewest."""
    wanting = [text for text in texts if text.missing is not None]
    return min(
        wanting,
        key=lambda text: (text.question.request.priority, text.encoded, text.order),
        default=None,
    )
