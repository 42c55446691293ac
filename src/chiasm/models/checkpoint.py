"""Checkpoints in the Hugging Face layout: a folder with `config.json` and `model.safetensors`.

What each `model_type` stands for is said in `architectures`. Only safetensors files are read: a
pickle can run code when it is opened.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from chiasm.errors import ChiasmError, NoSpace, UnknownModel, UnsupportedCheckpoint
from chiasm.models import catalog, gguf
from chiasm.models.architectures import ARCHITECTURES, Architecture, WholeReader
from chiasm.models.catalog import Progress
from chiasm.models.catalog.cache import recorded_digests
from chiasm.models.configuration import read_config, write_config
from chiasm.models.dual_encoder import DualEncoder
from chiasm.models.idefics_reader import IdeficsReader
from chiasm.models.json_files import read_json, read_json_if_there
from chiasm.models.preprocess import AnyPreprocessor, preprocessor_from_config
from chiasm.models.processor_files import ProcessorFiles, named_tokens
from chiasm.models.skeleton import without_weights
from chiasm.models.tokenizer import TOKENIZER_FILES, Tokenizer
from chiasm.models.vision_language import ImageReader

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"


@dataclass(frozen=True)
class DualEncoderCheckpoint:
    """A dual encoder with all that is needed to use it.

    model: a module in evaluation mode, float32, on the CPU.
    digest: SHA-256 over the names and digests of the files it was read from, as 64 hexadecimal
        digits; equal files, equal digest.
    """

    model: DualEncoder
    preprocessor: AnyPreprocessor
    tokenizer: Tokenizer
    name: str
    digest: str


# Loading ----------------------------------------------------------------------------------------


def load_dual_encoder(
    location: str | Path,
    *,
    cache_dir: Path,
    offline: bool = False,
    progress: Progress | None = None,
    catalogs: Sequence[Path] = (),
    adapters: bool = False,
) -> DualEncoderCheckpoint:
    """Load an image and text encoder by catalogue name, `hf:owner/name`, or local folder.

    catalogs: further catalogue files, whose entries win over the shipped.
    adapters: give the default embedder's heads residuals to be fine-tuned, see `aligned.load`.

    Raises UnknownModel if there is no such name or folder, UnsupportedCheckpoint if what was found
    is not a dual encoder that can be read, WeightsError if it could not be fetched.
    """
    options: dict[str, Any] = {
        "cache_dir": cache_dir,
        "offline": offline,
        "progress": progress,
        "catalogs": catalogs,
    }
    from chiasm.models import aligned

    if is_built_in(location, catalogs):
        return aligned.load(**options, adapters=adapters)
    folder = locate(location, **options)
    entries = read_json(folder / CONFIG)
    if entries.get("model_type") == aligned.MODEL_TYPE:
        found = aligned.load(**options, shipped=folder, adapters=adapters)
        return replace(found, name=str(location))
    architecture = _architecture(entries, folder)
    if adapters:
        raise UnsupportedCheckpoint(
            f"{location} has no heads that adapters could be put on.",
            hint="They are the default embedder's; fine-tune this one without them.",
        )
    if architecture.texts is None:
        raise UnsupportedCheckpoint(
            f"{location} is not a dual encoder: it has no text tower that shares a space with an "
            "image tower.",
            hint="Use a CLIP, SigLIP or SigLIP 2 checkpoint.",
        )
    model: Any = load_model(folder)
    tokenizer = Tokenizer.from_folder(
        folder,
        max_length=model.config.text_config.max_position_embeddings,
        rules=architecture.texts,
    )
    preprocessor = load_preprocessor(folder)
    return DualEncoderCheckpoint(model, preprocessor, tokenizer, str(location), digest(folder))


def locate(
    location: str | Path,
    *,
    cache_dir: Path,
    offline: bool = False,
    progress: Progress | None = None,
    catalogs: Sequence[Path] = (),
) -> Path:
    """The folder that holds the files of a catalogue name, `hf:owner/name`, or local folder.

    A local folder with a GGUF file is one in the cache, with what that was converted into.
    """
    if (folder := catalog.local_folder(location, catalogs)) is not None:
        return gguf.of_folder(folder, cache_dir=cache_dir, progress=progress)
    if isinstance(location, Path):
        raise UnknownModel(f"There is no folder {location}.")
    return catalog.pull(
        location, cache_dir=cache_dir, offline=offline, progress=progress, catalogs=catalogs
    )


def is_built_in(location: str | Path, catalogs: Sequence[Path]) -> bool:
    """Whether the catalogue's entry is a model of ours and not a published checkpoint."""
    if isinstance(location, Path) or catalog.local_folder(location, catalogs) is not None:
        return False
    return catalog.find(location, catalogs).shipped is not None


