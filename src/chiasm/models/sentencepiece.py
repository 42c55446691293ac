"""A `spiece.model` file as a tokenizer, without the library that trained it.

The file is a protocol buffer (sentencepiece_model.proto of the SentencePiece project); only the
handful of fields that tokenising needs is read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram

from chiasm.errors import UnsupportedCheckpoint

# Field numbers of the messages.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_PIECE_TEXT, _PIECE_SCORE = 1, 2
_TRAINER_MODEL_TYPE, _TRAINER_UNK_ID, _UNIGRAM = 3, 40, 1
_CHARACTER_MAP = 2

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types

_END = "</s>"


def read_sentencepiece(path: Path) -> Tokenizer:
    """A backend for the unigram model in `path` that ends every text with `</s>`.

    Raises UnsupportedCheckpoint if the file is damaged or holds another kind of model.
    """
    try:
        return _backend(path.read_bytes())
    except (ValueError, IndexError, struct.error, UnicodeDecodeError):
        raise UnsupportedCheckpoint(
            f"{path} could not be read as a SentencePiece unigram model."
        ) from None


def _backend(content: bytes) -> Tokenizer:
    pieces: list[tuple[str, float]] = []
    unknown, character_map, model_type = 0, b"", 0
    for number, value in _fields(content):
        if number == _PIECES and isinstance(value, bytes):
            piece = dict(_fields(value))
            text, score = piece[_PIECE_TEXT], piece.get(_PIECE_SCORE, 0.0)
            if not isinstance(text, bytes):
                raise ValueError("a piece without text")
            pieces.append((text.decode("utf-8"), float(score)))
        elif number == _TRAINER and isinstance(value, bytes):
            trainer = dict(_fields(value))
            model_type = int(trainer.get(_TRAINER_MODEL_TYPE, _UNIGRAM))
            unknown = int(trainer.get(_TRAINER_UNK_ID, 0))
        elif number == _NORMALIZER and isinstance(value, bytes):
            named = dict(_fields(value)).get(_CHARACTER_MAP, b"")
            character_map = named if isinstance(named, bytes) else b""
    ids = {text: number for number, (text, _) in enumerate(pieces)}
    if model_type != _UNIGRAM or _END not in ids:
        raise ValueError("not a unigram model with an end mark")
    backend = Tokenizer(Unigram(pieces, unk_id=unknown))
    steps = [normalizers.Precompiled(character_map)] if character_map else []
    backend.normalizer = normalizers.Sequence(
        [*steps, normalizers.Replace(Regex(r" {2,}"), " "), normalizers.Strip()]
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {_END}", special_tokens=[(_END, ids[_END])]
    )
    return backend


def _fields(message: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """(field number, value) of a protocol buffer message, in the file's order."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, position = _varint(message, position)
            yield number, value
        elif wire == _BYTES:
            length, position = _varint(message, position)
            if position + length > len(message):
                raise ValueError("cut short")
            yield number, message[position : position + length]
            position += length
        elif wire in (_FIXED32, _FIXED64):
            size, form = (4, "<f") if wire == _FIXED32 else (8, "<d")
            yield number, struct.unpack_from(form, message, position)[0]
            position += size
        else:
            raise ValueError("unknown wire type")


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """An integer of seven bits a byte, least significant first, and where it ends."""
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
        if shift > 63:
            raise ValueError("an integer of more than 64 bits")
