"""The tokenizer in a GGUF file's metadata, written as `tokenizer.json` has it.

The keys are those of the GGUF specification (`tokenizer.ggml.…`). Only byte-level BPE is read: what
GPT-2, SmolLM2 and Qwen have. Such a file holds the vocabulary and the merges, and of the rules that
cut a text before merging only a name; `_PRE_TOKENIZERS` says what the names mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chiasm.errors import UnsupportedCheckpoint

_CONTROL, _USER_DEFINED = 3, 4  # of tokenizer.ggml.token_type

_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_QWEN2_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PRE_TOKENIZERS: dict[str, list[dict[str, Any]]] = {
    "default": [_BYTES],
    "gpt-2": [_BYTES],
    "smollm": [{"type": "Digits", "individual_digits": True}, _BYTES],
    "qwen2": [
        {
            "type": "Split",
            "pattern": {"Regex": _QWEN2_PIECES},
            "behavior": "Isolated",
            "invert": False,
        },
        {**_BYTES, "use_regex": False},
    ],
}
_NORMALIZERS: dict[str, dict[str, Any]] = {"qwen2": {"type": "NFC"}}

_SPECIAL = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


def tokenizer_entries(metadata: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The content of `tokenizer.json`. Raises UnsupportedCheckpoint for another kind of tokenizer.

    metadata: the file's key-value pairs. where: the file, for messages.
    """
    kind, cut = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2" or cut not in _PRE_TOKENIZERS:
        raise UnsupportedCheckpoint(
            f"{where}: its tokenizer is {kind!r} with the pre-tokenizer {cut!r}, which is not read "
            "from GGUF files here.",
            hint="Use the model's folder in the Hugging Face layout instead.",
        )
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges: list[str] = metadata["tokenizer.ggml.merges"]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(tokens, metadata.get("tokenizer.ggml.token_type") or ()),
        "normalizer": _NORMALIZERS.get(cut),
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _PRE_TOKENIZERS[cut]},
        "post_processor": _bos_first(metadata, tokens),
        "decoder": {**_BYTES, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [merge.split(" ", 1) for merge in merges],
        },
    }


def _added(tokens: list[str], kinds: Any) -> list[dict[str, Any]]:
    """Tokens that are found in a text before anything else is done to it."""
    return [
        {
            "id": number,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind == _CONTROL,
        }
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=False))
        if kind in (_CONTROL, _USER_DEFINED)
    ]


def _bos_first(metadata: Mapping[str, Any], tokens: list[str]) -> dict[str, Any] | None:
    number = metadata.get("tokenizer.ggml.bos_token_id")
    if number is None or not metadata.get("tokenizer.ggml.add_bos_token"):
        return None
    first = {"SpecialToken": {"id": tokens[number], "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [first, text],
        "pair": [first, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            tokens[number]: {"id": tokens[number], "ids": [number], "tokens": [tokens[number]]}
        },
    }


def tokenizer_config(metadata: Mapping[str, Any], longest: int) -> dict[str, Any]:
    """The content of `tokenizer_config.json`, the chat template included.

    longest: tokens of the model's context.
    """
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    named = {
        name: tokens[number]
        for name, key in _SPECIAL.items()
        if (number := metadata.get(f"tokenizer.ggml.{key}")) is not None
    }
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": longest,
        "clean_up_tokenization_spaces": False,
        **named,
    }
    if template := metadata.get("tokenizer.chat_template"):
        config["chat_template"] = template
    return config


def generation_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `generation_config.json`: which tokens begin, end and pad a text."""
    keys = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
    ends: list[int] = sorted({metadata[key] for key in keys if key in metadata})
    entries: dict[str, Any] = {
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id"),
    }
    return {name: value for name, value in entries.items() if value is not None}
