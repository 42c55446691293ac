"""Small GGUF files, written with the package `gguf` as llama.cpp's converter writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import dequantize, quantize
from parity import randomise

LETTERS = {byte: chr(byte) for byte in [*range(33, 127), *range(161, 173), *range(174, 256)]}
LETTERS |= {
    byte: chr(256 + i) for i, byte in enumerate(b for b in range(256) if b not in LETTERS)
}  # how GPT-2 writes bytes
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ hello", "1 2", "Ġ 1", "' s", "' S"]
VOCABULARY = [*SPECIAL, *LETTERS.values(), *(m.replace(" ", "") for m in MERGES), "<image>"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"

SIZES = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
CLASSES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
}
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.layers": "blk",
}


def model(kind: str, **entries: Any) -> Any:
    """A random model of transformers'."""
    config, network = CLASSES[kind]
    return randomise(network(config(**{**SIZES, **entries}))).eval()


def write(
    path: Path,
    reference: Any,
    *,
    quantisation: GGMLQuantizationType = GGMLQuantizationType.F32,
    pre: str = "smollm",
    change: Any = lambda writer: None,
) -> Path:
    """Write `reference` to `path`; its matrices become what the quantisation leaves of them."""
    config = reference.config
    kind = config.model_type
    writer = GGUFWriter(path, kind)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(VOCABULARY)
    kinds = [TokenType.CONTROL] * 3 + [TokenType.NORMAL] * (len(VOCABULARY) - 4)
    writer.add_token_types([*kinds, TokenType.USER_DEFINED])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template(TEMPLATE)
    change(writer)
    for name, parameter in reference.named_parameters():
        matrix = name.endswith("weight") and parameter.ndim == 2
        type_ = quantisation if matrix else GGMLQuantizationType.F32
        stored = quantize(parameter.detach().numpy(), type_)
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(dequantize(stored, type_)))
        writer.add_tensor(_name(name), _as_llama_cpp(name, stored, config), raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _name(name: str) -> str:
    for theirs, short in NAMES.items():
        name = name.replace(theirs, short)
    return name


def _as_llama_cpp(name: str, stored: np.ndarray, config: Any) -> np.ndarray:
    """Rows in llama.cpp's order: the two halves of a Llama's head are interleaved."""
    if config.model_type != "llama" or not (".q_proj." in name or ".k_proj." in name):
        return stored
    heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
    half = len(stored) // heads // 2
    rows = [head * 2 * half + part * half + i for head in range(heads) for i in range(half)
            for part in range(2)]  # fmt: skip
    return stored[rows]
