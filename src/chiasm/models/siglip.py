"""SigLIP and SigLIP 2: towers trained with a sigmoid loss over every pair of a batch.

SigLIP (Zhai et al., arXiv 2303.15343) reads the image feature off an attention-pooling head and
the text feature off the last position of a text padded to a fixed length. The checkpoints of
SigLIP 2 (Tschannen et al., arXiv 2502.14786) with a fixed resolution are the same network; its
NaFlex ones read pictures of any aspect as patches, here `SigLIP2`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chiasm.errors import InvalidRequest, UnsupportedCheckpoint
from chiasm.models.clip import BLOCK, TEXT_TOWER
from chiasm.models.configuration import TransformerConfig, at_least_one
from chiasm.models.layout import Layout, under
from chiasm.models.patches import PatchBatch, patchify
from chiasm.models.transformer import MLP, Attention, Blocks, TextEmbedding, attended
from chiasm.models.vit import ViT, ViTConfig


@dataclass(frozen=True, kw_only=True)
class SigLIPVisionConfig(ViTConfig):
    """The image tower."""

    model_type: ClassVar[str] = "siglip_vision_model"

    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    vision_use_head: bool = True


@dataclass(frozen=True, kw_only=True)
class SigLIPTextConfig(TransformerConfig):
    """The text tower. projection_size: width of the text feature; the tower's own if None."""

    model_type: ClassVar[str] = "siglip_text_model"

    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    vocab_size: int = 32000
    max_position_embeddings: int = 64
    projection_size: int | None = None


@dataclass(frozen=True, kw_only=True)
class SigLIPConfig:
    """The entries of a SiglipModel's `config.json`."""

    model_type: ClassVar[str] = "siglip"
    architecture: ClassVar[str] = "SiglipModel"

    text_config: SigLIPTextConfig = field(default_factory=SigLIPTextConfig)
    vision_config: SigLIPVisionConfig = field(default_factory=SigLIPVisionConfig)


@dataclass(frozen=True, kw_only=True)
class SigLIP2VisionConfig(TransformerConfig):
    """NaFlex's image tower. num_patches: how many positions it was trained with, a square."""

    model_type: ClassVar[str] = "siglip2_vision_model"

    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    num_channels: int = 3
    patch_size: int = 16
    num_patches: int = 256
    vision_use_head: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "patch_size", "num_channels", "num_patches")
        if math.isqrt(self.num_patches) ** 2 != self.num_patches:
            raise UnsupportedCheckpoint(
                f"num_patches is {self.num_patches}, which is no square number."
            )


@dataclass(frozen=True, kw_only=True)
class SigLIP2TextConfig(SigLIPTextConfig):
    """The text tower, which is SigLIP's."""

    model_type: ClassVar[str] = "siglip2_text_model"


@dataclass(frozen=True, kw_only=True)
class SigLIP2Config:
    """The entries of a Siglip2Model's `config.json`."""

    model_type: ClassVar[str] = "siglip2"
    architecture: ClassVar[str] = "Siglip2Model"

    text_config: SigLIP2TextConfig = field(default_factory=SigLIP2TextConfig)
    vision_config: SigLIP2VisionConfig = field(default_factory=SigLIP2VisionConfig)


class AttentionPooling(nn.Module):
    """A learned probe that attends to all tokens, then a residual MLP."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.randn(config.hidden_size) * 0.02)
        self.attention = Attention(config.hidden_size, config.num_attention_heads)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """[batch, tokens, width] → [batch, width]. mask: bool, [batch, 1, 1, tokens]."""
        probe = self.probe.expand(len(tokens), 1, -1)
        pooled = self.attention.query(probe, tokens, mask)[:, 0]
        return pooled + self.mlp(self.norm(pooled))


class TextTower(nn.Module):
    """A bidirectional transformer, read at the last position."""

    def __init__(self, config: SigLIPTextConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = TextEmbedding(
            config.vocab_size, config.max_position_embeddings, config.hidden_size
        )
        self.blocks = Blocks(config)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.head = nn.Linear(config.hidden_size, config.projection_size or config.hidden_size)

    def tokens(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Every token after the last norm, [batch, tokens, width]."""
        return self.norm(self.blocks(self.embedding(ids), attended(mask)))

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """The last position's feature, [batch, projection size].

        ids: int64 [batch, tokens], padded to the length the model was trained with.
        mask: bool [batch, tokens]; None lets the model see its padding, as in training.
        """
        last = torch.full((len(ids),), ids.shape[1] - 1, device=ids.device)
        return self.head(self.norm(self.blocks.one(self.embedding(ids), last, attended(mask))))


