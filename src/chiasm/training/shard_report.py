"""What a build of shards is asked for, and what it says at its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

_MOST_FAILURES = 100


@dataclass(frozen=True, kw_only=True)
class ShardRecipe:
    """How shards are made.

    samples_per_shard, shard_bytes: a shard is closed at the first of the two; None for no bound
    of bytes. longest_side: pixels; larger pictures are scaled down. quality: of JPEGs. With either
    of these, pictures are written anew, as JPEG without metadata; without, their bytes stay.
    near_duplicates: mark those of an earlier sample in `duplicate_of`, or skip them, or keep them
    without looking. contamination: a folder or table of evaluation pictures; what resembles one
    is marked in `contaminated_by`, or dropped with drop_contaminated.
    """

    samples_per_shard: int = 1000
    shard_bytes: int | None = None
    longest_side: int | None = None
    quality: int | None = None
    near_duplicates: Literal["mark", "skip", "keep"] = "mark"
    contamination: str | None = None
    drop_contaminated: bool = False


@dataclass
class ShardReport:
    """What became of the source's samples.

    samples: written. near_duplicates, contaminated: how many were marked, or left out. skipped: by
    reason. failures: (sample, reason) of the first hundred.
    """

    samples: int = 0
    shards: int = 0
    bytes: int = 0
    near_duplicates: int = 0
    contaminated: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, str]] = field(default_factory=list)
    kept_shards: int = 0
    interrupted: bool = False
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        failures = [{"sample": name, "reason": reason} for name, reason in self.failures]
        return {**asdict(self), "skipped": dict(self.skipped), "failures": failures}

    def state(self) -> dict[str, Any]:
        """What is the same however often the build was interrupted; for JSON."""
        state = self.as_dict()
        for name in ("kept_shards", "interrupted", "seconds"):
            del state[name]
        return state

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> ShardReport:
        """What `state` gave."""
        failures = [(each["sample"], each["reason"]) for each in state["failures"]]
        return cls(**{**state, "skipped": Counter(state["skipped"]), "failures": failures})

    def reasons(self) -> str:
        """Why samples were skipped, as part of a sentence."""
        parts = [f"{count:,} {reason}" for reason, count in self.skipped.most_common()]
        return ", ".join(parts)

    def skip(self, name: str, reason: str, count: int = 1) -> None:
        """A sample that is in no shard."""
        self.skipped[reason] += count
        if len(self.failures) < _MOST_FAILURES:
            self.failures.append((name, reason))
