"""Flamingo: a language model that looks at pictures through gated cross-attention.

Alayrac et al., arXiv 2204.14198; published openly as IDEFICS (Laurençon et al., arXiv 2306.16527),
whose layout is read and written here. A picture takes a single token in the text. Its latents
stay outside, and layers between the language model's own look at them, so a picture costs the
context almost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from chiasm.errors import InvalidRequest, UnsupportedCheckpoint
from chiasm.models.cache import KeyValueCache
from chiasm.models.clip import IMAGE_TOWER
from chiasm.models.configuration import at_least_one
from chiasm.models.decoder import BODY, Decoder, DecoderConfig
from chiasm.models.flamingo_cache import FlamingoCache
from chiasm.models.flops import blocks_flops, product_flops
from chiasm.models.gated_cross_attention import (
    NO_PICTURE,
    GatedCrossAttention,
    View,
    looked_at,
)
from chiasm.models.layout import Layout, under
from chiasm.models.perceiver import PerceiverConfig, PerceiverResampler
from chiasm.models.vision_language import ImageInputs
from chiasm.models.vit import ViT, ViTConfig

# Configuration ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class IdeficsVisionConfig:
    """The entries of `vision_config`: CLIP's image tower, its width called `embed_dim`."""

    renamed: ClassVar[Mapping[str, str]] = {"hidden_size": "embed_dim"}

    embed_dim: int = 768
    intermediate_size: int = 5120
    num_hidden_layers: int = 32
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 14
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5

    @property
    def tower(self) -> ViTConfig:
        """The same in the tower's own words."""
        entries = asdict(self)
        return ViTConfig(hidden_size=entries.pop("embed_dim"), **entries)

    @classmethod
    def of(cls, tower: ViTConfig) -> IdeficsVisionConfig:
        """The same from a tower's own words. Raises UnsupportedCheckpoint unless it is square."""
        names = {each.name for each in fields(cls)}
        entries = {name: value for name, value in vars(tower).items() if name in names}
        size = tower.image_size
        sides = {size} if isinstance(size, int) else set(size)
        if len(sides) != 1:
            raise UnsupportedCheckpoint(f"image_size is {size}; IDEFICS reads squares.")
        return cls(**{**entries, "embed_dim": tower.hidden_size, "image_size": sides.pop()})


@dataclass(frozen=True, kw_only=True)
class IdeficsConfig(DecoderConfig):
    """The entries of an IdeficsForVisionText2Text's `config.json`.

    additional_vocab_size: tokens after the language model's `vocab_size`, embedded by a matrix of
        their own, which can be trained while the language model's stays as it is.
    image_token_id: not published; the second of the additional tokens if None, as it is there.
    eos_token_id: the first ends a document, whose pictures are not seen behind it; None: no token.
    The file's `freeze_…` entries are training's business.
    """

    model_type: ClassVar[str] = "idefics"
    architecture: ClassVar[str] = "IdeficsForVisionText2Text"

    pad_token_id: int | None = 0
    additional_vocab_size: int = 0
    cross_layer_interval: int = 1
    qk_layer_norms: bool = False
    alpha_type: str = "float"
    alpha_initializer: str = "zeros"
    alphas_initializer_range: float = 0.0
    use_resampler: bool = False
    image_token_id: int | None = None
    vision_config: IdeficsVisionConfig = field(default_factory=IdeficsVisionConfig)
    perceiver_config: PerceiverConfig = field(default_factory=PerceiverConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "cross_layer_interval")
        if self.num_hidden_layers % self.cross_layer_interval:
            raise UnsupportedCheckpoint(
                f"cross_layer_interval is {self.cross_layer_interval}, which does not divide "
                f"num_hidden_layers, {self.num_hidden_layers}."
            )
        whole = self.num_attention_heads * self.head_dim == self.hidden_size
        if self.num_key_value_heads != self.num_attention_heads or not whole:
            raise UnsupportedCheckpoint(
                f"IDEFICS has as many heads for keys as for queries, which together are as wide as "
                f"the model, and not {self.num_key_value_heads} for {self.num_attention_heads} of "
                f"{self.head_dim}.",
                hint="Flamingo.around makes one of a decoder with grouped queries.",
            )

    @staticmethod
    def resolve(entries: Mapping[str, Any]) -> tuple[type[IdeficsConfig], dict[str, Any]]:
        """The entries in today's spelling; the language model's are Llama's."""
        _, spelled = DecoderConfig.resolve({**entries, "model_type": DecoderConfig.model_type})
        return IdeficsConfig, spelled

    @property
    def image_latents(self) -> int:
        """What each picture is to the language model: so many vectors."""
        if self.use_resampler:
            return self.perceiver_config.resampler_n_latents
        rows, columns = self.vision_config.tower.grid
        return rows * columns + 1

    @property
    def flops_between_layers(self) -> int:
        """Of a token that looks at a picture; its keys and values were made when it came."""
        attention = product_flops(1, self.hidden_size, self.hidden_size)  # queries; output
        attention += product_flops(1, self.hidden_size, self.image_latents)  # scores; the mix
        mlp = 3 * product_flops(1, self.hidden_size, self.intermediate_size)
        return self.num_hidden_layers // self.cross_layer_interval * (2 * attention + mlp)

    @property
    def document_end(self) -> int:
        """The token after which a picture is seen no more."""
        eos = self.eos_token_id
        return -1 if eos is None else eos if isinstance(eos, int) else eos[0]


