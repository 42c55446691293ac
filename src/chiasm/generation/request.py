"""What is asked of a generator, and what it says while it answers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Literal, Protocol, runtime_checkable

from chiasm.errors import InvalidRequest, Unsupported
from chiasm.generation.messages import Message

MOST_CHOICES = 16
MOST_LOGPROBS = 20  # as OpenAI's own limit
MOST_STOPS = 16


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen. None leaves it to the model; one that runs here takes the likeliest.

    temperature: 0 takes the likeliest. top_p: among the fewest tokens that hold this share of the
    probability (Holtzman et al. 2020, arXiv:1904.09751). top_k: among so many; 0 means all.
    seed: the same seed, the same answer; None draws a new one. frequency_penalty,
    presence_penalty: as OpenAI has them; 0 is none.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int = 0
    seed: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0

    def __post_init__(self) -> None:
        if self.temperature is not None and not 0 <= self.temperature <= 2:
            _refuse("temperature", self.temperature, "between 0 and 2")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            _refuse("top_p", self.top_p, "above 0 and at most 1")
        if self.top_k < 0:
            _refuse("top_k", self.top_k, "0 or more")
        for name in ("frequency_penalty", "presence_penalty"):
            if not -2 <= getattr(self, name) <= 2:
                _refuse(name, getattr(self, name), "between -2 and 2")


@dataclass(frozen=True)
class Tool:
    """A function that the model may ask for. parameters: a JSON schema of its arguments."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object"})
    strict: bool = False


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


@dataclass(frozen=True)
class Request:
    """A question to a generator.

    max_tokens: of each answer; None leaves it to the generator.
    stop: texts that end an answer; they do not appear in it.
    choices: how many answers.
    logprobs: with each token its log-probability and so many of the likeliest; None: neither.
    schema: a JSON schema that the answer must follow; None: free text. schema_name, schema_strict:
        what vendors want to know of it; {"type": "object"} means any object, as `json_object` does.
    tools: functions that the model may ask for. tool_choice: whether it may (`auto`), must not
        (`none`) or must (`required`) ask for one; another word is the name of the one that it must.
    parallel_tool_calls: whether it may ask for several at once; None leaves it to the model.
    effort: how long it may think before it answers; None leaves it to the model.
    max_image_tokens: what all pictures may take together; they are scaled down to it.
    max_cost: what prompt and answer may cost, in USD, by list prices; pictures are scaled down to
        it, and a request that costs more all the same is refused.
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
    schema_name: str = "answer"
    schema_strict: bool = True
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"
    parallel_tool_calls: bool | None = None
    effort: Effort | None = None
    max_image_tokens: int | None = None
    max_cost: float | None = None
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
        if self.max_image_tokens is not None and self.max_image_tokens < 1:
            _refuse("max_image_tokens", self.max_image_tokens, "1 or more")
        if self.max_cost is not None and not self.max_cost > 0:
            _refuse("max_cost", self.max_cost, "more than 0")
        if self.deadline is not None and not self.deadline > 0:
            _refuse("deadline", self.deadline, "more than 0")
        if len(self.stop) > MOST_STOPS or not all(self.stop):
            raise InvalidRequest(
                f"`stop` takes up to {MOST_STOPS} texts, none empty.", param="stop"
            )


Ability = Literal[
    "choices", "effort", "logprobs", "penalties", "schema", "seed", "stop", "temperature", "tools",
    "top_k", "top_p",
]  # fmt: skip


def check_abilities(request: Request, able: frozenset[Ability], model: str) -> None:
    """Raise Unsupported for the first thing asked for that a model cannot do.

    What would change the answer is refused, never dropped in silence.
    """
    sampling = request.sampling
    wanted: tuple[tuple[Ability, bool, str], ...] = (
        ("choices", request.choices > 1, "n"),
        # A model that does not think need not be told to leave it.
        ("effort", request.effort not in (None, "none"), "reasoning_effort"),
        ("logprobs", request.logprobs is not None, "logprobs"),
        ("penalties", bool(sampling.frequency_penalty), "frequency_penalty"),
        ("penalties", bool(sampling.presence_penalty), "presence_penalty"),
        ("schema", request.schema is not None, "response_format"),
        ("seed", sampling.seed is not None, "seed"),
        ("stop", bool(request.stop), "stop"),
        ("temperature", sampling.temperature is not None, "temperature"),
        ("tools", bool(request.tools), "tools"),
        ("top_k", sampling.top_k > 0, "top_k"),
        ("top_p", sampling.top_p is not None, "top_p"),
    )
    for ability, asked, param in wanted:
        if asked and ability not in able:
            raise Unsupported(
                f"`{param}` is not supported by {model}.", hint="Leave it out.", param=param
            )


def after_waiting(request: Request, seconds: float) -> Request:
    """With what is left of its deadline; never nothing, for whoever answers to end the request."""
    if request.deadline is None:
        return request
    return replace(request, deadline=max(request.deadline - seconds, 1e-3))


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
class RefusalDelta:
    """The next words in which a model says that it will not answer; they are no answer."""

    choice: int
    text: str


@dataclass(frozen=True)
class ToolCallDelta:
    """The next piece of a wish for a tool.

    number: which call of this answer, from 0. id, name: in its first piece, empty afterwards.
    arguments: the next characters of its JSON.
    """

    choice: int
    number: int
    id: str = ""
    name: str = ""
    arguments: str = ""


Reason = Literal["stop", "length", "tool_calls", "content_filter"]


@dataclass(frozen=True)
class Finished:
    """An answer is at its end.

    It stopped of itself or at a stop text, grew too long, waits for the results of tools, or was
    broken off by its vendor's filter. stop: the stop text, where there was one and it is known.
    """

    choice: int
    reason: Reason
    stop: str | None = None


@dataclass(frozen=True)
class Usage:
    """What a request has spent of the three budgets, and of time.

    text_tokens, image_tokens: of the prompt; together they are the context it took.
    estimated: the share of the pictures in it is by rule: whoever answered gave the sum alone.
    cached_tokens: of those, the ones that need not be read again. written_tokens: those that a
        vendor kept for the next request, and charges for.
    answer_tokens: generated, over all choices. thought_tokens: of those, the ones that were spent
        on thinking and are not shown.
    vision_flops, language_flops: multiplications and additions, of what was computed in fact; both
        0 where nobody knows, of a model that is run elsewhere.
    cost: in USD, by list prices; None where nobody knows them.
    seconds: by stage: `queue`, `prepare`, `encode`, `prefill`, `decode`; `first_token` is the time
        from the request's arrival to its first token.
    """

    text_tokens: int
    image_tokens: int
    cached_tokens: int = 0
    written_tokens: int = 0
    answer_tokens: int = 0
    thought_tokens: int = 0
    estimated: bool = False
    images: int = 0
    vision_flops: int = 0
    language_flops: int = 0
    cost: Decimal | None = None
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
class Restarted:
    """What was said before is void: another model begins anew, as the caller has allowed."""


@dataclass(frozen=True)
class Completed:
    """The last event."""

    usage: Usage


Event = TextDelta | RefusalDelta | ToolCallDelta | Finished | Restarted | Completed


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


@runtime_checkable
class Counting(Generator, Protocol):
    """A generator that knows how many tokens a prompt has before it reads it."""

    def count_tokens(self, request: Request) -> int:
        """Text and pictures together; these need not be decoded. Raises InvalidRequest."""
        ...
