"""Answers by OpenAI's chat completions, from OpenAI or from any server that speaks the same."""

from __future__ import annotations

from typing import Any, ClassVar

from chiasm.generation.providers.chat_answer import AnswerReader
from chiasm.generation.providers.chat_messages import (
    Encode,
    chat_messages,
    chat_tools,
    response_format,
)
from chiasm.generation.providers.json_body import JsonBody
from chiasm.generation.providers.openai_generator import OpenAIGenerator
from chiasm.generation.request import Ability, Request


class OpenAIChat(OpenAIGenerator):
    """A model behind `/chat/completions`. Its tools' results are texts, never pictures."""

    abilities: ClassVar[frozenset[Ability]] = frozenset(
        ("choices", "effort", "logprobs", "penalties", "schema", "seed", "stop", "temperature",
         "tools", "top_p")
    )  # fmt: skip
    place: ClassVar[str] = "chat/completions"
    pictures_from_tools = False

    def body(self, request: Request, encode: Encode) -> list[bytes]:
        """See `HostedGenerator.body`."""
        return chat_body(request, self.model, encode, own=self.own)

    def reader(self, request: Request, started: float, prepared: float) -> AnswerReader:
        """See `HostedGenerator.reader`."""
        return AnswerReader(request, started, prepared)


def chat_body(request: Request, model: str, encode: Encode, *, own: bool) -> list[bytes]:
    """What is posted to `/chat/completions`, in pieces. What was not asked for is not sent.

    own: it goes to OpenAI, whose newer models know `max_completion_tokens` alone; many another
    server knows only `max_tokens`. Encodes pictures: may take a while.
    """
    written, sampling = JsonBody(), request.sampling
    asked: dict[str, Any] = {
        "max_completion_tokens" if own else "max_tokens": request.max_tokens,
        "n": request.choices if request.choices > 1 else None,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
        "frequency_penalty": sampling.frequency_penalty or None,
        "presence_penalty": sampling.presence_penalty or None,
        "stop": list(request.stop) or None,
        "logprobs": None if request.logprobs is None else True,
        "top_logprobs": request.logprobs,
        "reasoning_effort": request.effort,
        "response_format": response_format(request),
        **chat_tools(request),
    }
    return written.pieces(
        {
            "model": model,
            "messages": chat_messages(request.messages, written, encode),
            "stream": True,
            "stream_options": {"include_usage": True},
            **{name: value for name, value in asked.items() if value is not None},
        }
    )