def load_model(folder: Path | str) -> nn.Module:
    """The network in `folder`, whatever its `model_type`, in evaluation mode and float32."""
    folder = Path(folder)
    entries = read_json(folder / CONFIG)
    architecture = _architecture(entries, folder)
    layout = architecture.layout
    tensors = read_tensors(folder)
    if doubled := layout.doubled(tensors):
        raise UnsupportedCheckpoint(f"{folder}: tensors appear twice: {', '.join(doubled)}.")
    tensors = {layout.published(name): tensor for name, tensor in tensors.items()}
    parts = {part: name in tensors for part, name in architecture.optional.items()}
    # On the meta device nothing is allocated or initialised before the real tensors move in.
    with _naming(folder / CONFIG), without_weights():
        model = architecture.model(read_config(architecture.config, entries), **parts)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    model.load_state_dict(layout.read(tensors, shapes, str(folder)), assign=True)
    return model.eval()


def load_preprocessor(folder: Path | str) -> AnyPreprocessor:
    """What `preprocessor_config.json` (or the processor's file that replaces it) describes."""
    path, entries = _image_processor(Path(folder))
    with _naming(path):
        return preprocessor_from_config(entries)


def load_image_reader(folder: Path | str) -> ImageReader:
    """How the vision-language model in `folder` reads pictures, from its processor's files.

    Raises UnsupportedCheckpoint if there are none, or none that can be read.
    """
    folder = Path(folder)
    network = read_json(folder / CONFIG)
    make = _architecture(network, folder).images
    if make is None:
        raise UnsupportedCheckpoint(
            f"{folder} holds a {network['model_type']}, which reads no pictures in a text."
        )
    path, entries = _image_processor(folder)
    files = ProcessorFiles(
        entries,
        processor=read_json_if_there(folder / PROCESSOR),
        network=network,
        tokens=named_tokens(read_json_if_there(folder / TOKENIZER_CONFIG)),
    )
    with _naming(path):
        return make(files)


