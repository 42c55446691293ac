"""Folders that hold the trained part of a model of ours, whose towers are pulled by name.

The package ships them (`default_embedder`, `default_vlm`), and fine-tuning writes others like them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from chiasm.errors import UnsupportedCheckpoint
from chiasm.models import catalog


def read_weights(path: Path, *, shipped: Path) -> dict[str, Tensor]:
    """Every tensor of a file, as it is stored. shipped: the package's own folder of the kind.

    Raises UnsupportedCheckpoint if it cannot be read.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError):
        raise UnsupportedCheckpoint(
            f"{path} could not be read.", hint=mend(path.parent, shipped)
        ) from None


def same_shapes(ours: Mapping[str, Tensor], read: Mapping[str, Tensor]) -> bool:
    """Whether both have the same names, with tensors of the same shapes."""
    return {name: tensor.shape for name, tensor in ours.items()} == {
        name: tensor.shape for name, tensor in read.items()
    }


def mend(folder: Path, shipped: Path) -> str:
    """What to do about a folder that is not as it should be."""
    if folder == shipped:
        return "Install chiasm again."
    return "It is damaged, or another version of chiasm wrote it."


def digest(
    kind: str,
    folder: Path,
    names: Sequence[str],
    towers: Sequence[str],
    catalogs: Sequence[Path],
) -> str:
    """SHA-256 over a folder's files and the digests of the towers that `pull` has verified.

    kind: told apart from others with the same files. names: the folder's files. towers: entries
    of the catalogue.
    """
    whole = hashlib.sha256(f"{kind}\n".encode())
    for name in names:
        with (folder / name).open("rb") as file:
            part = hashlib.file_digest(file, "sha256").hexdigest()
        whole.update(f"{name} {part}\n".encode())
    for tower in towers:
        for path, entry in sorted(catalog.find(tower, catalogs).files.items()):
            whole.update(f"{tower}/{path} {entry.sha256}\n".encode())
    return whole.hexdigest()
