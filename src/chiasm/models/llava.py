"""LLaVA-1.5: a CLIP or SigLIP tower, a two-layer projector, and a decoder.

Liu et al., "Improved Baselines with Visual Instruction Tuning", arXiv 2310.03744.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from chiasm.errors import UnsupportedCheckpoint
from chiasm.models import clip, siglip
from chiasm.models.clip import CLIPVisionConfig
from chiasm.models.decoder import BODY, Decoder, DecoderConfig
from chiasm.models.flops import blocks_flops, product_flops
from chiasm.models.layout import Layout, Names, under
from chiasm.models.projectors import MLPProjector
from chiasm.models.siglip import AttentionPooling, SigLIPVisionConfig
from chiasm.models.vision_language import ImageInputs, PicturesInText, in_vocabulary
from chiasm.models.vit import ViT

TowerConfig = CLIPVisionConfig | SigLIPVisionConfig

TOWERS: dict[str, type[TowerConfig]] = {
    kind.model_type: kind for kind in (CLIPVisionConfig, SigLIPVisionConfig)
}


def _clip_large() -> CLIPVisionConfig:
    """CLIP ViT-L/14 at 336 pixels, which a file means that says nothing of its tower."""
    return CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )


@dataclass(frozen=True, kw_only=True)
class LLaVAConfig:
    """The entries of a LlavaForConditionalGeneration's `config.json`.

    vision_feature_layer: after which block the tower is read: 0 before the first, −1 after the
        last; several are joined along the width.
    vision_feature_select_strategy: `default` leaves out the first token, CLIP's class token;
        `full` keeps all.
    """

    model_type: ClassVar[str] = "llava"
    architecture: ClassVar[str] = "LlavaForConditionalGeneration"
    renamed: ClassVar[Mapping[str, str]] = {"image_token_id": "image_token_index"}

    text_config: DecoderConfig = field(default_factory=DecoderConfig)
    vision_config: TowerConfig = field(default_factory=_clip_large, metadata={"kinds": TOWERS})
    image_token_index: int = 32000
    image_seq_length: int = 576
    projector_hidden_act: str = "gelu"
    multimodal_projector_bias: bool = True
    vision_feature_layer: int | tuple[int, ...] = -2
    vision_feature_select_strategy: str = "default"
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        if self.vision_feature_select_strategy not in {"default", "full"}:
            raise UnsupportedCheckpoint(
                f"vision_feature_select_strategy is {self.vision_feature_select_strategy!r}.",
                hint="Known are default and full.",
            )
        states = self.vision_config.num_hidden_layers + 1
        if not self.feature_layers or not all(-states <= n < states for n in self.feature_layers):
            raise UnsupportedCheckpoint(
                f"vision_feature_layer is {self.vision_feature_layer!r}; the tower has "
                f"{states - 1} blocks."
            )

    @property
    def feature_layers(self) -> tuple[int, ...]:
        """`vision_feature_layer` as a tuple."""
        layers = self.vision_feature_layer
        return (layers,) if isinstance(layers, int) else layers

    @property
    def blocks_read(self) -> list[int]:
        """After how many blocks the tower is read, each counted from the first."""
        states = self.vision_config.num_hidden_layers + 1
        return [layer % states for layer in self.feature_layers]

    @property
    def drops_first(self) -> bool:
        """Whether the tower's first token is left out."""
        return self.vision_feature_select_strategy == "default"

    @property
    def has_class_token(self) -> bool:
        """Whether the tower's first token is a class token."""
        return isinstance(self.vision_config, CLIPVisionConfig)


