"""What is asked of a generator, and what it says while it answers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from chiasm.errors import InvalidRequest
from chiasm.generation.messages import Message

MOST_CHOICES = 16
MOST_LOGPROBS = 20  # as OpenAI's own limit
MOST_STOPS = 16


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen.

    temperature: 0 takes the likeliest. top_p: among the fewest tokens that hold this share of the
    probability (Holtzman et al. 2020, arXiv:1904.09751). top_k: among so many; 0 means all.
    seed: the same seed, the same answer; None draws a new one.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 2:
            _refuse("temperature", self.temperature, "between 0 and 2")
        if not 0 < self.top_p <= 1:
            _refuse("top_p", self.top_p, "above 0 and at most 1")
        if self.top_k < 0:
            _refuse("top_k", self.top_k, "0 or more")


@dataclass(frozen=True)
class Request:
    """A question to a generator.

    max_tokens: of each answer; None leaves it to the generator.
    stop: texts that end an answer; they do not appear in it.
    choices: how many answers.
    logprobs: with each token its log-probability and so many of the likeliest; None: neither.
    schema: a JSON schema that the answer must follow; None: free text.
    priority: who is served first where not all can be; smaller is sooner, as in vLLM.
    deadline: seconds after which the answer is of no use and the request ends with TimedOut.
    tenant: whose request it is. Caches of prompts and pictures are shared within a tenant alone.
    """

    messages: tuple[Message, ...]
    max_tokens: int | None = None
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    choices: int = 1
    logprobs: int | None = None
    schema: Mapping[str, Any] | None = None
    priority: int = 0
    deadline: float | None = None
    tenant: str = ""

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            _refuse("max_tokens", self.max_tokens, "1 or more")
        if not 1 <= self.choices <= MOST_CHOICES:
            _refuse("n", self.choices, f"between 1 and {MOST_CHOICES}")
        if self.logprobs is not None and not 0 <= self.logprobs <= MOST_LOGPROBS:
            _refuse("top_logprobs", self.logprobs, f"between 0 and {MOST_LOGPROBS}")
        if self.deadline is not None and not self.deadline > 0:
            _refuse("deadline", self.deadline, "more than 0")
        if len(self.stop) > MOST_STOPS or not all(self.stop):
            raise InvalidRequest(
                f"`stop` takes up to {MOST_STOPS} texts, none empty.", param="stop"
            )


def _refuse(name: str, value: object, allowed: str) -> None:
    raise InvalidRequest(f"`{name}` is {value}; it must be {allowed}.", param=name)


# The answer -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenLogprob:
    """A token, its bytes, and the logarithm of the probability that the model gave it.

    top: the likeliest tokens in its place, with theirs.
    """

    token: str
    bytes: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class TextDelta:
    """The next words of one answer. tokens: only where log-probabilities were asked for."""

    choice: int
    text: str
    tokens: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Finished:
    """An answer is at its end: it stopped of itself or at a stop text, or grew too long."""

    choice: int
    reason: Literal["stop", "length"]


@dataclass(frozen=True)
class Usage:
    """What a request has spent of the three budgets, and of time.

    text_tokens, image_tokens: of the prompt; together they are the context it took.
    cached_tokens: of those, the ones that need not be read again.
    answer_tokens: generated, over all choices.
    vision_flops, language_flops: multiplications and additions, of what was computed in fact; both
        0 where nobody knows, of a model that is run elsewhere.
    seconds: by stage: `queue`, `prepare`, `encode`, `prefill`, `decode`; `first_token` is the time
        from the request's arrival to its first token.
    """

    text_tokens: int
    image_tokens: int
    cached_tokens: int = 0
    answer_tokens: int = 0
    images: int = 0
    vision_flops: int = 0
    language_flops: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def prompt_tokens(self) -> int:
        """Text and pictures together."""
        return self.text_tokens + self.image_tokens

    @property
    def tokens_per_second(self) -> float:
        """Of the answer, after its first token; 0 where there are fewer than two."""
        seconds = self.seconds.get("decode", 0.0)
        return (self.answer_tokens - 1) / seconds if self.answer_tokens > 1 and seconds else 0.0


@dataclass(frozen=True)
class Completed:
    """The last event."""

    usage: Usage


Event = TextDelta | Finished | Completed


class Generator(Protocol):
    """A model that answers, here or elsewhere. Safe to use from several threads and tasks.

    digest: tells it from others, as 64 hexadecimal digits. context: tokens that prompt and answer
    may have together. sees: it reads pictures. places: questions that are worth asking at once.
    """

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str: ...

    @property
    def context(self) -> int: ...

    @property
    def sees(self) -> bool: ...

    @property
    def places(self) -> int: ...

    def stream(self, request: Request) -> AsyncGenerator[Event]:
        """Answer; the last event is `Completed`. Closing the iterator stops the work.

        Raises InvalidRequest before the first event when the request cannot be answered.
        """
        ...

    def run(self, request: Request) -> Iterator[Event]:
        """The same without an event loop; blocks between events."""
        ...

    def close(self) -> None:
        """Let go of everything and refuse what comes."""
        ...


@runtime_checkable
class Remote(Generator, Protocol):
    """A generator whose model is run elsewhere, and so can be away for a while."""

    def check(self) -> None:
        """Raise GeneratorUnreachable while nobody is there to ask."""
        ...