def _image_processor(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The image processor's entries, and the file they stand in."""
    path = folder / PREPROCESSOR
    if path.is_file() or not (folder / PROCESSOR).is_file():
        return path, read_json(path)
    path = folder / PROCESSOR
    entries = read_json(path).get("image_processor")
    if not isinstance(entries, dict):
        raise UnsupportedCheckpoint(
            f"{folder} holds no {PREPROCESSOR}, and {PROCESSOR} has no entry image_processor."
        )
    return path, entries


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the folder's safetensors file, or of all its shards, by the file's name."""
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 — not a mapping
                    tensors[name] = file.get_tensor(name)
        except (SafetensorError, OSError):
            raise UnsupportedCheckpoint(
                f"{path} is not a complete safetensors file.",
                hint="It may have been cut short while it was copied; fetch it again.",
            ) from None
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() and not name.endswith("_ids"):
            raise UnsupportedCheckpoint(
                f"{folder}: tensor {name} holds {str(tensor.dtype).removeprefix('torch.')}; "
                "quantised checkpoints are not read here."
            )
    return tensors


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, in the order of their names."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / WEIGHTS_INDEX).is_file():
        shards = read_json(folder / WEIGHTS_INDEX).get("weight_map")
        if not isinstance(shards, dict) or not all(
            isinstance(name, str) and Path(name).name == name for name in shards.values()
        ):
            raise UnsupportedCheckpoint(
                f"{folder / WEIGHTS_INDEX}: weight_map must give each tensor a file name."
            )
        paths = [folder / name for name in sorted(set(shards.values()))]
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise UnsupportedCheckpoint(
                f"{folder} lacks {', '.join(missing)}, which {WEIGHTS_INDEX} names.",
                hint="Fetch the missing files.",
            )
        return paths
    pickles = sorted(path.name for path in folder.glob("*.bin")) + sorted(
        path.name for suffix in ("pt", "pth", "ckpt") for path in folder.glob(f"*.{suffix}")
    )
    if pickles:
        raise UnsupportedCheckpoint(
            f"{folder} holds its weights as a pickle ({', '.join(pickles)}), which can run code "
            "when it is opened, and no safetensors file.",
            hint="Convert it to model.safetensors with the tool that wrote it.",
        )
    raise UnsupportedCheckpoint(f"{folder} holds no {WEIGHTS}.")


def digest(folder: Path) -> str:
    """SHA-256 over the names and digests of a checkpoint's files."""
    whole = hashlib.sha256(b"chiasm-checkpoint-1\n")
    known = recorded_digests(folder, unchanged=True)  # hashing half a gigabyte takes a second
    for path in _digested(folder):
        part = known.get(path.name, "git:")
        if part.startswith("git:"):
            with path.open("rb") as file:
                part = hashlib.file_digest(file, "sha256").hexdigest()
        whole.update(f"{path.name} {part}\n".encode())
    return whole.hexdigest()


def _digested(folder: Path) -> Iterator[Path]:
    yield from weight_files(folder)
    for name in (CONFIG, PREPROCESSOR, PROCESSOR, *TOKENIZER_FILES):
        if (folder / name).is_file():
            yield folder / name


def _architecture(entries: Mapping[str, Any], folder: Path) -> Architecture:
    model_type = entries.get("model_type")
    architecture = ARCHITECTURES.get(str(model_type))
    if architecture is None:
        raise UnsupportedCheckpoint(
            f"{folder / CONFIG} names the model_type {model_type!r}, which is not known here.",
            hint=f"Known are {', '.join(ARCHITECTURES)}.",
        )
    return architecture


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the file's name before what is wrong with its entries."""
    try:
        yield
    except UnsupportedCheckpoint as error:
        raise UnsupportedCheckpoint(f"{path}: {error.message}", hint=error.hint) from None


# Saving -----------------------------------------------------------------------------------------


def save_checkpoint(
    folder: Path | str,
    model: nn.Module,
    preprocessor: AnyPreprocessor | IdeficsReader | WholeReader | None = None,
    tokenizer: Tokenizer | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    entries: Mapping[str, Any] | None = None,
) -> None:
    """Write the published layout. Each file appears complete or not at all.

    The weights come last, so a folder that has them has everything.
    preprocessor: of a vision-language model its pictures' reader.
    entries: of an earlier `config.json`, kept where the network's configuration says nothing.
    """
    folder = Path(folder)
    config: Any = model.config
    architecture = ARCHITECTURES[config.model_type]
    folder.mkdir(parents=True, exist_ok=True)
    own = {"architectures": [config.architecture], **write_config(config)}
    own["torch_dtype"] = str(dtype).removeprefix("torch.")
    write_json(folder / CONFIG, _over(entries or {}, own))
    if preprocessor is not None:
        write_json(folder / PREPROCESSOR, preprocessor.to_config())
    if isinstance(preprocessor, WholeReader):
        write_json(folder / PROCESSOR, preprocessor.processor_config())
    if tokenizer is not None:
        tokenizer.save(folder)
    tensors = architecture.layout.write(
        {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    )
    write_tensors(folder / WEIGHTS, tensors)


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both objects' entries, nested ones too; `above` wins."""
    merged = {**below, **above}
    for name, value in above.items():
        if isinstance(value, Mapping) and isinstance(below.get(name), Mapping):
            merged[name] = _over(below[name], value)
    return merged


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """A safetensors file that appears complete or not at all. Raises NoSpace or ChiasmError."""
    needed = sum(tensor.nbytes for tensor in tensors.values())
    if shutil.disk_usage(path.parent).free < needed:
        raise NoSpace(f"{path} needs {needed / 1e6:.0f} MB, more than the disk has.")
    partial = path.with_name(f".{path.name}.partial")
    try:
        save_file(tensors, partial, metadata={"format": "pt"})
        partial.replace(path)
    except (OSError, SafetensorError):
        partial.unlink(missing_ok=True)
        raise ChiasmError(f"{path} could not be written.") from None


def write_json(path: Path, entries: Mapping[str, Any]) -> None:
    """A JSON file that appears complete or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(entries, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(path)
