"""Answers that follow a JSON schema: which tokens may come next, by llguidance."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from chiasm.errors import InvalidRequest
from chiasm.models.chat import ChatTokenizer

if TYPE_CHECKING:
    from chiasm.generation.request import Request
    from chiasm.models.generator import GeneratorCheckpoint

_LARGEST_SCHEMA = 64 * 1024  # characters


class Grammars:
    """Makes constraints for one tokenizer; reading its vocabulary takes a second, once."""

    def __init__(self, tokenizer: ChatTokenizer, vocabulary: int) -> None:
        """vocabulary: entries of the language model's embedding; at least the tokenizer's."""
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._lock = threading.Lock()
        self._made: LLTokenizer | None = None

    @classmethod
    def of(cls, checkpoint: GeneratorCheckpoint) -> Grammars:
        """For a checkpoint; some networks have tokens of their own behind the language model's."""
        vocabulary = max(checkpoint.config.vocab_size, checkpoint.tokenizer.vocabulary)
        return cls(checkpoint.tokenizer, vocabulary)

    def constraints(self, request: Request) -> list[Constraint | None]:
        """One for each of a request's answers; None where it asks for free text."""
        schema = request.schema
        return [None if schema is None else self.constraint(schema) for _ in range(request.choices)]

    def constraint(self, schema: Mapping[str, Any]) -> Constraint:
        """One answer's constraint. Raises InvalidRequest for a schema that cannot be followed."""
        text = json.dumps({**schema, "x-guidance": {"whitespace_flexible": False}})
        if len(text) > _LARGEST_SCHEMA:
            raise InvalidRequest(
                f"The JSON schema has {len(text):,} characters; {_LARGEST_SCHEMA:,} are the most.",
                param="response_format",
            )
        with self._lock:
            if self._made is None:
                eos = sorted(self._tokenizer.eos_ids)
                self._made = LLTokenizer(
                    self._tokenizer.backend.to_str(), n_vocab=self._vocabulary, eos_token=eos
                )
        try:
            grammar = LLMatcher.grammar_from_json_schema(text)
        except ValueError:
            grammar = ""
        matcher = LLMatcher(self._made, grammar, log_level=0) if grammar else None
        if matcher is None or matcher.is_error():
            raise InvalidRequest(
                "The JSON schema cannot be followed: it is not valid, or uses keywords that are "
                "not supported.",
                hint="Supported are objects, arrays, strings, numbers, enums, anyOf, $ref and "
                "formats; see the guide on structured answers.",
                param="response_format",
            )
        return Constraint(matcher, self._vocabulary)


class Constraint:
    """The state of one answer. `done` once nothing may follow."""

    def __init__(self, matcher: LLMatcher, vocabulary: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary

    def allow(self, logits: Tensor) -> Tensor:
        """[vocabulary] → the same with minus infinity where the grammar forbids the token."""
        words = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        allowed = np.zeros(len(logits), dtype=bool)  # the model may have more than the tokenizer
        bits = np.unpackbits(words, bitorder="little")[: self._vocabulary]
        allowed[: len(bits)] = bits
        mask = torch.from_numpy(allowed).to(logits.device)
        return logits.masked_fill(~mask, float("-inf"))

    def take(self, token: int) -> None:
        """The token that was chosen."""
        self._matcher.consume_token(token)

    @property
    def done(self) -> bool:
        """Whether the answer is whole."""
        return bool(self._matcher.is_stopped())
