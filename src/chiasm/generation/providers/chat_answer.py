"""An answer of OpenAI's chat API, streamed or in one piece, as our events."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from chiasm.errors import GeneratorFailed
from chiasm.generation.messages import images_of
from chiasm.generation.providers.event_stream import no_answer
from chiasm.generation.request import (
    Completed,
    Event,
    Finished,
    Reason,
    RefusalDelta,
    Request,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)

REASONS: Mapping[str, Reason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "content_filter": "content_filter",
    "eos_token": "stop",  # these two: Text Generation Inference
    "stop_sequence": "stop",
    "model_length": "length",  # Mistral
}


@dataclass
class Timing:
    """When an answer's tokens came, by `time.perf_counter`.

    started: when the request came. prepared: seconds until it was sent.
    """

    started: float
    prepared: float = 0.0
    first: float | None = None
    last: float = 0.0

    def token(self) -> None:
        """One has come."""
        self.last = time.perf_counter()
        if self.first is None:
            self.first = self.last

    @property
    def seconds(self) -> dict[str, float]:
        """By stage, as `Usage.seconds` has them."""
        first = self.first or time.perf_counter()
        return {
            "prepare": self.prepared,
            "first_token": first - self.started,
            "decode": max(0.0, self.last - first),
        }


@dataclass
class _Choice:
    """One of the answers, as far as it has come.

    waiting: tokens whose text has not come yet. calls: the number of each call of a tool, by the
    server's index and the call's id.
    """

    waiting: list[TokenLogprob] = field(default_factory=list)
    calls: list[tuple[int, str]] = field(default_factory=list)
    finished: bool = False


@dataclass
class AnswerReader:
    """Takes the objects of one answer, gives events. `whole` once nothing is missing.

    started, prepared: as for `Timing`. image_tokens: of all its pictures, where the server does
    not say; None: nobody knows.
    """

    request: Request
    started: float
    prepared: float = 0.0
    image_tokens: int | None = None
    signs: int = 0
    """Of life: grows with every token, those of thoughts too, which are not shown."""
    _choices: dict[int, _Choice] = field(default_factory=dict)
    _usage: Mapping[str, Any] = field(default_factory=dict)
    _pieces: int = 0

    def __post_init__(self) -> None:
        self._timing = Timing(self.started, self.prepared)

    @property
    def whole(self) -> bool:
        """Whether every choice has come to its end."""
        ended = sum(choice.finished for choice in self._choices.values())
        return ended == self.request.choices

    @property
    def begun(self) -> bool:
        """Whether a token has come."""
        return self._timing.first is not None

    def read(self, chunk: Mapping[str, Any]) -> Iterator[Event]:
        """The events of one object. Raises GeneratorFailed for one of another shape."""
        try:
            self._usage = dict(chunk.get("usage") or self._usage)
            for choice in chunk.get("choices") or ():
                yield from self._choice(choice)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise no_answer() from None

    def _choice(self, choice: Mapping[str, Any]) -> Iterator[Event]:
        number = int(choice["index"])
        known = self._choices.setdefault(number, _Choice())
        # An answer in one piece has a `message` where a streamed one has a `delta`.
        delta = choice.get("delta") or choice.get("message") or {}
        text, refusal = _text(delta.get("content")), str(delta.get("refusal") or "")
        calls = delta.get("tool_calls") or ()
        logprobs = choice.get("logprobs") or {}
        entries = logprobs.get("content") or logprobs.get("refusal") or ()
        known.waiting += [read_logprob(entry) for entry in entries]
        reason = choice.get("finish_reason")
        if text or refusal or calls or reason or entries:
            self.signs += 1
            self._timing.token()
        elif delta.get("reasoning_content") or delta.get("reasoning"):
            self.signs += 1
        self._pieces += bool(text or refusal or calls)
        if refusal:
            known.waiting = []
            yield RefusalDelta(number, refusal)
        for at, call in enumerate(calls):
            yield self._call(number, known, call, at)
        # Half a character has no text yet: its tokens come with the other half.
        if text or (reason and known.waiting):
            tokens, known.waiting = tuple(known.waiting), []
            yield TextDelta(number, text, tokens)
        if reason:
            if reason not in REASONS:
                raise GeneratorFailed("The model's server gave the answer up.")
            known.finished = True
            ended = REASONS[reason]
            # OpenAI's says `stop` for a tool that the caller has asked for by name.
            ended = "tool_calls" if known.calls and ended == "stop" else ended
            # vLLM's word for it, and SGLang's; either may be a token's number.
            stop = choice.get("stop_reason") or choice.get("matched_stop")
            yield Finished(number, ended, stop if isinstance(stop, str) and stop else None)

    def _call(self, choice: int, known: _Choice, call: Mapping[str, Any], at: int) -> ToolCallDelta:
        index, id = int(call.get("index") or at), str(call.get("id") or "")
        function = call.get("function") or {}
        arguments = function.get("arguments") or ""
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments)
        # The newest call of that index, unless this piece names another: some servers count none.
        for number in reversed(range(len(known.calls))):
            if known.calls[number][0] == index and id in ("", known.calls[number][1]):
                return ToolCallDelta(choice, number, arguments=arguments)
        name = str(function.get("name") or "")
        if not name:
            raise KeyError("name")
        id = id or f"call_{secrets.token_hex(12)}"
        known.calls.append((index, id))
        return ToolCallDelta(choice, len(known.calls) - 1, id, name, arguments)

    # The bill --------------------------------------------------------------------------------

    def completed(self) -> Completed:
        """The last event, after the last object."""
        usage = self._usage
        prompt = count_in(usage, "prompt_tokens")
        images = len(images_of(self.request.messages))
        stated = image_tokens_in(usage)
        known = self.image_tokens if stated is None else stated
        image_tokens = min(known or 0, prompt)
        return Completed(
            Usage(
                text_tokens=prompt - image_tokens,
                image_tokens=image_tokens,
                cached_tokens=count_in(usage, "prompt_tokens_details", "cached_tokens"),
                written_tokens=count_in(usage, "prompt_tokens_details", "cache_write_tokens"),
                # A server that gives no bill has sent about a token with each piece.
                answer_tokens=count_in(usage, "completion_tokens") if usage else self._pieces,
                thought_tokens=count_in(usage, "completion_tokens_details", "reasoning_tokens"),
                estimated=not usage or (images > 0 and known is None),
                images=images,
                seconds=self._timing.seconds,
            )
        )

    @property
    def states_image_tokens(self) -> bool:
        """Whether the server has said how many of the tokens are pictures'."""
        return image_tokens_in(self._usage) is not None


