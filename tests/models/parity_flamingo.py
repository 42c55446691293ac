"""Random IDEFICS models, built by transformers, for `parity.measure`."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from parity import Case, Read, randomise
from torch import Tensor
from transformers.models.idefics.processing_idefics import (
    image_attention_mask_for_packed_input_ids,
    incremental_to_binary_attention_mask,
)

from chiasm.models.flamingo import Flamingo
from chiasm.models.vision_language import ImageInputs

SIDE = 32
AROUND, IMAGE, EOS = 100, 101, 2
SIZES = {
    "vocab_size": 100,
    "additional_vocab_size": 3,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "cross_layer_interval": 2,
    "qk_layer_norms": True,
    "use_resampler": True,
    "max_position_embeddings": 128,
    "vision_config": {
        "embed_dim": 40,
        "intermediate_size": 72,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": SIDE,
        "patch_size": 8,
    },
    "perceiver_config": {
        "resampler_n_latents": 5,
        "resampler_depth": 2,
        "resampler_n_heads": 3,
        "resampler_head_dim": 12,
        "qk_layer_norms_perceiver": True,
    },
}
STEPS = 16


def cases() -> dict[str, Callable[[], Case]]:
    """Every case by its name, made when called."""
    plain = {**SIZES["perceiver_config"], "qk_layer_norms_perceiver": False}  # type: ignore[dict-item]
    return {
        "Flamingo, resampler": lambda: _case(generates=True),
        "Flamingo, no resampler": lambda: _case(generates=True, use_resampler=False),
        "Flamingo, tied head, gates of channels": lambda: _case(
            tie_word_embeddings=True, alpha_type="vector"
        ),
        "Flamingo, no norms of queries and keys, before every layer": lambda: _case(
            qk_layer_norms=False, cross_layer_interval=1, perceiver_config=plain
        ),
        "Flamingo, image token in the vocabulary, θ 500": lambda: _case(
            vocab_size=102,
            additional_vocab_size=0,
            image_token_id=IMAGE,
            rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        ),
    }


def reference(**entries: Any) -> Any:
    """transformers' model with random weights, its gates open."""
    config = transformers.IdeficsConfig(**{**SIZES, **entries})
    return randomise(transformers.IdeficsForVisionText2Text(config)).eval()


PROMPTS: dict[str, tuple[list[list[int]], int]] = {
    "no picture": ([[1, 5, 6, 7, 8, 9, 10, 11]], 0),
    "one picture": ([[1, 30, 31, AROUND, IMAGE, AROUND, 32, 33, 34]], 1),
    "one picture, first": ([[IMAGE, 32, 33, 34]], 1),
    "three pictures, apart and adjacent": (
        [[1, 40, AROUND, IMAGE, AROUND, 41, 42, AROUND, IMAGE, AROUND, IMAGE, AROUND, 43, 44]],
        3,
    ),
    "two documents in a row": (
        [[1, 40, AROUND, IMAGE, AROUND, 41, EOS, 1, 42, 43, AROUND, IMAGE, AROUND, 44, EOS, 45]],
        2,
    ),
    "a batch with three, none and one": (
        [
            [1, 40, IMAGE, AROUND, 41, 42, IMAGE, AROUND, IMAGE, AROUND, 43, 44],
            [1, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60],
            [1, 60, 61, 62, 63, 64, 65, IMAGE, AROUND, 66, 67, 68],
        ],
        4,
    ),
}

GENERATED = (
    "no picture",
    "one picture",
    "three pictures, apart and adjacent",
    "a batch with three, none and one",
)


def prompt(name: str) -> tuple[Tensor, Tensor]:
    """ids, int64 [batch, tokens], and the pictures' pixels, [pictures, 3, SIDE, SIDE]."""
    rows, count = PROMPTS[name]
    generator = torch.Generator().manual_seed(len(rows[0]))
    return torch.tensor(rows), torch.randn(count, 3, SIDE, SIDE, generator=generator)


def features(model: Flamingo, pixels: Tensor) -> Tensor | None:
    """The pictures' latents as `forward` takes them."""
    each = [model.encode_image(ImageInputs(one[None], (SIDE, SIDE))) for one in pixels]
    return torch.cat(each) if each else None


