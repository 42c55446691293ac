"""The decoder of the Llama family: Llama and SmolLM2, Vicuna, Qwen2 and Qwen3.

Llama (Touvron et al., arXiv 2302.13971): pre-norm blocks with RMSNorm (Zhang and Sennrich, arXiv
1910.07467), rotary positions, SwiGLU (Shazeer, arXiv 2002.05202) and, since Llama 2,
grouped-query attention (Ainslie et al., arXiv 2305.13245). Qwen2 (arXiv 2407.10671) adds biases to
queries, keys and values; Qwen3 (arXiv 2505.09388) normalises queries and keys instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chiasm.errors import InvalidRequest, UnsupportedCheckpoint
from chiasm.models.cache import KeyValueCache
from chiasm.models.configuration import at_least_one
from chiasm.models.layout import Layout, Names, under
from chiasm.models.rotary import RopeParameters, RotaryTable, turned
from chiasm.models.transformer import activation

BeforeLayer = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The entries of a LlamaForCausalLM's `config.json`, and what its relatives share with it.

    num_key_value_heads: as many as num_attention_heads if 0. head_dim: hidden_size /
    num_attention_heads if 0. rope_theta: wins over the one in rope_parameters, which repeats it.
    """

    model_type: ClassVar[str] = "llama"
    architecture: ClassVar[str] = "LlamaForCausalLM"

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 0
    head_dim: int = 0
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_parameters: RopeParameters = field(default_factory=RopeParameters)
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    bos_token_id: int | None = 1
    eos_token_id: int | tuple[int, ...] | None = 2
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        settle = object.__setattr__  # the fields are frozen for everyone else
        at_least_one(self, "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
        settle(self, "num_key_value_heads", self.num_key_value_heads or self.num_attention_heads)
        settle(self, "head_dim", self.head_dim or self.hidden_size // self.num_attention_heads)
        rope = replace(self.rope_parameters, rope_theta=self.rope_theta)
        settle(self, "rope_parameters", rope)
        if self.num_attention_heads % self.num_key_value_heads:
            raise UnsupportedCheckpoint(
                f"num_key_value_heads is {self.num_key_value_heads}, which does not divide "
                f"num_attention_heads, {self.num_attention_heads}."
            )
        if self.head_dim % 2:
            raise UnsupportedCheckpoint(f"head_dim is {self.head_dim}, which is odd.")

    @property
    def eos_ids(self) -> frozenset[int]:
        """Every token that ends a text."""
        eos = self.eos_token_id
        return frozenset(() if eos is None else (eos,) if isinstance(eos, int) else eos)

    @property
    def qkv_bias(self) -> bool:
        """Whether queries, keys and values have biases."""
        return self.attention_bias

    @property
    def out_bias(self) -> bool:
        """Whether attention's output has a bias."""
        return self.attention_bias

    @property
    def flops_between_layers(self) -> int:
        """Operations that each token costs between the layers, such as a look at a picture."""
        return 0

    @staticmethod
    def resolve(entries: Mapping[str, Any]) -> tuple[type[DecoderConfig], dict[str, Any]]:
        """The kind of decoder that a file's entries mean, and they in today's spelling."""
        entries = dict(entries)
        model_type = entries.get("model_type", DecoderConfig.model_type)
        kind = DECODERS.get(model_type)
        if kind is None:
            raise UnsupportedCheckpoint(
                f"the language model's model_type is {model_type!r}, which is not known here.",
                hint=f"Known are {', '.join(DECODERS)}.",
            )
        for name in ("num_key_value_heads", "head_dim"):
            if entries.get(name) is None:
                entries.pop(name, None)
        # Before transformers 5: `rope_theta` beside `rope_scaling`, which may be null.
        if older := entries.pop("rope_scaling", None):
            entries["rope_parameters"] = older
        rope = entries.get("rope_parameters")
        if isinstance(rope, Mapping) and rope.get("rope_theta") is not None:
            entries["rope_theta"] = rope["rope_theta"]
        if entries.get("rope_theta") is None:
            entries.pop("rope_theta", None)
        _refuse_windows(entries, kind)
        return kind, entries


def _refuse_windows(entries: Mapping[str, Any], kind: type[DecoderConfig]) -> None:
    """Raise UnsupportedCheckpoint when some layers see only the nearest tokens."""
    types = entries.get("layer_types") or ()
    window = entries.get("sliding_window")
    layers = entries.get("num_hidden_layers", kind.num_hidden_layers)
    windowed = (
        any(each != "full_attention" for each in types)
        if types
        else bool(entries.get("use_sliding_window"))
        and window is not None
        and layers > entries.get("max_window_layers", 28)
    )
    if windowed:
        raise UnsupportedCheckpoint(
            f"it uses attention over a sliding window of {window} tokens, which is not supported."
        )


@dataclass(frozen=True, kw_only=True)
class Qwen2Config(DecoderConfig):
    """The entries of a Qwen2ForCausalLM's `config.json`."""

    model_type: ClassVar[str] = "qwen2"
    architecture: ClassVar[str] = "Qwen2ForCausalLM"

    vocab_size: int = 151936
    intermediate_size: int = 22016
    max_position_embeddings: int = 32768
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None

    @property
    def qkv_bias(self) -> bool:
        """Always."""
        return True

    @property
    def out_bias(self) -> bool:
        """Never."""
        return False


@dataclass(frozen=True, kw_only=True)
class Qwen3Config(DecoderConfig):
    """The entries of a Qwen3ForCausalLM's `config.json`."""

    model_type: ClassVar[str] = "qwen3"
    architecture: ClassVar[str] = "Qwen3ForCausalLM"

    vocab_size: int = 151936
    intermediate_size: int = 22016
    head_dim: int = 128
    max_position_embeddings: int = 32768
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None


DECODERS: dict[str, type[DecoderConfig]] = {
    kind.model_type: kind for kind in (DecoderConfig, Qwen2Config, Qwen3Config)
}


class RMSNorm(nn.Module):
    """x / √(mean of x² + ε), times a weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class DecoderAttention(nn.Module):
    """Grouped-query attention: several query heads share a head of keys and values."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        width = config.hidden_size
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        self.q = nn.Linear(width, queries, bias=config.qkv_bias)
        self.k = nn.Linear(width, keys, bias=config.qkv_bias)
        self.v = nn.Linear(width, keys, bias=config.qkv_bias)
        self.o = nn.Linear(queries, width, bias=config.out_bias)
        normed = isinstance(config, Qwen3Config)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if normed else None
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if normed else None

    def forward(
        self,
        tokens: Tensor,
        turn: tuple[Tensor, Tensor],
        mask: Tensor | None,
        causal: bool,
        cache: KeyValueCache | None,
    ) -> Tensor:
        """[batch, tokens, width] → the same. turn: cos and sin, [batch or 1, tokens, 1, width]."""
        q, k, v = (each.transpose(1, 2) for each in self.project(tokens, turn))
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        mixed = attend(q, k, v, mask, causal)  # [batch, heads, tokens, head width]
        return self.o(mixed.transpose(1, 2).flatten(2))

    def project(self, tokens: Tensor, turn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """[..., width] → queries, keys and values, turned, [..., heads, head width] each.

        turn: cos and sin, broadcast to them.
        """
        q = self.q(tokens).unflatten(-1, (-1, self.head_dim))
        k = self.k(tokens).unflatten(-1, (-1, self.head_dim))
        v = self.v(tokens).unflatten(-1, (-1, self.head_dim))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return turned(q, *turn), turned(k, *turn), v


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Attention of queries [batch, heads, queries, width] to [batch, key heads, keys, width]."""
    heads, queries = q.shape[1:3]
    if queries == 1 and (mask is None or mask.ndim < 4 or mask.shape[1] == 1):
        # The heads that share keys become the queries of one head: nothing has to be repeated.
        grouped = q.reshape(len(q), k.shape[1], -1, q.shape[3])
        return F.scaled_dot_product_attention(grouped, k, v, attn_mask=mask).reshape(q.shape)
    unshared = mask is not None or q.dtype == torch.float32
    if unshared and q.device.type == "cuda" and heads != k.shape[1]:
        # Of CUDA's kernels the one that knows shared keys takes no mask and no float32; another
        # would be found, which writes out all the scores.
        k, v = (each.repeat_interleave(heads // each.shape[1], dim=1) for each in (k, v))
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=heads != k.shape[1]
    )


class SwiGLU(nn.Module):
    """down(act(gate(x)) · up(x))."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        width, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate = nn.Linear(width, inner, bias=bias)
        self.up = nn.Linear(width, inner, bias=bias)
        self.down = nn.Linear(inner, width, bias=bias)
        self.activation = activation(config.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.gate(x)) * self.up(x))


class DecoderLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = DecoderAttention(config, layer)
        self.norm2 = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = SwiGLU(config)

    def forward(
        self,
        tokens: Tensor,
        turn: tuple[Tensor, Tensor],
        mask: Tensor | None,
        causal: bool,
        cache: KeyValueCache | None,
    ) -> Tensor:
        tokens = tokens + self.attention(self.norm1(tokens), turn, mask, causal, cache)
        return tokens + self.mlp(self.norm2(tokens))


class Decoder(nn.Module):
    """Embeddings, layers, a last norm, and a head that may be the embeddings' own matrix."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.embedding = nn.Embedding(config.vocab_size, width)
        self.layers = nn.ModuleList(
            DecoderLayer(config, layer) for layer in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(width, config.rms_norm_eps)
        tied = config.tie_word_embeddings
        self.head = None if tied else nn.Linear(width, config.vocab_size, bias=False)
        self.rotary = RotaryTable(
            config.rope_parameters,
            config.head_dim,
            theta=config.rope_theta,
            longest=config.max_position_embeddings,
        )
        self.apply(_initialise)

    def embed(self, ids: Tensor) -> Tensor:
        """int64 [...] → [..., width]."""
        return self.embedding(ids)

    def forward(
        self,
        embeddings: Tensor,
        *,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
        before_layer: BeforeLayer | None = None,
    ) -> Tensor:
        """The tokens after the last norm, [batch, tokens, width], from their embeddings.

        positions: int64 [batch, tokens]; consecutive after the cache's if None.
        mask: bool, broadcast to [batch, heads, queries, keys], True where a query may attend to a
            key, the cache's keys first; causal if None. See `causal_mask` for padded batches.
        cache: what was read before, to which these tokens are added.
        before_layer: given a layer's index and what would enter it; what it returns enters.
        """
        length, before = embeddings.shape[1], cache.length if cache is not None else 0
        if cache is not None and cache.batch != len(embeddings):
            raise InvalidRequest(
                f"A cache of {cache.batch} sequences cannot go on with {len(embeddings)}."
            )
        turn = self.rotary.at(
            range(before, before + length) if positions is None else positions, embeddings
        )
        causal = mask is None and before == 0 and length > 1
        if mask is None and before > 0 and length > 1:
            mask = causal_mask(before + length, length, device=embeddings.device)
        tokens = embeddings
        for index, layer in enumerate(self.layers):
            if before_layer is not None:
                tokens = before_layer(index, tokens)
            tokens = layer(tokens, turn, mask, causal, cache)
        return self.norm(tokens)

    def new_cache(self, *, batch: int = 1, capacity: int = 256) -> KeyValueCache:
        """An empty cache of the network's type, on its device."""
        weight = self.norm.weight
        return KeyValueCache(
            self.config, batch=batch, capacity=capacity, dtype=weight.dtype, device=weight.device
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., width] → [..., vocabulary]."""
        return F.linear(hidden, (self.head or self.embedding).weight)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


# Masks ------------------------------------------------------------------------------------------


def causal_mask(
    keys: int,
    queries: int | None = None,
    *,
    held: Tensor | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Which keys the last `queries` tokens of `keys` may attend to: bool, for `Decoder.forward`.

    held: bool [batch, keys], False at padding. The mask is then [batch, 1, queries, keys], else
    [1, 1, queries, keys].
    """
    queries = keys if queries is None else queries
    device = held.device if held is not None else device
    order = torch.arange(keys, device=device)
    mask = (order <= order[keys - queries :, None])[None, None]  # [1, 1, queries, keys]
    return mask if held is None else mask & held.bool()[:, None, None]


def padded_positions(held: Tensor) -> Tensor:
    """Positions that count the tokens of each row and not its padding.

    held: bool [batch, tokens], False at padding. int64 [batch, tokens], 0 at leading padding.
    """
    return (held.long().cumsum(dim=1) - 1).clamp_min(0)


# Names ------------------------------------------------------------------------------------------

BODY: dict[str, Names] = {
    "embedding": "embed_tokens",
    "norm": "norm",
    **under(
        "layers.{}",
        "layers.{}",
        {
            "norm1": "input_layernorm",
            "norm2": "post_attention_layernorm",
            **under(
                "attention",
                "self_attn",
                {
                    "q": "q_proj",
                    "k": "k_proj",
                    "v": "v_proj",
                    "o": "o_proj",
                    "q_norm": "q_norm",
                    "k_norm": "k_norm",
                },
            ),
            **under("mlp", "mlp", {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}),
        },
    ),
}
"""A decoder's names without its head's, below the published `model`."""

_PUBLISHED = {
    name: f"model.{theirs}" if isinstance(theirs, str) else theirs for name, theirs in BODY.items()
}

LAYOUT = Layout(
    rows={**_PUBLISHED, "head": "lm_head"},
    # The body alone, saved without its head, has no prefix.
    renames=((r"^(?=(embed_tokens|layers|norm)\.)", "model."),),
    # A tied head may be written out all the same; the rotary frequencies once were.
    ignored=(r"^lm_head\.weight$", r"\.rotary_emb\.inv_freq$"),
)