class SigLIP(nn.Module):
    """A ViT without class token, pooled by attention, and a bidirectional text tower."""

    def __init__(self, config: SigLIPConfig) -> None:
        super().__init__()
        _check(config)
        self.config = config
        self.image_tower = ViT(config.vision_config, class_token=False)
        self.image_head = AttentionPooling(config.vision_config)
        self.text_tower = TextTower(config.text_config)
        self.logit_scale = nn.Parameter(torch.tensor([10.0]).log())
        self.logit_bias = nn.Parameter(torch.tensor([-10.0]))

    @property
    def dimension(self) -> int:
        """Width of the shared space."""
        return self.config.vision_config.hidden_size

    def encode_image(self, pixels: Tensor) -> Tensor:
        """[batch, 3, height, width] → [batch, dimension], not normalised."""
        tokens = self.image_tower.norm(self.image_tower.tokens(pixels))
        return self.image_head(tokens)

    def encode_text(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """int64 [batch, tokens] → [batch, dimension], not normalised."""
        return self.text_tower(ids, mask)


# NaFlex -----------------------------------------------------------------------------------------


class NaFlexTower(nn.Module):
    """A ViT over patches whose positions are interpolated to each picture's own grid."""

    def __init__(self, config: SigLIP2VisionConfig) -> None:
        super().__init__()
        self.config = config
        width, side = config.hidden_size, config.patch_size
        self.patch_embedding = nn.Linear(config.num_channels * side * side, width)
        self.position_embedding = nn.Parameter(torch.randn(config.num_patches, width) * 0.02)
        self.blocks = Blocks(config)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, batch: PatchBatch) -> Tensor:
        """Every patch after the last norm, [batch, patches, width]; padding holds no meaning."""
        tokens = self.patch_embedding(batch.patches) + self._positions(batch)
        return self.norm(self.blocks(tokens, attended(batch.mask)))

    def _positions(self, batch: PatchBatch) -> Tensor:
        """[batch, patches, width]."""
        side = math.isqrt(self.config.num_patches)
        grid = self.position_embedding.unflatten(0, (side, side)).permute(2, 0, 1)[None]
        length = batch.patches.shape[1]
        interpolated: dict[tuple[int, int], Tensor] = {}
        for rows, columns in {tuple(shape) for shape in batch.shapes.tolist()}:
            resized = F.interpolate(
                grid, size=(rows, columns), mode="bilinear", align_corners=False, antialias=True
            )
            positions = resized[0].flatten(1).T  # [rows · columns, width]
            interpolated[rows, columns] = F.pad(positions, (0, 0, 0, length - rows * columns))
        return torch.stack([interpolated[r, c] for r, c in batch.shapes.tolist()])


class SigLIP2(nn.Module):
    """SigLIP with a NaFlex image tower."""

    def __init__(self, config: SigLIP2Config) -> None:
        super().__init__()
        _check(config)
        self.config = config
        self.image_tower = NaFlexTower(config.vision_config)
        self.image_head = AttentionPooling(config.vision_config)
        self.text_tower = TextTower(config.text_config)
        self.logit_scale = nn.Parameter(torch.tensor([10.0]).log())
        self.logit_bias = nn.Parameter(torch.tensor([-10.0]))

    @property
    def dimension(self) -> int:
        """Width of the shared space."""
        return self.config.vision_config.hidden_size

    def encode_image(self, pixels: PatchBatch | Tensor) -> Tensor:
        """Patches, or pixels [batch, 3, height, width], → [batch, dimension], not normalised.

        Pixels need sides that are multiples of the patch size.
        """
        batch = pixels if isinstance(pixels, PatchBatch) else self._patches(pixels)
        return self.image_head(self.image_tower(batch), attended(batch.mask))

    def encode_text(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """int64 [batch, tokens] → [batch, dimension], not normalised."""
        return self.text_tower(ids, mask)

    def _patches(self, pixels: Tensor) -> PatchBatch:
        side = self.config.vision_config.patch_size
        height, width = pixels.shape[2:]
        if height % side or width % side:
            raise InvalidRequest(
                f"Pictures of {width}×{height} pixels cannot be cut into whole patches of {side}."
            )
        patches = torch.stack([patchify(each.permute(1, 2, 0), side) for each in pixels])
        mask = torch.ones(patches.shape[:2], dtype=torch.bool, device=pixels.device)
        return PatchBatch(
            patches, mask, torch.tensor([[height // side, width // side]] * len(pixels))
        )


def _check(config: SigLIPConfig | SigLIP2Config) -> None:
    text, vision = config.text_config, config.vision_config
    if not vision.vision_use_head:
        raise UnsupportedCheckpoint(
            "without its pooling head (vision_use_head) the image tower gives no "
            "feature to compare with a text's."
        )
    width = text.projection_size or text.hidden_size
    if width != vision.hidden_size:
        raise UnsupportedCheckpoint(
            f"text features of width {width} cannot be compared with image features "
            f"of width {vision.hidden_size}."
        )


LAYOUT = Layout(
    rows={
        "logit_scale": "logit_scale",
        "logit_bias": "logit_bias",
        **under("text_tower", "text_model", {**TEXT_TOWER, "head": "head"}),
        **under(
            "image_tower",
            "vision_model",
            {
                "patch_embedding": "embeddings.patch_embedding",
                "position_embedding": "embeddings.position_embedding.weight",
                "norm": "post_layernorm",
                **under("blocks.{}", "encoder.layers.{}", BLOCK),
            },
        ),
        **under(
            "image_head",
            "vision_model.head",
            {
                "probe": "probe",
                "attention.qkv.weight": "attention.in_proj_weight",
                "attention.qkv.bias": "attention.in_proj_bias",
                "attention.out": "attention.out_proj",
                "norm": "layernorm",
                "mlp.fc1": "mlp.fc1",
                "mlp.fc2": "mlp.fc2",
            },
        ),
    },
    leading={"vision_model.head.probe": 2},
    ignored=(r"\.embeddings\.position_ids$",),
)
