"""Random models of every architecture, built by transformers, and what they should give.

`measure` saves one through transformers, loads it here, saves it from here and lets transformers
open that. `test_parity.py` asserts on the differences; `benchmarks/parity.py` prints them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from chiasm.models.checkpoint import load_model, save_checkpoint
from chiasm.models.patches import PatchBatch

TOWER = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
VISION = {**TOWER, "image_size": 32, "patch_size": 8}
TEXT = {**TOWER, "hidden_size": 40, "vocab_size": 120, "max_position_embeddings": 24}
SPECIAL = {"pad_token_id": 1, "bos_token_id": 118, "eos_token_id": 119}

Read = Callable[[Any], Tensor]


@dataclass(frozen=True)
class Case:
    """A model of transformers', and pairs of (ours, theirs) that must agree, by output."""

    reference: Any
    outputs: dict[str, tuple[Read, Read]]


@dataclass(frozen=True)
class Difference:
    """max |Δ| of one output: of theirs read here, and of ours read by transformers."""

    model: str
    output: str
    read: float
    written: float
    largest: float


@torch.no_grad()
def measure(name: str, folder: Path) -> list[Difference]:
    case = cases()[name]()
    reference = case.reference.eval()
    reference.save_pretrained(folder / "theirs")
    ours = load_model(folder / "theirs")
    save_checkpoint(folder / "ours", ours)
    reopened, report = type(reference).from_pretrained(folder / "ours", output_loading_info=True)
    absent = {name for name in report["missing_keys"] if not name.startswith("pooler.")}
    if absent or report["unexpected_keys"] or report["mismatched_keys"]:
        raise AssertionError(f"transformers does not open what was written: {report}")
    reopened.eval()
    found = []
    for output, (mine, theirs) in case.outputs.items():
        here, expected, back = mine(ours), theirs(reference), theirs(reopened)
        if here.shape != expected.shape:
            raise AssertionError(f"{output}: {here.shape}, expected {expected.shape}")
        read = float((here - expected).abs().max())
        written = float((back - here).abs().max())
        largest = float(expected.abs().max())
        found.append(Difference(name, output, read, written, largest))
    return found


def cases() -> dict[str, Callable[[], Case]]:
    """Every case by its name, made when called."""
    import parity_decoders  # they take `Case` and `randomise` from here
    import parity_flamingo
    import parity_pictures

    return {
        "CLIP, quick_gelu": lambda: _clip("quick_gelu", end=119),
        "CLIP, gelu, eos_token_id 2": lambda: _clip("gelu", end=2),
        "SigLIP": _siglip,
        "SigLIP, text tower of another width": lambda: _siglip(projection=48),
        "SigLIP 2, NaFlex": _siglip2,
        "ViT": lambda: _vit(pooler=True),
        "ViT, no pooler, no qkv bias": lambda: _vit(pooler=False, qkv_bias=False),
        "ViT, 24×40 pixels": lambda: _vit(pooler=True, image_size=[24, 40]),
        "ConvNeXt": lambda: _convnext(1e-6),
        "ConvNeXt, no layer scale": lambda: _convnext(0.0),
        "BERT": lambda: _bert(pooler=True),
        "BERT, no pooler": lambda: _bert(pooler=False),
        **parity_decoders.cases(),
        **parity_flamingo.cases(),
        **parity_pictures.cases(),
    }


