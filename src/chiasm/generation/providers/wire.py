"""OpenAI's chat API as vLLM speaks it: a request as its body, its chunks as our events.

vLLM's additions to OpenAI's fields (`top_k`, `repetition_penalty`, `min_p`) are always sent: what
is left out it takes from the checkpoint's `generation_config.json`, and the same question would
have another answer there than here.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from chiasm.errors import GeneratorFailed
from chiasm.generation.messages import ImagePart, Message, TextPart, images_of
from chiasm.generation.request import (
    Ability,
    Completed,
    Event,
    Finished,
    Request,
    TextDelta,
    TokenLogprob,
    Usage,
)
from chiasm.media import Image
from chiasm.media.encode import encode_png

DEFAULT_MAX_TOKENS = 1024  # as here; without a limit vLLM goes on to the end of its context
ABILITIES: frozenset[Ability] = frozenset(
    ("choices", "logprobs", "penalties", "schema", "seed", "stop", "temperature", "top_k", "top_p")
)
_PNG_EFFORT = 1  # the way to the server is short, and a large picture takes seconds otherwise


def chat_body(request: Request, model: str, context: int) -> dict[str, Any]:
    """What is posted to `/v1/chat/completions`. Encodes pictures: call it in a thread."""
    sampling = request.sampling
    body: dict[str, Any] = {
        "model": model,
        "messages": [_message(message) for message in request.messages],
        # More than its context vLLM refuses, where only what is left could be generated anyway.
        "max_tokens": min(request.max_tokens or DEFAULT_MAX_TOKENS, context),
        "n": request.choices,
        "temperature": sampling.temperature or 0.0,
        "top_p": 1.0 if sampling.top_p is None else sampling.top_p,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "top_k": sampling.top_k,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if request.stop:
        body["stop"] = list(request.stop)
    if request.logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": request.logprobs}
    if request.priority:
        body["priority"] = request.priority
    if request.tenant:
        # vLLM shares what it has cached among requests of the same salt alone.
        name = f"chiasm-tenant-1 {request.tenant}".encode()
        body["cache_salt"] = hashlib.sha256(name).hexdigest()
    if request.schema is not None:
        schema = {"name": "answer", "schema": dict(request.schema), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body


def _message(message: Message) -> dict[str, Any]:
    if not message.images:
        return {"role": message.role, "content": message.text}
    parts = [
        picture_part(part.image)
        if isinstance(part, ImagePart)
        else {"type": "text", "text": part.text}
        for part in message.parts
        if isinstance(part, TextPart | ImagePart)
    ]
    return {"role": message.role, "content": parts}


def picture_part(image: Image) -> dict[str, Any]:
    """A picture's pixels, exactly, and nothing else of the file that it came from."""
    data = base64.b64encode(encode_png(image, effort=_PNG_EFFORT)).decode("ascii")
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


# The answer -------------------------------------------------------------------------------------


@dataclass
class AnswerReader:
    """Takes the chunks of one answer, gives events. `whole` once nothing is missing.

    started: `time.perf_counter` when the request came. prepared: seconds until it was sent.
    image_tokens: of all its pictures, where the server does not say; None: nobody knows.
    """

    request: Request
    started: float
    prepared: float = 0.0
    image_tokens: int | None = None
    _finished: set[int] = field(default_factory=set)
    _waiting: dict[int, list[TokenLogprob]] = field(default_factory=dict)
    _first: float | None = None
    _last: float = 0.0
    _usage: Mapping[str, Any] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether every choice has come to its end."""
        return len(self._finished) == self.request.choices

    @property
    def begun(self) -> bool:
        """Whether a token has come."""
        return self._first is not None

    def read(self, chunk: Mapping[str, Any]) -> Iterator[Event]:
        """The events of one chunk. Raises GeneratorFailed for one of another shape."""
        try:
            self._usage = chunk.get("usage") or self._usage
            for choice in chunk.get("choices") or ():
                yield from self._choice(choice)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise GeneratorFailed("The model's server sent what is no part of an answer.") from None

    def _choice(self, choice: Mapping[str, Any]) -> Iterator[Event]:
        number = int(choice["index"])
        text = str((choice.get("delta") or {}).get("content") or "")
        entries = (choice.get("logprobs") or {}).get("content") or ()
        waiting = self._waiting.setdefault(number, [])
        waiting += [_logprob(entry) for entry in entries]
        reason = choice.get("finish_reason")
        if text or reason or entries:
            self._last = time.perf_counter()
            self._first = self._first or self._last
        # Half a character has no text yet: its tokens come with the other half.
        if text or (reason and waiting):
            tokens, self._waiting[number] = tuple(waiting), []
            yield TextDelta(number, text, tokens)
        if reason:
            if reason not in ("stop", "length"):
                raise GeneratorFailed("The model's server gave the answer up.")
            self._finished.add(number)
            yield Finished(number, reason)

    def completed(self) -> Completed:
        """The last event, after the last chunk."""
        first = self._first or time.perf_counter()
        prompt = int(self._usage.get("prompt_tokens") or 0)
        details = self._usage.get("prompt_tokens_details") or {}
        image_tokens = image_tokens_in(self._usage)
        if image_tokens is None:
            image_tokens = min(self.image_tokens or 0, prompt)
        return Completed(
            Usage(
                text_tokens=prompt - image_tokens,
                image_tokens=image_tokens,
                cached_tokens=int(details.get("cached_tokens") or 0),
                answer_tokens=int(self._usage.get("completion_tokens") or 0),
                images=len(images_of(self.request.messages)),
                seconds={
                    "prepare": self.prepared,
                    "first_token": first - self.started,
                    "decode": max(0.0, self._last - first),
                },
            )
        )

    @property
    def states_image_tokens(self) -> bool:
        """Whether the server has said how many of the tokens are pictures'."""
        return image_tokens_in(self._usage) is not None


def image_tokens_in(usage: Mapping[str, Any]) -> int | None:
    """What vLLM says with `--enable-prompt-tokens-details`: tokens by kind of input."""
    details = usage.get("prompt_tokens_details") or {}
    by_kind = details.get("multimodal_tokens")
    return int(by_kind.get("image", 0)) if isinstance(by_kind, Mapping) else None


def _logprob(entry: Mapping[str, Any]) -> TokenLogprob:
    top = tuple(_logprob(each) for each in entry.get("top_logprobs") or ())
    token = str(entry["token"])
    stated = entry.get("bytes")
    spelling = token.encode() if stated is None else bytes(stated)
    return TokenLogprob(token, spelling, float(entry["logprob"]), top)
