"""Snapshots of a training run: everything that is needed to go on as if it had not stopped.

A snapshot is one file. It is written beside its place, brought to the disk, and renamed, so that
it is there whole or not at all; older ones are removed only after that. It holds no code: it is
read with pickle's globals forbidden.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from chiasm.errors import ChiasmError, NoSpace, UnsupportedCheckpoint

_FORMAT = 1
_NAME = re.compile(r"step-(\d{9})\.pt")
# Whole tensors on the first rank's CPU, whatever the sharding: a run may go on with another one.
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


@dataclass(frozen=True)
class Snapshot:
    """What a file holds.

    model, average: tensors by name; average is None without EMA. optimizer: its state by the names
    of parameters. recipe: the run's, as nested tables. ranks: of each process the state of its
    random numbers and of its data.
    """

    step: int
    recipe: dict[str, Any]
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    average: dict[str, Tensor] | None
    ranks: list[dict[str, Any]]


def whole_weights(network: nn.Module) -> dict[str, Tensor]:
    """The network's tensors, whole, on the first rank's CPU. All ranks must call it."""
    weights: dict[str, Any] = get_model_state_dict(network, options=_WHOLE)
    return weights


def collect(
    network: nn.Module, optimizer: torch.optim.Optimizer, *, frozen: bool = True
) -> tuple[Any, Any]:
    """(model's state, optimizer's state), whole, on the first rank. All ranks must call it.

    frozen: whether parameters that do not learn are among them.
    """
    model = whole_weights(network)
    if not frozen:
        learned = _named(network, frozen=False)
        model = {name: tensor for name, tensor in model.items() if name in learned}
    return model, get_optimizer_state_dict(network, optimizer, options=_WHOLE)


def restore(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    snapshot: Snapshot,
    *,
    frozen: bool = True,
) -> None:
    """Put a snapshot's tensors into a network and its optimizer, on every rank.

    frozen: as the snapshot was collected.
    Raises UnsupportedCheckpoint if they belong to another architecture.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in snapshot.model.items()}
    named = _named(network, frozen=frozen)
    here = {name: tuple(tensor.shape) for name, tensor in named.items()}
    if shapes != here:
        odd = sorted(name for name in {*shapes, *here} if shapes.get(name) != here.get(name))
        raise UnsupportedCheckpoint(
            f"The snapshot of step {snapshot.step} is of another architecture: {len(odd)} tensors "
            f"differ, {odd[0]} among them ({_shape(shapes, odd[0])} there, {_shape(here, odd[0])} "
            "here).",
            hint="Resume with the recipe that the run began with, or train into another folder.",
        )
    weights: dict[str, Any] = dict(snapshot.model)
    # What is missing are the frozen ones: the shapes above agree.
    options = StateDictOptions(full_state_dict=True, strict=frozen)
    set_model_state_dict(network, weights, options=options)
    set_optimizer_state_dict(
        network,
        optimizer,
        optim_state_dict=snapshot.optimizer,
        options=StateDictOptions(full_state_dict=True),
    )


def random_state() -> dict[str, Tensor]:
    """Of torch's generators, the only ones that training draws from."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Tensor]) -> None:
    """Put back what `random_state` gave."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


# Files ------------------------------------------------------------------------------------------


def save(snapshot: Snapshot, folder: Path, *, keep: int) -> Path:
    """Write a snapshot into `folder`, then remove all but the newest `keep`.

    Raises NoSpace; whatever was there before is then still there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{snapshot.step:09d}.pt"
    partial = path.with_suffix(".partial")
    needed = _bytes(vars(snapshot))
    if shutil.disk_usage(folder).free < needed:
        raise _no_space(path, needed, folder)
    try:
        with partial.open("wb") as file:
            torch.save({"format": _FORMAT, **vars(snapshot)}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # torch says RuntimeError when a write fails
        partial.unlink(missing_ok=True)
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or shutil.disk_usage(folder).free < needed:
            raise _no_space(path, needed, folder) from None
        raise ChiasmError(
            f"{path} could not be written.", hint="Check that its folder may be written to."
        ) from None
    for old in paths(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def paths(folder: Path) -> list[Path]:
    """The snapshots in `folder`, oldest first."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in found if _NAME.fullmatch(path.name))


def load_newest(folder: Path) -> tuple[Snapshot | None, list[Path]]:
    """The newest snapshot that can be read, and the newer ones that cannot."""
    damaged: list[Path] = []
    for path in reversed(paths(folder)):
        try:
            return load(path), damaged
        except UnsupportedCheckpoint:
            damaged.append(path)
    return None, damaged


def load(path: Path) -> Snapshot:
    """Read one file. Raises UnsupportedCheckpoint if it is no snapshot, or cut short."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content.pop("format") != _FORMAT:
            raise UnsupportedCheckpoint(f"{path} was written by another version of chiasm.")
        return Snapshot(**content)
    except UnsupportedCheckpoint:
        raise
    except Exception:  # whatever a damaged archive makes the reader say
        raise UnsupportedCheckpoint(f"{path} is no snapshot that can be read.") from None


def _named(network: nn.Module, *, frozen: bool = True) -> dict[str, Tensor]:
    prefix = "module."  # DDP's
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in network.state_dict(keep_vars=True).items()
        if frozen or tensor.requires_grad or not isinstance(tensor, nn.Parameter)
    }


def _shape(shapes: dict[str, tuple[int, ...]], name: str) -> str:
    return "×".join(map(str, shapes[name])) or "a number" if name in shapes else "none"


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(_bytes(each) for each in value.values())
    return sum(_bytes(each) for each in value) if isinstance(value, list | tuple) else 0


def _no_space(path: Path, needed: int, folder: Path) -> NoSpace:
    before = paths(folder)
    kept = f" {before[-1].name} is still there." if before else ""
    return NoSpace(
        f"{path} needs {needed / 1e6:,.0f} MB, more than the disk has.{kept}",
        hint="Make room and go on with --resume.",
    )