def randomise(model: nn.Module, seed: int = 0) -> Any:
    """Give every parameter values that matter; fresh models have biases of 0 and scales of 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.copy_(1 + 0.3 * noise)
            elif parameter.ndim < 2:
                parameter.copy_(0.3 * noise)
            elif "embedding" in name and parameter.ndim == 2:
                parameter.copy_(0.5 * noise)
            else:
                parameter.copy_(1.5 * noise / parameter[0].numel() ** 0.5)
    return model


def pixels(height: int, width: int, batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return torch.randn(batch, 3, height, width, generator=generator)


def texts(end: int = 119, length: int = 13) -> tuple[Tensor, Tensor]:
    """ids and mask: texts of several lengths that end in `end`, padded on the right."""
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(3, 117, (5, length), generator=generator)
    mask = torch.ones_like(ids)
    for row, stop in enumerate((length - 1, 1, 4, length - 2, 7)):
        ids[row, stop] = end
        ids[row, stop + 1 :] = 1
        mask[row, stop + 1 :] = 0
    return ids, mask


def _clip(act: str, end: int) -> Case:
    config = transformers.CLIPConfig(
        text_config={**TEXT, **SPECIAL, "eos_token_id": end, "hidden_act": act},
        vision_config={**VISION, "hidden_act": act},
        projection_dim=24,
    )
    ids, mask = texts()
    left = torch.stack([_rolled(row, keep) for row, keep in zip(ids, mask, strict=True)])
    outputs = _images((32, 32), (40, 32), (24, 59)) | {
        "image hidden states": (
            lambda m: m.image_tower.tokens(pixels(32, 32)),
            lambda m: m.vision_model(pixels(32, 32)).last_hidden_state,
        ),
        "text embeds, padded right": _text(ids, mask),
        "text embeds, padded left": _text(left, mask.flip(1)),
        "text embeds, no mask": _text(ids, None),
        "text embeds, one token": _text(torch.tensor([[119]]), None),
        "text hidden states, padded left": (
            lambda m: m.text_tower.tokens(left, mask.flip(1))[mask.flip(1).bool()],
            lambda m: m.text_model(left, mask.flip(1)).last_hidden_state[mask.flip(1).bool()],
        ),
    }
    return Case(randomise(transformers.CLIPModel(config)), outputs)


def _siglip(projection: int | None = None) -> Case:
    text = {**TEXT, **SPECIAL}
    if projection is None:
        text["hidden_size"] = VISION["hidden_size"]
    config = transformers.SiglipConfig(
        text_config={**text, "projection_size": projection}, vision_config=VISION
    )
    model = randomise(transformers.SiglipModel(config))
    outputs = _images((32, 32), (40, 32), (24, 59)) | _siglip_texts()
    outputs["image hidden states"] = (
        lambda m: m.image_tower.norm(m.image_tower.tokens(pixels(32, 32))),
        lambda m: m.vision_model(pixels(32, 32)).last_hidden_state,
    )
    return Case(model, outputs)


def _siglip2() -> Case:
    text = {**TEXT, **SPECIAL, "hidden_size": 48}
    vision = {**TOWER, "patch_size": 4, "num_patches": 16}
    config = transformers.Siglip2Config(text_config=text, vision_config=vision)
    shapes = torch.tensor([[4, 4], [2, 8], [7, 2], [1, 3]])
    mask = torch.arange(16) < shapes.prod(1)[:, None]
    patches = torch.randn(4, 16, 48, generator=torch.Generator().manual_seed(5))
    batch = PatchBatch(patches, mask, shapes)
    outputs = _siglip_texts() | {
        "image embeds, four aspects": (
            lambda m: m.encode_image(batch),
            lambda m: m.get_image_features(patches, mask.long(), shapes).pooler_output,
        ),
        "image hidden states": (
            lambda m: m.image_tower(batch)[mask],
            lambda m: m.vision_model(patches, mask.long(), shapes).last_hidden_state[mask],
        ),
    }
    return Case(randomise(transformers.Siglip2Model(config)), outputs)


def _vit(pooler: bool, qkv_bias: bool = True, image_size: Any = 32) -> Case:
    config = transformers.ViTConfig(**{**VISION, "image_size": image_size}, qkv_bias=qkv_bias)
    model = randomise(transformers.ViTModel(config, add_pooling_layer=pooler))
    square = isinstance(image_size, int)
    trained = (image_size, image_size) if square else tuple(image_size)
    outputs: dict[str, tuple[Read, Read]] = {}
    for height, width in (trained, (48, 40), (17, 31)) if square else (trained,):
        outputs[f"hidden states, {height}×{width}"] = (
            lambda m, h=height, w=width: m.hidden_states(pixels(h, w)),
            lambda m, h=height, w=width: (
                m(pixels(h, w), interpolate_pos_encoding=(h, w) != trained).last_hidden_state
            ),
        )
    outputs["pooled" if pooler else "class token"] = (
        lambda m: m(pixels(*trained)),
        lambda m: (
            m(pixels(*trained)).pooler_output
            if pooler
            else m(pixels(*trained)).last_hidden_state[:, 0]
        ),
    )
    return Case(model, outputs)


def _convnext(scale: float) -> Case:
    config = transformers.ConvNextConfig(
        hidden_sizes=[16, 24, 32],
        depths=[1, 2, 1],
        num_stages=3,
        layer_scale_init_value=scale,
        layer_norm_eps=1e-5,
    )
    outputs: dict[str, tuple[Read, Read]] = {}
    for height, width in ((32, 32), (96, 70), (16, 130)):
        outputs[f"pooled, {height}×{width}"] = (
            lambda m, h=height, w=width: m(pixels(h, w)),
            lambda m, h=height, w=width: m(pixels(h, w)).pooler_output,
        )
    outputs["feature map"] = (
        lambda m: m.feature_map(pixels(64, 48)),
        lambda m: m(pixels(64, 48)).last_hidden_state,
    )
    return Case(randomise(transformers.ConvNextModel(config)), outputs)


def _bert(pooler: bool) -> Case:
    config = transformers.BertConfig(**TEXT)
    model = randomise(transformers.BertModel(config, add_pooling_layer=pooler))
    ids, mask = texts()
    left, left_mask = ids.flip(1), mask.flip(1)
    types = (torch.arange(ids.shape[1]) > 5).long().expand_as(ids)
    outputs: dict[str, tuple[Read, Read]] = {
        "hidden states, padded right": (
            lambda m: m(ids, mask)[mask.bool()],
            lambda m: m(ids, mask).last_hidden_state[mask.bool()],
        ),
        "hidden states, padded left": (
            lambda m: m(left, left_mask)[left_mask.bool()],
            lambda m: m(left, left_mask).last_hidden_state[left_mask.bool()],
        ),
        "hidden states, two segments": (
            lambda m: m(ids, None, types),
            lambda m: m(ids, token_type_ids=types).last_hidden_state,
        ),
    }
    if pooler:
        outputs["pooled"] = (
            lambda m: m.pool(m(ids, mask)),
            lambda m: m(ids, mask).pooler_output,
        )
    return Case(model, outputs)


def _images(*sizes: tuple[int, int]) -> dict[str, tuple[Read, Read]]:
    return {
        f"image embeds, {height}×{width}": (
            lambda m, h=height, w=width: m.encode_image(pixels(h, w)),
            lambda m, h=height, w=width: (
                m.get_image_features(
                    pixels(h, w), interpolate_pos_encoding=(h, w) != (32, 32)
                ).pooler_output
            ),
        )
        for height, width in sizes
    }


def _text(ids: Tensor, mask: Tensor | None) -> tuple[Read, Read]:
    return (
        lambda m: m.encode_text(ids, mask),
        lambda m: m.get_text_features(ids, mask).pooler_output,
    )


def _siglip_texts() -> dict[str, tuple[Read, Read]]:
    ids, mask = texts(length=24)
    return {
        "text embeds, 24 tokens": _text(ids, None),
        "text embeds, 9 tokens": _text(ids[:, :9], None),
        "text embeds, padding masked": _text(ids.flip(1), mask.flip(1)),
        "text hidden states": (
            lambda m: m.text_tower.tokens(ids),
            lambda m: m.text_model(ids).last_hidden_state,
        ),
    }


def _rolled(row: Tensor, keep: Tensor) -> Tensor:
    """A right-padded row with its padding moved to the left."""
    return row.roll(int((keep == 0).sum()))
