"""What could not be read, counted by reason; and when that is too much."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from chiasm.errors import BrokenImage, ImageError, ImageTooLarge, NotAnImage, UnusableData
from chiasm.training.samples import Damage

_log = logging.getLogger("chiasm.training")

_ENOUGH = 1000  # samples; a share of fewer says little


@dataclass
class Tally:
    """seen: samples used or damaged. skipped, left_out: by reason, and by mark."""

    seen: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def damaged(self, damage: Damage) -> None:
        """One more, or as many as a shard lost."""
        if damage.reason not in self.examples:
            self.examples[damage.reason] = damage.name
        self.skipped[damage.reason] += damage.count
        self.seen += damage.count

    def add(self, other: Tally, *, quiet: bool = False) -> None:
        """What another one counted, too; the first of each reason is logged."""
        for reason, name in other.examples.items():
            if reason not in self.examples and not quiet:
                _log.warning("skipped: %s (%s); more of the kind are only counted", reason, name)
        self.examples = {**other.examples, **self.examples}
        self.seen += other.seen
        self.skipped += other.skipped
        self.left_out += other.left_out

    def check(self, most: float, *, at_least: int = _ENOUGH) -> None:
        """Raise UnusableData if more than the share `most` of the samples was damaged."""
        lost = self.skipped.total()
        if self.seen >= at_least and lost > most * self.seen:
            raise UnusableData(
                f"{lost:,} of {self.seen:,} samples could not be read: {self.reasons()}.",
                hint=f"Mend the data, or raise data.max_damaged_share, which is {most:g}.",
                param="data.max_damaged_share",
            )

    def nothing(self, what: str) -> UnusableData:
        """The error for data without a single sample that can be used."""
        return UnusableData(
            f"Not one sample of {what} can be used: {self.reasons() or 'there is none'}.",
            hint="Check data.source, data.columns and data.leave_out; with fewer samples or shards "
            "than processes and workers, use fewer of these.",
            param="data.source",
        )

    def reasons(self) -> str:
        """As part of a sentence, with an example of each reason."""
        parts = []
        for reason, count in self.skipped.most_common():
            example = f" (as in {self.examples[reason]})" if reason in self.examples else ""
            parts.append(f"{count:,} {reason}{example}")
        parts += [f"{count:,} left out as {mark}" for mark, count in self.left_out.items()]
        return ", ".join(parts)

    def state(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "seen": self.seen,
            "skipped": dict(self.skipped),
            "left_out": dict(self.left_out),
            "examples": dict(self.examples),
        }

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Tally:
        """What `state` gave."""
        skipped, left_out = Counter(state["skipped"]), Counter(state["left_out"])
        return cls(state["seen"], skipped, left_out, dict(state["examples"]))


def reason_of(error: ImageError) -> str:
    """The word under which a picture that cannot be opened is counted."""
    if isinstance(error, ImageTooLarge):
        return "too large"
    if isinstance(error, NotAnImage):
        return "not a picture"
    return "broken image" if isinstance(error, BrokenImage) else "picture cannot be opened"
