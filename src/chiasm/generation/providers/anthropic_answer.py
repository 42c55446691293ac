"""An answer of Anthropic's Messages API, streamed or in one piece, as our events."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from chiasm.errors import GeneratorFailed
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
    ToolCallDelta,
    Usage,
)

_REASONS: Mapping[str, Reason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_THOUGHTS = ("thinking", "redacted_thinking")


@dataclass
class MessageReader:
    """Takes the objects of one message, gives events. `whole` once it has come to its end.

    model: what to call it in messages. started, prepared: as for `Timing`.
    """

    request: Request
    model: str
    started: float
    prepared: float = 0.0
    signs: int = 0
    """Of life: grows with every token, those of thoughts too, which are not shown."""
    whole: bool = False
    _blocks: dict[int, str] = field(default_factory=dict)
    """What kinds of blocks are open, by their index."""
    _calls: dict[int, int] = field(default_factory=dict)
    _silent: set[int] = field(default_factory=set)
    """Blocks of tools whose arguments have not begun to come."""
    _usage: dict[str, Any] = field(default_factory=dict)
    _reason: str | None = None

    def __post_init__(self) -> None:
        self._timing = Timing(self.started, self.prepared)

    @property
    def begun(self) -> bool:
        """Whether a token has come and another should soon: thoughts may be kept back for long."""
        thinking = any(kind in _THOUGHTS for kind in self._blocks.values())
        return self._timing.first is not None and not thinking

    def read(self, said: Mapping[str, Any]) -> Iterator[Event]:
        """The events of one object. Raises GeneratorFailed for one of another shape.

        Of kinds that are not known, `ping` among them, nothing is made: Anthropic adds some.
        """
        try:
            yield from self._event(said)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise no_answer() from None

    def _event(self, said: Mapping[str, Any]) -> Iterator[Event]:
        kind = said.get("type")
        if kind == "message_start":
            self._usage = dict(said["message"].get("usage") or {})
        elif kind == "content_block_start":
            yield from self._open(int(said["index"]), said["content_block"])
        elif kind == "content_block_delta":
            yield from self._delta(int(said["index"]), said["delta"])
        elif kind == "content_block_stop":
            yield from self._close(int(said["index"]))
        elif kind == "message_delta":
            yield from self._end(said["delta"], said.get("usage") or {})
        elif kind == "message_stop":
            self.whole = self._reason is not None
        elif kind == "message":
            yield from self._in_one_piece(said)

    def _token(self) -> None:
        self.signs += 1
        self._timing.token()

    def _open(self, at: int, block: Mapping[str, Any]) -> Iterator[Event]:
        self._blocks[at] = kind = str(block["type"])
        self.signs += 1
        if kind == "text" and block["text"]:
            self._token()
            yield TextDelta(0, str(block["text"]))
        elif kind == "tool_use":
            self._token()
            number = self._calls[at] = len(self._calls)
            # A stream begins with an empty object, and then sends the arguments as text.
            given = json.dumps(block["input"]) if block.get("input") else ""
            if not given:
                self._silent.add(at)
            yield ToolCallDelta(0, number, str(block["id"]), str(block["name"]), given)

    def _delta(self, at: int, delta: Mapping[str, Any]) -> Iterator[Event]:
        kind = delta["type"]
        if kind == "text_delta":
            self._token()
            if delta["text"]:
                yield TextDelta(0, str(delta["text"]))
        elif kind == "input_json_delta" and at in self._calls:
            self._token()
            if delta["partial_json"]:
                self._silent.discard(at)
                yield ToolCallDelta(0, self._calls[at], arguments=str(delta["partial_json"]))
        else:
            self.signs += 1

    def _close(self, at: int) -> Iterator[Event]:
        self._blocks.pop(at, None)
        if at in self._silent:
            self._silent.discard(at)
            yield ToolCallDelta(0, self._calls[at], arguments="{}")

    def _end(self, delta: Mapping[str, Any], usage: Mapping[str, Any]) -> Iterator[Event]:
        # Of the sums so far, the last ones count; what is left out has not changed.
        self._usage |= {name: value for name, value in usage.items() if value is not None}
        reason = delta.get("stop_reason")
        if reason is None or self._reason is not None:
            return
        if reason not in _REASONS:
            raise GeneratorFailed(f"The provider of {self.model} gave the answer up.")
        self._reason = str(reason)
        yield Finished(0, _REASONS[reason], stop=delta.get("stop_sequence"))

    def _in_one_piece(self, message: Mapping[str, Any]) -> Iterator[Event]:
        for at, block in enumerate(message["content"]):
            yield from self._open(at, block)
            yield from self._close(at)
        yield from self._end(message, message.get("usage") or {})
        self.whole = self._reason is not None

    def completed(self) -> Completed:
        """The last event, after the last object. The share of the pictures is never stated."""
        usage, images = self._usage, len(images_of(self.request.messages))
        cached = count_in(usage, "cache_read_input_tokens")
        written = count_in(usage, "cache_creation_input_tokens")
        return Completed(
            Usage(
                # These three do not overlap.
                text_tokens=count_in(usage, "input_tokens") + cached + written,
                image_tokens=0,
                cached_tokens=cached,
                written_tokens=written,
                answer_tokens=count_in(usage, "output_tokens"),
                thought_tokens=count_in(usage, "output_tokens_details", "thinking_tokens"),
                estimated=images > 0 or not usage,
                images=images,
                seconds=self._timing.seconds,
            )
        )
