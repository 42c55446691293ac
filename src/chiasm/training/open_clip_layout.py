"""The files that let open_clip open a trained model from the same folder.

open_clip's `local-dir:` and `hf-hub:` loaders (read in version 3.3.0) want `open_clip_config.json`
and weights under open_clip's own names in `open_clip_model.safetensors`; those of
`model.safetensors` they do not know, so the weights are stored a second time. The tokenizer is the
folder's own, read through `transformers`.

A CLIP of any size can be expressed. A SigLIP's image tower comes from timm, by the name of a
published size, so only those sizes can.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chiasm.errors import UnsupportedCheckpoint
from chiasm.models.checkpoint import write_json, write_tensors
from chiasm.models.clip import CLIP
from chiasm.models.json_files import read_json
from chiasm.models.layout import Layout, Names, under
from chiasm.models.preprocess import AnyPreprocessor, ImagePreprocessor
from chiasm.models.siglip import SigLIP
from chiasm.models.tokenizer import Tokenizer

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"

_NORM_EPSILON = 1e-5  # LayerNorm's in open_clip, where its configuration says nothing
_TANH_GELUS = {"gelu_pytorch_tanh", "gelu_new", "gelu_fast"}


def write_open_clip(
    folder: Path | str,
    model: nn.Module,
    preprocessor: AnyPreprocessor,
    tokenizer: Tokenizer,
    *,
    repository: str | None = None,
) -> None:
    """Add open_clip's configuration and weights to a folder that holds the checkpoint already.

    repository: `owner/name` under which the folder will be published, where open_clip then looks
        for the tokenizer; as a local folder it needs none.

    Raises UnsupportedCheckpoint, with the reason of `open_clip_obstacle`, and NoSpace.
    """
    folder = Path(folder)
    if obstacle := open_clip_obstacle(model, preprocessor):
        raise UnsupportedCheckpoint(f"{folder} cannot be written for open_clip: {obstacle}")
    assert isinstance(preprocessor, ImagePreprocessor)
    config: Any = model.config
    # The positions behind the longest text that the tokenizer gives are never read.
    length = min(tokenizer.max_length, config.text_config.max_position_embeddings)
    if isinstance(model, CLIP):
        entries, tensors = _clip_entries(config), _clip_tensors(model, length)
    else:
        assert isinstance(model, SigLIP)
        entries, tensors = _siglip_entries(config), _siglip_tensors(model, length)
    if cleaning := _cleaning(folder, tokenizer):
        entries["text_cfg"]["tokenizer_kwargs"] = {"clean": cleaning}
    entries["text_cfg"] |= {
        "context_length": length,
        "hf_tokenizer_name": repository or ".",
        "pad_id": tokenizer.pad_id,
    }
    # The configuration comes last: where it is, open_clip finds weights.
    write_tensors(folder / WEIGHTS, tensors)
    write_json(
        folder / CONFIG, {"model_cfg": entries, "preprocess_cfg": _preprocessing(preprocessor)}
    )


def open_clip_obstacle(model: nn.Module, preprocessor: AnyPreprocessor) -> str | None:
    """Why open_clip cannot express a model; None if it can."""
    if not isinstance(model, CLIP | SigLIP) or not isinstance(preprocessor, ImagePreprocessor):
        return "its towers are CLIP's and SigLIP's, for pictures of one size."
    config: Any = model.config
    vision, text = config.vision_config, config.text_config
    for tower in (vision, text):
        if tower.hidden_act not in {"gelu", "quick_gelu", *_TANH_GELUS}:
            return f"it has no activation {tower.hidden_act}."
    if (vision.hidden_act == "quick_gelu") != (text.hidden_act == "quick_gelu"):
        return "quick_gelu is a choice for both of its towers or for neither."
    if vision.num_channels != 3:
        return f"its pictures have 3 channels, not {vision.num_channels}."
    if isinstance(model, SigLIP):
        if _timm_name(vision) is None:
            return (
                "SigLIP's image tower is timm's there, which has the published sizes alone, and "
                f"not width {vision.hidden_size}, {vision.num_hidden_layers} blocks, "
                f"{vision.num_attention_heads} heads, MLP {vision.intermediate_size}, patches of "
                f"{vision.patch_size} in pictures of {vision.image_size} pixels."
            )
        if text.hidden_act == "quick_gelu":
            return "timm's image tower does not use quick_gelu."
    return _picture_obstacle(vision.image_size, preprocessor)


def _picture_obstacle(size: int | tuple[int, int], preprocessor: ImagePreprocessor) -> str | None:
    exact = (size, size) if isinstance(size, int) else tuple(size)
    if preprocessor.size != exact:
        return f"it feeds the image tower pictures of its own size, {size}, and no other."
    if preprocessor.resample == "lanczos":
        return "it resizes bilinearly or bicubically, not by Lanczos's filter."
    if abs(preprocessor.rescale_factor * 255 - 1) > 1e-6:
        return "it takes pixel values from 0 to 1."
    if preprocessor.shortest_edge is not None and {preprocessor.shortest_edge} != set(exact):
        return "it crops a square out of a picture whose shorter side has the square's length."
    if preprocessor.letterbox:
        return "it squashes or crops pictures, and does not letterbox them."
    return None


# CLIP -------------------------------------------------------------------------------------------

_BLOCK: dict[str, Names] = {
    "norm1": "ln_1",
    "attention.qkv.weight": "attn.in_proj_weight",
    "attention.qkv.bias": "attn.in_proj_bias",
    "attention.out": "attn.out_proj",
    "norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_TEXT: dict[str, Names] = {
    "embedding.token": "token_embedding",
    "embedding.position.weight": "positional_embedding",
    "norm": "ln_final",
    **under("blocks.{}", "transformer.resblocks.{}", _BLOCK),
}
CLIP_LAYOUT = Layout(
    rows={
        "logit_scale": "logit_scale",
        "image_projection.weight": "visual.proj",
        "text_projection.weight": "text_projection",
        **under(
            "image_tower",
            "visual",
            {
                "class_token": "class_embedding",
                "position_embedding": "positional_embedding",
                "patch_embedding": "conv1",
                "pre_norm": "ln_pre",
                "norm": "ln_post",
                **under("blocks.{}", "transformer.resblocks.{}", _BLOCK),
            },
        ),
        **{f"text_tower.{ours}": theirs for ours, theirs in _TEXT.items()},
    }
)
# Stored as factors from the right, [width, dimension].
CLIP_TRANSPOSED = ("visual.proj", "text_projection")


def clip_tensors(model: CLIP) -> dict[str, Tensor]:
    """The state dict of open_clip's CLIP with the same weights."""
    tensors = CLIP_LAYOUT.write(model.state_dict())
    for name in CLIP_TRANSPOSED:
        tensors[name] = tensors[name].T.contiguous()
    return tensors


