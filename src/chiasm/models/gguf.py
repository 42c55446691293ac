"""GGUF files, llama.cpp's, turned once into a folder in the Hugging Face layout.

The tensors are dequantised to float32, renamed, and written with the configuration and the
tokenizer that the file's metadata describe; every loader then sees a plain checkpoint, which is
opened memory-mapped. Read: Llama, Qwen2 and Qwen3, with any quantisation that the package `gguf`
knows.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chiasm.errors import UnsupportedCheckpoint
from chiasm.models.catalog import cache
from chiasm.models.catalog.progress import Progress, Silent
from chiasm.models.gguf_tokenizer import generation_config, tokenizer_config, tokenizer_entries

if TYPE_CHECKING:
    import numpy as np

WEIGHTS = "model.safetensors"
VERSION = 1  # of what is written: a later one converts anew
_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


@dataclass(frozen=True)
class _Tensor:
    """A tensor to be written: its published name, its shape, and how its numbers are had."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    @property
    def bytes(self) -> int:
        count = 4
        for size in self.shape:
            count *= size
        return count


# In the cache -----------------------------------------------------------------------------------


def converted(
    name: str,
    key: str,
    source: Callable[[], Path],
    *,
    cache_dir: Path,
    progress: Progress | None = None,
    verify: bool = False,
) -> Path:
    """A folder of the cache with the model in a GGUF file, converted if it is not there yet.

    name: what to call it. key: tells this file from others of that name, as a digest does.
    source: gives the GGUF file; not asked when it was converted before.
    verify: hash every file of the folder, and convert again if one has changed.

    Raises UnsupportedCheckpoint if the file is damaged or holds another kind of model, NoSpace,
    and WeightsError if the cache cannot be written. A conversion that fails or is killed leaves
    nothing that would be used.
    """
    folder = cache.model_folder(cache_dir, name, f"{key}-converted-{VERSION}")
    if _is_whole(folder, verify=verify):
        return folder
    path = source()
    progress = progress or Silent()
    with cache.disk_errors(cache_dir), cache.locked(folder, name, progress):
        if _is_whole(folder, verify=verify):
            return folder  # another process converted it while this one waited
        with cache.staging(folder) as target:
            convert(path, target, label=name, cache_dir=cache_dir, progress=progress)
            written = {each.name: cache.digest_of(each) for each in sorted(target.iterdir())}
            cache.commit(target, folder, written)
    return folder


def of_folder(folder: Path, *, cache_dir: Path, progress: Progress | None = None) -> Path:
    """`folder` itself, or where it holds a GGUF file and no `config.json`, what that becomes.

    Raises UnsupportedCheckpoint if there are several GGUF files, and as `converted` does.
    """
    found = sorted(folder.glob("*.gguf"))
    if not found or (folder / "config.json").exists():
        return folder
    if len(found) > 1:
        raise UnsupportedCheckpoint(
            f"{folder} holds {len(found)} GGUF files: {', '.join(each.name for each in found)}.",
            hint="Put the one that is wanted into a folder of its own.",
        )
    path = found[0].resolve()
    status = path.stat()
    state = f"{path} {status.st_size} {status.st_mtime_ns}"
    key = hashlib.sha256(state.encode()).hexdigest()[:12]
    name = re.sub(r"[^\w.-]", "-", path.stem)
    return converted(name, key, lambda: path, cache_dir=cache_dir, progress=progress)


def _is_whole(folder: Path, *, verify: bool) -> bool:
    digests = cache.recorded_digests(folder)
    return WEIGHTS in digests and cache.is_whole(folder, digests, verify=verify)


# Converting -------------------------------------------------------------------------------------


def convert(
    path: Path, target: Path, *, label: str, cache_dir: Path, progress: Progress | None = None
) -> None:
    """Write the model in the file `path` into the folder `target`, the weights last."""
    progress = progress or Silent()
    progress.start(f"{label}: reading {path.name}", None)
    with _damage(path):
        metadata, stored = _parsed(path)
        config = _config(metadata, stored, str(path))
        tensors = _tensors(stored, config, str(path))
        files = {
            "config.json": config,
            "generation_config.json": generation_config(metadata),
            "tokenizer.json": tokenizer_entries(metadata, str(path)),
            "tokenizer_config.json": tokenizer_config(metadata, config["max_position_embeddings"]),
        }
    progress.finish()
    needed = sum(tensor.bytes for tensor in tensors)
    cache.require_space(target, needed, cache_dir)
    for name, entries in files.items():
        text = json.dumps(entries, indent=1, ensure_ascii=False) + "\n"
        (target / name).write_text(text, encoding="utf-8")
    progress.start(f"{label}: converting", needed)
    with _damage(path):
        _write(target / WEIGHTS, tensors, progress)
    progress.finish()


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Say that a file is damaged, where the package `gguf` stumbles over its content."""
    try:
        yield
    except (ValueError, LookupError, TypeError, ArithmeticError, struct.error):
        raise UnsupportedCheckpoint(
            f"{path} is damaged, or is no GGUF file.",
            hint="It may have been cut short while it was copied; fetch it again.",
        ) from None
    except NotImplementedError:
        raise UnsupportedCheckpoint(
            f"{path} is quantised in a way that cannot be read here.",
            hint="Use a file of another quantisation, such as Q8_0 or Q4_K_M.",
        ) from None


def _parsed(path: Path) -> tuple[dict[str, Any], list[Any]]:
    """The file's key-value pairs and its tensors, whose numbers stay in the file."""
    from gguf.gguf_reader import GGUFReader

    if path.stat().st_size == 0:
        raise ValueError("an empty file cannot be mapped")
    reader = GGUFReader(path)
    metadata = {name: entry.contents() for name, entry in reader.fields.items()}
    return metadata, list(reader.tensors)


