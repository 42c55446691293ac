"""A streamed answer of Google's Gemini API as our events."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chiasm.errors import ContentRefused, GeneratorFailed, ProviderKeyRefused
from chiasm.generation.messages import images_of
from chiasm.generation.providers.chat_answer import Timing, count_in
from chiasm.generation.providers.event_stream import no_answer
from chiasm.generation.request import (
    Completed,
    Event,
    Finished,
    Reason,
    Request,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)

_REASONS: Mapping[str, Reason] = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "CONTINUATION": "length",
    "SAFETY": "content_filter",
    "RECITATION": "content_filter",
    "BLOCKLIST": "content_filter",
    "PROHIBITED_CONTENT": "content_filter",
    "SPII": "content_filter",
    "IMAGE_SAFETY": "content_filter",
    "IMAGE_PROHIBITED_CONTENT": "content_filter",
    "IMAGE_RECITATION": "content_filter",
    "ESCALATION": "content_filter",
    "MODEL_ARMOR": "content_filter",
}
_BAD_CALLS = frozenset(("MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "TOO_MANY_TOOL_CALLS"))


@dataclass
class _Candidate:
    """One of the answers, as far as it has come. waiting: tokens whose text has not come yet."""

    calls: int = 0
    finished: bool = False
    waiting: list[TokenLogprob] = field(default_factory=list)


@dataclass
class ContentReader:
    """Takes the objects of one answer, gives events. `whole` once nothing is missing.

    model: what to call it in messages. remember: is told the signature of each call, by the call's
    id. started, prepared: as for `Timing`.
    """

    request: Request
    model: str
    remember: Callable[[str, str], None]
    started: float
    prepared: float = 0.0
    signs: int = 0
    """Of life: grows with every token, those of thoughts too, which are not shown."""
    _candidates: dict[int, _Candidate] = field(default_factory=dict)
    _usage: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._timing = Timing(self.started, self.prepared)

    @property
    def whole(self) -> bool:
        """Whether every answer has come to its end."""
        ended = sum(candidate.finished for candidate in self._candidates.values())
        return ended == self.request.choices

    @property
    def begun(self) -> bool:
        """Whether a token has come."""
        return self._timing.first is not None

    def read(self, said: Mapping[str, Any]) -> Iterator[Event]:
        """The events of one object.

        Raises ContentRefused where the question is not let through, and GeneratorFailed for an
        object of another shape.
        """
        try:
            self._usage = {**self._usage, **(said.get("usageMetadata") or {})}
            if (said.get("promptFeedback") or {}).get("blockReason"):
                raise ContentRefused(
                    f"The provider of {self.model} does not answer this: its rules forbid it.",
                    hint="Ask otherwise, or with other pictures.",
                    param="messages",
                )
            for candidate in said.get("candidates") or ():
                yield from self._candidate(candidate)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise no_answer() from None

    def _candidate(self, said: Mapping[str, Any]) -> Iterator[Event]:
        number = int(said.get("index") or 0)
        known = self._candidates.setdefault(number, _Candidate())
        known.waiting += _tokens(said.get("logprobsResult") or {}, self.request.logprobs)
        for part in (said.get("content") or {}).get("parts") or ():
            self.signs += 1
            if part.get("thought"):
                continue
            if "functionCall" in part:
                self._timing.token()
                yield self._call(number, known, part)
            elif part.get("text"):
                self._timing.token()
                tokens, known.waiting = tuple(known.waiting), []
                yield TextDelta(number, str(part["text"]), tokens)
        reason = said.get("finishReason")
        if reason:
            self._timing.token()
            if known.waiting:
                yield TextDelta(number, "", tuple(known.waiting))
                known.waiting = []
            known.finished = True
            yield Finished(number, self._ended(str(reason), known))

    def _call(self, number: int, known: _Candidate, part: Mapping[str, Any]) -> ToolCallDelta:
        call = part["functionCall"]
        # Models before Gemini 3 give none.
        id = str(call.get("id") or f"call_{secrets.token_hex(12)}")
        if part.get("thoughtSignature"):
            self.remember(id, str(part["thoughtSignature"]))
        arguments = json.dumps(call.get("args") or {}, ensure_ascii=False)
        known.calls += 1
        return ToolCallDelta(number, known.calls - 1, id, str(call["name"]), arguments)

    def _ended(self, reason: str, known: _Candidate) -> Reason:
        if reason in _REASONS:
            ended = _REASONS[reason]
            return "tool_calls" if known.calls and ended == "stop" else ended
        if reason == "PUP_LIMITED_DISABLED":
            raise ProviderKeyRefused(
                f"The provider of {self.model} has closed this server's account.",
                hint="Its operator must ask there why.",
            )
        if reason in _BAD_CALLS:
            raise GeneratorFailed(f"{self.model} called a tool in a way that cannot be read.")
        raise GeneratorFailed(f"The provider of {self.model} gave the answer up.")

    def completed(self) -> Completed:
        """The last event, after the last object."""
        usage, images = self._usage, len(images_of(self.request.messages))
        prompt = count_in(usage, "promptTokenCount") + count_in(usage, "toolUsePromptTokenCount")
        details = [
            *(usage.get("promptTokensDetails") or ()),
            *(usage.get("toolUsePromptTokensDetails") or ()),
        ]
        pictures = sum(count_in(d, "tokenCount") for d in details if d.get("modality") == "IMAGE")
        thoughts = count_in(usage, "thoughtsTokenCount")
        return Completed(
            Usage(
                text_tokens=prompt - min(pictures, prompt),
                image_tokens=min(pictures, prompt),
                cached_tokens=count_in(usage, "cachedContentTokenCount"),
                answer_tokens=count_in(usage, "candidatesTokenCount") + thoughts,
                thought_tokens=thoughts,
                estimated=not usage or (images > 0 and not pictures),
                images=images,
                seconds=self._timing.seconds,
            )
        )


def _tokens(result: Mapping[str, Any], top: int | None) -> list[TokenLogprob]:
    """top: how many of the likeliest were asked for; None: no tokens were."""
    if top is None:
        return []
    likeliest: Sequence[Mapping[str, Any]] = result.get("topCandidates") or ()
    tokens = []
    for place, chosen in enumerate(result.get("chosenCandidates") or ()):
        beside = likeliest[place].get("candidates") or () if place < len(likeliest) else ()
        tokens.append(_token(chosen, tuple(_token(each) for each in beside[:top])))
    return tokens


def _token(said: Mapping[str, Any], top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
    text = str(said.get("token") or "")
    # A certain token's logarithm is 0, which is left out as every 0 is.
    return TokenLogprob(text, text.encode(), float(said.get("logProbability") or 0.0), top)
