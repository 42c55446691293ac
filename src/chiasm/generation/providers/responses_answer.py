"""An answer of OpenAI's Responses API, streamed or in one piece, as our events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from chiasm.errors import GeneratorFailed
from chiasm.generation.messages import images_of
from chiasm.generation.providers.chat_answer import Timing, count_in, read_logprob
from chiasm.generation.providers.event_stream import no_answer
from chiasm.generation.providers.openai_refusals import refused, status_in
from chiasm.generation.providers.refusals import error_in
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

_INCOMPLETE: Mapping[str, Reason] = {
    "max_output_tokens": "length",
    "max_tokens": "length",
    "content_filter": "content_filter",
}
_THOUGHTS = ("response.reasoning_text.delta", "response.reasoning_summary_text.delta")


@dataclass
class ResponseReader:
    """Takes the objects of one response, gives events. `whole` once it has come to its end.

    model: what to call it in messages. started, prepared: as for `Timing`.
    """

    request: Request
    model: str
    started: float
    prepared: float = 0.0
    signs: int = 0
    """Of life: grows with every token, those of thoughts too, which are not shown."""
    whole: bool = False
    _calls: dict[int, int] = field(default_factory=dict)
    _heard: dict[tuple[int, int], int] = field(default_factory=dict)
    """Letters that have come, of text or arguments, by the places of item and part."""
    _usage: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._timing = Timing(self.started, self.prepared)

    @property
    def begun(self) -> bool:
        """Whether a token has come."""
        return self._timing.first is not None

    def read(self, said: Mapping[str, Any]) -> Iterator[Event]:
        """The events of one object.

        Raises GeneratorFailed for one of another shape, and what an error in it means.
        """
        try:
            yield from self._event(said)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise no_answer() from None

    def _event(self, said: Mapping[str, Any]) -> Iterator[Event]:
        kind = said.get("type")
        if kind == "response.output_text.delta":
            yield from self._text(said)
        elif kind == "response.output_text.done":
            # A server may send a text at once, and then no pieces of it.
            if rest := self._unheard(said, str(said["text"])):
                yield from self._text({**said, "delta": rest})
        elif kind == "response.refusal.delta":
            self._token()
            self._hear(said, str(said["delta"]))
            yield RefusalDelta(0, str(said["delta"]))
        elif kind == "response.refusal.done":
            if rest := self._unheard(said, str(said["refusal"])):
                self._token()
                yield RefusalDelta(0, rest)
        elif kind == "response.output_item.added" and said["item"]["type"] == "function_call":
            yield self._call(int(said["output_index"]), said["item"])
        elif kind == "response.function_call_arguments.delta":
            yield from self._arguments(said, str(said["delta"]))
        elif kind == "response.function_call_arguments.done":
            yield from self._arguments(said, self._unheard(said, str(said["arguments"])))
        elif kind in ("response.completed", "response.incomplete", "response.failed"):
            yield from self._end(said["response"])
        elif kind == "error":
            error = error_in(said)
            raise refused(status_in(error), error, self.model)
        elif kind in _THOUGHTS:
            self.signs += 1
        elif said.get("object") == "response":
            yield from self._in_one_piece(said)

    def _hear(self, said: Mapping[str, Any], piece: str) -> None:
        place = int(said.get("output_index") or 0), int(said.get("content_index") or 0)
        self._heard[place] = self._heard.get(place, 0) + len(piece)

    def _unheard(self, said: Mapping[str, Any], whole: str) -> str:
        """What has not come in pieces."""
        place = int(said.get("output_index") or 0), int(said.get("content_index") or 0)
        return whole[self._heard.get(place, 0) :]

    def _token(self) -> None:
        self.signs += 1
        self._timing.token()

    def _text(self, said: Mapping[str, Any]) -> Iterator[Event]:
        self._token()
        tokens: tuple[TokenLogprob, ...] = ()
        if self.request.logprobs is not None:
            tokens = tuple(read_logprob(entry) for entry in said.get("logprobs") or ())
        if said["delta"] or tokens:
            self._hear(said, str(said["delta"]))
            yield TextDelta(0, str(said["delta"]), tokens)

    def _call(self, at: int, item: Mapping[str, Any]) -> ToolCallDelta:
        self._token()
        number = self._calls[at] = len(self._calls)
        arguments = str(item.get("arguments") or "")
        self._hear({"output_index": at}, arguments)
        return ToolCallDelta(0, number, str(item["call_id"]), str(item["name"]), arguments)

    def _arguments(self, said: Mapping[str, Any], piece: str) -> Iterator[Event]:
        if piece:
            self._token()
            self._hear(said, piece)
            yield ToolCallDelta(0, self._calls[int(said["output_index"])], arguments=piece)

    def _in_one_piece(self, response: Mapping[str, Any]) -> Iterator[Event]:
        for at, item in enumerate(response["output"]):
            if item["type"] == "function_call":
                yield self._call(at, item)
            elif item["type"] == "message":
                for part in item["content"]:
                    self._token()
                    if part["type"] == "refusal":
                        yield RefusalDelta(0, str(part["refusal"]))
                    elif part["type"] == "output_text":
                        yield from self._text({**part, "delta": part["text"]})
        yield from self._end(response)

    def _end(self, response: Mapping[str, Any]) -> Iterator[Event]:
        self._usage = dict(response.get("usage") or {})
        status = response["status"]
        if status == "completed":
            reason: Reason = "tool_calls" if self._calls else "stop"
        elif status == "incomplete":
            why = str((response.get("incomplete_details") or {}).get("reason"))
            if why not in _INCOMPLETE:
                raise GeneratorFailed(f"The provider of {self.model} gave the answer up.")
            reason = _INCOMPLETE[why]
        else:
            error = error_in({"error": response.get("error") or {}})
            raise refused(status_in(error), error, self.model)
        self.whole = True
        yield Finished(0, reason)

    def completed(self) -> Completed:
        """The last event, after the last object. The share of the pictures is never stated."""
        usage, images = self._usage, len(images_of(self.request.messages))
        return Completed(
            Usage(
                text_tokens=count_in(usage, "input_tokens"),
                image_tokens=0,
                cached_tokens=count_in(usage, "input_tokens_details", "cached_tokens"),
                written_tokens=count_in(usage, "input_tokens_details", "cache_write_tokens"),
                answer_tokens=count_in(usage, "output_tokens"),
                thought_tokens=count_in(usage, "output_tokens_details", "reasoning_tokens"),
                estimated=images > 0 or not usage,
                images=images,
                seconds=self._timing.seconds,
            )
        )
