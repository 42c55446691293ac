"""CLIP: two towers trained to agree on which caption belongs to which picture.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
arXiv 2103.00020.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from chiasm.models.configuration import TransformerConfig
from chiasm.models.layout import Layout, Names, under
from chiasm.models.transformer import Blocks, TextEmbedding
from chiasm.models.vit import ViT, ViTConfig

# Checkpoints converted before 2023 call token 2 the end of text, which it is not in CLIP's
# vocabulary; there the end-of-text token is the one with the highest id.
_WRONG_END = 2


@dataclass(frozen=True, kw_only=True)
class CLIPVisionConfig(ViTConfig):
    """The image tower."""

    model_type: ClassVar[str] = "clip_vision_model"

    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5


@dataclass(frozen=True, kw_only=True)
class CLIPTextConfig(TransformerConfig):
    """The text tower."""

    model_type: ClassVar[str] = "clip_text_model"

    hidden_size: int = 512
    intermediate_size: int = 2048
    num_attention_heads: int = 8
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    vocab_size: int = 49408
    max_position_embeddings: int = 77
    pad_token_id: int | None = 1
    bos_token_id: int | None = 49406
    eos_token_id: int = 49407


@dataclass(frozen=True, kw_only=True)
class CLIPConfig:
    """The entries of a CLIPModel's `config.json`."""

    model_type: ClassVar[str] = "clip"
    architecture: ClassVar[str] = "CLIPModel"
    # Before 2023 the towers' entries could stand under these names; where they do, they hold.
    renamed: ClassVar[Mapping[str, str]] = {
        "text_config_dict": "text_config",
        "vision_config_dict": "vision_config",
    }

    text_config: CLIPTextConfig = field(default_factory=CLIPTextConfig)
    vision_config: CLIPVisionConfig = field(default_factory=CLIPVisionConfig)
    projection_dim: int = 512
    logit_scale_init_value: float = math.log(1 / 0.07)


class CausalTextTower(nn.Module):
    """A transformer in which a token sees only what precedes it; read at the end-of-text token."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = TextEmbedding(
            config.vocab_size, config.max_position_embeddings, config.hidden_size
        )
        self.blocks = Blocks(config)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def tokens(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Every token after the last norm, [batch, tokens, width]."""
        allowed = _allowed(mask)
        return self.norm(self.blocks(self.embedding(ids), allowed, allowed is None))

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """The end-of-text token after the last norm, [batch, width].

        ids: int64 [batch, tokens]. mask: bool [batch, tokens], False at padding.
        """
        ends = self.ends(ids)
        # Nothing behind the last text's end can reach any end: those positions are not computed.
        length = int(ends.max()) + 1
        ids, mask = ids[:, :length], None if mask is None else mask[:, :length]
        allowed = _allowed(mask)
        return self.norm(self.blocks.one(self.embedding(ids), ends, allowed, allowed is None))

    def ends(self, ids: Tensor) -> Tensor:
        """The position of each text's end-of-text token, int64 [batch]."""
        end = self.config.eos_token_id
        return (ids if end == _WRONG_END else (ids == end).int()).argmax(dim=-1)


def _allowed(mask: Tensor | None) -> Tensor | None:
    """Which token may attend to which, bool [batch, 1, tokens, tokens]; None: any earlier one.

    Padding on the right needs no mask of its own: it comes later than every token that counts.
    """
    if mask is None:
        return None
    mask = mask.bool()
    if bool((mask[:, :-1] >= mask[:, 1:]).all()):
        return None
    causal = torch.ones(mask.shape[1], mask.shape[1], dtype=torch.bool, device=mask.device).tril()
    return causal & mask[:, None, None, :]


class CLIP(nn.Module):
    """A ViT and a causal text tower, each with a projection into the shared space."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.config = config
        text, vision, width = config.text_config, config.vision_config, config.projection_dim
        self.image_tower = ViT(vision, patch_bias=False, pre_norm=True)
        self.text_tower = CausalTextTower(text)
        self.image_projection = nn.Linear(vision.hidden_size, width, bias=False)
        self.text_projection = nn.Linear(text.hidden_size, width, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value))

    @property
    def dimension(self) -> int:
        """Width of the shared space."""
        return self.config.projection_dim

    def encode_image(self, pixels: Tensor) -> Tensor:
        """[batch, 3, height, width] → [batch, dimension], not normalised."""
        return self.image_projection(self.image_tower(pixels))

    def encode_text(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """int64 [batch, tokens] → [batch, dimension], not normalised."""
        return self.text_projection(self.text_tower(ids, mask))


# CLIP's and SigLIP's blocks and token embeddings have the same names.
BLOCK: dict[str, Names] = {
    "norm1": "layer_norm1",
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.out": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
TEXT_TOWER: dict[str, Names] = {
    "embedding.token": "embeddings.token_embedding",
    "embedding.position": "embeddings.position_embedding",
    "norm": "final_layer_norm",
    **under("blocks.{}", "encoder.layers.{}", BLOCK),
}
IMAGE_TOWER: dict[str, Names] = {
    "class_token": "embeddings.class_embedding",
    "patch_embedding": "embeddings.patch_embedding",
    "position_embedding": "embeddings.position_embedding.weight",
    "pre_norm": "pre_layrnorm",  # spelled so in every published file
    "norm": "post_layernorm",
    **under("blocks.{}", "encoder.layers.{}", BLOCK),
}

LAYOUT = Layout(
    rows={
        "image_projection": "visual_projection",
        "text_projection": "text_projection",
        "logit_scale": "logit_scale",
        **under("text_tower", "text_model", TEXT_TOWER),
        **under("image_tower", "vision_model", IMAGE_TOWER),
    },
    ignored=(r"\.embeddings\.position_ids$",),
)
