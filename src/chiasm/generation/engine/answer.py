"""One of a request's answers while it is decoded: logits go in, tokens and events come out."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from chiasm.generation.engine.answer_text import AnswerText
from chiasm.generation.engine.constraint import Constraint
from chiasm.generation.engine.ledger import Ledger
from chiasm.generation.engine.sampler import Sampler, describe
from chiasm.generation.request import Event, Finished, Request, TextDelta, TokenLogprob
from chiasm.models.chat import ChatTokenizer


class Answer:
    """token: what was chosen last and has to be read next; None once the answer is at its end."""

    def __init__(
        self,
        request: Request,
        choice: int,
        tokenizer: ChatTokenizer,
        constraint: Constraint | None,
        longest: int,
        ledger: Ledger,
    ) -> None:
        """longest: tokens that the answer may have."""
        self._request = request
        self._choice = choice
        self._tokenizer = tokenizer
        self._constraint = constraint
        self._longest = longest
        self._ledger = ledger
        self._count = 0
        self._sampler = Sampler(request.sampling, choice)
        self._text = AnswerText(tokenizer, request.stop)
        self._waiting: list[TokenLogprob] = []  # of tokens whose text is not out yet
        self.token: int | None = None

    def push(self, logits: Tensor) -> Iterator[Event]:
        """Choose a token from logits [vocabulary]; exhaust the iterator before `token` is read."""
        token = self._choose(logits)
        self._count += 1
        self._ledger.count_token()
        self.token = None
        if token in self._tokenizer.eos_ids:
            yield from self._end("stop")
            return
        yield from self._deltas(self._text.push(token))
        if self._text.stopped or (self._constraint is not None and self._constraint.done):
            yield from self._end("stop")
        elif self._count == self._longest:
            yield from self._end("length")
        else:
            self.token = token

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
        yield Finished(self._choice, "stop" if stopped else "length", self._text.stop)
