"""Idefics3 and SmolVLM: tiles through a SigLIP tower, pixel shuffle, one linear layer, a decoder.

Laurençon et al., "Building and better understanding vision-language models", arXiv 2408.12637;
Marafioti et al., "SmolVLM", arXiv 2504.05299. The tower is SigLIP's with positions that depend on
which part of a tile holds pixels, as in NaViT (Dehghani et al., arXiv 2307.06304).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from chiasm.errors import InvalidRequest, UnsupportedCheckpoint
from chiasm.models import siglip
from chiasm.models.configuration import at_least_one
from chiasm.models.decoder import BODY, Decoder, DecoderConfig
from chiasm.models.flops import blocks_flops, product_flops
from chiasm.models.layout import Layout, under
from chiasm.models.projectors import PixelShuffleProjector
from chiasm.models.transformer import Blocks, attended
from chiasm.models.vision_language import ImageInputs, PicturesInText, in_vocabulary
from chiasm.models.vit import PatchEmbedding, ViTConfig


@dataclass(frozen=True, kw_only=True)
class Idefics3VisionConfig(ViTConfig):
    """The image tower. image_size: a tile's side in pixels."""

    model_type: ClassVar[str] = "idefics3_vision"

    hidden_size: int = 1152
    num_attention_heads: int = 16
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    patch_size: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.grid[0] != self.grid[1]:
            raise UnsupportedCheckpoint(f"image_size is {self.image_size}; tiles are square.")


@dataclass(frozen=True, kw_only=True)
class SmolVLMVisionConfig(Idefics3VisionConfig):
    """The same under SmolVLM's name."""

    model_type: ClassVar[str] = "smolvlm_vision"


# Files name the tower after itself or after the whole model.
_TOWER_NAMES = ("idefics3_vision", "idefics3", "smolvlm_vision", "smolvlm")


@dataclass(frozen=True, kw_only=True)
class Idefics3Config:
    """The entries of an Idefics3ForConditionalGeneration's `config.json`.

    scale_factor: the pixel shuffle joins so many patches a side into one image token.
    """

    model_type: ClassVar[str] = "idefics3"
    architecture: ClassVar[str] = "Idefics3ForConditionalGeneration"

    text_config: DecoderConfig = field(default_factory=DecoderConfig)
    vision_config: Idefics3VisionConfig = field(
        default_factory=Idefics3VisionConfig,
        metadata={"kinds": dict.fromkeys(_TOWER_NAMES, Idefics3VisionConfig)},
    )
    image_token_id: int = 128257
    scale_factor: int = 2
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        at_least_one(self, "scale_factor")
        side = self.vision_config.grid[0]
        if side % self.scale_factor:
            raise UnsupportedCheckpoint(
                f"scale_factor is {self.scale_factor}, which does not divide the {side} patches of "
                "a tile's side."
            )

    @property
    def tile_tokens(self) -> int:
        """Image tokens of one tile."""
        return (self.vision_config.grid[0] // self.scale_factor) ** 2


@dataclass(frozen=True, kw_only=True)
class SmolVLMConfig(Idefics3Config):
    """The entries of a SmolVLMForConditionalGeneration's `config.json`."""

    model_type: ClassVar[str] = "smolvlm"
    architecture: ClassVar[str] = "SmolVLMForConditionalGeneration"

    vision_config: Idefics3VisionConfig = field(
        default_factory=SmolVLMVisionConfig,
        metadata={"kinds": dict.fromkeys(_TOWER_NAMES, SmolVLMVisionConfig)},
    )


class Idefics3Tower(nn.Module):
    """SigLIP's transformer over tiles that pixels may fill in part."""

    def __init__(self, config: Idefics3VisionConfig) -> None:
        super().__init__()
        self.config = config
        rows, columns = config.grid
        self.patch_embedding = PatchEmbedding(config, bias=True)
        self.position_embedding = nn.Embedding(rows * columns, config.hidden_size)
        self.blocks = Blocks(config)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixels: Tensor, mask: Tensor | None = None) -> Tensor:
        """[tiles, 3, height, width] → [tiles, patches, width].

        mask: bool [tiles, height, width], where there are pixels; a patch counts if it has one.
        """
        patches = self.patch_embedding(pixels)  # [tiles, rows, columns, width]
        held = self._held(mask, patches)  # [tiles, rows, columns]
        tokens = (patches + self.position_embedding(self.positions(held))).flatten(1, 2)
        return self.norm(self.blocks(tokens, attended(held.flatten(1))))

    def positions(self, held: Tensor) -> Tensor:
        """The position of each patch in the grid that was trained, int64 [tiles, rows, columns].

        The patches that hold pixels are spread over the trained grid evenly; padding is at 0.
        Which side of a border a fraction falls on depends on its rounding, so this is computed as
        transformers computes it, in float32.
        """
        side = self.config.grid[0]
        borders = torch.arange(1 / side, 1.0, 1 / side, device=held.device)

        def spread(count: Tensor, length: int) -> Tensor:
            steps = torch.arange(length, dtype=torch.float32, device=held.device)
            shares = (steps * (1.0 / count)[:, None]).clamp(max=1.0 - 1e-6)
            return torch.bucketize(shares, borders, right=True)  # [tiles, length]

        rows = spread(held[:, :, 0].sum(1), held.shape[1])
        columns = spread(held[:, 0].sum(1), held.shape[2])
        return torch.where(held, rows[:, :, None] * side + columns[:, None], 0)

    def _held(self, mask: Tensor | None, patches: Tensor) -> Tensor:
        shape = patches.shape[:3]
        if mask is None:
            return torch.ones(shape, dtype=torch.bool, device=patches.device)
        side = self.config.patch_size
        mask = mask[:, : shape[1] * side, : shape[2] * side].to(patches.device)
        return mask.unflatten(2, (shape[2], side)).unflatten(1, (shape[1], side)).any(4).any(2)


