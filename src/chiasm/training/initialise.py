"""First weights of transformers that are trained from nothing."""

from __future__ import annotations

from torch import nn

from chiasm.models.transformer import Attention, Block, Blocks, TextEmbedding


def initialise(network: nn.Module) -> None:
    """Draw CLIP's first weights, in place; deterministic under `torch.manual_seed`.

    Normal, narrower the wider the tower and, where a block writes back to its residual stream,
    the deeper (CLIP, Radford et al. 2021, as published with its code; the residual factor is
    GPT-2's, section 2.3). Norms and biases begin at one and zero.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in network.modules():
        if isinstance(module, TextEmbedding):
            nn.init.normal_(module.token.weight, std=0.02)
            nn.init.normal_(module.position.weight, std=0.01)
        elif isinstance(module, Blocks):
            for block in module:
                assert isinstance(block, Block)
                _initialise_block(block, depth=len(module))


def _initialise_block(block: Block, *, depth: int) -> None:
    width = block.norm1.normalized_shape[0]
    residual = (2 * depth) ** -0.5
    attention: Attention = block.attention
    nn.init.normal_(attention.qkv.weight, std=width**-0.5)
    nn.init.normal_(attention.out.weight, std=width**-0.5 * residual)
    nn.init.normal_(block.mlp.fc1.weight, std=(2 * width) ** -0.5)
    nn.init.normal_(block.mlp.fc2.weight, std=width**-0.5 * residual)
