"""One request after the other: for networks that look at their pictures between the layers.

Flamingo's pictures are no tokens among others. What is kept of them lies aside, and blocks of keys
and values have no place for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from chiasm.errors import Cancelled, NotReady
from chiasm.generation.engine.answer import Answer
from chiasm.generation.engine.constraint import Grammars
from chiasm.generation.engine.ledger import Ledger
from chiasm.generation.engine.prefix import FeatureCache, PrefixCache
from chiasm.generation.engine.question import PictureInputs, Question, Said, read_question
from chiasm.generation.request import Completed, Event, Request
from chiasm.models.decoder import Decoder
from chiasm.models.flops import decoder_flops

if TYPE_CHECKING:
    from chiasm.models.cache import KeyValueCache
    from chiasm.models.generator import GeneratorCheckpoint
    from chiasm.models.vision_language import VisionLanguageModel

PREFILL_CHUNK = 512
"""Tokens read at once: a long prompt looks up now and then whether it is still wanted."""
_ROOM = 64  # tokens of an answer before its cache has to grow


class OneAtATime:
    """Answers one question after the other; `read` may be called by anyone, all else by one thread.

    running: how many are worked on at once.
    """

    running = 1

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
        self.context = checkpoint.context
        assert not isinstance(checkpoint.model, Decoder)
        self._model: VisionLanguageModel = checkpoint.model
        self._prefixes = PrefixCache(prefix_bytes)
        self._features = FeatureCache(feature_bytes)
        self._grammars = Grammars.of(checkpoint)
        self._waiting: list[Question] = []
        self._device = next(checkpoint.decoder.parameters()).device

    @property
    def cached_bytes(self) -> int:
        """Memory that earlier prompts hold."""
        return self._prefixes.nbytes

    def read(self, request: Request, *, arrived: float, say: Callable[[Said], None]) -> Question:
        """As `read_question`, for this engine."""
        return read_question(
            request,
            self.checkpoint,
            self._grammars,
            arrived=arrived,
            say=say,
            context=self.context,
            known=self._features.get,
        )

    def add(self, question: Question) -> None:
        """Queue a question; it hears of its answer through `say`."""
        self._waiting.append(question)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._waiting

    def warm_up(self) -> None:
        """Nothing: what a first question would wait for depends on it."""

    def close(self) -> None:
        """Give up all questions."""
        self.give_up(NotReady("The generator is stopping."))

    def give_up(self, error: BaseException) -> None:
        """End all questions with an error."""
        for question in self._waiting:
            question.say(error)
        self._waiting.clear()

    @torch.inference_mode()
    def step(self) -> None:
        """Answer one question; of those that wait, the first of those with the first priority."""
        question = min(self._waiting, key=lambda waiting: waiting.request.priority)
        self._waiting.remove(question)
        try:
            for event in self._answered(question):
                question.say(event)
            question.say(None)
        except Cancelled:
            question.say(None)
        except BaseException as error:  # whoever asked hears of it; the engine goes on
            question.say(error)

    def _answered(self, question: Question) -> Iterator[Event]:
        ledger = question.ledger
        waited = time.perf_counter() - ledger.arrived - ledger.seconds["prepare"]
        ledger.add("queue", max(waited, 0.0))
        cache, last = self._prefill(question)
        read: list[int] = []
        for choice, constraint in enumerate(question.constraints):
            final = choice == len(question.constraints) - 1
            answer = Answer(
                question.request, choice, self.checkpoint.tokenizer, constraint,
                question.longest, ledger,
            )  # fmt: skip
            kept, logits, read = cache if final else cache.clone(), last, []
            yield from answer.push(logits)
            while answer.token is not None:
                _check(question)
                logits = self._step(answer.token, kept, ledger)
                read.append(answer.token)
                yield from answer.push(logits)
        # What was read stays for the next question; the answer's tokens are part of it.
        tenant = question.request.tenant
        self._prefixes.put([*question.units, *read], cache, tenant=tenant)
        yield Completed(ledger.usage())

    # Reading the prompt ----------------------------------------------------------------------

    def _prefill(self, question: Question) -> tuple[KeyValueCache, Tensor]:
        """The cache that holds the prompt, and the logits after its last token."""
        units, ledger = question.units, question.ledger
        capacity = len(units) + _ROOM
        cache = self._prefixes.take(units, capacity, tenant=question.request.tenant)
        if cache is None:
            cache = self._model.new_cache(capacity=capacity)
        start = ledger.cached = cache.length
        features = self._encoded(question, start)
        with ledger.stage("prefill"):
            hidden = torch.empty(0)
            for begin in range(start, len(units), PREFILL_CHUNK):
                _check(question)
                end = min(begin + PREFILL_CHUNK, len(units))
                ids = torch.tensor([question.ids[begin:end]], device=self._device)
                here = _between(question.pictures, features, begin, end)
                hidden = self._model(ids, here, cache=cache)
            logits = self._model.logits(hidden[0, -1])
            ledger.language_flops += decoder_flops(
                self.checkpoint.config, len(units) - start, before=start, logits=1
            )
        return cache, logits

    def _encoded(self, question: Question, start: int) -> dict[int, Tensor]:
        """Features of the pictures that are not in the cache yet, by their number."""
        model, tenant, ledger = self._model, question.request.tenant, question.ledger
        found: dict[int, Tensor] = {}
        for number, picture in enumerate(question.pictures):
            if picture.at[-1] < start:
                continue
            known = picture.features
            if known is None:
                known = self._features.get(tenant, picture.digest)
            if known is None:
                assert picture.inputs is not None
                _check(question)
                with ledger.stage("encode"):
                    inputs = picture.inputs.to(self._device)
                    known = model.encode_image(inputs)
                    ledger.vision_flops += model.vision_flops(inputs)
                self._features.put(tenant, picture.digest, known)
            found[number] = known
        return found

    def _step(self, token: int, cache: KeyValueCache, ledger: Ledger) -> Tensor:
        """Read one token of an answer: the logits after it."""
        with ledger.stage("decode"):
            ids = torch.tensor([[token]], device=self._device)
            ledger.language_flops += decoder_flops(self.checkpoint.config, 1, before=cache.length)
            return self._model.logits(self._model(ids, cache=cache)[0, -1])


def _between(
    pictures: Sequence[PictureInputs], features: dict[int, Tensor], begin: int, end: int
) -> Tensor | None:
    """The features of the pictures whose tokens stand from position `begin` to before `end`."""
    parts = [
        encoded
        for number, encoded in features.items()
        if any(begin <= position < end for position in pictures[number].at)
    ]
    return torch.cat(parts) if parts else None


def _check(question: Question) -> None:
    if question.cancelled.is_set():
        raise Cancelled("The request was given up by whoever sent it.")
    if question.late:
        raise question.too_late()