class LLaVA(PicturesInText):
    """Pictures of one size, each as many tokens as it has patches."""

    def __init__(self, config: LLaVAConfig, *, head: bool = False) -> None:
        """head: a matrix for the logits is at hand, though text_config calls it tied."""
        super().__init__()
        self.config = config = _settled(config, head)
        vision, text = config.vision_config, config.text_config
        in_vocabulary("image_token_index", config.image_token_index, text)
        clip_like = config.has_class_token
        self.image_tower = ViT(
            vision, class_token=clip_like, patch_bias=not clip_like, pre_norm=clip_like
        )
        # Never run; a published SigLIP tower brings it, and what is saved is to be complete.
        unused = isinstance(vision, SigLIPVisionConfig) and vision.vision_use_head
        self.image_head = AttentionPooling(vision) if unused else None
        self.projector = MLPProjector(
            vision.hidden_size * len(config.feature_layers),
            text.hidden_size,
            hidden_act=config.projector_hidden_act,
            bias=config.multimodal_projector_bias,
        )
        self.decoder = Decoder(text)
        self.image_token_id = config.image_token_index

    def encode_image(self, inputs: ImageInputs) -> Tensor:
        """One picture's features, [image tokens, decoder width]."""
        return self.project(self.tower_features(inputs.pixels), inputs.size)

    def tower_features(self, pixels: Tensor, mask: Tensor | None = None) -> Tensor:
        """[tiles, 3, height, width] → [tiles, image tokens of a tile, tower width]."""
        weight = self.image_tower.patch_embedding.weight
        pixels = pixels.to(weight.device, weight.dtype)
        states = self.image_tower.after(pixels, self.config.blocks_read)
        if self.config.drops_first:
            states = [tokens[:, 1:] for tokens in states]
        return torch.cat(states, dim=-1)

    def project(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """One picture's tiles as `tower_features` gave them → [image tokens, decoder width].

        size: (width, height) of the picture.
        """
        return self.projector(features).flatten(0, 1)

    def vision_flops(self, inputs: ImageInputs) -> int:
        """Operations that `encode_image` spends in matrix products."""
        vision = self.config.vision_config
        tiles, channels, height, width = inputs.pixels.shape
        patches = (height // vision.patch_size) * (width // vision.patch_size)
        tokens = patches + int(self.config.has_class_token)
        return (
            product_flops(tiles * patches, channels * vision.patch_size**2, vision.hidden_size)
            + blocks_flops(vision, max(self.config.blocks_read), tiles, tokens)
            + self.projector.flops(tiles * (tokens - int(self.config.drops_first)))
        )


def _settled(config: LLaVAConfig, head: bool) -> LLaVAConfig:
    """`config` with both its entries for tied embeddings saying what holds.

    LLaVA's own entry, or the language model's: the former was added later. Where a file calls
    them tied in the latter alone and yet brings a head, LLaVA ties them and the others do not.
    """
    text = config.text_config
    tied = config.tie_word_embeddings or (
        text.tie_word_embeddings and (not head or config.model_type == "llava")
    )
    return replace(
        config, text_config=replace(text, tie_word_embeddings=tied), tie_word_embeddings=tied
    )


# Names ------------------------------------------------------------------------------------------

HEAD = "language_model.lm_head.weight"


def _in_tower(names: Names) -> Names:
    """A tower's published names, below the name that a LLaVA gives the tower."""
    if isinstance(names, str):
        return f"vision_tower.{names}"
    return tuple(f"vision_tower.{name}" for name in names)


LAYOUT = Layout(
    rows={
        # CLIP's rows hold all that SigLIP's tower needs; the unused pooling head is SigLIP's.
        **{
            name: _in_tower(names)
            for name, names in {**siglip.LAYOUT.rows, **clip.LAYOUT.rows}.items()
            if name.startswith(("image_tower.", "image_head."))
        },
        "projector.linear_1": "multi_modal_projector.linear_1",
        "projector.linear_2": "multi_modal_projector.linear_2",
        **under("decoder", "language_model.model", BODY),
        "decoder.head": "language_model.lm_head",
        "image_newline": "image_newline",  # LLaVA-NeXT's
    },
    leading={"vision_tower.vision_model.head.probe": 2},
    renames=(
        # The names that transformers 5 has in memory, and those it writes; the published ones,
        # which are written here, are what the inference servers read.
        (r"^model\.language_model\.", "language_model.model."),
        (r"^model\.(?=(vision_tower|multi_modal_projector)\.|image_newline$)", ""),
        (r"^lm_head\.", "language_model.lm_head."),
        (r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model."),
    ),
    ignored=(
        r"\.embeddings\.position_ids$",
        r"\.rotary_emb\.inv_freq$",
        r"^language_model\.lm_head\.weight$",  # written out though tied
    ),
)