def _clip_tensors(model: CLIP, length: int) -> dict[str, Tensor]:
    tensors = _float32(clip_tensors(model))
    return _shortened(tensors, "positional_embedding", length)


def _clip_entries(config: Any) -> dict[str, Any]:
    vision, text = config.vision_config, config.text_config
    vision_entries = _tower(vision) | {
        "head_width": vision.hidden_size // vision.num_attention_heads,
        "patch_size": vision.patch_size,
        "image_size": _size(vision.image_size),
    }
    text_entries = _text(text)
    # Where the end-of-text token has the highest id, or is said to be token 2 (see `CLIP`), it is
    # found as the highest of a text; that is the older way and known to every version.
    if text.eos_token_id not in (2, text.vocab_size - 1):
        text_entries |= {"pool_type": "eos", "eos_id": text.eos_token_id}
    return {
        "embed_dim": config.projection_dim,
        "quick_gelu": vision.hidden_act == "quick_gelu",
        "vision_cfg": vision_entries,
        "text_cfg": text_entries,
    }


# SigLIP -----------------------------------------------------------------------------------------

_SIGLIP_LAYOUT = Layout(
    rows={
        "logit_scale": "logit_scale",
        "logit_bias": "logit_bias",
        **under("text_tower", "text", _TEXT | {"head": "text_projection"}),
        **under(
            "image_tower",
            "visual.trunk",
            {
                "patch_embedding": "patch_embed.proj",
                "position_embedding": "pos_embed",
                "norm": "norm",
                **under(
                    "blocks.{}",
                    "blocks.{}",
                    {
                        "norm1": "norm1",
                        "attention.qkv": "attn.qkv",
                        "attention.out": "attn.proj",
                        "norm2": "norm2",
                        "mlp.fc1": "mlp.fc1",
                        "mlp.fc2": "mlp.fc2",
                    },
                ),
            },
        ),
        **under(
            "image_head",
            "visual.trunk.attn_pool",
            {
                "probe": "latent",
                # The queries' third is a layer of its own there.
                "attention.qkv": ("q", "k", "v"),
                "attention.out": "proj",
                "norm": "norm",
                "mlp.fc1": "mlp.fc1",
                "mlp.fc2": "mlp.fc2",
            },
        ),
    },
    leading={"visual.trunk.pos_embed": 1, "visual.trunk.attn_pool.latent": 2},
)

