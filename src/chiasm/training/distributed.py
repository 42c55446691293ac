"""One process or many: what `torchrun` has set up, and how the network is spread over it.

The same code runs on one process without torch.distributed being touched.
"""

from __future__ import annotations

import gc
import os
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist

# Imported when there is a group, its functions would have that as a default (see `_leave`).
import torch.distributed.nn.functional
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from chiasm.errors import ConfigurationError

T = TypeVar("T")

Sharding = Literal["ddp", "fsdp"]


@dataclass(frozen=True)
class World:
    """The processes that train together.

    rank: of this process, from 0. size: how many there are. launched: whether a launcher began
    them, be it one.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    launched: bool = False

    @property
    def group(self) -> Any:
        """The process group; None when nothing was launched. To be used, not to be kept."""
        return dist.group.WORLD if self.launched else None

    @property
    def first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all."""
        if self.group is not None:
            dist.barrier(self.group)

    def gather(self, value: T) -> list[T]:
        """Every rank's `value`, in the order of ranks."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, self.group)
        return values

    def told(self, value: T) -> T:
        """The first rank's `value`, on every rank."""
        if self.group is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]


@contextmanager
def joined(device: str) -> Iterator[World]:
    """The world that the launcher describes in the environment, left again at the end.

    device: auto, cpu or cuda; a rank takes the CUDA device of its local number.
    Raises ConfigurationError when `device` is not there.
    """
    size, rank = (int(os.environ.get(name, default)) for name, default in _LAUNCHED)
    chosen = _device(device)
    if size == 1 and "RANK" not in os.environ:
        yield World(device=chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    raised: BaseException | None = None
    try:
        yield World(rank, size, chosen, launched=True)
    except BaseException as error:
        raised = error
        raise
    finally:
        _leave(raised)


_LAUNCHED = (("WORLD_SIZE", "1"), ("RANK", "0"))
# Seconds, after an error: threads may then wait for other processes that never come.
_PATIENCE = 60.0


def _leave(raised: BaseException | None) -> None:
    """Destroy the process group, and see its threads end.

    Gloo's threads drop the tensors of a finished exchange when they come to it. On a busy machine
    that can be after Python has begun to end, and the process then aborts. They are waited for by
    the group's destructor alone, so whatever holds the group must let go: DDP's wrapper, which is
    part of cycles; FSDP's mesh, which DTensor's caches keep; after an error, the frames that it
    went through.
    """
    group = [dist.group.WORLD]  # the last to hold it, so that nobody else waits
    dist.destroy_process_group()

    def let_go() -> None:
        error = raised
        while error is not None:
            traceback.clear_frames(error.__traceback__)
            error = error.__cause__ or error.__context__
        for mesh in (found for found in gc.get_objects() if type(found) is DeviceMesh):
            getattr(mesh, "_pg_registry", {}).clear()
        gc.collect()
        group.clear()

    leaving = threading.Thread(target=let_go, daemon=True, name="chiasm-leave")
    leaving.start()
    # Without an error no exchange is under way, and on a busy machine this may take its time.
    leaving.join(None if raised is None else _PATIENCE)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in {"cpu", "cuda", "mps"}:
        raise ConfigurationError(
            f"There is no device {name!r} to train on.", hint="Use auto, cpu, cuda or mps."
        )
    if name == "cuda":
        if not torch.cuda.is_available():
            raise ConfigurationError(
                "There is no CUDA device on this machine.", hint="Use --device cpu."
            )
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device(name)


def spread(network: nn.Module, world: World, sharding: Sharding, blocks: tuple[type, ...]) -> Any:
    """`network` as it takes part in the world: itself, wrapped for DDP, or sharded for FSDP2.

    blocks: the classes of modules that FSDP gathers one at a time.
    """
    if world.group is None:
        return network
    if sharding == "ddp":
        from torch.nn.parallel import DistributedDataParallel

        devices = [world.device] if world.device.type == "cuda" else None
        return DistributedDataParallel(network, device_ids=devices)
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(world.device.type, (world.size,))
    for module in network.modules():
        if isinstance(module, blocks):
            fully_shard(module, mesh=mesh)
            if hasattr(module, "one"):  # a transformer block's other way in
                register_fsdp_forward_method(module, "one")
    return fully_shard(network, mesh=mesh)


@contextmanager
def exchanging(network: Any, yes: bool) -> Iterator[None]:
    """Whether the backward passes inside exchange gradients with the other processes."""
    if hasattr(network, "set_requires_gradient_sync"):  # FSDP2
        network.set_requires_gradient_sync(yes)
        yield
        network.set_requires_gradient_sync(True)
    elif hasattr(network, "no_sync") and not yes:  # DDP
        with network.no_sync():
            yield
    else:
        yield


def bare(network: Any) -> Any:
    """The network itself, without what DDP wraps round it."""
    return getattr(network, "module", network)
