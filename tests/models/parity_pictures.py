"""Random models that put pictures among text, built by transformers, for `parity.measure`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from parity import Case, Read, randomise
from torch import Tensor

from chiasm.models.vision_language import ImageInputs

SIDE = 32
IMAGE = 110
TOWER = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": 8,
}
TEXT = {
    "vocab_size": 120,
    "hidden_size": 40,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
LLAMA = {**TEXT, "model_type": "llama"}
QWEN2 = {**TEXT, "model_type": "qwen2"}
QWEN3 = {**TEXT, "model_type": "qwen3", "head_dim": 12}
CLIP = {**TOWER, "model_type": "clip_vision_model"}
SIGLIP = {**TOWER, "model_type": "siglip_vision_model"}
RESOLUTIONS = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]
STEPS = 20

# (width, height): square, wide, tall; for LLaVA-NeXT two, three and four tiles beside the whole.
SIZES = [(64, 60), (90, 31), (20, 37)]


def cases() -> dict[str, Callable[[], Case]]:
    """Every case by its name, made when called."""
    return {
        "LLaVA, CLIP and Llama": lambda: _llava(CLIP, LLAMA),
        "LLaVA, two layers, all tokens, Qwen3": lambda: _llava(
            {**CLIP, "hidden_act": "gelu"},
            QWEN3,
            vision_feature_layer=[-3, 3],
            vision_feature_select_strategy="full",
        ),
        "LLaVA, last layer, no projector bias": lambda: _llava(
            CLIP, LLAMA, vision_feature_layer=-1, multimodal_projector_bias=False
        ),
        "LLaVA, SigLIP and Qwen2, tied": lambda: _llava(
            SIGLIP,
            {**QWEN2, "tie_word_embeddings": True},
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        ),
        "LLaVA, SigLIP without head": lambda: _llava(
            {**SIGLIP, "vision_use_head": False}, LLAMA, vision_feature_select_strategy="full"
        ),
        "LLaVA-NeXT, CLIP and Llama": lambda: _llava_next(CLIP, LLAMA),
        "LLaVA-NeXT, SigLIP and Qwen2": lambda: _llava_next(
            SIGLIP, QWEN2, vision_feature_layer=-1, vision_feature_select_strategy="full"
        ),
        "Idefics3": lambda: _idefics3("Idefics3", LLAMA),
        "Idefics3, tied head": lambda: _idefics3("Idefics3", LLAMA, tie_word_embeddings=True),
        "Idefics3, tiles filled in part": lambda: _idefics3("Idefics3", LLAMA, masked=True),
        "SmolVLM": lambda: _idefics3("SmolVLM", LLAMA, scale_factor=4),
        "SmolVLM, Qwen2": lambda: _idefics3("SmolVLM", QWEN2),
    }


@dataclass(frozen=True)
class Prompt:
    """One sequence, the pictures in it as they are read here, and as transformers takes them."""

    ids: Tensor
    pictures: list[ImageInputs]
    arguments: dict[str, Tensor]


def logits(model: Any, prompt: Prompt) -> Tensor:
    """[1, tokens, vocabulary] without a cache."""
    return model.logits(model(prompt.ids, features(model, prompt)))


def features(model: Any, prompt: Prompt) -> Tensor | None:
    """Those of all the prompt's pictures, one after the other."""
    if not prompt.pictures:
        return None
    return torch.cat([model.encode_image(picture) for picture in prompt.pictures])


def greedy(model: Any, prompt: Prompt) -> Tensor:
    """int64 [1, STEPS]: the likeliest next tokens, one after the other, through a cache."""
    cache = model.new_cache(capacity=4)
    hidden = model(prompt.ids, features(model, prompt), cache=cache)
    chosen = []
    for _ in range(STEPS):
        chosen.append(model.logits(hidden[:, -1:]).argmax(dim=-1))
        hidden = model(chosen[-1], cache=cache)
    return torch.cat(chosen, dim=1)


def generated(model: Any, prompt: Prompt) -> Tensor:
    """What transformers generates greedily."""
    made = model.generate(
        prompt.ids, **prompt.arguments, do_sample=False, max_new_tokens=STEPS, pad_token_id=0
    )
    return made[:, prompt.ids.shape[1] :]


def prompt(counts: Sequence[int], pictures: list[ImageInputs], **arguments: Tensor) -> Prompt:
    """Text, a picture of `counts` tokens, text, the next picture, and so on, text."""
    generator = torch.Generator().manual_seed(len(counts))
    parts = [torch.randint(1, 100, (4,), generator=generator)]
    for number, count in enumerate(counts):
        parts += [torch.full((count,), IMAGE), torch.arange(5, 6 + number)]
    return Prompt(torch.cat(parts)[None], pictures, arguments)


