"""A vocabulary for a model that is trained from nothing.

The result is a tokenizer of CLIP's kind (Radford et al., arXiv 2103.00020, section 2.4), learned
from the captions at hand: lower-cased byte-level BPE (Sennrich et al., arXiv 1508.07909) in which
a mark ends each word. Saved, it is read by `transformers` as a CLIPTokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from chiasm.errors import ConfigurationError
from chiasm.models.tokenizer import (
    CLIP_END,
    CLIP_END_OF_WORD,
    CLIP_START,
    Tokenizer,
    clip_backend,
    clip_words,
)

# Every byte has a token, within a word and at a word's end, so that no text is unknown; and there
# are the two marks.
_SMALLEST = 2 * 256 + 2


def train_clip_tokenizer(
    captions: Iterable[str], *, vocabulary: int = 49_408, max_length: int = 77
) -> Tokenizer:
    """Learn a vocabulary of at most `vocabulary` tokens from `captions`.

    Captions with few different words end with fewer tokens. The end-of-text token has the highest
    id, where CLIP looks for it, and is the padding too. max_length: tokens of the longest text
    that the model shall read, the two marks included. Equal captions give equal tokens.

    Raises ConfigurationError if `vocabulary` is less than the 514 tokens of bytes and marks, if
    `max_length` leaves no room between the marks, or if there is no word in the captions.
    """
    if vocabulary < _SMALLEST:
        raise ConfigurationError(
            f"A vocabulary of {vocabulary} tokens is too small: the bytes and the two marks alone "
            f"are {_SMALLEST}."
        )
    if max_length < 3:
        raise ConfigurationError(
            f"Texts of {max_length} tokens have no room for a word between their two marks."
        )
    letters = sorted(ByteLevel.alphabet())
    last_letters = [letter + CLIP_END_OF_WORD for letter in letters]
    merges = _merges(captions, vocabulary, last_letters)
    # Two pairs can make the same token.
    tokens = list(dict.fromkeys([*letters, *last_letters, *("".join(pair) for pair in merges)]))
    kept = set(tokens[: vocabulary - 2])
    merges = [pair for pair in merges if "".join(pair) in kept]
    tokens = [*tokens[: vocabulary - 2], CLIP_START, CLIP_END]
    backend = clip_backend({token: number for number, token in enumerate(tokens)}, merges)
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "bos_token": CLIP_START,
        "eos_token": CLIP_END,
        "pad_token": CLIP_END,
        "unk_token": CLIP_END,
    }
    return Tokenizer(backend, pad_id=len(tokens) - 1, max_length=max_length, config=config)


def _merges(
    captions: Iterable[str], vocabulary: int, last_letters: list[str]
) -> list[tuple[str, str]]:
    """The pairs to join, the most frequent first."""
    learner = Backend(BPE(end_of_word_suffix=CLIP_END_OF_WORD))
    learner.normalizer, learner.pre_tokenizer = clip_words()
    # The trainer numbers the last letters in the order of a hash and breaks ties by number. Given
    # as special tokens they are numbered in order, so that every run learns the same.
    trainer = BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=ByteLevel.alphabet(),
        special_tokens=[AddedToken(letter, special=True) for letter in last_letters],
        end_of_word_suffix=CLIP_END_OF_WORD,
        show_progress=False,
    )
    words = False

    def watched() -> Iterator[str]:
        nonlocal words
        for caption in captions:
            words = words or bool(caption.strip())
            yield caption

    learner.train_from_iterator(watched(), trainer)
    if not words:
        raise ConfigurationError("The captions hold no word to learn a vocabulary from.")
    return [(left, right) for left, right in json.loads(learner.to_str())["model"]["merges"]]
