"""Text to token ids, from the files that lie beside a checkpoint.

`tokenizer.json` is read where there is one; otherwise the older vocabulary files are: `vocab.json`
with `merges.txt` (CLIP's byte-level BPE), `vocab.txt` (BERT's WordPiece) or `spiece.model`
(SigLIP's SentencePiece).
"""

from __future__ import annotations

import json
import re
import shutil
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE, WordPiece
from torch import Tensor

from chiasm.errors import UnsupportedCheckpoint
from chiasm.models.json_files import read_json_if_there
from chiasm.models.sentencepiece import read_sentencepiece

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
)
CLIP_START, CLIP_END, CLIP_END_OF_WORD = "<|startoftext|>", "<|endoftext|>", "</w>"
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_UNLIMITED = 1_000_000  # a larger `model_max_length` is a file's way to say "none"


@dataclass(frozen=True)
class TokenBatch:
    """ids: int64 [batch, tokens]. mask: bool [batch, tokens], True where the model shall look."""

    ids: Tensor
    mask: Tensor

    def to(self, device: torch.device | str) -> TokenBatch:
        """The same batch on another device."""
        return TokenBatch(self.ids.to(device), self.mask.to(device))


@dataclass(frozen=True)
class TextRules:
    """What a model asks of its texts beyond what the tokenizer's files say.

    fixed_length: pad every text to the maximum, and let the model look at the padding: SigLIP was
        trained so, and reads its text feature off the last position.
    lower_case: SigLIP 2's texts were lower-cased before they met Gemma's tokenizer.
    """

    fixed_length: bool = False
    lower_case: bool = False


