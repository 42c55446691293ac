"""Compare SmolLM2's converted GGUF file with what transformers makes of the same file.

    chiasm pull smollm2-135m-instruct
    pip install accelerate
    python benchmarks/parity_gguf.py

Prints a Markdown table: every tensor, the logits of random and of real texts, and the ids of many
texts. transformers does not split digits for this file, which SmolLM2's own tokenizer and llama.cpp
do (its pre-tokenizer `smollm`: every number is a piece, then GPT-2's pattern), so its pre-tokenizer
is given that rule before ids are compared. It takes a minute: transformers reads the file slowly.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer, pre_tokenizers

from chiasm.models import catalog
from chiasm.models.checkpoint import load_model, locate
from chiasm.settings import Settings

NAME = "smollm2-135m-instruct"
TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "It's what they'll say, isn't it? I'd've WE'RE 'S",
    "  leading, trailing  \n\n\ttabs\tand\r\nlines   ",
    "1234567890 3.14159 12,345 v2.0.1 0x7F ½ ² Ⅷ ४२ １２",
    "def f(x: int) -> str:\n    return f'{x:>10}'  # ünï",
    "Größe, naïve café, Ærøskøbing, Łódź, İstanbul",
    "日本語のテキスト、中文文本，한국어 텍스트",
    "Привет, мир! Γειά σου Κόσμε! שלום עולם! مرحبا بالعالم",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 e\u0301 \u200b\u00a0\ufeff",
    "<|im_start|>user\nWhat is this?<|im_end|>\n<|im_start|>assistant\n",
    "<|endoftext|><repo_name><file_sep>a<|im_end|ab<|im_end|>",
    "",
    "\x00\x01\x7f",
]


def main() -> None:
    transformers.logging.set_verbosity_error()
    settings = Settings.load()
    folder = locate(NAME, cache_dir=settings.cache_dir, offline=True)
    file = gguf_file(settings.cache_dir)
    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    ).eval()
    ours: Any = load_model(folder)
    print("| compared with transformers | number | differ | max \\|Δ\\| |")
    print("|---|---:|---:|---:|")
    failed = tensors(folder, theirs) + logits(ours, theirs) + ids(folder, file)
    if failed:
        sys.exit(1)


def gguf_file(cache_dir: Path) -> Path:
    entry = catalog.find(NAME)
    folder = cache_dir / "models" / f"{NAME}-{entry.digest[:12]}"
    return folder / next(iter(entry.files))


def tensors(folder: Path, theirs: Any) -> int:
    mine = load_file(folder / "model.safetensors")
    expected = {name: t for name, t in theirs.state_dict().items() if name in mine}
    assert mine.keys() == expected.keys()
    gaps = [float((mine[name] - tensor).abs().max()) for name, tensor in expected.items()]
    return row("tensors", gaps, 0.0)


@torch.inference_mode()
def logits(ours: Any, theirs: Any) -> int:
    generator = torch.Generator().manual_seed(0)
    gaps = []
    for length in (1, 7, 64, 300):
        text = torch.randint(0, 49152, (1, length), generator=generator)
        mine = ours.logits(ours(ours.embed(text)))
        gaps.append(float((mine - theirs(text).logits).abs().max()))
    return row("logits of texts of 1 to 300 tokens", gaps, 1e-3)


def ids(folder: Path, file: Path) -> int:
    theirs = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    backend: Any = theirs.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    ours = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = [*TEXTS, *random_texts(2000)]
    gaps = [float(ours.encode(text).ids != backend.encode(text).ids) for text in texts]
    lost = [float(ours.decode(ours.encode(text).ids, False) != text) for text in texts]
    return row("ids of texts", gaps, 0.0) + row("texts that come back from their ids", lost, 0.0)


def random_texts(count: int) -> list[str]:
    """Pieces of the texts above, and any characters, put together at random."""
    source = random.Random(0)
    pieces = [text[i : i + 7] for text in TEXTS for i in range(0, len(text), 5)]
    ranges = [(32, 126), (160, 0x24F), (0x370, 0x7FF), (0x2000, 0x2BFF), (0x4E00, 0x9FFF)]
    texts = []
    for _ in range(count):
        parts = source.choices(pieces, k=source.randint(1, 12))
        parts += [chr(source.randint(*source.choice(ranges))) for _ in range(6)]
        source.shuffle(parts)
        texts.append("".join(parts))
    return texts


def row(what: str, gaps: list[float], allowed: float) -> int:
    differ = sum(gap > allowed for gap in gaps)
    print(f"| {what} | {len(gaps)} | {differ} | {max(gaps):.1e} |", flush=True)
    return differ


if __name__ == "__main__":
    main()
