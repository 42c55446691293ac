"""Small models of random weights that talk: a text one, and a LLaVA."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from chiasm.media import Image
from chiasm.models.chat import ChatTokenizer
from chiasm.models.checkpoint import save_checkpoint
from chiasm.models.clip import CLIPVisionConfig
from chiasm.models.decoder import Decoder, DecoderConfig
from chiasm.models.generator import GeneratorCheckpoint
from chiasm.models.idefics3 import Idefics3, SmolVLMConfig, SmolVLMVisionConfig
from chiasm.models.idefics3_reader import Idefics3Reader
from chiasm.models.llava import LLaVA, LLaVAConfig
from chiasm.models.llava_reader import LLaVAReader, PatchTokens
from chiasm.models.preprocess import ImagePreprocessor

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n{% else %}"
    "{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<pad>")
TEXT = (
    "What is in this picture? A red bicycle leans against a wall, and a grey cat sits on it. "
    "How many birds can be seen? Two. I can't tell. Där står en häst på ängen. 你好，世界。 "
    '{"name": "cat", "count": 3, "sure": true} '
)


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE of 400 tokens with ChatML's template."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL],
    )
    backend.train_from_iterator([TEXT] * 4, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<pad>",
        "chat_template": CHATML,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def tiny_language_model(folder: Path, *, context: int = 512, seed: int = 0) -> GeneratorCheckpoint:
    """A Llama of two layers."""
    write_tokenizer(folder)
    tokenizer = ChatTokenizer.from_folder(folder)
    torch.manual_seed(seed)
    config = DecoderConfig(
        vocab_size=tokenizer.vocabulary,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        tie_word_embeddings=True,
    )
    model = Decoder(config).eval().requires_grad_(False)
    for parameter in model.parameters():  # livelier than an initialisation: answers differ
        if parameter.ndim > 1:
            parameter.mul_(12)
    return GeneratorCheckpoint(model, None, tokenizer, "tiny", "d" * 64)


def tiny_llava(folder: Path, *, context: int = 2048, seed: int = 0) -> GeneratorCheckpoint:
    """A LLaVA-1.5 of random weights: pictures of 32 pixels, 16 tokens each."""
    talker = tiny_language_model(folder, context=context, seed=seed)
    config = LLaVAConfig(
        text_config=talker.config,
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
        ),
        image_token_index=talker.tokenizer.token_id("<image>"),
        image_seq_length=16,
    )
    torch.manual_seed(seed)
    model = LLaVA(config).eval().requires_grad_(False)
    model.decoder = talker.decoder
    for part in (model.projector, model.image_tower):
        for parameter in part.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    preprocessor = ImagePreprocessor.from_config(
        {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"height": 32, "width": 32},
            "do_center_crop": False,
        }
    )
    reader = LLaVAReader(preprocessor, PatchTokens(patch_size=8, extra=1, strategy="default"))
    return GeneratorCheckpoint(model, reader, talker.tokenizer, "tiny-llava", "e" * 64)


def tiny_smolvlm(folder: Path, *, context: int = 2048, seed: int = 0) -> GeneratorCheckpoint:
    """A SmolVLM of random weights: tiles of 32 pixels, 4 tokens each, with words around them."""
    talker = tiny_language_model(folder, context=context, seed=seed)
    config = SmolVLMConfig(
        text_config=talker.config,
        vision_config=SmolVLMVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
        ),
        image_token_id=talker.tokenizer.token_id("<image>"),
        scale_factor=2,
    )
    torch.manual_seed(seed)
    model = Idefics3(config).eval().requires_grad_(False)
    model.decoder = talker.decoder
    for part in (model.projector, model.image_tower):
        for parameter in part.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    preprocessor = ImagePreprocessor.from_config(
        {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"height": 32, "width": 32},
            "do_center_crop": False,
        }
    )
    reader = Idefics3Reader(preprocessor, longest=64, split=True, tile_tokens=4, kind="SmolVLM")
    return GeneratorCheckpoint(model, reader, talker.tokenizer, "tiny-smolvlm", "c" * 64)


def picture(
    colour: tuple[int, int, int] = (200, 40, 30), size: tuple[int, int] = (40, 30)
) -> Image:
    """A picture with a gradient towards one colour."""
    ramp = np.linspace(0, 1, size[0])[None, :, None] * np.linspace(0.5, 1, size[1])[:, None, None]
    return Image((ramp * np.array(colour)).astype(np.uint8), original_size=size)


def save(checkpoint: GeneratorCheckpoint, folder: Path) -> None:
    """In the Hugging Face layout, with everything that `load_generator` reads."""
    checkpoint.tokenizer.save(folder)
    save_checkpoint(folder, checkpoint.model, checkpoint.images)  # type: ignore[arg-type]
