"""A LLaVA-1.5 of random weights in sizes that vLLM's attention on a CPU has: 64 values a head."""

from __future__ import annotations

from pathlib import Path

import torch

from chiasm.models.chat import ChatTokenizer
from chiasm.models.clip import CLIPVisionConfig
from chiasm.models.decoder import Decoder, DecoderConfig
from chiasm.models.generator import GeneratorCheckpoint
from chiasm.models.llava import LLaVA, LLaVAConfig
from chiasm.models.llava_reader import LLaVAReader, PatchTokens
from chiasm.models.preprocess import ImagePreprocessor
from tests.generation.tiny_models import save, write_tokenizer

_SIDE, _PATCH = 64, 16


def write_small_llava(folder: Path, *, seed: int = 0) -> None:
    """Pictures of 64 pixels, 16 tokens each; lively weights, so that answers differ."""
    write_tokenizer(folder)
    tokenizer = ChatTokenizer.from_folder(folder)
    torch.manual_seed(seed)
    text = DecoderConfig(
        vocab_size=tokenizer.vocabulary,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.token_id("<|im_end|>"),
    )
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=1,
        image_size=_SIDE,
        patch_size=_PATCH,
    )
    model = LLaVA(
        LLaVAConfig(
            text_config=text,
            vision_config=vision,
            image_token_index=tokenizer.token_id("<image>"),
            image_seq_length=(_SIDE // _PATCH) ** 2,
        )
    )
    model.eval().requires_grad_(False)
    for part, factor in ((model.decoder, 8), (model.projector, 4), (model.image_tower, 4)):
        for parameter in part.parameters():
            if parameter.ndim > 1:
                parameter.mul_(factor)
    assert isinstance(model.decoder, Decoder)
    preprocessor = ImagePreprocessor.from_config(
        {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": _SIDE},
            "crop_size": {"height": _SIDE, "width": _SIDE},
        }
    )
    reader = LLaVAReader(preprocessor, PatchTokens(_PATCH, extra=1, strategy="default"))
    save(GeneratorCheckpoint(model, reader, tokenizer, "small-llava", "0" * 64), folder)