def _llava(vision: dict[str, Any], text: dict[str, Any], **entries: Any) -> Case:
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE, **entries
    )
    reference = randomise(transformers.LlavaForConditionalGeneration(config)).eval()
    prompts = {}
    for number in (0, 1, 3):
        pictures = [ImageInputs(_noise(1, size), size) for size in SIZES[:number]]
        pixels = {"pixel_values": _joined(pictures)} if pictures else {}
        prompts[number] = prompt(_lengths(reference, pixels), pictures, **pixels)
    return _case(reference, prompts)


def _llava_next(vision: dict[str, Any], text: dict[str, Any], **entries: Any) -> Case:
    config = transformers.LlavaNextConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        image_grid_pinpoints=RESOLUTIONS,
        **entries,
    )
    reference = randomise(transformers.LlavaNextForConditionalGeneration(config)).eval()
    prompts = {}
    for number in (0, 1, 3):
        tiles = (5, 4, 3)[:number]  # a grid of 2×2, a row of 3, a column of 2, each and the whole
        pictures = [
            ImageInputs(_noise(count, size), size)
            for count, size in zip(tiles, SIZES[:number], strict=True)
        ]
        arguments = {}
        if pictures:
            padded = torch.zeros(number, max(tiles), 3, SIDE, SIDE)
            for row, picture in zip(padded, pictures, strict=True):
                row[: len(picture.pixels)] = picture.pixels
            sizes = torch.tensor([[height, width] for width, height in SIZES[:number]])
            arguments = {"pixel_values": padded, "image_sizes": sizes}
        prompts[number] = prompt(_lengths(reference, arguments), pictures, **arguments)
    return _case(reference, prompts)


def _idefics3(name: str, text: dict[str, Any], *, masked: bool = False, **entries: Any) -> Case:
    config = getattr(transformers, f"{name}Config")(
        vision_config=TOWER, text_config=text, image_token_id=IMAGE, **entries
    )
    reference = getattr(transformers, f"{name}ForConditionalGeneration")(config)
    reference = randomise(reference).eval()
    prompts = {}
    for number in (0, 1, 3):
        pictures = [
            ImageInputs(_noise(count, size), size, _filled(count) if masked else None)
            for count, size in zip((5, 1, 3)[:number], SIZES[:number], strict=True)
        ]
        arguments = {}
        if pictures:
            arguments["pixel_values"] = _joined(pictures)[None]
            masks = [_filled(len(each.pixels)) for each in pictures if masked]
            if masks:
                arguments["pixel_attention_mask"] = torch.cat(masks)[None].long()
        per_tile = (SIDE // TOWER["patch_size"] // config.scale_factor) ** 2
        counts = [len(each.pixels) * per_tile for each in pictures]
        prompts[number] = prompt(counts, pictures, **arguments)
    return _case(reference, prompts)


def _case(reference: Any, prompts: dict[int, Prompt]) -> Case:
    outputs: dict[str, tuple[Read, Read]] = {}
    for number, each in prompts.items():
        pictures = f"{number} picture{'s' * (number != 1)}"
        outputs[f"logits, {pictures}"] = (
            lambda m, p=each: logits(m, p),
            lambda m, p=each: m(p.ids, **p.arguments).logits,
        )
        outputs[f"{STEPS} greedy tokens, {pictures}"] = (
            lambda m, p=each: greedy(m, p).float(),
            lambda m, p=each: generated(m, p).float(),
        )
    return Case(reference, outputs)


@torch.no_grad()
def _lengths(reference: Any, arguments: dict[str, Tensor]) -> list[int]:
    """Image tokens of each picture, as transformers' network gives features."""
    if not arguments:
        return []
    found = reference.model.get_image_features(**arguments, return_dict=True)
    return [len(each) for each in found.pooler_output]


def _noise(tiles: int, size: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(size[0] * 1000 + size[1])
    return torch.randn(tiles, 3, SIDE, SIDE, generator=generator)


def _joined(pictures: list[ImageInputs]) -> Tensor:
    return torch.cat([picture.pixels for picture in pictures])


def _filled(tiles: int) -> Tensor:
    """Masks in which pixels fill the upper left of a tile, each tile another share of it."""
    mask = torch.zeros(tiles, SIDE, SIDE, dtype=torch.bool)
    for number, tile in enumerate(mask):
        tile[: SIDE - 9 * (number % 3), : SIDE - 7 * (number % 4)] = True
    return mask