def image_tokens_in(usage: Mapping[str, Any]) -> int | None:
    """What a server says of pictures in the prompt; None where it gives but the sum.

    `image_tokens` is OpenAI's, `multimodal_tokens` vLLM's (`--enable-prompt-tokens-details`).
    """
    stated = count_in(usage, "prompt_tokens_details", "image_tokens") or count_in(
        usage, "prompt_tokens_details", "multimodal_tokens", "image"
    )
    return stated or None  # no picture takes no tokens: 0 is a field that was not filled in


def count_in(usage: Mapping[str, Any], *path: str) -> int:
    """A number somewhere in a bill; 0 where it is not."""
    found: Any = usage
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, int) else 0


def read_logprob(entry: Mapping[str, Any]) -> TokenLogprob:
    """A token as OpenAI's APIs write it."""
    top = tuple(read_logprob(each) for each in entry.get("top_logprobs") or ())
    token = str(entry["token"])
    stated = entry.get("bytes")
    spelling = token.encode() if stated is None else bytes(stated)
    return TokenLogprob(token, spelling, float(entry["logprob"]), top)


def _text(content: object) -> str:
    """Mistral's thinking models send their text as parts."""
    if isinstance(content, list):
        return "".join(str(part["text"]) for part in content if part.get("type") == "text")
    return str(content or "")
