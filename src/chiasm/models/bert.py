"""BERT, the bidirectional text encoder (Devlin et al., arXiv 1810.04805).

Blocks are post-norm: the layer norm follows the sum, as in the original transformer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from chiasm.errors import InvalidRequest
from chiasm.models.configuration import TransformerConfig
from chiasm.models.layout import Layout, under
from chiasm.models.transformer import MLP, Attention, TextEmbedding, attended


@dataclass(frozen=True, kw_only=True)
class BERTConfig(TransformerConfig):
    """The entries of a BertModel's `config.json`."""

    model_type: ClassVar[str] = "bert"
    architecture: ClassVar[str] = "BertModel"

    vocab_size: int = 30522
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    pad_token_id: int | None = 0


class BERTBlock(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x))."""

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.attention = Attention(config.hidden_size, config.num_attention_heads)
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        tokens = self.norm1(tokens + self.attention(tokens, mask))
        return self.norm2(tokens + self.mlp(tokens))


class BERT(nn.Module):
    """Embeddings, blocks, and, where the checkpoint has one, the pooler."""

    def __init__(self, config: BERTConfig, *, pooler: bool = True) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.embedding = TextEmbedding(config.vocab_size, config.max_position_embeddings, width)
        self.type_embedding = nn.Embedding(config.type_vocab_size, width)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.blocks = nn.ModuleList(BERTBlock(config) for _ in range(config.num_hidden_layers))
        self.pooler = nn.Linear(width, width) if pooler else None

    def forward(
        self, ids: Tensor, mask: Tensor | None = None, types: Tensor | None = None
    ) -> Tensor:
        """The last hidden states, [batch, tokens, width].

        ids: int64 [batch, tokens]. mask: bool [batch, tokens], False at padding.
        types: int64 [batch, tokens], which of two joined texts a token belongs to; zeros if None.
        """
        tokens = self.embedding(ids)
        tokens = tokens + (
            self.type_embedding.weight[0] if types is None else self.type_embedding(types)
        )
        tokens = self.norm(tokens)  # [batch, tokens, width]
        allowed = attended(mask)
        for block in self.blocks:
            tokens = block(tokens, allowed)
        return tokens

    def pool(self, tokens: Tensor) -> Tensor:
        """The pooled output, [batch, width], from the last hidden states."""
        if self.pooler is None:
            raise InvalidRequest("This BERT checkpoint has no pooler.")
        return torch.tanh(self.pooler(tokens[:, 0]))


LAYOUT = Layout(
    rows={
        "embedding.token": "embeddings.word_embeddings",
        "embedding.position": "embeddings.position_embeddings",
        "type_embedding": "embeddings.token_type_embeddings",
        "norm": "embeddings.LayerNorm",
        "pooler": "pooler.dense",
        **under(
            "blocks.{}",
            "encoder.layer.{}",
            {
                "attention.qkv": (
                    "attention.self.query",
                    "attention.self.key",
                    "attention.self.value",
                ),
                "attention.out": "attention.output.dense",
                "norm1": "attention.output.LayerNorm",
                "mlp.fc1": "intermediate.dense",
                "mlp.fc2": "output.dense",
                "norm2": "output.LayerNorm",
            },
        ),
    },
    renames=(
        (r"^bert\.", ""),
        # Checkpoints converted from TensorFlow kept its names for a layer norm's parameters.
        (r"LayerNorm\.gamma$", "LayerNorm.weight"),
        (r"LayerNorm\.beta$", "LayerNorm.bias"),
    ),
    ignored=(
        r"^embeddings\.(position|token_type)_ids$",
        r"^cls\.",
        r"^classifier\.",
        r"^qa_outputs\.",
    ),
)