class Idefics3(PicturesInText):
    """Each tile becomes the same number of image tokens."""

    def __init__(self, config: Idefics3Config, *, head: bool = False) -> None:
        """head: a matrix for the logits is at hand, though text_config calls it tied."""
        super().__init__()
        text = config.text_config
        in_vocabulary("image_token_id", config.image_token_id, text)
        tied = config.tie_word_embeddings or (text.tie_word_embeddings and not head)
        text = replace(text, tie_word_embeddings=tied)
        self.config = replace(config, text_config=text, tie_word_embeddings=tied)
        self.image_tower = Idefics3Tower(config.vision_config)
        self.projector = PixelShuffleProjector(
            config.vision_config.hidden_size, text.hidden_size, factor=config.scale_factor
        )
        self.decoder = Decoder(text)
        self.image_token_id = config.image_token_id

    def encode_image(self, inputs: ImageInputs) -> Tensor:
        """One picture's features, [image tokens, decoder width], tile by tile."""
        return self.project(self.tower_features(inputs.pixels, inputs.mask), inputs.size)

    def tower_features(self, pixels: Tensor, mask: Tensor | None = None) -> Tensor:
        """[tiles, 3, height, width] → [tiles, patches, tower width].

        mask: as in `ImageInputs`.
        """
        vision = self.config.vision_config
        rows, columns = (length // vision.patch_size for length in pixels.shape[2:])
        if (rows, columns) != vision.grid:
            raise InvalidRequest(
                f"Tiles have {pixels.shape[3]}×{pixels.shape[2]} pixels; the image "
                f"tower reads {vision.image_size}×{vision.image_size}."
            )
        weight = self.image_tower.patch_embedding.weight
        return self.image_tower(pixels.to(weight.device, weight.dtype), mask)

    def project(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """One picture's tiles as `tower_features` gave them → [image tokens, decoder width]."""
        return self.projector(features).flatten(0, 1)

    def vision_flops(self, inputs: ImageInputs) -> int:
        """Operations that `encode_image` spends in matrix products."""
        vision = self.config.vision_config
        tiles, channels, height, width = inputs.pixels.shape
        patches = (height // vision.patch_size) * (width // vision.patch_size)
        return (
            product_flops(tiles * patches, channels * vision.patch_size**2, vision.hidden_size)
            + blocks_flops(vision, vision.num_hidden_layers, tiles, patches)
            + self.projector.flops(tiles * patches)
        )


# Names ------------------------------------------------------------------------------------------

HEAD = "lm_head.weight"

LAYOUT = Layout(
    rows={
        **{
            name: f"model.{names}" if isinstance(names, str) else tuple(f"model.{n}" for n in names)
            for name, names in siglip.LAYOUT.rows.items()
            if name.startswith("image_tower.")
        },
        "image_tower.position_embedding": "model.vision_model.embeddings.position_embedding",
        "projector.linear": "model.connector.modality_projection.proj",
        **under("decoder", "model.text_model", BODY),
        "decoder.head": "lm_head",
    },
    ignored=(
        r"\.embeddings\.position_ids$",
        r"\.rotary_emb\.inv_freq$",
        r"^lm_head\.weight$",  # written out though tied
    ),
)
