"""Captioned pictures for the tests of the data road: small, all different, and told apart by eye.

Picture `n` is of one colour, which `number_of` reads off a batch's pixels again.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from tokenizers import Tokenizer as Backend
from tokenizers import pre_tokenizers
from tokenizers.models import WordLevel
from torch import Tensor

from chiasm.models.preprocess import ImagePreprocessor
from chiasm.models.tokenizer import TextRules, Tokenizer
from chiasm.training.loader import Loader

STEP = 4  # between two pictures' red values; JPEG changes them by less than half of it
Files = Mapping[str, bytes]


def picture(number: int, *, side: int = 24, kind: str = "JPEG") -> bytes:
    """One flat colour: red says the number modulo 60, green its multiple of 60."""
    pixels = np.empty((side, side, 3), dtype=np.uint8)
    pixels[:] = (number % 60 * STEP + 2, number // 60 * STEP + 2, 100)
    buffer = io.BytesIO()
    options: dict[str, Any] = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    PIL.Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def photograph(width: int, height: int, seed: int = 0) -> bytes:
    """A JPEG with structure at many scales."""
    chance = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for octave in range(2, 8):
        coarse = np.clip(chance.normal(127, 127 / octave, (2**octave, 2**octave, 3)), 0, 255)
        layer = PIL.Image.fromarray(coarse.astype(np.uint8))
        total += np.asarray(layer.resize((width, height), PIL.Image.Resampling.BICUBIC)) - 127.0
    buffer = io.BytesIO()
    pixels = np.clip(total / 2 + 127, 0, 255).astype(np.uint8)
    PIL.Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def numbers_of(pixels: Tensor) -> list[int]:
    """The numbers of the pictures in a batch made with `preprocessor()`: [n, 3, h, w]."""
    colours = (pixels.mean(dim=(2, 3)) * 255).round()
    return [int(red // STEP) + 60 * int(green // STEP) for red, green, _ in colours.tolist()]


def preprocessor(side: int = 8) -> ImagePreprocessor:
    """Squashes to side × side, values from 0 to 1."""
    return ImagePreprocessor((side, side), None, "bilinear", 1 / 255, (0, 0, 0), (1, 1, 1))


def tokenizer(*, fixed_length: bool = False, max_length: int = 16) -> Tokenizer:
    """A word a token; the words "w0" to "w999" have the ids 2 to 1001, all others 1."""
    vocabulary = {"<pad>": 0, "<unk>": 1} | {f"w{n}": n + 2 for n in range(1000)}
    backend = Backend(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Tokenizer(
        backend, pad_id=0, max_length=max_length, rules=TextRules(fixed_length=fixed_length)
    )


def caption(number: int) -> str:
    """Between one and seven words, the first of which is the number's own."""
    return " ".join([f"w{number}", *["w999"] * (number * 5 % 7)])


def sample(number: int, **fields: Any) -> dict[str, bytes]:
    """Files of one sample as img2dataset writes them. fields: of the JSON file."""
    values = {"caption": caption(number), **fields}
    return {
        f"{number:05d}.jpg": picture(number),
        f"{number:05d}.json": json.dumps(values).encode(),
        f"{number:05d}.txt": caption(number).encode(),
    }


def write_tar(path: Path, samples: Iterable[Files], **options: Any) -> Path:
    """A shard with these samples' files, by Python's own tar writer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(samples, **options))
    return path


def tar_bytes(
    samples: Iterable[Files], *, mode: str = "w", format: int = tarfile.GNU_FORMAT
) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=format) as archive:  # type: ignore[call-overload]
        for files in samples:
            for name, data in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def write_shards(folder: Path, sizes: Sequence[int]) -> int:
    """Shards 00000.tar, … with so many samples each, numbered through; returns their sum."""
    first = 0
    for shard, size in enumerate(sizes):
        write_tar(folder / f"{shard:05d}.tar", (sample(n) for n in range(first, first + size)))
        first += size
    return first


def take(loader: Loader, count: int) -> list[Any]:
    """The next so many batches."""
    stream = iter(loader)
    batches = [next(stream) for _ in range(count)]
    stream.close()  # type: ignore[attr-defined]
    return batches
