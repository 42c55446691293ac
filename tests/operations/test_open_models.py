"""Compute of open models, against torch's own counter over transformers' networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from chiasm.models.decoder import DecoderConfig
from chiasm.models.flops import decoder_flops
from chiasm.operations import open_models
from chiasm.operations.open_models import Decoder, Tower
from chiasm.operations.tokens import known_models, rule_for

transformers = pytest.importorskip("transformers")


def counted(network: Any, *inputs: Any, **named: Any) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(*inputs, **named)
    return counter.get_total_flops()


def test_clip_tower() -> None:
    config = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4,
        image_size=70, patch_size=14,
    )  # fmt: skip
    network = transformers.CLIPVisionModel._from_config(config, attn_implementation="eager")
    tower = Tower(width=32, blocks=3, inner=80, patch=14, extra=1, side=70)
    assert tower.flops(2, 5, 5) == counted(network, torch.zeros(2, 3, 70, 70))


def test_siglip_tower() -> None:
    config = transformers.SiglipVisionConfig(
        hidden_size=32, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
        image_size=64, patch_size=16, vision_use_head=False,
    )  # fmt: skip
    network = transformers.SiglipVisionModel._from_config(config, attn_implementation="eager")
    tower = Tower(width=32, blocks=2, inner=80, patch=16, side=64)
    assert tower.flops(3, 4, 4) == counted(network, torch.zeros(3, 3, 64, 64))


def _qwen_inputs(columns: int, rows: int, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(columns * rows, channels), torch.tensor([[1, rows, columns]])


def test_qwen2_vl_tower_with_its_merger() -> None:
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

    config = transformers.Qwen2VLConfig().vision_config
    config.depth, config.embed_dim, config.num_heads, config.hidden_size = 2, 32, 4, 48
    network = Qwen2VisionTransformerPretrainedModel._from_config(
        config, attn_implementation="eager"
    )
    pixels, grid = _qwen_inputs(8, 6, 3 * 2 * 14 * 14)
    tower = Tower(
        width=32, blocks=2, inner=128, patch=14, merge=2, frames=2, joined=(128, 48)
    )  # fmt: skip
    assert tower.flops(1, 8, 6) == counted(network, pixels, grid_thw=grid)


def test_qwen2_5_vl_tower_with_windows() -> None:
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
        Qwen2_5_VisionTransformerPretrainedModel as Network,
    )

    config = transformers.Qwen2_5_VLConfig().vision_config
    config.depth, config.hidden_size, config.intermediate_size, config.num_heads = 4, 32, 60, 4
    config.fullatt_block_indexes, config.out_hidden_size = [1, 3], 48
    network = Network._from_config(config, attn_implementation="eager")
    pixels, grid = _qwen_inputs(20, 12, 3 * 2 * 14 * 14)
    tower = Tower(
        width=32, blocks=4, inner=60, patch=14, merge=2, frames=2, gated=True, window=8, full=2,
        joined=(128, 48),
    )  # fmt: skip
    assert tower.flops(1, 20, 12) == counted(network, pixels, grid_thw=grid)


def test_decoder_as_this_packages_own() -> None:
    config = DecoderConfig(
        vocab_size=300, hidden_size=48, intermediate_size=100, num_hidden_layers=3,
        num_attention_heads=6, num_key_value_heads=2, head_dim=8, max_position_embeddings=512,
    )  # fmt: skip
    own = Decoder(width=48, blocks=3, inner=100, heads=6, groups=2, vocabulary=300)
    assert own.flops(77) == decoder_flops(config, 77, logits=1)


def test_published_sizes_have_as_many_weights_as_their_makers_say() -> None:
    """Without embeddings; in thousands of millions, from the models' cards."""
    billions = {
        "qwen2_vl_7b": 6.53, "qwen2_5_vl_3b": 2.77, "qwen3_vl_8b": 6.95, "qwen3_vl_4b": 3.6,
        "internvl3_1b": 0.36, "smolvlm_256m": 0.106, "paligemma": 1.98, "idefics3": 6.98,
        "llava_1_5": 6.48,
    }  # fmt: skip
    found = {model.name: model for _, model in open_models._models()}
    for name, expected in billions.items():
        decoder = found[name].decoder
        head = decoder.head or decoder.width // decoder.heads
        # What one more token takes is two operations a weight, and its attention.
        more = decoder.flops(1001) - decoder.flops(1000)
        attention = 4 * decoder.heads * head * decoder.blocks * 1001
        assert (more - attention) / 2 / 1e9 == pytest.approx(expected, rel=0.02), name


def test_every_open_model_that_is_known_reads_a_picture() -> None:
    missing = []
    for known in known_models():
        if known.provider != "open":
            continue
        model = open_models.find(known.name)
        if model is None:
            missing.append(known.name)
            continue
        rule = rule_for(known.name)
        assert rule is not None
        one = rule.cost(1344, 1008)
        assert model.vision_flops([one, one]) == 2 * model.vision_flops([one]) > 0
        assert model.language_flops(one.tokens) > model.language_flops(1)
    assert missing == []