class Tokenizer:
    """Texts in, `TokenBatch` out. Safe to use from several threads."""

    def __init__(
        self,
        backend: Backend,
        *,
        pad_id: int,
        max_length: int,
        prepare: Callable[[str], str] = str,
        rules: TextRules = TextRules(),
        config: dict[str, Any] | None = None,
        folder: Path | None = None,
    ) -> None:
        """Wrap a backend whose post-processor adds the special tokens.

        max_length: tokens, special ones included; longer texts lose their end, never the
            end-of-text token. prepare: applied to each text first. config: the entries of
            `tokenizer_config.json`. folder: where the vocabulary files lie, for `save`.
        """
        self.max_length = max_length
        self.pad_id = pad_id
        self.rules = rules
        self._prepare = prepare
        self._config = config or {}
        self._folder = folder
        self._backend = backend
        backend.no_padding()
        backend.enable_truncation(max_length)

    @classmethod
    def from_folder(
        cls,
        folder: Path | str,
        *,
        max_length: int | None = None,
        rules: TextRules = TextRules(),
    ) -> Tokenizer:
        """Read the tokenizer that lies in `folder`.

        max_length: the model's own limit in tokens; the smaller of it and the files' holds.
        Raises UnsupportedCheckpoint if the files are missing or cannot be read.
        """
        folder = Path(folder)
        config = read_json_if_there(folder / "tokenizer_config.json")
        specials = {**read_json_if_there(folder / "special_tokens_map.json"), **config}
        kind = str(config.get("tokenizer_class", "")).removesuffix("Fast")
        backend = _backend(folder, config)
        limits = [n for n in (max_length, config.get("model_max_length")) if n and n < _UNLIMITED]
        if not limits:
            raise UnsupportedCheckpoint(
                f"{folder}: neither the model nor tokenizer_config.json says how many tokens a "
                "text may have.",
                hint='Add "model_max_length" to tokenizer_config.json.',
            )
        prepare: Callable[[str], str] = str
        if kind == "SiglipTokenizer":
            prepare = _without_punctuation if config.get("do_lower_case", True) else _squeezed
        elif rules.lower_case:
            prepare = str.lower
        return cls(
            backend,
            pad_id=_pad_id(backend, specials, folder),
            max_length=int(min(limits)),
            prepare=prepare,
            rules=rules,
            config=config,
            folder=folder,
        )

    def __call__(self, texts: Sequence[str]) -> TokenBatch:
        """Tokenise, padding to the longest text of the batch or to the model's fixed length."""
        encoded = self._backend.encode_batch_fast([self._prepare(text) for text in texts])
        rows = [encoding.ids for encoding in encoded]
        fixed = self.rules.fixed_length
        length = self.max_length if fixed else max((len(row) for row in rows), default=0)
        ids = torch.tensor([row + [self.pad_id] * (length - len(row)) for row in rows])
        ids = ids.reshape(len(rows), length).to(torch.int64)
        if fixed:
            return TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool))
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        return TokenBatch(ids, torch.arange(length) < lengths[:, None])

    @property
    def vocabulary(self) -> int:
        """How many tokens there are, special ones included."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def id_of(self, token: str) -> int | None:
        """A token's number; None if there is no such token."""
        number: int | None = self._backend.token_to_id(token)
        return number

    def count(self, text: str) -> int:
        """How many tokens of `text` the model reads: special tokens included, padding not."""
        return len(self._backend.encode_batch_fast([self._prepare(text)])[0].ids)

    def save(self, folder: Path | str) -> None:
        """Write `tokenizer.json`, `tokenizer_config.json` and the vocabulary files read from."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in TOKENIZER_FILES:
            source = self._folder / name if self._folder else None
            if source and source.is_file() and source.resolve() != (folder / name).resolve():
                shutil.copyfile(source, folder / name)
        plain = Backend.from_str(self._backend.to_str())
        plain.no_truncation()
        plain.save(str(folder / "tokenizer.json"))
        config = {**self._config, "model_max_length": self.max_length}
        text = json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True)
        (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


# Reading the files ------------------------------------------------------------------------------


def _backend(folder: Path, config: dict[str, Any]) -> Backend:
    if (folder / "tokenizer.json").is_file():
        try:
            return Backend.from_file(str(folder / "tokenizer.json"))
        except Exception:  # the binding raises bare Exception
            raise UnsupportedCheckpoint(
                f"{folder / 'tokenizer.json'} could not be read as a tokenizer."
            ) from None
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return _clip_backend(folder)
    if (folder / "vocab.txt").is_file():
        return _bert_backend(folder, config)
    if (folder / "spiece.model").is_file():
        return read_sentencepiece(folder / "spiece.model")
    raise UnsupportedCheckpoint(
        f"{folder} holds no tokenizer.",
        hint="Expected tokenizer.json, vocab.json with merges.txt, vocab.txt or spiece.model.",
    )


def _clip_backend(folder: Path) -> Backend:
    vocabulary = read_json_if_there(folder / "vocab.json")
    if CLIP_START not in vocabulary or CLIP_END not in vocabulary:
        raise UnsupportedCheckpoint(f"{folder / 'vocab.json'} lacks {CLIP_START} or {CLIP_END}.")
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    merges = [
        (pair[0], pair[1])
        for pair in (line.split() for line in lines if not line.startswith("#version"))
        if len(pair) == 2
    ]
    try:
        return clip_backend(vocabulary, merges)
    except Exception:  # the binding raises bare Exception
        raise UnsupportedCheckpoint(
            f"{folder}: vocab.json and merges.txt do not belong together."
        ) from None


def clip_backend(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Backend:
    """CLIP's tokenizer: lower-cased byte-level BPE with an end-of-word mark.

    Source: the CLIP paper (arXiv 2103.00020, section 2.4) and its published vocabulary.
    """
    model = BPE(vocabulary, merges, end_of_word_suffix=CLIP_END_OF_WORD, unk_token=CLIP_END)
    backend = Backend(model)
    backend.normalizer, backend.pre_tokenizer = clip_words()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{CLIP_START} $A {CLIP_END}",
        special_tokens=[(mark, vocabulary[mark]) for mark in (CLIP_START, CLIP_END)],
    )
    backend.add_special_tokens([CLIP_START, CLIP_END])
    return backend


def clip_words() -> tuple[normalizers.Normalizer, pre_tokenizers.PreTokenizer]:
    """How CLIP cleans a text and cuts it into the words that are then cut into tokens."""
    normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    # A word is a run of letters, one digit, a run of anything else, or an English contraction.
    contractions = "'s|'t|'re|'ve|'m|'ll|'d"
    word = (
        rf"<\|startoftext\|>|<\|endoftext\|>|{contractions}|\p{{L}}+|\p{{N}}|[^\s\p{{L}}\p{{N}}]+"
    )
    words = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(word), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return normalizer, words


def _bert_backend(folder: Path, config: dict[str, Any]) -> Backend:
    """BERT's tokenizer: cleaned, usually lower-cased words cut into WordPieces."""
    lines = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    vocabulary = {token: number for number, token in enumerate(lines) if token}
    specials = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")
    missing = [token for token in specials[:4] if token not in vocabulary]
    if missing:
        raise UnsupportedCheckpoint(f"{folder / 'vocab.txt'} lacks {', '.join(missing)}.")
    backend = Backend(WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    backend.add_special_tokens([token for token in specials if token in vocabulary])
    return backend


def _pad_id(backend: Backend, specials: dict[str, Any], folder: Path) -> int:
    """The id that fills a row up. A masked position's id never matters; SigLIP's padding does."""
    named = specials.get("pad_token")
    token = named.get("content") if isinstance(named, dict) else named
    for candidate in (token, "<pad>", "[PAD]", "<|endoftext|>", "</s>"):
        number = backend.token_to_id(candidate) if candidate else None
        if number is not None:
            return number
    raise UnsupportedCheckpoint(f"{folder}: the tokenizer names no padding token.")


# SigLIP's texts ---------------------------------------------------------------------------------


def _without_punctuation(text: str) -> str:
    """Lower case, no ASCII punctuation, single spaces: how SigLIP's training texts were cleaned."""
    return _squeezed(text.lower())


def _squeezed(text: str) -> str:
    return re.sub(r"\s+", " ", text.translate(_PUNCTUATION)).strip()