# timm's SigLIP towers: name → patch, width, blocks, heads, MLP, sizes of picture. timm has the
# exact GELU for the older ones, as which open_clip runs them, and the tanh approximation for the
# others; the two differ by less than a thousandth.
_TIMM_TOWERS: dict[str, tuple[int, int, int, int, int, tuple[int, ...]]] = {
    "vit_base_patch32_siglip": (32, 768, 12, 12, 3072, (256,)),
    "vit_base_patch16_siglip": (16, 768, 12, 12, 3072, (224, 256, 384, 512)),
    "vit_large_patch16_siglip": (16, 1024, 24, 16, 4096, (256, 384, 512)),
    "vit_so400m_patch14_siglip": (14, 1152, 27, 16, 4304, (224, 378, 384)),
    "vit_so400m_patch16_siglip": (16, 1152, 27, 16, 4304, (256, 384, 512)),
    "vit_giantopt_patch16_siglip": (16, 1536, 40, 16, 6144, (256, 384)),
}


def _timm_name(vision: Any) -> str | None:
    shape = (
        vision.patch_size,
        vision.hidden_size,
        vision.num_hidden_layers,
        vision.num_attention_heads,
        vision.intermediate_size,
    )
    size = _size(vision.image_size)
    for name, (*tower, sizes) in _TIMM_TOWERS.items():
        if tuple(tower) == shape and size in sizes and vision.layer_norm_eps == 1e-6:
            return f"{name}_{size}"
    return None


def _siglip_tensors(model: SigLIP, length: int) -> dict[str, Tensor]:
    tensors = _float32(_SIGLIP_LAYOUT.write(model.state_dict()))
    pool = "visual.trunk.attn_pool"
    for leaf in ("weight", "bias"):
        key, value = (tensors.pop(f"{pool}.{part}.{leaf}") for part in "kv")
        tensors[f"{pool}.kv.{leaf}"] = torch.cat((key, value))
    for name in ("logit_scale", "logit_bias"):
        tensors[name] = tensors[name].reshape(())
    return _shortened(tensors, "text.positional_embedding", length)


def _siglip_entries(config: Any) -> dict[str, Any]:
    vision, text = config.vision_config, config.text_config
    return {
        "embed_dim": vision.hidden_size,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": _size(vision.image_size),
            "timm_model_name": _timm_name(vision),
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": _text(text) | {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
    }


# Both -------------------------------------------------------------------------------------------


def _text(text: Any) -> dict[str, Any]:
    return _tower(text) | {"vocab_size": text.vocab_size, "heads": text.num_attention_heads}


def _tower(tower: Any) -> dict[str, Any]:
    entries: dict[str, Any] = {
        "width": tower.hidden_size,
        "layers": tower.num_hidden_layers,
        "mlp_ratio": _ratio(tower.intermediate_size, tower.hidden_size),
    }
    if tower.layer_norm_eps != _NORM_EPSILON:
        entries["norm_kwargs"] = {"eps": tower.layer_norm_eps}
    if tower.hidden_act in _TANH_GELUS:
        entries["act_kwargs"] = {"approximate": "tanh"}
    return entries


def _ratio(inner: int, width: int) -> float:
    """What open_clip multiplies the width by and rounds down to get the MLP's width."""
    ratio = inner / width
    return ratio if int(width * ratio) == inner else (inner + 0.5) / width


def _size(size: int | tuple[int, int]) -> int | list[int]:
    if isinstance(size, int):
        return size
    return size[0] if size[0] == size[1] else list(size)


def _cleaning(folder: Path, tokenizer: Tokenizer) -> str | None:
    """What open_clip calls the cleaning of texts that the tokenizer's own files do not do."""
    kind = str(read_json(folder / "tokenizer_config.json").get("tokenizer_class"))
    if kind.removesuffix("Fast") == "SiglipTokenizer":
        return "canonicalize"
    return "lower" if tokenizer.rules.lower_case else None


def _preprocessing(preprocessor: ImagePreprocessor) -> dict[str, Any]:
    return {
        "size": list(preprocessor.size),
        "mode": "RGB",
        "mean": list(preprocessor.mean),
        "std": list(preprocessor.std),
        "interpolation": preprocessor.resample,
        "resize_mode": "squash" if preprocessor.shortest_edge is None else "shortest",
    }


def _float32(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(torch.float32) for name, tensor in tensors.items()}


def _shortened(tensors: dict[str, Tensor], positions: str, length: int) -> dict[str, Tensor]:
    return tensors | {positions: tensors[positions][:length].contiguous()}