# The network ------------------------------------------------------------------------------------


class Flamingo(nn.Module):
    """An image tower, a resampler or none, and a decoder with gated cross-attention between.

    image_token_id: where a picture stands in a text.
    """

    def __init__(self, config: IdeficsConfig) -> None:
        super().__init__()
        self.config = config
        vision, width, extra = (
            config.vision_config,
            config.hidden_size,
            config.additional_vocab_size,
        )
        self.image_token_id = (
            config.vocab_size + 1 if config.image_token_id is None else config.image_token_id
        )
        self.image_tower = ViT(vision.tower, patch_bias=False, pre_norm=True)
        self.resampler = (
            PerceiverResampler(vision.embed_dim, config.perceiver_config)
            if config.use_resampler
            else None
        )
        self.decoder = Decoder(config)
        self.additional_embedding = nn.Embedding(extra, width) if extra else None
        separate = extra and not config.tie_word_embeddings
        self.additional_head = nn.Linear(width, extra, bias=False) if separate else None
        layers = config.num_hidden_layers // config.cross_layer_interval
        self.cross_attention = nn.ModuleList(GatedCrossAttention(config) for _ in range(layers))
        for each in (
            self.resampler,
            self.cross_attention,
            self.additional_embedding,
            self.additional_head,
        ):
            if each is not None:
                each.apply(_initialise)

    @classmethod
    def around(cls, decoder: Decoder, image_tower: ViT, **entries: Any) -> Self:
        """A new Flamingo out of copies of a Llama and of CLIP's image tower.

        With the gates at zero, which is the default, it continues texts just as `decoder` does.
        entries: fields of `IdeficsConfig` that are neither the decoder's nor the tower's; with
            `eos_token_id` the token that ends a document. It is not taken from the decoder, whose
            own may end each turn, after which pictures must still be seen.
        Grouped queries become separate heads, whose keys and values are copies of the group's:
        the published class knows no groups.
        Raises UnsupportedCheckpoint for networks that the published class does not have.
        """
        theirs, heads = decoder.config, decoder.config.num_attention_heads
        if type(theirs) is not DecoderConfig or theirs.attention_bias or theirs.mlp_bias:
            raise UnsupportedCheckpoint(
                "The language model of a Flamingo is a Llama without biases, and not "
                f"{theirs.model_type}."
            )
        shared = {**vars(theirs), "num_key_value_heads": heads, "eos_token_id": None}
        vision = IdeficsVisionConfig.of(image_tower.config)
        model = cls(IdeficsConfig(**{**shared, "vision_config": vision, **entries}))
        state = image_tower.state_dict()
        if state.keys() != model.image_tower.state_dict().keys():
            raise UnsupportedCheckpoint("The image tower of a Flamingo is CLIP's.")
        model.image_tower.load_state_dict(state)
        state = decoder.state_dict()
        for name, tensor in state.items():
            if name.endswith((".attention.k.weight", ".attention.v.weight")):
                each = tensor.unflatten(0, (theirs.num_key_value_heads, -1))
                repeats = heads // theirs.num_key_value_heads
                state[name] = each.repeat_interleave(repeats, dim=0).flatten(0, 1)
        model.decoder.load_state_dict(state)
        return model

    def encode_image(self, inputs: ImageInputs) -> Tensor:
        """A picture's latents, [latents, vision width]."""
        return self.project(self.tower_features(inputs.pixels), inputs.size)

    def tower_features(self, pixels: Tensor, mask: Tensor | None = None) -> Tensor:
        """[pictures, 3, height, width] → [pictures, tokens, vision width]."""
        return self.image_tower.tokens(pixels)

    def project(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """A picture's tokens as `tower_features` gave them → [latents, vision width]."""
        return (features if self.resampler is None else self.resampler(features)).flatten(0, 1)

    def embed(self, ids: Tensor) -> Tensor:
        """int64 [...] → [..., width], additional tokens included."""
        if self.additional_embedding is None:
            return self.decoder.embed(ids)
        beyond = ids - self.config.vocab_size
        own = self.decoder.embed(ids.clamp(max=self.config.vocab_size - 1))
        added = self.additional_embedding(beyond.clamp(min=0))
        return torch.where(beyond[..., None] < 0, own, added)

    def forward(
        self,
        ids: Tensor,
        features: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """int64 [batch, tokens] → the tokens after the last norm, [batch, tokens, width].

        features: [pictures · latents, vision width], one picture after the other for the image
            tokens among `ids`, row by row.
        positions, mask, cache: as in `Decoder`. Where given positions begin again at 0, another
            document begins, which does not see the pictures of the one before.
        Raises InvalidRequest when features and image tokens differ in number.
        """
        seen = cache if isinstance(cache, FlamingoCache) else None
        images = ids == self.image_token_id
        if features is None and seen is not None and seen.length and ids.shape[1] == 1:
            # It may have been generated: then it is text, whatever its id, as in transformers.
            images = torch.zeros_like(images)
        latents = self._latents(int(images.sum()), features)
        numbers = looked_at(
            images,
            ids == self.config.document_end,
            ids.new_full((len(ids),), NO_PICTURE) if seen is None else seen.looking,
            0 if seen is None else len(seen.places),
            None if positions is None else positions == 0,
        )
        view = View.of(numbers, self.config.image_latents)
        if view is None and seen is None and self.training and torch.is_grad_enabled():
            # Processes that train together must all reach the same parameters: a black picture is
            # run through, and nobody sees it.
            view = View.of_nothing(numbers)
            latents = latents.new_zeros(1, *latents.shape[1:])
        read: list[tuple[Tensor, Tensor]] = []

        def look(layer: int, tokens: Tensor) -> Tensor:
            number, between = divmod(layer, self.config.cross_layer_interval)
            if between:
                return tokens
            gated: Any = self.cross_attention[number]
            keys, values = gated.attention.read(latents)
            if seen is not None:
                keys, values = seen.joined(number, keys, values)
                read.append((keys, values))
            return gated(tokens, keys, values, view)

        hidden = self.decoder(
            self.embed(ids), positions=positions, mask=mask, cache=cache, before_layer=look
        )
        if seen is not None:
            seen.keep(
                read, images, numbers.masked_fill(ids == self.config.document_end, NO_PICTURE)
            )
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., width] → [..., vocabulary and additional tokens]."""
        logits = self.decoder.logits(hidden)
        added = self.additional_head or self.additional_embedding
        if added is None:
            return logits
        return torch.cat((logits, nn.functional.linear(hidden, added.weight)), dim=-1)

    def new_cache(self, *, batch: int = 1, capacity: int = 256) -> FlamingoCache:
        """An empty cache on the network's device."""
        like = self.decoder.embedding.weight
        return FlamingoCache(
            self.config, batch=batch, capacity=capacity, dtype=like.dtype, device=like.device
        )

    def vision_flops(self, inputs: ImageInputs) -> int:
        """Floating-point operations of `encode_image` in matrix products."""
        tower = self.config.vision_config.tower
        pictures, channels, height, width = inputs.pixels.shape
        patches = (height // tower.patch_size) * (width // tower.patch_size)
        embedding = product_flops(
            pictures * patches, channels * tower.patch_size**2, tower.hidden_size
        )
        blocks = blocks_flops(tower, tower.num_hidden_layers, pictures, patches + 1)
        resampler = 0 if self.resampler is None else self.resampler.flops(pictures, patches + 1)
        return embedding + blocks + resampler

    def _latents(self, images: int, features: Tensor | None) -> Tensor:
        """The pictures apart, [pictures, latents, vision width]."""
        each, width = self.config.image_latents, self.config.vision_config.embed_dim
        if features is None:
            features = self.decoder.embedding.weight.new_empty(0, width)
        if features.ndim != 2 or len(features) != images * each or features.shape[1] != width:
            raise InvalidRequest(
                f"The prompt has {images} image tokens, which need features of shape "
                f"{[images * each, width]}, and the pictures give {list(features.shape)}.",
                hint="Give each picture its placeholder, and each placeholder its picture.",
            )
        return features.unflatten(0, (images, each))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)


# Names ------------------------------------------------------------------------------------------

LAYOUT = Layout(
    rows={
        **under("decoder", "model", BODY),
        "decoder.head": "lm_head",
        "additional_embedding": "model.embed_tokens.additional_embedding",
        "additional_head": "lm_head.additional_fc",
        **under("image_tower", "model.vision_model", IMAGE_TOWER),
        "resampler": "model.perceiver_resampler",
        **under(
            "resampler",
            "model.perceiver_resampler",
            {
                "norm": "layer_norm",
                **under(
                    "blocks.{}.attention",
                    "blocks.{}.0",
                    {
                        "context_norm": "context_layer_norm",
                        "latents_norm": "latents_layer_norm",
                        "q": "q_proj",
                        "k": "k_proj",
                        "v": "v_proj",
                        "out": "output_proj",
                        "q_norm": "q_layer_norm",
                        "k_norm": "k_layer_norm",
                    },
                ),
                **under(
                    "blocks.{}.mlp", "blocks.{}.1", {"norm": "ln", "fc1": "fc", "fc2": "c_proj"}
                ),
            },
        ),
        "cross_attention.{}": "model.gated_cross_attn_layers.{}",
        **under(
            "cross_attention.{}",
            "model.gated_cross_attn_layers.{}",
            {
                "norm1": "input_layernorm",
                "norm2": "post_attention_layernorm",
                **under(
                    "attention",
                    "cross_attn",
                    {
                        "q": "q_proj",
                        "k": "k_proj",
                        "v": "v_proj",
                        "o": "o_proj",
                        "q_norm": "q_layer_norm",
                        "k_norm": "k_layer_norm",
                    },
                ),
                **under("mlp", "mlp", {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}),
            },
        ),
    },
    ignored=(
        r"^lm_head\.(additional_fc\.)?weight$",  # a tied head, written out all the same
        r"\.rotary_emb\.inv_freq$",
        r"\.embeddings\.position_ids$",
    ),
)
