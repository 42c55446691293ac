"""A model as a folder that vLLM, SGLang and `transformers` open.

That folder is the Hugging Face layout with the published names: `config.json`,
`generation_config.json`, `model.safetensors`, the tokenizer with its chat template and, of a model
that reads pictures, what its processor is made from. In it a LLaVA's tower is called
`vision_tower.vision_model…`, as in the first LLaVA; `transformers` 5 reads that and writes
`vision_tower…`, which vLLM does not read.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import nn

from chiasm.errors import InvalidRequest, UnsupportedCheckpoint
from chiasm.models import catalog, checkpoint, lora
from chiasm.models.architectures import ARCHITECTURES
from chiasm.models.chat import CHAT_FILES, ChatTokenizer
from chiasm.models.generator import SMALL_VLM
from chiasm.models.json_files import read_json, read_json_if_there
from chiasm.models.tokenizer import TOKENIZER_FILES

if TYPE_CHECKING:
    from chiasm.models.catalog import Progress

GENERATION_CONFIG = "generation_config.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_LOCAL = ("_name_or_path", "quantization_config", "dtype", "torch_dtype")
"""Entries of a `config.json` that say nothing about what is written."""


@dataclass(frozen=True)
class Exported:
    """What was written. merged: adapters were added to the weights."""

    folder: Path
    architecture: str
    parameters: int
    dtype: str
    bytes: int
    merged: bool


def export_hf(
    location: str | Path,
    folder: Path | str,
    *,
    cache_dir: Path,
    dtype: str | None = None,
    offline: bool = False,
    progress: Progress | None = None,
    catalogs: Sequence[Path] = (),
) -> Exported:
    """Write the model of a catalogue name, `hf:owner/name` or local folder into `folder`.

    A folder of adapters in PEFT's layout is merged into the checkpoint that they belong to.
    dtype: a key of DTYPES; None keeps the files' own, and float32 where adapters are merged.

    Raises UnsupportedCheckpoint for a model that has no equal in that layout, InvalidRequest if
    `folder` holds something already, and what `load_generator` raises.
    """
    folder = Path(folder)
    if dtype is not None and dtype not in DTYPES:
        raise InvalidRequest(f"The type {dtype!r} is not one of {', '.join(DTYPES)}.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidRequest(
            f"{folder} is there already, and is not empty.", hint="Name a folder that is not."
        )
    options: dict[str, Any] = {
        "cache_dir": cache_dir,
        "offline": offline,
        "progress": progress,
        "catalogs": catalogs,
    }
    adapters = _adapters(location, catalogs)
    source = _published(adapters.base if adapters else location, options)
    model = checkpoint.load_model(source)
    if adapters:
        lora.load_peft(adapters.folder, model)
        lora.merge_lora(model)
    chosen = dtype or ("float32" if adapters else _dtype_of(source))
    _write(folder, source, model, chosen)
    return Exported(
        folder=folder,
        architecture=read_json(folder / checkpoint.CONFIG)["architectures"][0],
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        dtype=chosen,
        bytes=sum(path.stat().st_size for path in folder.iterdir()),
        merged=adapters is not None,
    )


# What there is ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Adapters:
    folder: Path
    base: str


def _adapters(location: str | Path, catalogs: Sequence[Path]) -> _Adapters | None:
    """The adapters that `location` is a folder of, if it is one."""
    folder = catalog.local_folder(location, catalogs)
    if folder is None or not (folder / lora.ADAPTER_CONFIG).is_file():
        return None
    if (folder / checkpoint.CONFIG).is_file():
        return None  # a whole checkpoint, with adapters beside it
    base = read_json(folder / lora.ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UnsupportedCheckpoint(
            f"{folder / lora.ADAPTER_CONFIG} does not say which checkpoint the adapters belong to.",
            hint="Put its folder or name into base_model_name_or_path.",
        )
    plain = "/" in base and ":" not in base and catalog.local_folder(base, catalogs) is None
    return _Adapters(folder, f"hf:{base}" if plain else base)  # PEFT writes a hub's name plainly


def _published(location: str | Path, options: Mapping[str, Any]) -> Path:
    """The folder of a checkpoint that has an equal elsewhere. Raises UnsupportedCheckpoint."""
    if checkpoint.is_built_in(location, options["catalogs"]):
        raise _ours(location)
    source = checkpoint.locate(location, **options)
    model_type = str(read_json(source / checkpoint.CONFIG).get("model_type"))
    if model_type == SMALL_VLM or model_type not in ARCHITECTURES:
        raise _ours(location)
    return source


def _ours(location: str | Path) -> UnsupportedCheckpoint:
    return UnsupportedCheckpoint(
        f"{location} is a network of this project's own, which has no equal in the Hugging Face "
        "layout: no other program has the code to run it.",
        hint="Serve it with `chiasm serve`. What can be exported are checkpoints of published "
        f"kinds ({', '.join(ARCHITECTURES)}) and what was trained from them.",
    )


def _dtype_of(folder: Path) -> str:
    """The type that all of a checkpoint's weights have; float32 where they differ."""
    names = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
    found = set()
    for path in checkpoint.weight_files(folder):
        with safe_open(path, framework="pt") as file:
            found |= {str(file.get_slice(name).get_dtype()) for name in file.keys()}  # noqa: SIM118
    return names.get(found.pop(), "float32") if len(found) == 1 else "float32"


# Writing ----------------------------------------------------------------------------------------


def _write(folder: Path, source: Path, model: nn.Module, dtype: str) -> None:
    """The files, the weights last: a folder that has them has everything."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in dict.fromkeys((*CHAT_FILES, *TOKENIZER_FILES)):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if (source / "tokenizer.json").is_file():
        ChatTokenizer.from_folder(source).save(folder)  # the template into a file of its own
    network: Any = model
    reader: Any = None
    if ARCHITECTURES[network.config.model_type].images is not None:
        reader = checkpoint.load_image_reader(source)
    elif (source / checkpoint.PREPROCESSOR).is_file():
        reader = checkpoint.load_preprocessor(source)
    checkpoint.save_checkpoint(
        folder, model, reader, dtype=DTYPES[dtype], entries=_without(_LOCAL, source)
    )
    # The weights come readable by their owner alone; a server may run as somebody else.
    (folder / checkpoint.WEIGHTS).chmod((folder / checkpoint.CONFIG).stat().st_mode & 0o777)
    if not (folder / GENERATION_CONFIG).is_file() and (ending := _ending(folder)):
        checkpoint.write_json(folder / GENERATION_CONFIG, ending)


def _without(names: Sequence[str], source: Path) -> dict[str, Any]:
    """What the checkpoint's own `config.json` says, these entries left out on every level."""

    def kept(entries: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: kept(value) if isinstance(value, Mapping) else value
            for name, value in entries.items()
            if name not in names
        }

    return kept(read_json(source / checkpoint.CONFIG))


def _ending(folder: Path) -> dict[str, Any]:
    """The tokens that begin, end and fill a text, as `generation_config.json` has them."""
    config = read_json_if_there(folder / checkpoint.CONFIG)
    entries = {**(config.get("text_config") or {}), **config}
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: entries[name] for name in names if entries.get(name) is not None}
