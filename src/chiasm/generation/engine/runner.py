"""One request through the network: pictures encoded, prompt read, answers decoded."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from chiasm.errors import Cancelled, ContextExceeded
from chiasm.generation.engine.answer_text import AnswerText
from chiasm.generation.engine.constraint import Constraint, Grammars
from chiasm.generation.engine.prefix import FeatureCache, PrefixCache
from chiasm.generation.engine.prompt import Picture, Prompt, build_prompt
from chiasm.generation.engine.sampler import Sampler, describe
from chiasm.generation.request import (
    Completed,
    Event,
    Finished,
    Request,
    TextDelta,
    TokenLogprob,
    Usage,
)
from chiasm.models.decoder import Decoder
from chiasm.models.flops import decoder_flops

if TYPE_CHECKING:
    from chiasm.models.cache import KeyValueCache
    from chiasm.models.generator import GeneratorCheckpoint
    from chiasm.models.vision_language import VisionLanguageModel

DEFAULT_MAX_TOKENS = 1024
PREFILL_CHUNK = 512
"""Tokens read at once: a long prompt looks up now and then whether it is still wanted."""
_ROOM = 64  # tokens of an answer before its cache has to grow


@dataclass
class _Ledger:
    """What has been spent so far."""

    started: float
    seconds: dict[str, float] = field(default_factory=dict)
    vision_flops: int = 0
    language_flops: int = 0
    cached: int = 0
    answer_tokens: int = 0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - begun
            self.seconds[name] = self.seconds.get(name, 0.0) + took


class Runner:
    """Answers one request at a time. Not safe to use from several threads at once."""

    def __init__(
        self,
        checkpoint: GeneratorCheckpoint,
        *,
        prefix_bytes: int = 256 * 1024 * 1024,
        feature_bytes: int = 64 * 1024 * 1024,
    ) -> None:
        """prefix_bytes, feature_bytes: for the keys and values of prompts, and pictures' features,
        that are kept for the next question; 0 keeps none.
        """
        self.checkpoint = checkpoint
        self._model = checkpoint.model
        self._prefixes = PrefixCache(prefix_bytes)
        self._features = FeatureCache(feature_bytes)
        # Some networks have tokens of their own behind the language model's.
        tokens = max(checkpoint.config.vocab_size, checkpoint.tokenizer.vocabulary)
        self._grammars = Grammars(checkpoint.tokenizer, tokens)
        self._device = next(checkpoint.decoder.parameters()).device
        if self._device.type == "cpu":
            checkpoint.decoder.fuse()

    @property
    def cached_bytes(self) -> int:
        """Memory that earlier prompts hold."""
        return self._prefixes.nbytes

    def prepare(self, request: Request) -> tuple[Prompt, int]:
        """The prompt, and how many tokens each answer may have.

        Raises what `build_prompt` raises, and ContextExceeded when it is too long.
        """
        prompt = build_prompt(request.messages, self.checkpoint)
        room = self.checkpoint.context - len(prompt.ids)
        if room < 1:
            pictures = f", {prompt.image_tokens:,} of them for {len(prompt.pictures)} pictures"
            raise ContextExceeded(
                f"The prompt has {len(prompt.ids):,} tokens{pictures if prompt.pictures else ''}; "
                f"{self.checkpoint.name} reads {self.checkpoint.context:,} with its answer.",
                hint="Send fewer or smaller pictures, or a shorter text.",
                param="messages",
            )
        return prompt, min(request.max_tokens or DEFAULT_MAX_TOKENS, room)

    @torch.inference_mode()
    def run(
        self, request: Request, *, cancelled: threading.Event | None = None, arrived: float | None
    ) -> Iterator[Event]:
        """Answer; the last event is `Completed`.

        cancelled: when it is set, the next step raises Cancelled and everything is let go.
        arrived: `time.perf_counter` when the request came, if it had to wait.
        """
        cancelled = cancelled or threading.Event()
        now = time.perf_counter()
        ledger = _Ledger(started=now if arrived is None else arrived)
        ledger.seconds["queue"] = now - ledger.started
        with ledger.stage("prepare"):
            prompt, longest = self.prepare(request)
            constraints = [
                None if request.schema is None else self._grammars.constraint(request.schema)
                for _ in range(request.choices)
            ]
        cache, last = self._prefill(prompt, ledger, cancelled)
        for choice, constraint in enumerate(constraints):
            final = choice == request.choices - 1
            answer = _Answer(
                self,
                request,
                choice,
                cache if final else cache.clone(),
                constraint,
                longest,
                ledger,
                cancelled,
            )
            yield from answer.events(last)
        # What was read stays for the next question; the answer's tokens are part of it.
        kept = [*prompt.units(), *answer.read]
        self._prefixes.put(kept, cache)
        yield Completed(self._usage(prompt, ledger))

    # Reading the prompt ----------------------------------------------------------------------

    def _prefill(
        self, prompt: Prompt, ledger: _Ledger, cancelled: threading.Event
    ) -> tuple[KeyValueCache, Tensor]:
        """The cache that holds the prompt, and the logits after its last token."""
        units = prompt.units()
        capacity = len(units) + _ROOM
        cache = self._prefixes.take(units, capacity)
        if cache is None:
            cache = self._model.new_cache(capacity=capacity)
        start = ledger.cached = cache.length
        features = self._encoded(prompt, start, ledger, cancelled)
        with ledger.stage("prefill"):
            hidden = torch.empty(0)
            for begin in range(start, len(units), PREFILL_CHUNK):
                _check(cancelled)
                end = min(begin + PREFILL_CHUNK, len(units))
                ids = torch.tensor([prompt.ids[begin:end]], device=self._device)
                here = _between(prompt.pictures, features, begin, end)
                hidden = self.read(ids, here, cache)
            logits = self._model.logits(hidden[0, -1])
            ledger.language_flops += decoder_flops(
                self.checkpoint.config, len(units) - start, before=start, logits=1
            )
        return cache, logits

    def _encoded(
        self, prompt: Prompt, start: int, ledger: _Ledger, cancelled: threading.Event
    ) -> dict[int, Tensor]:
        """Features of the pictures that are not in the cache yet, by their number."""
        reader, model = self.checkpoint.images, self._model
        found: dict[int, Tensor] = {}
        for number, picture in enumerate(prompt.pictures):
            if picture.at[-1] < start:
                continue
            assert reader is not None
            assert not isinstance(model, Decoder)
            digest = picture.image.digest
            known = self._features.get(digest)
            if known is None:
                _check(cancelled)
                with ledger.stage("encode"):
                    inputs = reader.prepare(picture.image).to(self._device)
                    known = model.encode_image(inputs)
                    ledger.vision_flops += model.vision_flops(inputs)
                self._features.put(digest, known)
            found[number] = known
        return found

    def read(self, ids: Tensor, features: Tensor | None, cache: KeyValueCache) -> Tensor:
        """The hidden states of `ids`, [1, tokens, width]; the cache has them afterwards."""
        model: VisionLanguageModel | Decoder = self._model
        if isinstance(model, Decoder):
            hidden: Tensor = model(model.embed(ids), cache=cache)
            return hidden
        return model(ids, features, cache=cache)

    def step(self, token: int, cache: KeyValueCache, ledger: _Ledger) -> Tensor:
        """Read one token of an answer: the logits after it."""
        with ledger.stage("decode"):
            ids = torch.tensor([[token]], device=self._device)
            ledger.language_flops += decoder_flops(self.checkpoint.config, 1, before=cache.length)
            return self._model.logits(self.read(ids, None, cache)[0, -1])

    def _usage(self, prompt: Prompt, ledger: _Ledger) -> Usage:
        return Usage(
            text_tokens=prompt.text_tokens,
            image_tokens=prompt.image_tokens,
            cached_tokens=ledger.cached,
            answer_tokens=ledger.answer_tokens,
            images=len(prompt.pictures),
            vision_flops=ledger.vision_flops,
            language_flops=ledger.language_flops,
            seconds=dict(ledger.seconds),
        )


class _Answer:
    """One of a request's answers while it is decoded. `read`: its tokens that the cache has."""

    def __init__(
        self,
        runner: Runner,
        request: Request,
        choice: int,
        cache: KeyValueCache,
        constraint: Constraint | None,
        longest: int,
        ledger: _Ledger,
        cancelled: threading.Event,
    ) -> None:
        self._runner = runner
        self._request = request
        self._choice = choice
        self._cache = cache
        self._constraint = constraint
        self._longest = longest
        self._ledger = ledger
        self._cancelled = cancelled
        self._tokenizer = runner.checkpoint.tokenizer
        self._sampler = Sampler(request.sampling, choice)
        self._text = AnswerText(self._tokenizer, request.stop)
        self._waiting: list[TokenLogprob] = []  # of tokens whose text is not out yet
        self.read: list[int] = []

    def events(self, logits: Tensor) -> Iterator[Event]:
        """Decode from the logits after the prompt."""
        for count in range(1, self._longest + 1):
            _check(self._cancelled)
            token = self._choose(logits)
            self._ledger.answer_tokens += 1
            if "first_token" not in self._ledger.seconds:
                took = time.perf_counter() - self._ledger.started
                self._ledger.seconds["first_token"] = took
            if token in self._tokenizer.eos_ids:
                yield from self._end("stop")
                return
            yield from self._deltas(self._text.push(token))
            if self._text.stopped or (self._constraint is not None and self._constraint.done):
                yield from self._end("stop")
                return
            if count < self._longest:
                logits = self._runner.step(token, self._cache, self._ledger)
                self.read.append(token)
        yield from self._end("length")

    def _choose(self, logits: Tensor) -> int:
        allowed = logits if self._constraint is None else self._constraint.allow(logits)
        token = self._sampler(allowed)
        if self._constraint is not None:
            self._constraint.take(token)
        if self._request.logprobs is not None and token not in self._tokenizer.eos_ids:
            count = self._request.logprobs
            self._waiting.append(describe(logits, token, count, self._tokenizer))
        return token

    def _deltas(self, text: str) -> Iterator[TextDelta]:
        if text:
            tokens, self._waiting = tuple(self._waiting), []
            yield TextDelta(self._choice, text, tokens)

    def _end(self, reason: str) -> Iterator[Event]:
        rest = self._text.finish()
        if rest or self._waiting:
            tokens, self._waiting = tuple(self._waiting), []
            yield TextDelta(self._choice, rest, tokens)
        stopped = reason == "stop" or self._text.stopped
        yield Finished(self._choice, "stop" if stopped else "length")


def _between(
    pictures: tuple[Picture, ...], features: dict[int, Tensor], begin: int, end: int
) -> Tensor | None:
    """The features for the image tokens from position `begin` to before `end`."""
    parts = []
    for number, encoded in features.items():
        at = pictures[number].at
        here = [place for place, position in enumerate(at) if begin <= position < end]
        if not here:
            continue
        if len(encoded) == len(at):
            parts.append(encoded[here[0] : here[-1] + 1])
        else:  # one token stands for a whole picture that is attended to from aside
            parts.append(encoded)
    return torch.cat(parts) if parts else None


def _check(cancelled: threading.Event) -> None:
    if cancelled.is_set():
        raise Cancelled("The request was given up by whoever sent it.")