def logits(model: Flamingo, ids: Tensor, pixels: Tensor) -> Tensor:
    """[batch, tokens, vocabulary] without a cache."""
    return model.logits(model(ids, features(model, pixels)))


def logits_in_chunks(model: Flamingo, ids: Tensor, pixels: Tensor, size: int) -> Tensor:
    """The same, `size` tokens at a time, through a cache that has to grow."""
    cache = model.new_cache(batch=len(ids), capacity=2)
    parts, unread = [], pixels_of_rows(ids, pixels)
    for start in range(0, ids.shape[1], size):
        piece = ids[:, start : start + size]
        here: list[Tensor] = []
        for row, images in zip(unread, (piece == IMAGE).sum(dim=1).tolist(), strict=True):
            here += [row.pop(0) for _ in range(images)]
        found = features(model, torch.stack(here)) if here else None
        parts.append(model.logits(model(piece, found, cache=cache)))
    return torch.cat(parts, dim=1)


def greedy(model: Flamingo, ids: Tensor, pixels: Tensor) -> Tensor:
    """The likeliest next tokens but for the end, one after the other, through a cache."""
    cache, found = model.new_cache(batch=len(ids)), features(model, pixels)
    chosen: list[Tensor] = []
    for _ in range(STEPS):
        scores = model.logits(model(ids, found, cache=cache)[:, -1])
        scores[:, EOS] = -torch.inf
        ids, found = scores.argmax(dim=-1, keepdim=True), None
        chosen.append(ids)
    return torch.cat(chosen, dim=1).float()


def pixels_of_rows(ids: Tensor, pixels: Tensor) -> list[list[Tensor]]:
    """The pictures of each row."""
    counts = (ids == IMAGE).sum(dim=1).tolist()
    return [list(each) for each in pixels.split(counts)]


def theirs(ids: Tensor, pixels: Tensor) -> dict[str, Tensor]:
    """What the published processor would hand to the model: padded pictures, and their mask."""
    rows = pixels_of_rows(ids, pixels)
    most = max(1, *map(len, rows))
    padded = torch.zeros(len(ids), most, 3, SIDE, SIDE)
    for row, each in zip(padded, rows, strict=True):
        if each:
            row[: len(each)] = torch.stack(each)
    mask = torch.zeros(*ids.shape, 1)
    if len(pixels):
        names = {"<image>": IMAGE}
        tokenizer = SimpleNamespace(convert_tokens_to_ids=names.get, eos_token_id=EOS)
        numbers, _ = image_attention_mask_for_packed_input_ids(ids, tokenizer, "pt")
        mask = incremental_to_binary_attention_mask(numbers, "pt", num_classes=most)
    return {"input_ids": ids, "pixel_values": padded, "image_attention_mask": mask}


def generated(model: Any, ids: Tensor, pixels: Tensor) -> Tensor:
    """What transformers generates greedily, as float so that it can be subtracted."""
    made = model.generate(
        **theirs(ids, pixels),
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=STEPS,
        suppress_tokens=[EOS],
        pad_token_id=0,
    )
    return made[:, ids.shape[1] :].float()


def _case(generates: bool = False, **entries: Any) -> Case:
    outputs: dict[str, tuple[Read, Read]] = {}
    for name in PROMPTS:
        ids, pixels = prompt(name)
        outputs[f"logits, {name}"] = (
            lambda m, i=ids, p=pixels: logits(m, i, p),
            lambda m, i=ids, p=pixels: m(**theirs(i, p)).logits,
        )
        for size in (1, 5) if generates else (5,):
            outputs[f"logits, {name}, {size} at a time"] = (
                lambda m, i=ids, p=pixels, s=size: logits_in_chunks(m, i, p, s),
                lambda m, i=ids, p=pixels: m(**theirs(i, p)).logits,
            )
        if generates and name in GENERATED:
            outputs[f"{STEPS} greedy tokens, {name}"] = (
                lambda m, i=ids, p=pixels: greedy(m, i, p),
                lambda m, i=ids, p=pixels: generated(m, i, p),
            )
    ids, pixels = prompt("one picture")
    outputs["latents"] = (
        lambda m: torch.cat([m.encode_image(ImageInputs(p[None], (SIDE, SIDE))) for p in pixels]),
        lambda m: m(**theirs(ids, pixels)).image_hidden_states.flatten(0, 2),
    )
    return Case(reference(**entries), outputs)