def _config(metadata: Mapping[str, Any], stored: Sequence[Any], where: str) -> dict[str, Any]:
    """The content of `config.json`."""
    kind = metadata.get("general.architecture")
    if kind not in _ARCHITECTURES:
        raise UnsupportedCheckpoint(
            f"{where} holds a model of the architecture {kind!r}, which is not known here.",
            hint=f"Known are {', '.join(_ARCHITECTURES)}.",
        )

    def value(name: str, default: Any = None) -> Any:
        found = metadata.get(f"{kind}.{name}", default)
        if found is None:
            raise KeyError(name)
        return _short(found) if isinstance(found, float) else found

    heads, width = value("attention.head_count"), value("embedding_length")
    shapes = {tensor.name: [int(size) for size in tensor.shape] for tensor in stored}
    return {
        "architectures": [_ARCHITECTURES[kind]],
        "model_type": kind,
        "vocab_size": shapes["token_embd.weight"][1],
        "hidden_size": width,
        "intermediate_size": value("feed_forward_length"),
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": value("attention.head_count_kv", heads),
        "head_dim": value("attention.key_length", width // heads),
        "hidden_act": "silu",
        "max_position_embeddings": value("context_length"),
        "rms_norm_eps": value("attention.layer_norm_rms_epsilon"),
        "rope_theta": (theta := value("rope.freq_base", 10000.0)),
        "rope_parameters": {"rope_theta": theta, **_scaling(value, where)},
        "tie_word_embeddings": "output.weight" not in shapes,
        "attention_bias": kind == "llama" and "blk.0.attn_q.bias" in shapes,
        "mlp_bias": "blk.0.ffn_up.bias" in shapes,
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id"),
        "torch_dtype": "float32",
    }


def _scaling(value: Callable[..., Any], where: str) -> dict[str, Any]:
    scaling = value("rope.scaling.type", "none")
    if scaling == "none":
        return {"rope_type": "default"}
    if scaling == "linear":
        return {"rope_type": "linear", "factor": value("rope.scaling.factor")}
    raise UnsupportedCheckpoint(f"{where}: its positions are scaled by {scaling!r}.")


def _short(number: float) -> float:
    """The shortest decimal number that is this one in float32: 1e-05 and not 9.99999974e-06."""
    import numpy as np

    return float(str(np.float32(number)))


def _tensors(stored: Sequence[Any], config: Mapping[str, Any], where: str) -> list[_Tensor]:
    """What is to be written, by the names of `config`'s architecture."""
    tensors, unknown = [], []
    for tensor in stored:
        name = _published(tensor.name)
        if name is None:
            unknown.append(tensor.name)
            continue
        shape = tuple(int(size) for size in reversed(tensor.shape))
        heads = _heads(name, config)
        tensors.append(_Tensor(name, shape, partial(_numbers, tensor, shape, heads)))
    if unknown:
        raise UnsupportedCheckpoint(
            f"{where} holds tensors that are not known here: {', '.join(unknown[:8])}"
            f"{f' and {len(unknown) - 8} more' if len(unknown) > 8 else ''}."
        )
    return tensors


def _published(name: str) -> str | None:
    if name in _NAMES:
        return _NAMES[name]
    match = _LAYER.fullmatch(name)
    if match is None or match[2] not in _LAYER_NAMES:
        return None
    return f"model.layers.{match[1]}.{_LAYER_NAMES[match[2]]}.{match[3]}"


def _heads(name: str, config: Mapping[str, Any]) -> int | None:
    """Heads whose rows llama.cpp has put in another order; None where it has not."""
    if config["model_type"] != "llama":
        return None
    if ".q_proj." in name:
        return int(config["num_attention_heads"])
    return int(config["num_key_value_heads"]) if ".k_proj." in name else None


def _numbers(tensor: Any, shape: tuple[int, ...], heads: int | None) -> np.ndarray:
    """A tensor in float32, with the rows of each head as the Hugging Face layout has them.

    llama.cpp turns neighbouring rows of a Llama's queries and keys by the same angle, and its
    converter has put them side by side; here one comes from each half of the head.
    """
    from gguf.quants import dequantize

    numbers: np.ndarray = dequantize(tensor.data, tensor.tensor_type).reshape(shape)
    if heads is not None:
        pairs = numbers.reshape(heads, shape[0] // heads // 2, 2, *shape[1:])
        numbers = pairs.swapaxes(1, 2).reshape(shape)
    return numbers.astype("<f4", copy=False)


def _write(path: Path, tensors: Sequence[_Tensor], progress: Progress) -> None:
    """A safetensors file, one tensor in memory at a time.

    The format: the header's length in eight bytes, the header in JSON, and the numbers.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.bytes
        header[tensor.name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            file.write(tensor.read().tobytes())
            progress.advance(tensor.bytes)
